// Package client reads and writes virtual disks in the cluster for one process: a node's gateway, or a program such as sheep-nbd. Both are the same code; they
// differ in where the agreed map comes from (the node's own, or a Watcher's) and in that a gateway's requests to its own node take no socket.
//
// # The way of a request
//
// A Disk takes an Op, which its caller embeds or pools. An Op is cut into pieces, one per 4 MiB object. A piece goes to the primary of its
// placement group as the newest map has it, under the group's term and the session's generation. What a primary refuses for now, or does not answer, goes
// again, for as long as it takes: a VM sees a pause. Only what cannot become better ends a request: no space, read-only, a bad block, a session that others
// ended. piece.go draws where a piece may be.
//
//	op.go       Op: admission, cutting, completion        piece.go    a piece and its states
//	dispatch.go where a piece goes, what an answer means   peer.go     the connection to a node's primaries
//	overlap.go  R15: one unanswered change per block      relay.go    R18: through another node
//	session.go  R14: the right to write a VDI             renew.go    a session that lapsed
//	flush.go    flush by group, shared by all who wait    retain.go   R17: what is acknowledged and not flushed
//	replay.go   R17: sent again after a set resumed       open.go     Disk, opening and closing
//	once.go     changes of shared VDIs are done once      replayed.go R22: a snapshot waits for what is sent again
//	client.go   the Client and its tender                 watch.go    the map for programs; propose.go: proposing for them
//
// # What it promises
//
//   - A change is done when its Op is: it is on every in-sync replica (invariant 1). A FLUSH that succeeds covers every change that was done before it
//     began, on any Disk of the same VDI in this process, and for a session's first one what earlier sessions left (invariant 2).
//   - No late copy of a change lands on top of a later one (invariant 7): at most one change of a block is unanswered (R15), a connection to a primary is greeted
//     before anything is sent again, and terms and generations fence what is elsewhere.
//   - Changes that are acknowledged and not flushed are kept, bounded by Config.RetainBytesMax; when all nodes of a group lost power they are sent again, in order,
//     before anything else goes there. What cannot be sent again fails the reads of those blocks and the next FLUSH; nothing is lost silently. No payload is kept
//     of what only a replica in this very process has (wire.Request.Sole): only a force can lose that while the process lives.
//   - Several clients may write a shared VDI: a FLUSH by any of them covers all. A change that is sent again is done once (once.go); where that cannot be known, because
//     all nodes of its group ended, or the session did, it fails with EIO. What a power cut took of it is not sent again, since others may have written there
//     since; the reads of those blocks fail where they were written, and the next FLUSH of every client fails.
//   - A session that others ended stays ended: its requests fail with EIO. One that merely lapsed is opened again, if nobody had the VDI meanwhile.
//
// # Cost
//
// A request that meets no trouble costs no allocation, no goroutine, no timer and no hand-off: it is sent, or done, by the goroutine that brought it, with all
// that came with it in one wire.Batch, and completed by the goroutine that got the last answer. The map is read without a lock. A change takes
// its session's lock twice, a request to another node that peer's lock twice.
//
// # Goroutines
//
//	tend       1     New … Close: everything that waits for a map or for time
//	connect    1     for each node that is being dialed; at most dialTimeout
//	renew      1+1   for each session that lapsed, until it is opened again or dead
//	tell       1+1   for each session whose snapshot waits for what is sent again
//	linger     1     for each session whose last Close could not flush, until that is done or it is opened again or dead
//	reader, writer   of each connection (package wire)
//	Watcher: follow, keep, and one that ends keep's requests
//
// # Locks, in this order
//
// Client.mu, session.mu, peer.mu, then a connection's. Client.parkMu is taken alone. No lock is held when an Op's Done is called, when something is submitted to
// a primary, or during I/O.
//
// # What it does not do
//
// It caches nothing: two clients that read the same snapshot ask twice. It knows no names of exports and no NBD (package vdi does). It does not bound how many
// Ops are under way: whoever submits them does.
package client
