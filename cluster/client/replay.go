package client

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/planted"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// replay sends acknowledged changes again that a group lost with its nodes' power (R17), in the order of their numbers, before anything else of
// this session goes there. Changes of different blocks go together.
//
//	steady ──(map: Resumes rose)──▶ held ──(map: RecoveredAt caught up)──▶ resending ──▶ steady
//	  ▲                              │ nothing retained                        │ Resumes rose again
//	  └──────────────────────────────┘                                         └──▶ held
//
// A shared VDI's are not sent again: they count as lost.
type replay struct {
	target  uint64 // Group.Resumes that this answers
	items   []*retainedItem
	active  []*retainedItem
	aborted bool
}

// replayWindow bounds what is resent to one group at a time.
const replayWindow = 32

// hold keeps p back if its group resumed and is not made good yet; false: it may go.
func (s *session) hold(p *piece, sg *sgroup, b *wire.Batch) bool {
	s.mu.Lock()
	g := s.c.cfg.Maps.Map().Group(sg.id)
	if g == nil || g.Resumes == sg.resumes.Load() && sg.replay == nil {
		s.mu.Unlock()
		return false
	}
	if s.deadErr() != nil { // nobody lets it go any more
		s.mu.Unlock()
		return false
	}
	sg.held.push(p)
	s.mu.Unlock()
	s.resume(sg, b)
	return true
}

// resume looks what a group that resumed needs, as far as the map says.
func (s *session) resume(sg *sgroup, b *wire.Batch) {
	s.mu.Lock()
	g := s.c.cfg.Maps.Map().Group(sg.id)
	if g == nil || sg.replay != nil {
		s.mu.Unlock()
		return
	}
	had := sg.resumes.Load()
	if g.Resumes == had {
		s.releaseHeld(sg, b)
		return
	}
	if g.Term > sg.resumedTerm {
		sg.resumedTerm = g.Term
	}
	if sg.keep.first == nil || planted.Broken("R17") {
		s.resumed(sg, g.Resumes)
		s.releaseHeld(sg, b)
		return
	}
	if g.RecoveredAt != g.Resumes {
		s.mu.Unlock()
		return // the new primary does not know yet; its word comes with a newer map
	}
	from := g.Recovered
	if g.Resumes != had+1 { // what the resumes between recovered is not known: everything that is not there for sure
		from = sg.keep.certain(g.Forced)
	}
	// A force since then may have given these numbers to other changes: what survived of it does not say that ours did.
	gone := func(it *retainedItem) bool { return it.lsn > from || it.under < g.Forced }
	s.account(-sg.keep.dropIf(func(it *retainedItem) bool {
		if !gone(it) {
			return false
		}
		why := s.mayNotResend(g, had, it)
		if why != nil {
			s.lose(it, why)
		}
		return why != nil
	}))
	items := sg.keep.ordered(gone)
	if len(items) == 0 {
		s.resumed(sg, g.Resumes)
		s.releaseHeld(sg, b)
		return
	}
	s.c.log.Warn("sending acknowledged writes again", "vdi", s.name, "group", uint32(sg.id), "writes", len(items), "recovered", g.Recovered)
	sg.replay = &replay{target: g.Resumes, items: items}
	s.pump(sg, b)
}

// mayNotResend is why an item that a group lost counts as lost for good, nil if it is to be sent again. mu is held.
func (s *session) mayNotResend(g *state.Group, had uint64, it *retainedItem) error {
	switch {
	case it.sole:
		return errGoneWithUs
	case s.shared:
		return errMayBeOverwritten
	case it.seq <= s.frozenAcks && (g.ResumedAt < s.frozenAt || g.Resumes != had+1): // of several resumes only the last one's index is known
		return errSnapshotLacksIt
	}
	return nil
}

// passed notes that a snapshot was taken while the session had lapsed: it waited for nobody's word (replayed.go). What is being sent again would come into
// the disk behind it. mu is held.
func (s *session) passed(frozenAt uint64) {
	s.frozenAt, s.frozenAcks = frozenAt, s.acks
	for _, sg := range s.sgAll {
		if sg.replay != nil {
			sg.replay.aborted = true
		}
	}
}

// A snapshot holds all that was answered before it, or that is lost.
var errSnapshotLacksIt = errors.New("a snapshot was taken meanwhile, while the session had lapsed")

// Its payload was not kept: while this process lived, only a force could lose it.
var errGoneWithUs = errors.New("the group was forced to go on without this node, which alone had it")

// Whether another client of a shared VDI wrote there since is not known: sending again might take its later write back (invariant 7).
var errMayBeOverwritten = errors.New("the VDI is shared, and others may have written there since")

// resumed notes that all that was acknowledged here is there again, or known to be lost. If other clients may have lost what they had not
// flushed, the next flush fails: it would have to cover that, and only they know. mu is held.
func (s *session) resumed(sg *sgroup, count uint64) {
	sg.resumes.Store(count)
	if v := s.c.cfg.Maps.Map().VDI(s.ident.Load().vid); v != nil && v.State == state.Closing {
		s.c.lookAgain() // a snapshot waits for it
	}
	if !s.shared || s.lostFlush != nil {
		return
	}
	id := s.ident.Load()
	for _, other := range s.c.cfg.Maps.Map().SessionsOf(id.vid) {
		if other.ID != id.sess {
			s.lostFlush = fmt.Errorf("%s: the nodes of group %d lost power; what other clients wrote and had not flushed may be lost: %w", s.name, uint32(sg.id), syscall.EIO)
			return
		}
	}
}

// releaseHeld lets go what was held. mu is held, and released.
func (s *session) releaseHeld(sg *sgroup, b *wire.Batch) {
	list := sg.held.take()
	s.mu.Unlock()
	for p := list.pop(); p != nil; p = list.pop() {
		s.c.dispatch(p, b)
	}
}

// pump sends as much as may go, and ends the resending when all is done. mu is held, and released.
func (s *session) pump(sg *sgroup, b *wire.Batch) {
	r := sg.replay
	var list pieceList
	for !r.aborted && len(r.items) > 0 && len(r.active) < replayWindow && !r.busy(r.items[0]) {
		it := r.items[0]
		r.items = r.items[1:]
		r.active = append(r.active, it)
		list.push(s.resent(sg, it))
	}
	if len(r.active) > 0 {
		s.mu.Unlock()
		for p := list.pop(); p != nil; p = list.pop() {
			s.c.Stats.Resent.Add(1)
			s.c.dispatch(p, b)
		}
		return
	}
	sg.replay = nil
	if r.aborted {
		s.mu.Unlock()
		s.resume(sg, b)
		return
	}
	s.resumed(sg, r.target)
	s.releaseHeld(sg, b)
}

// busy says whether an item touches one that is under way.
func (r *replay) busy(it *retainedItem) bool {
	for _, a := range r.active {
		if a.overlaps(it) {
			return true
		}
	}
	return false
}

// resent makes a request of a retained change.
func (s *session) resent(sg *sgroup, it *retainedItem) *piece {
	p := getPiece()
	p.s, p.sg, p.again, p.replay, p.index = s, sg, it, sg.replay, it.index
	r := &p.req
	r.Kind, r.Flags, r.Group = it.kind, wire.FlagAgain, uint32(sg.id)
	r.IO = wire.IO{Key: uint64(s.root)<<32 | uint64(it.index), Off: it.off, Len: it.len}
	r.Client, r.Epoch, r.To = s.c.cfg.ID, localEpoch, p
	if r.Data, r.Owner = it.data, it.owner; r.Owner != nil {
		r.Owner.Retain() // the item may be forgotten while a primary in this process still has the request
		p.owned = true
	}
	if r.Kind == wire.KindWrite {
		p.sum()
	}
	return p
}

// stale says, for a resent piece, that the map asks for another resending than the one it is part of; it is taken out then.
func (s *session) stale(p *piece, g *state.Group, b *wire.Batch) bool {
	s.mu.Lock()
	over := p.replay.aborted || g.Resumes != p.replay.target
	s.mu.Unlock()
	if !over {
		return false
	}
	s.resentDone(p, nil, true, b)
	return true
}

// resentDone takes the outcome of a resent piece.
func (s *session) resentDone(p *piece, err error, abort bool, b *wire.Batch) {
	s.mu.Lock()
	sg, r, it := p.sg, p.replay, p.again
	done := p.req.Done
	putPiece(p)
	if sg.replay != r { // the session died meanwhile
		s.mu.Unlock()
		return
	}
	for i, a := range r.active {
		if a == it {
			r.active = append(r.active[:i], r.active[i+1:]...)
			break
		}
	}
	switch {
	case abort:
		r.aborted = true
	case err != nil:
		sg.keep.remove(it)
		s.account(-it.cost())
		s.lose(it, err)
		it.free()
	default:
		it.lsn, it.under = done.LSN, done.Term
	}
	s.pump(sg, b)
}
