package replica

import (
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// closings are the snapshots being taken (R22): for each, the groups this node is primary of park new writes to the vid (group.judge), make those numbered
// durable, and report. Reports are repeated until the map moves on, so that a new leader gets them too.
type closings struct {
	e *Engine

	mu   sync.Mutex
	jobs map[closingKey]bool
}

type closingKey struct {
	vid uint32
	id  uint64
}

const reportInterval = 100 * time.Millisecond

func (c *closings) init(e *Engine) { c.e, c.jobs = e, map[closingKey]bool{} }

// mapChanged starts a job for every snapshot that is being taken.
func (c *closings) mapChanged(m *state.Map) {
	for _, d := range m.VDIs {
		if d.State != state.Closing {
			continue
		}
		k := closingKey{d.Vid, d.Closing}
		c.mu.Lock()
		if !c.jobs[k] && c.e.ctx.Err() == nil {
			c.jobs[k] = true
			c.e.wg.Go(func() { c.run(k, d.Pool) })
		}
		c.mu.Unlock()
	}
}

// current says whether the snapshot is still being taken.
func (c *closings) current(k closingKey) bool {
	d := c.e.agreed().VDI(k.vid)
	return d != nil && d.State == state.Closing && d.Closing == k.id && c.e.ctx.Err() == nil
}

func (c *closings) run(k closingKey, pool uint16) {
	job := &closeJob{e: c.e, key: k, wake: make(chan struct{}, 1), begun: map[*group]uint64{}, done: map[*group]uint64{}}
	t := time.NewTicker(reportInterval)
	defer t.Stop()
	for c.current(k) {
		job.begin(pool)
		job.report()
		select {
		case <-t.C:
		case <-job.wake:
		case <-c.e.ctx.Done():
		}
	}
	c.mu.Lock()
	delete(c.jobs, k)
	c.mu.Unlock()
}

// closeJob is this node's part of one snapshot.
type closeJob struct {
	e    *Engine
	key  closingKey
	wake chan struct{}

	mu       sync.Mutex
	begun    map[*group]uint64 // under which term it was flushed
	done     map[*group]uint64
	pending  int
	reported int
	at       time.Time
}

// begin flushes every group of the pool that we serve and have not flushed under its term. The group's lock was taken after the map that says
// Closing was published: what it has not numbered by now is parked.
func (j *closeJob) begin(pool uint16) {
	for _, sg := range j.e.agreed().PoolGroups(pool) {
		if sg.Primary != j.e.self() {
			continue
		}
		g := j.e.group(sg.ID)
		g.mu.Lock()
		ok, term, last := g.role == serving, g.term, g.last
		quiet := ok && g.durable >= last
		g.mu.Unlock()
		j.mu.Lock()
		skip := !ok || j.begun[g] == term
		if !skip {
			j.begun[g] = term
			if quiet {
				j.done[g] = term
			} else {
				j.pending++
			}
		}
		j.mu.Unlock()
		if skip || quiet {
			continue
		}
		j.settle(g, term, last)
	}
}

// settle has the group commit and flush what is numbered up to last.
func (j *closeJob) settle(g *group, term, last uint64) {
	g.whenCommitted(last, func() {
		g.flushNow(func(ok bool) {
			j.mu.Lock()
			j.pending--
			if ok {
				j.done[g] = term
			} else {
				delete(j.begun, g)
			}
			all := j.pending == 0
			j.mu.Unlock()
			if all {
				select {
				case j.wake <- struct{}{}:
				default:
				}
			}
		})
	})
}

// report tells the leader what is done: at once when all is, and again from time to time.
func (j *closeJob) report() {
	j.mu.Lock()
	if len(j.done) == 0 || j.pending > 0 && time.Since(j.at) < reportInterval || len(j.done) == j.reported && time.Since(j.at) < reportInterval {
		j.mu.Unlock()
		return
	}
	r := ClosedReport{Vid: j.key.vid, Closing: j.key.id}
	for g, term := range j.done {
		r.Groups = append(r.Groups, state.GroupTerm{Group: g.id, Term: term})
	}
	j.at, j.reported = time.Now(), len(j.done)
	j.mu.Unlock()
	j.e.cfg.ReportClosed(r)
}

// whenCommitted calls f, in any goroutine, once the group is committed up to lsn or this node is not its primary any more.
func (g *group) whenCommitted(lsn uint64, f func()) {
	g.mu.Lock()
	if g.commit < lsn && g.role == serving {
		g.waiters = append(g.waiters, commitWaiter{lsn, f})
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	f()
}

// commitWaiter is somebody who waits for a commit point.
type commitWaiter struct {
	lsn uint64
	f   func()
}

// wakeWaiters lets those go whose commit point is reached, or all. mu is held; they run in goroutines of their own, for they take it.
func (g *group) wakeWaiters(all bool) {
	if len(g.waiters) == 0 {
		return
	}
	list := g.waiters
	g.waiters = nil
	for _, w := range list {
		if all || w.lsn <= g.commit {
			g.e.wg.Go(w.f)
		} else {
			g.waiters = append(g.waiters, w)
		}
	}
}
