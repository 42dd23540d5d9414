package replica

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// change is a proposal about a group's set whose outcome is not known yet. Until it is, a commit needs the old set and the new (R9).
type change struct {
	state.SetChange
	term uint64
}

func (c *change) adds(m state.Member) bool { return isMember(c.Add, m) }

// proposer brings wishes of groups before raft: one command at a time, with everything that was wished meanwhile.
type proposer struct {
	e    *Engine
	wake chan struct{}

	answered atomic.Int64 // when raft last answered, as time since start
	probing  atomic.Bool

	mu     sync.Mutex
	wished map[*group]struct{}
}

// healthy says that raft answered a moment ago; if not it asks it something. Writes are parked while a group is handed over, so nobody does
// that of his own will when the outcome may be long in coming.
func (p *proposer) healthy() bool {
	if time.Since(start)-time.Duration(p.answered.Load()) < time.Second {
		return true
	}
	if p.probing.CompareAndSwap(false, true) {
		p.e.wg.Go(func() {
			defer p.probing.Store(false)
			ctx, cancel := context.WithTimeout(p.e.ctx, 2*time.Second)
			defer cancel()
			cmd := &state.Command{ID: rand.Text(), Time: time.Now(), Sync: &state.SyncChange{By: p.e.self()}}
			if _, err := p.e.cfg.Propose(ctx, cmd); err == nil {
				p.answered.Store(int64(time.Since(start)))
			}
		})
	}
	return false
}

const (
	changesMax     = 4096 // in one command
	gatherInterval = 200 * time.Millisecond
)

func (p *proposer) init(e *Engine) {
	p.e, p.wake, p.wished = e, make(chan struct{}, 1), map[*group]struct{}{}
}

// add has a group's wish proposed now, together with all that were gathered.
func (p *proposer) add(g *group) {
	p.gather(g)
	p.poke()
}

// gather has a group's wish proposed with the next one that is added, or within gatherInterval.
func (p *proposer) gather(g *group) {
	p.mu.Lock()
	p.wished[g] = struct{}{}
	p.mu.Unlock()
}

func (p *proposer) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *proposer) run() {
	t := time.NewTicker(gatherInterval)
	defer t.Stop()
	for {
		select {
		case <-p.e.ctx.Done():
			return
		case <-p.wake:
		case <-t.C:
		}
		p.round()
	}
}

// round proposes all that is wished now and waits for the outcome to be in use.
func (p *proposer) round() {
	p.mu.Lock()
	wished := p.wished
	p.wished = map[*group]struct{}{}
	p.mu.Unlock()
	var cmd, rec state.Command
	self := p.e.self()
	cmd.Sync = &state.SyncChange{By: self}
	rec.Recovered = &state.Recovered{By: self}
	asked := map[*group]*change{}
	for g := range wished {
		if len(cmd.Sync.Changes) == changesMax {
			p.add(g)
			continue
		}
		g.mu.Lock()
		if lsn, ok := g.wantRecovered(); ok {
			rec.Recovered.Groups = append(rec.Recovered.Groups, state.GroupRecovered{Group: g.id, Term: g.term, LSN: lsn})
		}
		if ch := g.wanted(); ch != nil && g.change == nil {
			g.change = ch
			asked[g] = ch
			cmd.Sync.Changes = append(cmd.Sync.Changes, ch.SetChange)
		}
		g.mu.Unlock()
	}
	if len(rec.Recovered.Groups) > 0 {
		p.propose(&rec)
	}
	if len(asked) == 0 {
		return
	}
	p.e.count(cmd.Sync.Changes)
	p.propose(&cmd)
	var b wire.Batch
	for g, ch := range asked { // decided: the map in use holds it, or it was refused
		g.mu.Lock()
		if g.change == ch {
			g.change = nil
			if ch.To != state.NoNode {
				g.handTo, g.noHand = state.NoNode, time.Now().Add(time.Second)
			}
			g.dropFailed()
			g.advance(&b)
			g.flushes.setChanged(g, &b)
			g.rerun(&b)
		}
		g.mu.Unlock()
	}
	b.End()
}

// propose returns when the command's outcome is in the map in use. An unknown outcome is asked for again, under the same id, until it is known (R9).
func (p *proposer) propose(cmd *state.Command) {
	cmd.ID, cmd.Time = rand.Text(), time.Now()
	for p.e.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(p.e.ctx, 10*time.Second)
		res, err := p.e.cfg.Propose(ctx, cmd)
		if err == nil {
			err = p.e.waitApplied(ctx, res.Index)
		}
		cancel()
		if err == nil {
			p.answered.Store(int64(time.Since(start)))
			return
		}
		p.e.log.Warn("a change of in-sync sets has no outcome yet", "error", err)
		select {
		case <-p.e.ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (e *Engine) count(list []state.SetChange) {
	for _, c := range list {
		e.Stats.Shrinks.Add(int64(len(c.Remove)))
		e.Stats.Joins.Add(int64(len(c.Add)))
	}
}

// wantSet has the proposer look at the group if it wants another set. mu is held.
func (g *group) wantSet() {
	if g.change == nil && (g.role == serving || g.role == activating) && g.wanted() != nil {
		g.e.proposer.add(g)
	}
}

// wanted says what the group's set should become; nil: what it is. mu is held.
func (g *group) wanted() *change {
	if g.role != serving && g.role != activating || g.agree == nil || g.agree.Term != g.term {
		return nil
	}
	ch := &change{term: g.term}
	ch.Group, ch.Term, ch.To = g.id, g.term, state.NoNode
	size := len(g.agree.InSync)
	for _, m := range g.members {
		if m.joiner != nil && m.ready && !m.inSync && m.acked >= g.commit { // invariant 1
			ch.Add = append(ch.Add, m.Member)
			size++
		}
	}
	for _, m := range g.members {
		if m.inSync && m.removed && size > max(g.minCopies(), 1) { // R10
			ch.Remove = append(ch.Remove, m.Member)
			size--
		}
	}
	agreed := g.e.agreed()
	for _, m := range g.agree.InSync { // ended, or its disk has failed, and kept only because the set would be too small
		if g.member(m) == nil && m != g.e.self() && size > max(g.minCopies(), 1) {
			ch.Remove = append(ch.Remove, m)
			size--
		}
	}
	if len(ch.Add) == 0 && len(ch.Remove) == 0 && g.role == serving {
		g.wantRetire(ch)
	}
	switch {
	case g.store != nil && g.store.Err() != nil: // our disk takes nothing any more: any other member does better
		ch.To = g.otherMember(agreed)
		ch.Add, ch.Remove = nil, nil
	case g.handTo != state.NoNode && g.role == activating:
		ch.To = g.handTo
	case g.handTo != state.NoNode && len(g.tail) == 0 && len(ch.Add)+len(ch.Remove) == 0:
		ch.To = g.handTo
	}
	if len(ch.Add)+len(ch.Remove) == 0 && ch.To == state.NoNode {
		if ch.NoCopy = g.noCopy(); !ch.NoCopy {
			return nil
		}
	}
	return ch
}

// wantRetire drops copies that are not wanted any more, once all that are wanted are in sync: a move never lowers redundancy on its way. If we are
// one of them, the preferred primary takes over first.
func (g *group) wantRetire(ch *change) {
	for _, t := range g.agree.Target {
		if g.inSyncNode(t) == nil && t != g.node() {
			return
		}
	}
	if !isTarget(g.agree.Target, g.node()) {
		if len(g.agree.Target) > 0 && g.handTo == state.NoNode && time.Now().After(g.noHand) && g.e.proposer.healthy() {
			g.handTo = g.agree.Target[0]
		}
		return
	}
	for _, m := range g.members {
		if m.inSync && !isTarget(g.agree.Target, m.Node) {
			ch.Remove = append(ch.Remove, m.Member)
		}
	}
}

func (g *group) inSyncNode(id state.NodeID) *member {
	for _, m := range g.members {
		if m.inSync && m.Node == id {
			return m
		}
	}
	return nil
}

// preferOther hands the group to its preferred primary when that one is in sync and reachable. mu is held.
func (g *group) preferOther(m *state.Map) bool {
	if time.Now().Before(g.noHand) || g.role != serving || g.change != nil || g.handTo != state.NoNode || len(g.agree.Target) == 0 || g.agree.Target[0] == g.node() {
		return false
	}
	for _, m := range g.members { // it would begin anew there
		if m.joiner != nil && !m.inSync {
			return false
		}
	}
	x := g.inSyncNode(g.agree.Target[0])
	if x == nil || x.removed || !m.InService(x.Member) || x.p.current() == nil || !g.e.proposer.healthy() {
		return false
	}
	g.handTo = x.Node
	g.wantSet()
	return true
}

// dropFailed forgets joiners that failed while their joining was undecided, and now is decided against. mu is held.
func (g *group) dropFailed() {
	for i := 0; i < len(g.members); {
		if m := g.members[i]; !m.inSync && m.joiner != nil && m.joiner.ctx.Err() != nil {
			g.members = append(g.members[:i:i], g.members[i+1:]...)
			continue
		}
		i++
	}
}

// wantRecovered says how far a resumed set recovered, if that is still to be told (R17). mu is held.
func (g *group) wantRecovered() (uint64, bool) {
	if g.role != activating || g.takeover == nil || !g.takeover.equal || g.agree.RecoveredAt >= g.agree.Resumes {
		return 0, false
	}
	return g.takeover.recovered, true
}
