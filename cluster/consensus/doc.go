// Package consensus keeps the agreed map (package state) the same on every node: raft, with the map as its state machine.
//
// One [Consensus] runs in every node. It votes if the raft configuration says so; it always applies, and publishes the map after each command
// through an atomic pointer that the data path reads without a lock.
//
//	Propose ──▶ leads? ── yes ─▶ prepare (Config.Prepare fills in what the leader knows of leases, R6) ─▶ raft.Apply ─▶ every fsm.Apply
//	               │ no                     └── both under one lock: the log has the order in which the leader knew things
//	               └──▶ KindPropose to the leader's address, again and again under the same ID until an outcome is known
//
// An entry of raft's log is the leader's term and a command:
//
//	0      8
//	┌──────┬───────────────┐
//	│ term │ JSON command  │
//	└──────┴───────────────┘
//
// A command whose term is not its log entry's is skipped on every node alike: it was written under an earlier leadership, by what was known
// then, and waited in a queue until the same node led again.
//
// Outcomes: an Apply that fails with lost leadership or a timeout is unknown. Propose asks again with the same ID; the state machine remembers
// the outcomes of the newest commands and answers a repeat with the first one.
//
// Leadership: when raft elects this node, a barrier is applied first; then Config.Begin is told, then proposals are taken, and Config.Lead runs
// until the leadership ends.
//
// Disks: every call of raft's log store is timed. While one hangs, this node's raft connections are cut (watchdog.go), so that the others elect a leader
// whose disk works: raft itself would go on sending heartbeats. A store that fails is failed for good and Config.Fatal is told.
//
// Raft connections (stream.go) begin with the cluster's identity and the identity of the node meant; a connection for another is refused. Raft itself
// would believe whoever answers at an address, and count one voter twice.
//
// Goroutines, besides raft's own: accept (one, stream.go), one short-lived per raft connection for its hello, leadership (one), lead (at most one),
// watchdog (one), observe (one), nudges (one per peer, short-lived, nudge.go). All end with Close.
//
// What it does not do: decide who is alive or leased (packages lease and lead), or who should vote (package lead).
package consensus
