package replica

import (
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// fromPrimary takes what a primary sends to a replica.
func (e *Engine) fromPrimary(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	if e.agreed().Group(state.GroupID(f.Group)) == nil { // no such group, or our map does not know it yet
		e.answer(c, f, wire.StatusBehind, nil, b)
		return
	}
	g := e.group(state.GroupID(f.Group))
	switch f.Kind {
	case wire.KindAppend:
		g.append(c, f, b)
	case wire.KindCommits:
		wire.EachGroupPos(f.Meta, func(pos wire.GroupPos) { e.group(state.GroupID(pos.Group)).takeCommit(f, pos) })
	case wire.KindSync:
		g.sync(c, f, b)
	case wire.KindActivate:
		g.position(c, f, b)
	case wire.KindSyncStart:
		g.syncStart(c, f, b)
	case wire.KindUnitList:
		g.unitList(c, f, b)
	case wire.KindUnitGet, wire.KindVerify:
		g.unitGet(c, f, b)
	case wire.KindCopyData:
		g.copyData(c, f, b)
	case wire.KindCopyEnd:
		g.copyEnd(c, f, b)
	case wire.KindCopyDrop:
		g.copyDrop(c, f, b)
	case wire.KindSyncEnd:
		g.syncEnd(c, f, b)
	case wire.KindOnce:
		g.takeOnce(c, f, b)
	case wire.KindFetch:
		g.fetchBlock(c, f, b)
	default:
		e.answer(c, f, wire.StatusInvalid, []byte("unknown kind"), b)
	}
}

// admit compares incarnations and terms of a message from a primary; it is the only place that does (R5, invariant 6). A later term than ours ends
// whatever we thought we were. mu is held.
func (g *group) admit(f *wire.Frame, b *wire.Batch) wire.Status {
	switch {
	case f.To != g.e.self().Inc && !broken("R5"):
		return wire.StatusWrongInc
	case f.Term < g.fence && !g.sameGrant(f.From, f.Term) && !broken("Invariant6"):
		return wire.StatusOldTerm
	case g.agree != nil && g.agree.Term == f.Term && g.agree.Primary.Inc != f.From:
		return wire.StatusWrongInc
	}
	if f.Term > g.fence {
		g.fence = f.Term
		g.stepDown(b)
	}
	if g.role == serving || g.role == activating { // our own term, from somebody else
		return wire.StatusOldTerm
	}
	if f.Kind == wire.KindSyncStart {
		g.leaveFailed()
	}
	if !g.open() { // not StatusGone: that would say that the group has nothing
		return wire.StatusFailed
	}
	g.role = secondary
	return wire.StatusOK
}

// sameGrant says that a term, though not the newest, belongs to the primary that still has the group: its sets changed, its numbers go on.
func (g *group) sameGrant(from, term uint64) bool {
	return g.agree != nil && g.agree.Term == g.fence && g.agree.Primary.Inc == from && term >= g.agree.Granted
}

// deny answers that a message changed nothing.
func (g *group) deny(c *wire.Conn, f *wire.Frame, s wire.Status, meta []byte, b *wire.Batch) {
	h := wire.Header{Kind: f.Kind | wire.KindAnswer, Status: s, ID: f.ID, Group: f.Group, Term: g.fence, From: g.e.self().Inc}
	c.Send(&h, meta, nil, nil)
	b.Flush(c)
}

// append takes the next entry of the group (R1). It is acknowledged when the journal has it.
func (g *group) append(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var m wire.Append
	head, err := m.Parse(f.Meta)
	en := getEntry()
	if err == nil {
		_, err = en.ParseHead(head)
	}
	if err == nil {
		en.Data = f.Data
		err = en.VerifyData()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil { // damaged on its way: the stream is broken; the primary sends it again on another
		g.e.log.Warn("entry from a primary", "group", g.id, "from", c.RemoteAddr(), "error", err)
		en.Data = nil
		en.free()
		c.Close(err)
		return
	}
	if s := g.admit(f, b); s != wire.StatusOK {
		en.Data = nil
		en.free()
		g.deny(c, f, s, nil, b)
		return
	}
	if g.paused() { // it comes again in a moment
		en.Data = nil
		en.free()
		g.deny(c, f, wire.StatusBusy, nil, b)
		return
	}
	lsn := en.Number.LSN
	if g.syncing && (c != g.syncConn || g.ending && f.Flags&flagHole != 0) || !g.syncing && f.Flags&flagHole != 0 {
		en.Data = nil
		en.free()
		g.deny(c, f, wire.StatusGap, nil, b)
		return
	}
	g.ackTo, g.ackTerm, g.ackFrom = c, f.Term, f.From
	switch {
	case lsn <= g.last: // again
		en.Data = nil
		en.free()
		b.Journal(g.store)
		b.Finish(g, g.last)
		g.ackAgain(b)
	case lsn != g.last+1 && !broken("R1"):
		en.Data = nil
		en.free()
		g.deny(c, f, wire.StatusGap, nil, b)
	default:
		if err := g.st.Stage(&en.Entry); err != nil {
			en.Data = nil
			en.free()
			g.deny(c, f, statusOf(err), []byte(err.Error()), b)
			return
		}
		if len(f.Data) > 0 {
			buf := f.Keep()
			en.Data, en.owner = buf.B, buf
		}
		g.last = lsn
		en.once, en.part = m.Once, m.Part
		g.once.note(en.once, en.part, lsn)
		g.tail = append(g.tail, en)
		b.Journal(g.store)
		b.Finish(g, lsn)
	}
	g.learnCommit(m.Commit)
}

// ackAgain acknowledges at once what came a second time and is in the journal already.
func (g *group) ackAgain(b *wire.Batch) {
	if g.journaled == g.last {
		g.ack(b)
	}
}

// takeCommit takes a commit point.
func (g *group) takeCommit(f *wire.Frame, pos wire.GroupPos) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.To == g.e.self().Inc && pos.Term == g.fence && g.role == secondary {
		g.learnCommit(pos.LSN)
	}
}

// learnCommit lets go of entries that every in-sync replica has. mu is held.
func (g *group) learnCommit(lsn uint64) {
	if lsn <= g.commit {
		return
	}
	g.commit = min(lsn, g.last)
	n := 0
	for n < len(g.tail) && g.tail[n].Number.LSN <= g.commit {
		g.tail[n].free()
		n++
	}
	g.tail = g.tail[:copy(g.tail, g.tail[n:])]
}

// ack tells the primary how far our journal has the group. mu is held.
func (g *group) ack(b *wire.Batch) {
	if g.ackTo == nil || g.ackTerm < g.fence && !g.sameGrant(g.ackFrom, g.ackTerm) {
		return
	}
	var buf [12 + 20]byte
	meta := wire.AppendAcks(buf[:0], g.credit())
	pos := wire.GroupPos{Group: uint32(g.id), Term: g.ackTerm, LSN: g.journaled}
	h := wire.Header{Kind: wire.KindAcks, Group: uint32(g.id), Term: g.ackTerm, From: g.e.self().Inc}
	g.ackTo.Send(&h, pos.Append(meta), nil, nil)
	b.Flush(g.ackTo)
}

// sync makes all we have of the group durable, then answers.
func (g *group) sync(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	s := g.admit(f, b)
	store, last := g.store, g.last
	if s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
	}
	g.mu.Unlock()
	if s != wire.StatusOK {
		return
	}
	h := wire.Header{Kind: f.Kind | wire.KindAnswer, ID: f.ID, Group: f.Group, Term: f.Term}
	b.Sync(disk{store, g.e}, &syncedFor{g, c, h, store, last})
}

// position tells a new primary where we stand, and that no older one can change it any more (R2, R19).
func (g *group) position(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.admit(f, b); s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		return
	}
	if err := g.store.Commit(); err != nil {
		g.e.diskFailed(err)
		s := wire.StatusFailed
		if g.agree == nil || g.agree.Term < f.Term { // the term may be one that has us go on elsewhere
			s = wire.StatusBehind
		}
		g.deny(c, f, s, []byte(err.Error()), b)
		return
	}
	g.journaled = g.last
	g.deny(c, f, wire.StatusOK, g.where().Append(nil), b)
}

// where describes our copy. mu is held.
func (g *group) where() *wire.Position {
	last := g.st.Last()
	p := &wire.Position{Last: wire.Number(last), Commit: g.commit, Syncing: g.st.Syncing(), Lost: g.lost, Credit: g.credit()}
	for _, n := range g.st.TermStarts() {
		p.Terms = append(p.Terms, wire.Number(n))
	}
	return p
}

// termAt says under which term a number was given, by a history of terms; 0 if the history does not reach back so far.
func termAt(terms []wire.Number, lsn uint64) uint64 {
	for i := len(terms) - 1; i >= 0; i-- {
		if terms[i].LSN <= lsn {
			return terms[i].Term
		}
	}
	return 0
}

// lastCommon is the last number that two histories share: up to there both hold the same (R1). 0: unknown.
func lastCommon(a []wire.Number, aLast uint64, b []wire.Number, bLast uint64) uint64 {
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] { // the same term began at the same number
				return min(endOf(a, i, aLast), endOf(b, j, bLast))
			}
		}
	}
	return 0
}

// endOf is the last number of a history's i-th term.
func endOf(terms []wire.Number, i int, last uint64) uint64 {
	if i+1 < len(terms) {
		return terms[i+1].LSN - 1
	}
	return last
}
