package client

import (
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// round is one flush of all groups that have something to flush. Flushes that come while one is under way share the next.
type round struct {
	ops  *Op // waiting for it, linked by nextOp
	left int // groups that have not answered
	err  error
	// heard: somebody waits who passes on what was lost.
	heard bool
}

// flush makes everything acknowledged before it durable. With nothing to do it is done at once.
func (s *session) flush(op *Op, b *wire.Batch) {
	s.mu.Lock()
	if s.lostFlush != nil && s.round == nil && !op.quiet {
		op.Err, s.lostFlush = s.lostFlush, nil
		s.mu.Unlock()
		s.c.Stats.Errors.Add(1)
		op.Done(op, b)
		return
	}
	if s.round != nil {
		if s.joining == nil {
			s.joining = new(round)
		}
		s.joining.join(op)
		s.mu.Unlock()
		return
	}
	if len(s.dirty) == 0 && !s.inherit && !s.shared && s.deadErr() == nil {
		s.mu.Unlock()
		op.Done(op, b)
		return
	}
	r := new(round)
	r.join(op)
	s.begin(r, b)
}

func (r *round) join(op *Op) {
	op.nextOp, r.ops = r.ops, op
	r.heard = r.heard || !op.quiet
}

// begin starts a round. mu is held, and released.
func (s *session) begin(r *round, b *wire.Batch) {
	s.round = r
	// A dead session keeps nothing, so no group counts as dirty. That makes nothing durable.
	r.err = s.deadErr()
	if s.inherit || s.shared && r.ops != nil { // others' writes are covered too: that is what NBD's multi-conn promises
		s.inheritAll()
	}
	groups := s.dirty
	s.dirty = nil
	r.left = len(groups) + 1 // one for us, while we send
	upTo := s.acks
	list := make([]*piece, len(groups))
	for i, sg := range groups {
		p := getPiece()
		p.s, p.sg, p.round, p.upTo, p.all = s, sg, r, upTo, sg.inherit
		p.req.Kind, p.req.Group = wire.KindFlush, uint32(sg.id)
		p.req.Client, p.req.Epoch, p.req.To = s.c.cfg.ID, localEpoch, p
		list[i] = p
	}
	s.mu.Unlock()
	s.c.Stats.FlushedGroup.Add(int64(len(list)))
	for _, p := range list {
		s.c.dispatch(p, b)
	}
	s.mu.Lock()
	s.roundDown(r, b)
}

// inheritAll marks every group that may hold what an earlier session, or another client, wrote and did not flush. mu is held.
func (s *session) inheritAll() {
	s.inherit = false
	s.cover()
	for _, sg := range s.sgAll {
		sg.inherit = true
		s.markDirty(sg)
	}
}

// cover makes the entries of all groups that objects of the VDI belong to. mu is held.
func (s *session) cover() {
	groups := s.c.cfg.Maps.Map().PoolGroups(s.pool.ID)
	objects := (s.ident.Load().size + objectSize - 1) / objectSize
	for ; s.covered < objects && len(s.sgAll) < len(groups); s.covered++ {
		if idx := state.GroupOf(s.pool, s.root, uint32(s.covered)).Index(); idx < len(groups) {
			s.getGroup(groups[idx])
		}
	}
}

// markDirty has the next flush cover a group. mu is held.
func (s *session) markDirty(sg *sgroup) {
	if !sg.isDirty {
		sg.isDirty = true
		s.dirty = append(s.dirty, sg)
	}
}

// flushed takes the outcome of one group's flush.
func (s *session) flushed(p *piece, err error, b *wire.Batch) {
	s.mu.Lock()
	sg, r := p.sg, p.round
	if err == nil {
		if sg.replay == nil { // it has items in hand
			s.account(-sg.keep.flushed(p.upTo))
		}
		if p.all {
			sg.inherit = false
		}
	} else if r.err == nil {
		r.err = err
	}
	sg.isDirty = false
	if sg.keep.first != nil || sg.inherit {
		s.markDirty(sg)
	}
	p.round = nil
	putPiece(p)
	s.roundDown(r, b)
}

// roundDown counts an answer, and ends the round with the last one. mu is held, and released.
func (s *session) roundDown(r *round, b *wire.Batch) {
	if r.left--; r.left > 0 {
		s.mu.Unlock()
		return
	}
	if r.err == nil && s.lostFlush != nil && r.heard {
		r.err, s.lostFlush = s.lostFlush, nil
	}
	next := s.joining
	s.round, s.joining = nil, nil
	waits := s.throttled.n > 0
	switch {
	case next != nil:
		s.begin(next, b)
	default:
		s.mu.Unlock()
	}
	if waits {
		s.unthrottle(b)
	}
	for op := r.ops; op != nil; {
		after := op.nextOp
		op.nextOp = nil
		if op.Err = r.err; r.err != nil {
			s.c.Stats.Errors.Add(1)
		}
		op.Done(op, b)
		op = after
	}
}

// flushSelf begins a flush that nobody waits for, because too much is retained.
func (s *session) flushSelf(b *wire.Batch) {
	s.mu.Lock()
	if s.round != nil || len(s.dirty) == 0 || s.deadErr() != nil {
		s.mu.Unlock()
		return
	}
	s.c.Stats.SelfFlushes.Add(1)
	s.begin(new(round), b)
}
