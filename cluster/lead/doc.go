// Package lead is what the node does that leads raft. It looks at the map and at who has a lease, and proposes what follows:
//
//	what it sees                                                   what it proposes
//	a lease ran out, or a guardian saw a process exit (R8)         Ended
//	a registered incarnation asks for its first lease (R6)         InService, and then the Keeper grants it
//	a set whose members all restarted is back, or long enough (R6) Resume
//	a node is down for longer than rebuild-after                   NodeOut
//	a snapshot is being taken and all groups reported (R22)        FreezeVDI; AbortClose when it takes too long
//	a client program keeps its session no longer                   CloseSess
//	a node asks to be admitted; voters are missing, dead, removed  raft configuration changes, one at a time
//
// It keeps nothing that a new leader would miss: everything is found again in the map and in what nodes repeat. What it measures (how long somebody is
// away) begins anew with each leadership.
//
// [Leader.Prepare] fills in what commands say of leases, in the order of the log.
//
// Goroutines: Run, called by package consensus, one at a time; and one for each kind of thing proposed, at most one each (task.go). All
// end with the leadership.
package lead
