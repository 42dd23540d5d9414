package replica

import (
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// flushState makes what is committed durable on every in-sync replica, in rounds: one under way, everybody who comes meanwhile shares the next.
type flushState struct {
	round *flushRound
	next  []flushWaiter
}

type flushWaiter struct {
	r   *wire.Request
	lsn uint64
}

type flushRound struct {
	upTo    uint64 // what it makes durable
	granted uint64
	gauge   *gauge        // measures it
	began   time.Duration // since start
	waiters []flushWaiter
	local   bool             // our own journal is still to come
	members []*member        // whose answers are still to come
	retry   map[*member]bool // asked in vain: to be asked again
}

// flush answers r once all that is committed now is durable (invariant 2). mu is held.
func (g *group) flush(r *wire.Request, b *wire.Batch) {
	g.e.Stats.Flushes.Add(1)
	r.Done = wire.Done{Term: g.term, LSN: g.commit}
	g.flushes.add(g, r, g.commit, b)
}

func (f *flushState) add(g *group, r *wire.Request, lsn uint64, b *wire.Batch) {
	if lsn <= g.durable || broken("Invariant2") {
		r.Status = wire.StatusOK
		b.Complete(r)
		return
	}
	f.next = append(f.next, flushWaiter{r, lsn})
	g.stir()
	f.start(g, b)
}

// start begins a round if none is under way and somebody waits.
func (f *flushState) start(g *group, b *wire.Batch) {
	if f.round != nil || len(f.next) == 0 {
		return
	}
	rd := &flushRound{upTo: g.commit, granted: g.granted, waiters: f.next, local: true, retry: map[*member]bool{}}
	f.round, f.next = rd, nil
	for _, m := range g.members {
		if g.required(m) || m.ready && !broken("R11") { // R9, R11
			rd.members = append(rd.members, m)
		}
	}
	rd.gauge = g.e.pace.flushes.of(len(rd.members))
	rd.began = rd.gauge.begin()
	for _, m := range rd.members {
		rd.ask(g, m, b)
	}
	f.syncHere(g, rd, b)
}

// syncHere makes our own journal durable. mu is held.
func (f *flushState) syncHere(g *group, rd *flushRound, b *wire.Batch) {
	g.e.calm.flush()
	b.Sync(disk{g.store, g.e}, &syncedHere{g, rd, g.store})
}

// syncedHere goes on with a round whose part here is done.
type syncedHere struct {
	g     *group
	rd    *flushRound
	store *objstore.Store
}

func (d *syncedHere) Synced(err error, b *wire.Batch) {
	g, f := d.g, &d.g.flushes
	if err != nil && g.e.ctx.Err() != nil {
		return
	}
	g.e.diskFailed(err)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		d.rd.local = false
		f.finish(g, d.rd, b)
	case f.round == d.rd && g.store != nil && g.store != d.store: // the group moved to another disk meanwhile, which has all of it
		f.syncHere(g, d.rd, b)
	} // else the round never ends: the others go on without us
}

// syncedFor answers a primary that asked us to make a group durable.
type syncedFor struct {
	g     *group
	c     *wire.Conn
	h     wire.Header // of the answer
	store *objstore.Store
	last  uint64 // what we held then
}

func (d *syncedFor) Synced(err error, b *wire.Batch) {
	if err != nil {
		if d.again(b) {
			return
		}
		d.g.e.diskFailed(err)
		d.h.Status = wire.StatusFailed
	}
	d.c.Send(&d.h, nil, nil, nil)
	b.Flush(d.c)
}

// again asks the disk that the group moved to meanwhile, if it did, which has all of it: what we held then is part of what we hold now, where nothing but the same primary's stream came between.
func (d *syncedFor) again(b *wire.Batch) bool {
	g := d.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.e.ctx.Err() != nil || g.store == nil || g.store == d.store || g.fence != d.h.Term || g.syncing || g.last < d.last {
		return false
	}
	d.store = g.store
	b.Sync(disk{d.store, d.g.e}, d)
	return true
}

// disk is a store of ours as a batch sees it: what one handful of frames wants durable, of however many groups, is one question to it, and one answer to each who asked.
// By the time that it is asked a group may have moved to another disk, and this one be closed.
type disk struct {
	store *objstore.Store
	e     *Engine
}

func (d disk) Sync(list []wire.Synced) { d.store.Sync(func(err error) { synced(list, err) }) }

func (d disk) Here() bool { return d.e.calm.enough() && d.store.SyncsHere() }

func (d disk) SyncHere(list []wire.Synced) { d.store.SyncHere(func(err error) { synced(list, err) }) }

// calm counts flushes since a peer sent anything. A goroutine that waits for the disk keeps its thread, which may be the one that waited for the network; another one takes its place
// up to 10 ms later. So it is for nodes that serve nobody now but a client of their own.
type calm struct {
	flushes   atomic.Int64
	disturbed atomic.Bool // since the last flush
	asked     atomic.Bool // since the last look of Quiet
}

// calmFlushes is from how many on it is calm: some 15 ms of a client that writes and flushes in turn.
const calmFlushes = 64

func (c *calm) disturb() {
	if !c.disturbed.Load() { // written once a flush, however many frames come
		c.disturbed.Store(true)
	}
	if !c.asked.Load() {
		c.asked.Store(true)
	}
}

// flush counts one.
func (c *calm) flush() {
	if c.disturbed.Load() {
		c.disturbed.Store(false)
		c.flushes.Store(0)
	}
	c.flushes.Add(1)
}

func (c *calm) enough() bool { return c.flushes.Load() > calmFlushes && !c.disturbed.Load() }

// Quiet says whether no peer has sent anything, but for pings, since it was called last.
func (e *Engine) Quiet() bool { return !e.calm.asked.Load() || !e.calm.asked.Swap(false) }

func synced(list []wire.Synced, err error) {
	var b wire.Batch
	for _, x := range list {
		x.Synced(err, &b)
	}
	b.End()
}

// ask has a replica make the group durable.
func (rd *flushRound) ask(g *group, m *member, b *wire.Batch) {
	delete(rd.retry, m)
	h := wire.Header{Kind: wire.KindSync, Group: uint32(g.id), Term: g.term, From: g.e.self().Inc, To: m.Inc}
	ok := m.p.call(&h, nil, nil, nil, syncSilenceMax, func(a *wire.Frame, b *wire.Batch) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.flushes.round != rd {
			return
		}
		if a == nil || a.Status != wire.StatusOK {
			rd.retry[m] = true // asked again by setChanged or pump, unless the set goes on without it
			if a != nil && a.Status == wire.StatusFailed {
				g.suspect(m)
			}
			return
		}
		rd.drop(m)
		g.flushes.finish(g, rd, b)
	}, b)
	if !ok {
		rd.retry[m] = true
	}
}

func (rd *flushRound) drop(m *member) {
	for i, x := range rd.members {
		if x == m {
			rd.members = append(rd.members[:i], rd.members[i+1:]...)
			return
		}
	}
}

// finish answers the round when all have answered. mu is held.
func (f *flushState) finish(g *group, rd *flushRound, b *wire.Batch) {
	if f.round != rd || rd.local || len(rd.members) > 0 {
		return
	}
	if g.role != serving || g.granted != rd.granted {
		return
	}
	if !g.e.cfg.Leased() { // invariant 4: answered when we have it again, or never
		g.leaseOut = true
		return
	}
	f.round = nil
	rd.gauge.end(rd.began)
	g.durable = max(g.durable, rd.upTo)
	for _, w := range rd.waiters {
		if w.lsn > rd.upTo { // came between; cannot be, but a flush must never lie
			f.next = append(f.next, w)
			continue
		}
		w.r.Status = wire.StatusOK
		b.Complete(w.r)
	}
	f.start(g, b)
}

// setChanged lets a round go on without replicas that no longer count, and asks those again that did not answer. mu is held.
func (f *flushState) setChanged(g *group, b *wire.Batch) {
	rd := f.round
	if rd == nil {
		return
	}
	for i := 0; i < len(rd.members); {
		if m := rd.members[i]; !g.required(m) && !m.ready || g.member(m.Member) != m {
			delete(rd.retry, m)
			rd.members = append(rd.members[:i], rd.members[i+1:]...)
			continue
		}
		i++
	}
	for _, m := range rd.members {
		if rd.retry[m] && m.p.current() != nil {
			rd.ask(g, m, b)
		}
	}
	f.finish(g, rd, b)
}

// abandon gives all waiters back: we are not the primary any more. mu is held.
func (f *flushState) abandon(g *group, b *wire.Batch) {
	if f.round != nil {
		f.round.gauge.drop(f.round.began)
		for _, w := range f.round.waiters {
			g.refuse(w.r, wire.StatusNotPrimary, b)
		}
	}
	for _, w := range f.next {
		g.refuse(w.r, wire.StatusNotPrimary, b)
	}
	f.round, f.next = nil, nil
}

// flushNow makes everything committed durable and calls done from any goroutine, with false if we ceased to be the primary first.
func (g *group) flushNow(done func(ok bool)) {
	r := &wire.Request{Kind: wire.KindFlush, Group: uint32(g.id), To: flushFunc(done)}
	var b wire.Batch
	g.mu.Lock()
	if g.role != serving {
		g.refuse(r, wire.StatusNotPrimary, &b)
	} else {
		g.flush(r, &b)
	}
	g.mu.Unlock()
	b.End()
}

type flushFunc func(bool)

func (f flushFunc) Answered(r *wire.Request, _ *wire.Batch) { f(r.Status == wire.StatusOK) }

// node is a shorthand for the engine's own.
func (g *group) node() state.NodeID { return g.e.self().Node }
