package lead

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// Prepare fills in what the leader knows of leases as it writes a command (R6), and holds back what has to wait.
func (l *Leader) Prepare(_ uint64, cmd *state.Command) error {
	switch {
	case cmd.Register != nil:
		return l.prepareRegister(cmd.Register)
	case cmd.Ended != nil:
		return l.prepareEnded(cmd.Ended)
	case cmd.InService != nil:
		leased := l.keeper.Leased()
		for _, b := range cmd.InService.Members { // they ask now, and get it as soon as this is applied
			if !slices.Contains(leased, b) {
				leased = append(leased, b)
			}
		}
		cmd.InService.Leased = leased
	case cmd.Resume != nil:
		cmd.Resume.Leased = l.keeper.Leased()
	case cmd.Sync != nil:
		cmd.Sync.Leased = l.keeper.Leased()
	case cmd.Force != nil:
		cmd.Force.Leased = l.keeper.Leased()
	}
	return nil
}

// prepareRegister: a new incarnation leaves every set of which another member has a lease, so it matters that this is known and not
// assumed. A new leader knows within a renewal, or when the leases that it took for granted have run out.
func (l *Leader) prepareRegister(r *state.Register) error {
	n := l.cons.Map().NodeByUUID(r.UUID)
	if n == nil {
		r.Leased = l.keeper.Leased()
		return nil
	}
	if n.Inc != r.Inc && n.Boot != r.Boot && !l.keeper.Over(state.Member{Node: n.ID, Inc: n.Inc}) {
		return fmt.Errorf("%w: node %d may still have a lease, given to it before a reboot", consensus.ErrNotNow, n.ID)
	}
	if l.cons.Map().Formatted() && l.keeper.Unsure(n.ID) {
		return fmt.Errorf("%w: this leader is new and does not know yet who is alive", consensus.ErrNotNow)
	}
	r.Leased = l.keeper.Leased(n.ID)
	return nil
}

func (l *Leader) prepareEnded(e *state.Ended) error {
	for _, b := range e.Members {
		if !l.keeper.Over(b) {
			return fmt.Errorf("%w: node %d incarnation %x may have a lease", consensus.ErrNotNow, b.Node, b.Inc)
		}
	}
	e.Leased = l.keeper.Leased()
	return nil
}

// endLapsed proposes the end of those whose lease has surely run out, all of them at once: a command for each would take the others for
// alive.
func (l *Leader) endLapsed(ctx context.Context) {
	lapsed := l.keeper.Lapsed()
	if len(lapsed) == 0 {
		return
	}
	l.task(ctx, "ended", func(ctx context.Context) bool {
		if !l.propose(ctx, "ended", &state.Command{Ended: &state.Ended{Members: lapsed, Why: "no lease"}}) {
			return false
		}
		for _, b := range lapsed {
			l.log.Warn("node is out of service: it stopped, or its lease ran out", "node", b.Node, "incarnation", fmt.Sprintf("%x", b.Inc))
		}
		return true
	})
}

// endSilent proposes the end of those that were registered and never came, if they don't come before that is agreed.
func (l *Leader) endSilent(ctx context.Context) {
	silent := l.keeper.Silent()
	if len(silent) == 0 {
		return
	}
	l.task(ctx, "ended before it came", func(ctx context.Context) bool {
		return l.propose(ctx, "ended", &state.Command{Ended: &state.Ended{Members: silent, Why: "it was registered, and never asked for a lease", IfDown: true}})
	})
}

// bringIn proposes to bring registered incarnations into service that ask for their first lease.
func (l *Leader) bringIn(ctx context.Context) {
	waiting := l.keeper.Waiting()
	if len(waiting) == 0 {
		return
	}
	l.task(ctx, "in service", func(ctx context.Context) bool {
		return l.propose(ctx, "in service", &state.Command{InService: &state.InService{Members: waiting}})
	})
}

// Exited takes a guardian's word, or a node's own before it stops, and waits until the map says so too.
func (l *Leader) Exited(ctx context.Context, c *consensus.Consensus, b state.Member) error {
	l.keeper.Exited(b)
	sub := c.Subscribe()
	defer sub.Cancel()
	for c.Leading() != 0 {
		if !c.Map().InService(b) {
			return nil
		}
		select {
		case <-sub.C:
		case <-time.After(stepPeriod):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return consensus.ErrNoLeader
}

// resume lets sets go on all of whose members restarted (R6).
func (l *Leader) resume(ctx context.Context, m *state.Map) {
	leased := l.keeper.Leased()
	now := time.Now()
	l.mu.Lock()
	for _, g := range m.Groups {
		if g.Primary.Node != state.NoNode {
			delete(l.lost, g.ID)
		} else if _, seen := l.lost[g.ID]; !seen && slices.ContainsFunc(g.InSync, func(b state.Member) bool {
			return slices.Contains(leased, m.Current(b.Node))
		}) {
			l.lost[g.ID] = now
		}
	}
	due := m.ResumeDue(leased, func(g *state.Group) bool {
		since, seen := l.lost[g.ID]
		return seen && now.Sub(since) >= m.Settings.ResumeWait
	})
	l.mu.Unlock()
	if len(due) == 0 || l.keeper.Unsure(state.NoNode) {
		return
	}
	l.task(ctx, "resume", func(ctx context.Context) bool {
		ok := l.propose(ctx, "resume", &state.Command{Resume: &state.Resume{Groups: due}})
		if ok {
			l.log.Info("groups go on after all their members restarted", "groups", len(due))
		}
		return ok
	})
}

// giveUpNodes gives the groups of a node to others that was down for longer than rebuild-after.
func (l *Leader) giveUpNodes(ctx context.Context, m *state.Map) {
	for _, n := range m.Nodes {
		if d := l.downFor(n); d >= m.Settings.RebuildAfter && !n.Up && !n.Out && !n.Removed && n.VNodes > 0 && !m.ShutDown {
			l.task(ctx, fmt.Sprintf("out %d", n.ID), func(ctx context.Context) bool {
				ok := l.propose(ctx, "node out", &state.Command{NodeOut: &state.NodeOut{Node: n.ID, Out: true, IfDown: true}})
				if ok {
					l.log.Warn("node is down for too long: its groups are given to others", "node", n.ID, "addr", n.Addr)
				}
				return ok
			})
		}
	}
}

// downFor is how long this leader has seen a node out of service.
func (l *Leader) downFor(n *state.Node) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.Up {
		delete(l.down, n.ID)
		return 0
	}
	since, seen := l.down[n.ID]
	if !seen {
		since = time.Now()
		l.down[n.ID] = since
	}
	return time.Since(since)
}
