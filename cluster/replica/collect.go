package replica

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

const (
	// collectPause is how long the collector rests between looks at the directory.
	collectPause = 500 * time.Millisecond
	// collectStep bounds the objects one group frees before others get their turn.
	collectStep = 256
	// collectSpeed is how many objects a second are freed where the settings say nothing.
	collectSpeed = 4096
)

// collect frees, in the groups this node is primary of, what no living VDI can see (invariant 10): the agreed map's plan says how for each
// deleted vid. Frees are ordered entries like any other, given only behind durable overwrites (R23); when they are durable themselves, the group reports the vid
// collected (R24). All of it is found again after a crash: what is still to do is what still has a table.
func (e *Engine) collect() {
	t := time.NewTicker(collectPause)
	defer t.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-t.C:
		}
		m := e.agreed()
		for _, d := range m.Deleted() {
			e.collectVid(m, d)
		}
	}
}

// collectVid does what this node can do about one deleted vid now.
func (e *Engine) collectVid(m *state.Map, d *state.VDI) {
	var done []*group
	for _, sg := range m.PoolGroups(d.Pool) {
		if sg.Primary != e.self() || e.ctx.Err() != nil {
			continue
		}
		g := e.group(sg.ID)
		plan := e.agreed().CollectPlan(d.Vid, sg.ID)
		if plan.Do != state.PlanDrop && plan.Do != state.PlanMerge {
			continue
		}
		if g.collectStep(d, plan) {
			done = append(done, g)
		}
	}
	if len(done) == 0 {
		return
	}
	cmd := &state.Command{ID: rand.Text(), Time: time.Now(), Collected: &state.Collected{Vid: d.Vid, Gen: d.Gen}}
	for _, g := range done {
		cmd.Collected.Groups = append(cmd.Collected.Groups, g.id)
	}
	ctx, cancel := context.WithTimeout(e.ctx, 10*time.Second)
	defer cancel()
	res, err := e.cfg.Propose(ctx, cmd)
	if err != nil {
		e.log.Warn("report a collected vid", "vid", d.Vid, "error", err) // told again at the next look
		return
	}
	e.waitApplied(ctx, res.Index)
}

// collectStep frees some of what a deleted vid has in the group; true: it has nothing any more, durably.
func (g *group) collectStep(d *state.VDI, plan state.Plan) bool {
	g.mu.Lock()
	ok, st := g.role == serving && len(g.agree.InSync) >= g.minCopies(), g.st
	g.mu.Unlock()
	if !ok {
		return false
	}
	if st.Used(objstore.Vid(d.Vid)).Objects == 0 {
		return g.flushWait()
	}
	if !broken("R23") && !g.flushWait() { // what hides blocks must be durable everywhere first
		return false
	}
	var keys []objstore.Key
	st.Objects(0, func(o objstore.ObjectInfo) bool {
		if uint32(o.Key.Root()) == d.Root && st.Has(o.Key, objstore.Vid(d.Vid)) {
			keys = append(keys, o.Key)
		}
		return len(keys) < collectStep
	})
	var b wire.Batch
	for _, key := range keys {
		if !g.e.mayCollect(&b) {
			break
		}
		g.mu.Lock()
		if g.copying[key] == 0 && g.role == serving && g.handTo == state.NoNode {
			en := getEntry()
			en.Kind, en.Key, en.Vid, en.Gen = objstore.KindDelete, key, objstore.Vid(d.Vid), d.Gen
			if plan.Do == state.PlanMerge {
				en.Kind, en.Into, en.IntoGen = objstore.KindMerge, objstore.Vid(plan.Into), plan.IntoGen
			}
			g.number(en, nil, &b)
		}
		g.mu.Unlock()
	}
	b.End()
	return false // looked at again when this is committed
}

// flushWait makes the group durable and waits for it, a bounded time; false also while entries are under way.
func (g *group) flushWait() bool {
	g.mu.Lock()
	open, quiet := g.role != serving || g.commit < g.last, g.durable >= g.last
	g.mu.Unlock()
	if open || quiet {
		return !open
	}
	ch := make(chan bool, 1)
	g.flushNow(func(ok bool) { ch <- ok })
	select {
	case ok := <-ch:
		return ok
	case <-g.e.ctx.Done():
		return false
	case <-time.After(syncSilenceMax):
		return false
	}
}

// mayCollect waits until another object may be freed (Settings.CollectSpeed); false when the engine ends. What was numbered so far is not held up by it. Only the
// collector's goroutine calls it.
func (e *Engine) mayCollect(b *wire.Batch) bool {
	rate := e.agreed().Settings.CollectSpeed
	if rate <= 0 {
		rate = collectSpeed
	}
	now := time.Now()
	if e.collectAt.Before(now.Add(-collectPause)) {
		e.collectAt = now.Add(-collectPause) // what may come at once after a rest
	}
	if wait := e.collectAt.Sub(now); wait > 0 {
		b.End()
		if !e.rest(wait) {
			return false
		}
	}
	e.collectAt = e.collectAt.Add(time.Duration(float64(time.Second) / float64(rate)))
	return true
}
