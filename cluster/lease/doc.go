// Package lease says who may serve (R12, R13, invariant 4: no lease, no service).
//
// The raft leader's [Keeper] grants leases; every node's [Holder] has one, or not. A node asks a few times a second (wire.Renew); the leader
// answers (wire.Grant) with its clock's stamp, and with the newest asking that a lease is granted for. The lease runs from when the node asked, on
// the node's own clock, which runs through suspends (CLOCK_BOOTTIME).
//
// # When a grant is safe
//
// A new leader N takes every node in service as leased from its barrier on, for one lease and a margin. So an old leader O must grant nothing
// that lasts longer than that. O may grant an asking that arrived at time t when a majority of voters told it, in messages sent after t, that
// their raft term is still O's:
//
//	X asks ──▶ O (t)      answers carry O's clock as a stamp
//	           O ──stamp s ≥ t──▶ V        a voter repeats the newest stamp it saw ...
//	           O ◀──(s, term)──── V        ... and its raft term, read after that
//	           O: a majority echoed stamps ≥ t under its own term: X's asking is granted
//
// N's election needed a majority that voted in a later term. It shares a voter with the one that O heard, and that voter voted after it
// spoke, so after t. N's barrier is later still, and X's lease ends one lease after X asked, which was before t.
//
// A voter's word is about its raft term, which outlives its process. So it counts also from one that was started again and is not registered yet
// (Renew.Inc 0), if it comes after the incarnation in the map. Without that nobody would get a lease while a majority of the voters is being registered,
// and that may have to wait until the leases of their former selves have run out: those who lived on would lose their places, and their clients'
// sessions, for nothing.
//
// # What else a grant needs
//
// The member is its node's current incarnation, in service in the map (the leader proposes that first), and nobody has decided on its removal: from
// the moment that the leader writes "X has ended" into a command, X gets nothing. The grant names the map index at which X came into service: X uses it only
// after having applied that, so that a node never serves under a lease by a map in which its former self was primary.
//
// # Pauses
//
// A leader that was stopped for a while itself finds that every lease has run out. It then gives everybody one more lease's time to renew,
// like a new leader (a suspended laptop, a stopped virtual machine with all nodes).
//
// The package does no I/O and starts no goroutine: package node carries the messages.
package lease
