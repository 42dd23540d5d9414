package client

import (
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// dispatch sends a piece to the primary of its group, as the newest map has it, or puts it where it waits for that to be possible.
func (c *Client) dispatch(p *piece, b *wire.Batch) {
	s := p.s
	for {
		if err := s.deadErr(); err != nil {
			c.settle(p, err, b)
			return
		}
		m := c.cfg.Maps.Map()
		g := m.Group(p.group())
		if g == nil {
			c.park(p, m.Index+1, 0)
			return
		}
		if p.again != nil {
			if s.stale(p, g, b) {
				return
			}
		} else if sg := c.remembered(p, g); sg != nil && sg.resumes.Load() != g.Resumes {
			if s.hold(p, sg, b) {
				return
			}
			continue // the map moved on, or what it asked for is done
		}
		if g.Primary.Node == state.NoNode {
			p.inc, p.node = 0, state.NoNode
			c.park(p, m.Index+1, 0)
			return
		}
		if s.lossy.Load() && p.req.Kind == wire.KindRead && s.isLost(p) {
			c.settle(p, p.errorf(syscall.EIO, "acknowledged writes there were lost and not written again"), b)
			return
		}
		if err := s.once(p, g); err != nil {
			c.settle(p, err, b)
			return
		}
		c.sendTo(p, m, g, b)
		return
	}
}

// remembered is what the session knows of the piece's group. Before the first change goes there it begins to.
func (c *Client) remembered(p *piece, g *state.Group) *sgroup {
	s := p.s
	sg := s.sgroup(g.ID.Index())
	if sg == nil && p.changes() {
		s.mu.Lock()
		sg = s.getGroup(g)
		s.mu.Unlock()
	}
	return sg
}

// sendTo fills in what depends on the moment of sending.
func (c *Client) sendTo(p *piece, m *state.Map, g *state.Group, b *wire.Batch) {
	id := p.s.ident.Load()
	r := &p.req
	r.Term = g.Term
	r.IO.Vid, r.IO.Gen, r.IO.SessGen, r.IO.Index = id.vid, id.gen, id.sessGen, id.index
	r.Status, r.Done, r.Sole, r.Message = 0, wire.Done{}, false, ""
	r.Extents = r.Extents[:0]
	p.node, p.inc, p.resumes = g.Primary.Node, g.Primary.Inc, g.Resumes
	if c.cfg.Local != nil && p.node == c.cfg.LocalNode {
		c.cfg.Local.Submit(r, b)
		return
	}
	c.peer(p.node).send(p, m, b)
}

// Answered takes the answer of a primary in this process.
func (p *piece) Answered(_ *wire.Request, b *wire.Batch) { p.s.c.answered(p, b) }

// answered decides what an answer means: the outcome, or another try.
//
//	ok                                       settle
//	not primary, old term, wrong incarnation again, under a newer map
//	behind, busy, superseded, gap            again, a little later
//	fenced                                   the session lapsed or was taken over: see renew
//	read-only, gone                          again under the vid that took the name over, else EROFS, or EIO if it was deleted
//	no space, bad, invalid, failed           settle, with an error
func (c *Client) answered(p *piece, b *wire.Batch) {
	r := &p.req
	m := c.cfg.Maps.Map()
	switch r.Status {
	case wire.StatusOK:
		c.acknowledged(p, b)
	case wire.StatusNotPrimary, wire.StatusOldTerm, wire.StatusWrongInc:
		if r.Done.Index > m.Index {
			c.retry(p, r.Done.Index)
		} else {
			c.retry(p, 0)
		}
	case wire.StatusBehind, wire.StatusBusy, wire.StatusOldConn, wire.StatusGap:
		if p.epoch != 0 {
			c.peer(p.node).renewRelay(p.epoch)
		}
		c.retry(p, 0)
	case wire.StatusFenced:
		p.s.fenced(p, r.Done.Index, b)
	case wire.StatusReadOnly, wire.StatusGone:
		c.frozen(p, m, b)
	case wire.StatusNoSpace:
		c.settle(p, p.errorf(syscall.ENOSPC, r.Message), b)
	case wire.StatusInvalid:
		c.settle(p, p.errorf(syscall.EINVAL, r.Message), b)
	case wire.StatusBad:
		c.settle(p, p.errorf(syscall.EIO, orElse(r.Message, "no good copy of a block is left")), b)
	default:
		c.settle(p, p.errorf(syscall.EIO, orElse(r.Message, r.Status.String())), b)
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// acknowledged takes a good answer.
func (c *Client) acknowledged(p *piece, b *wire.Batch) {
	s := p.s
	if p.again != nil {
		s.resentDone(p, nil, false, b)
		return
	}
	if !p.changes() && p.req.Kind != wire.KindFlush {
		c.settle(p, nil, b)
		return
	}
	s.mu.Lock()
	sg := s.sgroup(p.group().Index())
	if sg != nil && p.req.Term < sg.resumedTerm {
		// From before the set resumed: it says nothing of what the set has now.
		s.mu.Unlock()
		c.Stats.Retries.Add(1)
		c.dispatch(p, b)
		return
	}
	if p.req.Kind == wire.KindFlush {
		s.mu.Unlock()
		c.settle(p, nil, b)
		return
	}
	if s.dead.Load() == nil {
		s.remember(sg, p)
	}
	free := s.changed(p)
	s.mu.Unlock()
	c.finish(p, nil, free, b)
}

// remember keeps what an acknowledged change wrote until it is flushed (R17). mu is held.
func (s *session) remember(sg *sgroup, p *piece) {
	if len(s.lost) > 0 {
		s.heal(p)
	}
	if p.req.Flags&wire.FlagFUA != 0 {
		s.account(-sg.keep.durableBelow(p.req.Done.LSN))
		return
	}
	s.acks++
	s.account(sg.keep.add(p, s.acks).cost())
	s.markDirty(sg)
}

// settle ends a piece with its outcome.
func (c *Client) settle(p *piece, err error, b *wire.Batch) {
	s := p.s
	switch {
	case p.again != nil:
		s.resentDone(p, err, false, b)
		return
	case p.req.Kind == wire.KindFlush:
		s.flushed(p, err, b)
		return
	}
	var free pieceList
	if p.changes() {
		s.mu.Lock()
		free = s.changed(p)
		s.mu.Unlock()
	}
	c.finish(p, err, free, b)
}

// finish tells the Op, and lets go what waited behind p (R15).
func (c *Client) finish(p *piece, err error, free pieceList, b *wire.Batch) {
	p.disown()
	p.op.pieceDone(p, err, b)
	for q := free.pop(); q != nil; q = free.pop() {
		c.dispatch(q, b)
	}
}

// frozen takes the answer that the vid is read-only, or is not there: a snapshot took it (and was deleted, and collected, while we were cut off), and the name goes on
// with another, or it is really so.
func (c *Client) frozen(p *piece, m *state.Map, b *wire.Batch) {
	if want := p.req.Done.Index; want > m.Index {
		c.retry(p, want)
		return
	}
	s := p.s
	if s.ident.Load().vid != p.req.IO.Vid {
		c.retry(p, 0)
		return
	}
	v := m.VDI(p.req.IO.Vid)
	switch err := s.deadErr(); {
	case err != nil:
		c.settle(p, err, b)
	case !s.snap:
		c.retry(p, 0) // the tender is about to follow the disk to its next vid, or to end the session
	case v == nil || v.State == state.Deleted || p.req.Status == wire.StatusGone:
		c.settle(p, p.errorf(syscall.EIO, "the VDI was deleted"), b)
	default:
		c.settle(p, p.errorf(syscall.EROFS, "it is a snapshot"), b)
	}
}

// retry sends a piece again: when a map of index want is there, or without one after a little while that grows.
func (c *Client) retry(p *piece, want uint64) {
	c.Stats.Retries.Add(1)
	p.tries++
	c.park(p, want, backoff(p.tries))
}

const (
	backoffMin = 2 * time.Millisecond
	backoffMax = 500 * time.Millisecond
)

// backoff grows with the tries, and is spread so that many who were refused together don't come back together.
func backoff(tries int) time.Duration {
	d := backoffMax
	if tries < 9 {
		d = min(backoffMax, backoffMin<<tries)
	}
	return d/2 + rand.N(d/2+1)
}

// park puts a piece aside: until a map of index want is there and, if want is 0, until d has passed.
func (c *Client) park(p *piece, want uint64, d time.Duration) {
	p.want = want
	p.until = time.Time{}
	if p.parked == 0 {
		p.parked = c.now.Load()
	}
	if want == 0 {
		p.until = time.Now().Add(d)
	}
	c.parkMu.Lock()
	if c.parkOver { // a primary in this process answered after the client was closed
		c.parkMu.Unlock()
		var b wire.Batch
		c.settle(p, ErrClosed, &b)
		b.End()
		return
	}
	c.parked.push(p)
	c.parkMu.Unlock()
	c.Stats.Parked.Add(1)
	c.wakeTender()
}

// unpark sends what waited long enough, or for the map that is there now. It returns when to look again; zero: when something changes.
func (c *Client) unpark(m *state.Map, newMap bool, now time.Time, b *wire.Batch) (next time.Time) {
	c.parkMu.Lock()
	list := c.parked.take()
	var ready pieceList
	for p := list.pop(); p != nil; p = list.pop() {
		due := p.want != 0 && m.Index >= p.want || p.want == 0 && !now.Before(p.until)
		if due || newMap && p.moved(m) {
			ready.push(p)
			continue
		}
		c.parked.push(p)
		if p.want == 0 && (next.IsZero() || p.until.Before(next)) {
			next = p.until
		}
	}
	c.parkMu.Unlock()
	c.Stats.Parked.Add(-int64(ready.n))
	for p := ready.pop(); p != nil; p = ready.pop() {
		c.dispatch(p, b)
	}
	return next
}

// moved says that a map has another primary for p's group than the one it was sent to, or another term.
func (p *piece) moved(m *state.Map) bool {
	g := m.Group(p.group())
	return g != nil && (g.Primary.Node != p.node || g.Primary.Inc != p.inc || g.Term != p.req.Term)
}
