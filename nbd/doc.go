// Package nbd serves block devices over the Network Block Device protocol. It knows the protocol and nothing else: what an export is,
// and where its bytes live, is a [Backend]'s business.
//
// # Use
//
// A Backend lists, describes and opens exports; what it opens is a [Device], one for each connection:
//
//	srv, err := nbd.NewServer(nbd.Config{}, backend)
//	l, err := nbd.ListenUnix(nbd.UnixSocket{Path: "/run/disk.sock"})
//	err = srv.Serve(l) // until srv.Shutdown(ctx)
//
// [MemBackend] is a complete one in memory, and the shortest example.
//
// # A request's way
//
// Each connection has one goroutine, the reader. It takes all requests that have arrived with one read(2), hands each to
// [Device.Submit], says [Device.Push], sends the replies that are there already with one writev(2), and reads again. So a Device
// that can answer on the spot does, and costs no hand-off; one that can't keeps the [Request] and answers later, from any goroutine and in
// any order, by [Request.Done], or by [Request.Queue] for many and then [Conn.Flush].
//
//	client ─► socket ─► reader ─► validate ─► Submit … Push ─► (Device)
//	                                                              │ Done, Queue
//	client ◄─ socket ◄─ sender ◄──────────── queue ◄──────────────┘
//
// A large write with more behind it is given to the connection's submitter goroutine, so that the Device takes it while the reader takes
// the next one from the socket (handoff.go). A [Preparer] sees it before that, while it is in the reader's processor's cache.
//
// If the Device is a [Sharer], large reads wait until nothing else has arrived (or a few other requests went before), and a second goroutine makes some of them where there are several and a processor for it (share.go): what is in
// memory takes a processor as long as it takes to copy it.
//
// Where a client waits for one request and the Device for a disk, the reader waits itself, if the Device is a [Waiter] and nobody else has asked for anything for a while;
// should that take long, another goroutine becomes the reader (relief.go).
//
// Where a client has all its answers, the reader looks at the socket a few times more before it sleeps, if that succeeded lately and nobody else asked for anything (spin.go).
//
// Whoever answers while nobody sends becomes the sender, and takes along what others queue meanwhile. A sender never waits for
// the socket: when it is full, the connection's writer goroutine takes over, so that a client that doesn't read holds up
// nobody but itself.
//
// A payload is copied once, from the read buffer to its place (a long one not even that), and not at all on the way out. It lies in
// a reference-counted, 4096-aligned [Buffer] that a Device may keep. Requests and buffers are pooled: on the way through nothing is allocated.
//
// # What a Device can rely on
//
//   - A request is within the export, aligned to MinBlock, not longer than MaxBlock if it moves data, and has no flags that
//     the export does not offer. Everything else was refused before (validate.go holds each refusal).
//   - Submit, Push and PushLeaving are never called at the same time for one connection, and, as Read, never after Close.
//   - Close comes once, after the last answer. The context given to Open ends before it, and at once when the connection
//     breaks or the client leaves without a goodbye: what was not started then need not be.
//   - FLUSH covers what was answered before it was submitted, and with ExportInfo.MultiConn also on other connections. Keeping that
//     promise is the Device's task, as is FUA.
//
// # Goroutines
//
//	reader     one for each connection, from accept to the end; also runs the handshake. One that is relieved ends when what it waits for is there
//	writer     at most one for each connection, from the first time that its socket was full, until the connection ends
//	submitter  at most one for each connection, from the first large write with more behind it, until the connection ends; one for two
//	           processors has a thread of its own, until it has had nothing to do for a second
//
//	relief     one for a server while readers wait for its Devices from time to time: looks each 5 ms whether one has to be relieved
//
// Serve runs on its caller's. Nothing else runs in the background.
//
// # Bounds
//
// Every queue has one, named in [Config]: half-open connections, options and time in a handshake, sessions, requests and bytes
// in flight on a connection, bytes in flight in all, time without progress. Bytes are those of payloads and of long answers. The bytes are shared in a way that leaves some for
// those that work beside hundreds that do not (budget.go); a connection whose socket is full is not even looked at until it takes something. An idle
// connection holds no buffer.
//
// # Locks
//
// Server.mu, then Conn.mu, then budget.mu; submitter.mu and relief.mu alone. None is held during I/O or a call of the Device or the Backend.
//
// # What is spoken
//
// Fixed newstyle with EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT and
// EXTENDED_HEADERS; READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS with all their flags; sparse reads; base:allocation and
// any other context that an export names.
//
// # What is not here
//
// A client; the kernel's netlink interface; oldstyle negotiation; RESIZE (a resize is seen by new connections); rate limits.
package nbd
