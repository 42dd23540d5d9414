// Sheep is Sheepdog's one program: `sheep daemon` is a node, `sheep dev` a whole cluster to try, and everything else administers one.
//
// Files are named by what they do:
//
//	main.go shell.go     the program, what all commands share: streams, flags, the node to ask
//	fail.go              which error ends with which exit code
//	daemon.go serve.go   a node: flags and signals; the wiring of node, NBD servers and admin API
//	gateway.go local.go  what NBD clients and the admin API see of it
//	background.go joincheck.go            what it does beside serving
//	dev.go               several nodes in this process
//	cluster.go node.go vdi*.go disk.go    one group of commands each
//	confirm.go progress.go completion.go
//
// Packages beneath: units (sizes), args (flags after arguments), output (tables, raw lines, JSON).
package main
