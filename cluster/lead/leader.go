package lead

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/lease"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

const (
	stepPeriod     = 50 * time.Millisecond
	proposeTimeout = 5 * time.Second
)

// Leader does a leader's work while this node leads.
type Leader struct {
	keeper *lease.Keeper
	self   string
	log    *slog.Logger
	wakes  chan struct{}

	mu       sync.Mutex // guards what follows
	cons     *consensus.Consensus
	tasks    map[string]struct{}
	closings map[closingID]*closing
	kept     map[uint64]time.Time // sessions of client programs: when last kept alive
	lost     map[state.GroupID]time.Time
	down     map[state.NodeID]time.Time
	raftNext time.Time
	seen     *state.Map // the last one looked at, and what there was to do by it
	waits    bool       // groups that lost their primary
	closes   bool       // snapshots being taken

	wg sync.WaitGroup // tasks
}

// New makes a Leader for the node with that uuid.
func New(clock lease.Clock, self string, log *slog.Logger) *Leader {
	l := &Leader{self: self, log: log, wakes: make(chan struct{}, 1)}
	l.keeper = lease.NewKeeper(clock, self, l.wake)
	return l
}

// Keeper is who grants leases.
func (l *Leader) Keeper() *lease.Keeper { return l.keeper }

func (l *Leader) wake() {
	select {
	case l.wakes <- struct{}{}:
	default:
	}
}

// Begin starts a leadership, once its barrier is applied.
func (l *Leader) Begin(c *consensus.Consensus, term uint64) {
	l.mu.Lock()
	l.cons = c
	l.tasks = map[string]struct{}{}
	l.closings = map[closingID]*closing{}
	l.kept = map[uint64]time.Time{}
	l.lost = map[state.GroupID]time.Time{}
	l.down = map[state.NodeID]time.Time{}
	l.raftNext = time.Time{}
	l.seen = nil
	l.mu.Unlock()
	l.keeper.Begin(c, term, c.Map())
}

// Run leads until ctx ends.
func (l *Leader) Run(ctx context.Context, c *consensus.Consensus, term uint64) {
	defer l.wg.Wait()
	defer l.keeper.End(term)
	sub := c.Subscribe()
	defer sub.Cancel()
	tick := time.NewTicker(stepPeriod)
	defer tick.Stop()
	for {
		m := c.Map()
		l.keeper.MapChanged(m)
		l.step(ctx, m)
		select {
		case <-ctx.Done():
			return
		case <-sub.C:
		case <-l.wakes:
		case <-tick.C:
		}
	}
}

// step looks once and starts what is to be done.
func (l *Leader) step(ctx context.Context, m *state.Map) {
	l.endLapsed(ctx)
	l.endSilent(ctx)
	l.bringIn(ctx)
	if m.Formatted() {
		l.look(m)
		if l.waits {
			l.resume(ctx, m)
		}
		if l.closes {
			l.snapshots(ctx, m)
		}
		l.giveUpNodes(ctx, m)
		l.sessions(ctx, m)
	}
	l.members(ctx, m)
}

// look goes through a map once, so that a step in which nothing changed costs nothing. Only Run calls it.
func (l *Leader) look(m *state.Map) {
	if m == l.seen {
		return
	}
	l.seen = m
	l.waits = slices.ContainsFunc(m.Groups, func(g *state.Group) bool { return g.Primary.Node == state.NoNode })
	l.closes = slices.ContainsFunc(m.VDIs, func(v *state.VDI) bool { return v.State == state.Closing })
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.waits {
		clear(l.lost)
	}
	if !l.closes {
		clear(l.closings)
	}
}

// task runs f in a goroutine unless one of that name is still under way. f says whether it got something done: then there may be more; else the next
// tick tries again.
func (l *Leader) task(ctx context.Context, name string, f func(context.Context) bool) {
	l.mu.Lock()
	_, busy := l.tasks[name]
	if !busy {
		l.tasks[name] = struct{}{}
	}
	tasks := l.tasks
	l.mu.Unlock()
	if busy || ctx.Err() != nil {
		return
	}
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
		defer cancel()
		done := f(ctx)
		l.mu.Lock()
		delete(tasks, name)
		l.mu.Unlock()
		if done {
			l.wake()
		}
	}()
}

// propose puts one command into the log, from here. What fails is seen again and proposed again.
func (l *Leader) propose(ctx context.Context, what string, cmd *state.Command) bool {
	cmd.ID, cmd.Time = consensus.NewID(), time.Now()
	res, err := l.cons.ProposeHere(ctx, cmd)
	switch {
	case err != nil:
		l.log.Debug("propose "+what, "err", err)
		return false
	case res.Code != state.OK:
		l.log.Debug("propose "+what, "refused", res.Error)
		return false
	}
	return true
}
