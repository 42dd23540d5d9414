// Package node puts one storage node together: its directories, its port, gossip, raft, its lease, the replication engine, and the guardian.
//
// # A node's life
//
//	          ┌───────┐ Format here, or an invitation, or a cluster met by gossip
//	Start ──▶ │ blank │────────────────────────────────┐
//	          └───────┘                                ▼
//	          ┌──────────┐ raft: a leader added it  ┌─────────┐
//	          │ learning │◀─────────────────────────│ joining │◀── Start of a directory that belongs to a cluster
//	          └──────────┘  asks any member (Join)  └─────────┘
//	               │ Register applied: the map knows this incarnation (R5)
//	               ▼
//	        ┌────────────┐  InService applied, lease granted  ┌─────────┐
//	        │ registered │───────────────────────────────────▶│ serving │
//	        └────────────┘                                    └─────────┘
//	               ▲  Ended: it was silent for too long. It takes a new incarnation   │
//	               └──────────────────────────────────────────────────────────────────┘
//
// One goroutine (live) walks through these states; what is refused for good ends the node with one clear line (Done, Err).
//
// # The directory
//
// The first directory holds, besides a store, what makes the node itself:
//
//	node.lock          held while a daemon runs on it: a second one is refused
//	epoch/node.json    identity: uuid, cluster, incarnations, disks (dir.go)
//	epoch/raft/        raft's log and snapshots
//
// Its disks are those of node.json: named on the command line at the first start or added later (disks.go). What a disk is:
//
//	          add                  its share of the groups has come
//	(none) ────────▶ filling ─────────────────────────────────────▶ in use
//	                    │ remove                                       │ remove
//	                    └──────────────────▶ removing ◀────────────────┘
//	                                            │ no group is left on it
//	    any ──▶ failed: a write or a sync was   ▼
//	            refused, or it is an older     (none), remembered as gone
//	            copy; until it is removed
//
// Every disk keeps the node's incarnations, in its store's value "incarnations" (incarnation.go).
//
// # Goroutines
//
//	accept     frame connections             live      admission, registration, incarnations
//	mux        the port                      renew     asks for the lease
//	follow     hands the map to the engine   guardian  keeps the guardian informed (if there is one)
//	watch      one for each follower of the map (at most watchersMax)
//	control    one for each request that has to wait (at most controlsMax)
//	moveGroups between the node's disks, and notices disks that fail (moves.go)
//
// All end with Stop.
package node
