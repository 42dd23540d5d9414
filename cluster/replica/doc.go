// Package replica keeps placement groups: it is the primary of some, a secondary of others (PacificA; REPLICATION.md's rules R1 to R24 are named in
// the code). It takes its orders from the agreed map and asks raft, through Config.Propose, to change in-sync sets.
//
// What a node is for one group, and what makes it something else:
//
//	          map: primary, newly granted                 every member equal, own entry committed
//	  ┌──────────────────────────────────▶ activating ─────────────────────────────────▶ serving
//	  │                                      │  ▲ member lost: shrink through raft,        │
//	idle ◀──────────┐                        │  └ begin again under the new term           │ map: same grant, new term:
//	  │             │ map: no part in it     │                                             │ goes on
//	  └────────▶ secondary ◀─────────────────┴─────────────────────────────────────────────┘
//	    map: in sync or target,      map or a message: another is primary under a later term
//	    or a primary's resync
//
// One write: Submit or Frame → group.handle (validate, then number) → objstore Stage and the peers' queues → end of the batch: peers' sockets,
// then one write(2) to the journal → Finish: we have it; peers' acks: they have it → advance: commit, answer.
//
// Files: engine.go (wiring), group.go (the state machine above), handle.go (what a request may do), write.go, read.go, flush.go (the three kinds of
// requests), peer.go (connections to replicas), secondary.go (the other end), takeover.go, insync.go (changing sets), resync.go, copyout.go and copyin.go (bringing a
// replica up to date, both ends), pace.go (how fast), closing.go (snapshots), collect.go (freeing), verify.go (cluster check),
// rehome.go (from one disk of ours to another), once.go (changes of shared VDIs are done once), credit.go (space), rot.go and compare.go (what scrubs find).
//
// Goroutines: of the engine one ticker, one proposer, one resync scheduler, one collector, one that repairs what scrubs found, one that compares tables; readers of cold blocks (readersMax); resyncs
// (resyncsMax, of which copiersMax copy); as the other end of one, one for each frame of copied blocks (copiersMax for each primary); one dialer a peer while it is unreachable. All end with Close. Everything else runs in the goroutine that brought the frame or request.
//
// Locks, in this order: clientState.mu, group.mu, incoming.mu, then any one of peer.mu, Engine.mu, a connection's. None is held while waiting for disk or network, except
// that staging an entry may write a large one's data to its slots. Requests are answered without any lock, through the Batch.
package replica
