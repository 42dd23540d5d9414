package replica

import (
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// A client that does not hear the answer to a change sends it again. On a VDI with one writer that is harmless: nobody else can have written there since. On one
// that several write it would take back what another was answered meanwhile (invariant 7). So changes of shared VDIs carry a number of their session, every replica
// remembers those numbered that may still be sent again, and a primary answers such a one without doing it again.
//
// All replicas in sync know the same of it: entries carry it, and who joins is told (KindOnce). When all have ended (R6) it is gone; clients then fail what was under
// way with EIO instead of sending it again. When a session has ended its changes are refused, and what is known of it is forgotten.
type once map[uint64]*onceSession

// onceSession is what is known of a session: of its changes from low on those that are numbered.
type onceSession struct {
	low  uint64
	done map[uint64]onceDone
}

type onceDone struct {
	lsn  uint64
	part wire.Part
}

// onceMax bounds what is remembered of a session in one group: a client that has so many changes without an answer waits.
const onceMax = 4096

// note remembers that an entry of a change is numbered.
func (o *once) note(id wire.Once, part wire.Part, lsn uint64) {
	if id.Sess == 0 {
		return
	}
	if *o == nil {
		*o = once{}
	}
	s := (*o)[id.Sess]
	if s == nil {
		s = &onceSession{done: map[uint64]onceDone{}}
		(*o)[id.Sess] = s
	}
	if id.Low > s.low {
		s.low = id.Low
		for seq := range s.done {
			if seq < s.low {
				delete(s.done, seq)
			}
		}
	}
	if id.Seq >= s.low {
		s.done[id.Seq] = onceDone{lsn, part}
	}
}

// parts says how many entries of a change are numbered.
func (o once) parts(id wire.Once) int {
	if s := o[id.Sess]; s != nil && !broken("Invariant7") {
		if d, ok := s.done[id.Seq]; ok {
			return int(d.part&^wire.PartLast) + 1
		}
	}
	return 0
}

// forgetEnded drops what is known of sessions that have ended, so far as the map knows.
func (o once) forgetEnded(m *state.Map) {
	for sess := range o {
		if sess < m.NextSess && m.Session(sess) == nil {
			delete(o, sess)
		}
	}
}

// doneBefore answers a change that was done already: when it is committed, as any. false: it is to be done. mu is held.
func (g *group) doneBefore(r *wire.Request, b *wire.Batch) bool {
	id := r.IO.Once
	s := g.once[id.Sess]
	if s == nil || broken("Invariant7") {
		return false
	}
	d, ok := s.done[id.Seq]
	switch {
	case id.Seq < s.low: // a late copy: nobody waits for its answer any more
		g.refuse(r, wire.StatusOldConn, b)
		return true
	case !ok && len(s.done) >= onceMax && id.Seq != id.Low:
		g.refuse(r, wire.StatusBusy, b)
		return true
	case !ok || d.part&wire.PartLast == 0:
		return false
	}
	g.e.Stats.DoneBefore.Add(1)
	if len(g.tail) > 0 && d.lsn >= g.tail[0].Number.LSN {
		en := g.tail[d.lsn-g.tail[0].Number.LSN]
		if en.req != nil {
			g.refuse(en.req, wire.StatusOldConn, b)
		}
		en.req = r
		return true
	}
	g.answer(r, objstore.Number{Term: g.term, LSN: d.lsn}, b)
	return true
}

// tellOnce tells a replica that begins to follow the stream all that is known; mu is held. It has it when the channel says so.
func (g *group) tellOnce(m *member, b *wire.Batch) <-chan wire.Status {
	ch := make(chan wire.Status, 1)
	var meta []byte
	for sess, s := range g.once {
		for seq, d := range s.done {
			x := wire.OnceDone{Once: wire.Once{Sess: sess, Seq: seq, Low: s.low}, LSN: d.lsn, Part: d.part}
			meta = x.Append(meta)
		}
	}
	h := wire.Header{Kind: wire.KindOnce, Group: uint32(g.id), Term: g.term, From: g.e.self().Inc, To: m.Inc}
	if len(meta) == 0 || !m.p.call(&h, meta, nil, nil, callLimit, func(a *wire.Frame, _ *wire.Batch) {
		if a == nil {
			ch <- wire.StatusGap
		} else {
			ch <- a.Status
		}
	}, b) {
		ch <- wire.StatusOK // nothing to tell; or no connection, which the next step finds out
	}
	return ch
}

// takeOnce takes the primary's word in place of what is known here.
func (g *group) takeOnce(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.admit(f, b)
	if s == wire.StatusOK && g.syncing && c != g.syncConn {
		s = wire.StatusGap
	}
	var list once
	if wire.EachOnceDone(f.Meta, func(x wire.OnceDone) { list.note(x.Once, x.Part, x.LSN) }) != nil {
		s = wire.StatusInvalid
	}
	if s == wire.StatusOK {
		g.once = list
	}
	g.deny(c, f, s, nil, b)
}
