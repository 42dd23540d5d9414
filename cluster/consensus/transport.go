package consensus

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// reachPeriod is how often a peer that does not answer is tried.
const reachPeriod = 100 * time.Millisecond

// transport is raft's network transport, which waits for a peer that is away instead of failing.
//
// Raft waits longer after each failure before it replicates to a peer again, up to ten seconds, and does not notice that the peer is back. A node that
// restarts would have to wait that long for what was agreed meanwhile. So a failed AppendEntries does not return before the peer can
// be reached again, or before the leadership or the peer's membership ends. Heartbeats fail as they always did: it is by them that raft judges who is there.
type transport struct {
	*raft.NetworkTransport
	c *Consensus
}

// isHeartbeat tells raft's bare heartbeats from replication.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return len(r.Entries) == 0 && r.PrevLogEntry == 0 && r.LeaderCommitIndex == 0
}

func (t *transport) AppendEntries(id raft.ServerID, a raft.ServerAddress, r *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := t.NetworkTransport.AppendEntries(id, a, r, resp)
	if err == nil || isHeartbeat(r) || !t.reach(id, a, r.Term) {
		return err
	}
	return t.NetworkTransport.AppendEntries(id, a, r, resp)
}

func (t *transport) InstallSnapshot(id raft.ServerID, a raft.ServerAddress, r *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !t.reach(id, a, r.Term) {
		return fmt.Errorf("send snapshot to %s: not reached while this node led", a)
	}
	return t.NetworkTransport.InstallSnapshot(id, a, r, resp, data)
}

// reach waits until the peer answers a connection's hello; false: no longer of use.
func (t *transport) reach(id raft.ServerID, a raft.ServerAddress, term uint64) bool {
	c := t.c
	for {
		to := a
		if addr, err := c.ServerAddr(id); err == nil {
			to = addr
		}
		conn, err := c.stream.Dial(to, rpcTimeout)
		if err == nil {
			conn.Close()
			return true
		}
		select {
		case <-time.After(reachPeriod):
		case <-c.closing:
			return false
		}
		if c.raft.State() != raft.Leader || c.raft.CurrentTerm() != term ||
			!slices.ContainsFunc(c.Servers(), func(s Server) bool { return s.UUID == string(id) }) {
			return false
		}
	}
}
