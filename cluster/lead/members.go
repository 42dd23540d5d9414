package lead

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	membersPeriod = 200 * time.Millisecond
	// A voter away for longer than this gives its vote to another, if there is one.
	voterAwayMax = time.Minute
	// A node that has been silent for longer than this gets no vote now.
	silentMax = time.Second
	// A learner may be this many entries behind and still be given a vote.
	behindMax = 64
)

// candidate is a node as a possible voter.
type candidate struct {
	uuid  string
	zone  string
	voter bool // votes now
	ready bool // heard of lately, and caught up
	away  bool // not heard of for so long that another should vote
	self  bool
}

// votersFor says how many voters a cluster of n nodes has: an odd number, but for two nodes, where both must agree.
func votersFor(n int) int {
	switch {
	case n <= 2:
		return n
	case n <= 4:
		return 3
	default:
		return 5
	}
}

// chooseVoters picks who should vote: in as many zones as possible, and whoever votes already rather than another. Away voters stay until there is
// somebody to take their place.
func chooseVoters(list []candidate) []string {
	want := votersFor(len(list))
	zones := map[string]int{}
	var chosen []string
	taken := make([]bool, len(list))
	better := func(a, b *candidate) bool {
		switch {
		case a.self != b.self:
			return a.self
		case zones[a.zone] != zones[b.zone]:
			return zones[a.zone] < zones[b.zone]
		default:
			return a.voter && !b.voter
		}
	}
	for pass := 0; pass < 2; pass++ { // first those who may vote, then voters that are away
		for len(chosen) < want {
			best := -1
			for i := range list {
				c := &list[i]
				ok := c.self || c.voter && !c.away || c.ready
				if pass == 1 {
					ok = c.voter
				}
				if !taken[i] && ok && (best < 0 || better(c, &list[best])) {
					best = i
				}
			}
			if best < 0 {
				break
			}
			taken[best] = true
			zones[list[best].zone]++
			chosen = append(chosen, list[best].uuid)
		}
	}
	return chosen
}

// members makes one change of raft's configuration, if one is due.
func (l *Leader) members(ctx context.Context, m *state.Map) {
	now := time.Now()
	l.mu.Lock()
	due := now.After(l.raftNext)
	if due {
		l.raftNext = now.Add(membersPeriod)
	}
	l.mu.Unlock()
	if !due {
		return
	}
	change := l.change(m)
	if change == nil {
		return
	}
	l.task(ctx, "raft", func(ctx context.Context) bool {
		if err := l.cons.OneChange(ctx, change); err != nil {
			l.log.Info("change raft's members", "err", err)
			return false
		}
		l.mu.Lock()
		l.raftNext = time.Time{} // look again at once
		l.mu.Unlock()
		return true
	})
}

// change returns the next change of raft's configuration; nil: none.
func (l *Leader) change(m *state.Map) func() error {
	servers := l.cons.Servers()
	var list []candidate
	for _, n := range m.Nodes {
		i := slices.IndexFunc(servers, func(s consensus.Server) bool { return s.UUID == n.UUID })
		if n.Removed {
			if i >= 0 && n.UUID != l.self {
				return func() error { return l.logged("remove", n, l.cons.Remove(n.UUID)) }
			}
			continue
		}
		if i < 0 || servers[i].Addr != n.Addr {
			if _, _, heard := l.keeper.Heard(n.UUID); i < 0 || heard {
				return func() error { return l.logged("tell address of", n, l.cons.AddLearner(n.UUID, n.Addr)) }
			}
		}
		list = append(list, l.candidate(m, n, i >= 0 && servers[i].Voter))
	}
	chosen := chooseVoters(list)
	for _, c := range list {
		if !c.voter && slices.Contains(chosen, c.uuid) {
			n := m.NodeByUUID(c.uuid)
			return func() error { return l.logged("give a vote to", n, l.cons.AddVoter(n.UUID, n.Addr)) }
		}
	}
	for _, c := range list {
		if c.voter && !c.self && !slices.Contains(chosen, c.uuid) {
			n := m.NodeByUUID(c.uuid)
			return func() error { return l.logged("take the vote of", n, l.cons.Demote(n.UUID)) }
		}
	}
	return nil
}

func (l *Leader) candidate(m *state.Map, n *state.Node, votes bool) candidate {
	c := candidate{uuid: n.UUID, zone: n.Zone, voter: votes, self: n.UUID == l.self}
	if c.zone == "" {
		c.zone = "node " + n.UUID
	}
	ago, applied, ok := l.keeper.Heard(n.UUID)
	c.ready = ok && ago < silentMax && applied+behindMax >= l.cons.AppliedIndex() && n.Up
	c.away = l.downFor(n) > voterAwayMax
	return c
}

func (l *Leader) logged(what string, n *state.Node, err error) error {
	if err == nil {
		l.log.Info("raft: "+what+" node", "node", n.ID, "addr", n.Addr)
	}
	return err
}

// ErrRefused is for nodes that may not join.
var ErrRefused = errors.New("refused")

// Admit has raft's log sent to a node that asks for it; it registers itself then.
func (l *Leader) Admit(ctx context.Context, c *consensus.Consensus, w *wire.Who) error {
	if n := c.Map().NodeByUUID(w.UUID); n != nil {
		if n.Removed {
			return fmt.Errorf("%w: node %d was removed from this cluster: empty its directory to join anew", ErrRefused, n.ID)
		}
		if ago, _, ok := l.keeper.Heard(w.UUID); ok && ago < silentMax && n.Addr != w.Addr {
			return fmt.Errorf("%w: node %d is alive at %s: the directory at %s is a copy of its", ErrRefused, n.ID, n.Addr, w.Addr)
		}
	}
	return c.OneChange(ctx, func() error {
		for _, s := range c.Servers() {
			if s.UUID == w.UUID && s.Addr == w.Addr {
				return nil
			}
		}
		return c.AddLearner(w.UUID, w.Addr)
	})
}
