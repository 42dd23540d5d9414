package consensus

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"
)

// Campaign has this node stand for election now, without waiting for the leader's silence: for when the leader is known to be gone. It changes nothing on
// a node that leads.
func (c *Consensus) Campaign() {
	if c.raft.State() != raft.Follower || c.store.hung() {
		return
	}
	// What a leader sends to the one it hands over to, sent to oneself.
	args := raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(c.cfg.UUID)}}
	var resp raft.TimeoutNowResponse
	err := c.trans.TimeoutNow(raft.ServerID(c.cfg.UUID), serverAddress(c.cfg.UUID, c.cfg.Addr), &args, &resp)
	if err != nil {
		c.log.Debug("stand for election", "err", err)
	}
}

// Leader is the uuid of the node that leads as far as this one knows, and a channel that is closed when that changes.
func (c *Consensus) Leader() (uuid string, changed <-chan struct{}) {
	c.leaderMu.Lock()
	defer c.leaderMu.Unlock()
	return c.leader, c.leaderChanged
}

// observe follows who leads.
func (c *Consensus) observe() {
	defer c.wg.Done()
	ch := make(chan raft.Observation, 16)
	o := raft.NewObserver(ch, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	c.raft.RegisterObserver(o)
	defer c.raft.DeregisterObserver(o)
	for {
		_, id := c.raft.LeaderWithID()
		c.setLeader(string(id))
		select {
		case <-ch:
		case <-c.closing:
			return
		}
	}
}

func (c *Consensus) setLeader(uuid string) {
	c.leaderMu.Lock()
	defer c.leaderMu.Unlock()
	if uuid != c.leader {
		c.leader = uuid
		close(c.leaderChanged)
		c.leaderChanged = make(chan struct{})
	}
}

// leadership begins and ends Config.Lead as raft elects and deposes this node.
func (c *Consensus) leadership() {
	defer c.wg.Done()
	end := func() {}
	var leads uint64
	for {
		term := c.raft.CurrentTerm()
		if c.raft.State() != raft.Leader {
			term = 0
		}
		if term != leads {
			end()
			end, leads = func() {}, term
			if term != 0 {
				end = c.lead(term)
			}
		}
		select {
		case <-c.raft.LeaderCh():
		case <-c.closing:
			end()
			return
		}
	}
}

// lead runs a leadership; the function it returns ends it and waits for that.
func (c *Consensus) lead(term uint64) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := c.raft.Barrier(0).Error()
			if err == nil {
				break
			}
			if ctx.Err() != nil || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrRaftShutdown) {
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		c.log.Info("leading the cluster", "raftTerm", term)
		if c.proposing.take(ctx) != nil {
			return
		}
		c.cfg.Begin(c, term)
		c.ready.Store(term)
		c.proposing.pass()
		c.cfg.Lead(ctx, c, term)
	}()
	return func() {
		c.ready.CompareAndSwap(term, 0)
		cancel()
		<-done
		c.ready.CompareAndSwap(term, 0)
	}
}
