// Package guard is the guardian: a small process beside the daemon that knows when the daemon is dead, and says so (R8).
//
// A lease has to run out before a silent node's groups get another primary. A process that was killed need not cost that: the kernel knows that it is
// gone. The guardian is the daemon's child, in a session of its own, with a pidfd of the daemon:
//
//	daemon ──starts──▶ guardian          holds a pidfd, opened and checked against getppid
//	   │ ──stdin: who I am, whom to tell──▶ │
//	   ╳ killed                            poll(pidfd): all threads are gone, nothing of it will answer again
//	                                        │──KindExited──▶ the other nodes, until one has it through the leader
//	                                        ▼ exits
//
// stdin carries lines of JSON, each of which replaces the one before. A line that says "bye" ends the guardian: the daemon stops on purpose and says
// so itself. The end of stdin alone proves nothing (a file descriptor may have leaked); only the pidfd does.
//
// The guardian holds none of the daemon's files: Go opens everything close-on-exec. It ignores SIGINT, SIGTERM and SIGHUP, which are meant for the daemon.
//
// What it cannot do: tell of a machine that died or was cut off. Leases do that.
package guard
