// Package admin is a node's administration: HTTP and JSON on the node's own port, beside frames and raft.
//
//	GET  /v1/map[?after=N]   the agreed map; with after, once it is newer than index N (or after a while as it is)
//	GET  /v1/status          the cluster in words and numbers: what is degraded, what is being done about it
//	GET  /v1/node            this node: space, role, lease, counters
//	GET  /v1/nodes           the same of every node in the map, asked by this one
//	GET  /v1/recovery        nodes that are being brought up to date, how far they are, how long it will take
//	GET  /v1/usage           bytes per VDI on the groups that this node is primary of; ?all=1 summed over all nodes
//	GET  /v1/health          200 while this node holds its lease, else 503: for load balancers and systemd
//	POST /v1/propose         one command of those that administrators give (see allowed), as JSON; answers with its result
//	POST /v1/format          make a cluster of the nodes that are there
//	POST /v1/check           compare all replicas: a stream of JSON lines (CheckEvent); ?self=1 only this node's primaries
//	POST /v1/shutdown        stop every node, this one last
//	POST /v1/stop            stop this node
//	POST /v1/disk/add        take a directory in as another disk of this node
//	POST /v1/disk/remove     move everything off a disk of this node and let it go; /v1/node shows how far that is
//	GET  /metrics            Prometheus
//
// An error is a JSON object {"code", "error"} with a fitting HTTP status; Client turns it back into an error that wraps fs.ErrExist,
// fs.ErrNotExist and so on. Everything about disks themselves (names, snapshots, reading and writing) is agreed state or the data
// path: it needs only map and propose from here.
//
// Requests that a browser sends for a foreign page are refused; there are no passwords, so the port belongs on a network that only
// administrators and nodes reach.
//
// Goroutines: one that accepts, until the node's port is closed; one that looks once a second at what is in recovery, until Shutdown; those of net/http, one per request, and while a request asks other nodes one per node asked (at most fanOutMax at once).
package admin
