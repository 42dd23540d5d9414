// Package state is what the cluster has agreed on: one value, [Map], and one function, [Map.Apply], that makes the next Map out of a
// Map and a [Command]. Raft carries the commands; every node applies the same ones in the same order and so holds the same Map.
//
// The package is pure. It reads no clock, draws no random number, does no I/O, starts no goroutine and never ranges over a Go map to
// decide something. What a decision needs of the outside world is in the command: the proposer's clock, and which members held a
// lease when the leader wrote the command (R6). A Map that was handed out is never changed; Apply shares what stayed the same, so a
// Map may be read without locks for as long as anybody likes.
//
// # Words
//
// A [Member] is one incarnation of a node: what runs from one registration to the next. A member is
//
//	current     its node has registered nothing newer
//	ended       over for good (lease ran out, process seen to exit): it never gets a lease again
//	superseded  its node has registered a newer incarnation
//	intact      current, not ended, node not removed: it has lost nothing
//	in service  intact, and named in the command's Leased
//
// A member that ended never comes back itself, but its node does, with what the member had on its disk. So for R10 a member "may return" whether it ended
// or not, as long as its node has not been removed and has registered nothing newer. Once it has, that is what returned: in a set where
// others are in service it begins outside (R6) and does not count; in a lost set it stands for the member that it was, in Back.
//
// # A group's in-sync set
//
// One function changes a set when members come and go (settle.go); primaries propose everything else (SyncChange, insync.go).
//
//	                     SyncChange: add, remove, hand over (compare-and-set on the term)
//	                              ┌────┐
//	  Format, AddPool             │    ▼
//	 ──────────────────────▶    ┌────────┐   the primary ended, another member is in service:
//	all targets, empty          │ ACTIVE │   that one is primary, new term; superseded members leave (R6),
//	                            │primary │───┐ ended ones leave if min-copies others stay (R10)
//	                            └────────┘◀──┘
//	     the primary ended or is  │    ▲   an intact member is in service after all (nothing was lost)
//	     superseded, nobody else  │    │   or Resume: the members that returned go on with the longest prefix (R7)
//	     of the set is in service │    │   or Force: an administrator's word, also with fewer or older ones
//	                              ▼    │
//	                            ┌────────┐
//	                            │  LOST  │───┐ Register: a new incarnation of a member's node is noted in Back (R6);
//	                            │LostAt≠0│   │ the member stays a candidate under its old name
//	                            └────────┘◀──┘
//
// In every state the set has at least one member; a primary is always a member; and the term rises with every change of the set or of
// the primary (R2), in one place, when an edit is sealed.
//
// In ACTIVE a member may be ended and still named: the rest would have been fewer than min-copies. Nothing is written meanwhile (a
// write needs every named member), so the name stays true, and it is one more copy to go on from. It leaves when its node registers anew, when the
// primary replaces it by another, or when enough others have joined.
//
// A set resumes (Resume) with those that returned: all, or after a wait that the leader measures, at least min-copies of those that may return. Fewer
// than that takes Force, or the removal of the nodes that will never return.
//
// While the cluster is shut down on purpose, sets do not shrink and no primary is chosen: everybody is leaving, nothing is written, and all shall
// find themselves in sync when they return.
//
// # What it does not do
//
// It does not decide that somebody is dead, that a wait is over, or who may have a lease: the leader does (package consensus). It moves no data
// and does not know how far a replica is: primaries do (package replica). It gives no word on what is stored.
package state
