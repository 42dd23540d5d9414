// Sheep-nbd serves one VDI of a cluster over NBD, in the shape of qemu-nbd. It is by itself a full client of the cluster: it learns the agreed map from
// any node it is told, talks to primaries directly, and goes on when any of them dies.
//
//	main.go     flags and exit codes
//	serve.go    the cluster, the server and its listener; when it ends
//	leave.go    counting clients: it ends with the last one, unless -t
//	ports.go    the sockets: TCP with TLS, unix, or systemd's
//	tab.go      --tab: a table of what is served, for service managers
//	fork.go     --fork: the parent returns once clients can connect
//	device.go   -c, -d, -l: devices of the kernel (package attach)
//	flusher.go  -c: what the kernel must know of a process that disks go through
package main
