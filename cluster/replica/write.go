package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// write numbers a client's write: whole blocks as they are, others after merging them onto what is there (STORE.md rule 13). mu is held.
func (g *group) write(r *wire.Request, v *view, b *wire.Batch) {
	io := &r.IO
	if len(r.Data) != int(io.Len) {
		r.Message = fmt.Sprintf("%d bytes of data for a write of %d", len(r.Data), io.Len)
		g.refuse(r, wire.StatusInvalid, b)
		return
	}
	var en *entry
	var err error
	if io.Off%objstore.BlockSize == 0 && io.Len%objstore.BlockSize == 0 {
		en, err = wholeBlocks(r)
	} else {
		en, err = g.merged(r, v, r.IO.Off, r.Data)
	}
	var bad *objstore.BlockError
	if errors.As(err, &bad) { // the rest of its block is rotten here
		g.repair(r, v, bad)
		return
	}
	if errors.Is(err, objstore.ErrChecksum) && r.Crossed { // changed on its way: the client sends it again
		g.e.log.Warn("data changed on its way from a client", "client", r.Client, "group", g.id, "error", err)
		g.refuse(r, wire.StatusBusy, b)
		return
	}
	if err != nil {
		g.fail(r, err, b)
		return
	}
	g.e.Stats.Writes.Add(1)
	g.e.Stats.WriteBytes.Add(int64(io.Len))
	en.once, en.part = io.Once, wire.PartLast
	g.number(en, r, b)
}

// wholeBlocks makes an entry of a request whose data is blocks.
func wholeBlocks(r *wire.Request) (*entry, error) {
	io := &r.IO
	n := int(io.Len / objstore.BlockSize)
	if len(io.CRCs) != 4*n {
		return nil, fmt.Errorf("%d bytes of checksums for %d blocks: %w", len(io.CRCs), n, objstore.ErrFormat)
	}
	en := getEntry()
	en.Kind, en.Key, en.Vid, en.Gen = objstore.KindWrite, objstore.Key(io.Key), objstore.Vid(io.Vid), io.Gen
	en.First, en.Count = uint16(io.Off/objstore.BlockSize), uint16(n)
	for i := 0; i < len(io.CRCs); i += 4 {
		en.CRCs = append(en.CRCs, binary.LittleEndian.Uint32(io.CRCs[i:]))
	}
	en.Data = r.Data
	if r.Owner != nil {
		en.owner = r.Owner
		r.Owner.Retain()
	} else {
		buf := wire.GetBuf(len(r.Data))
		copy(buf.B, r.Data)
		en.Data, en.owner = buf.B, buf
	}
	if r.Crossed {
		if err := en.VerifyData(); err != nil {
			en.free()
			return nil, err
		}
	}
	return en, nil
}

// merged makes an entry of data that begins or ends within a block. The base is what the disk reads there after all entries so far.
func (g *group) merged(r *wire.Request, v *view, off uint32, data []byte) (*entry, error) {
	if r.Crossed && r.Kind == wire.KindWrite && wire.Checksum(r.Data) != r.IO.Sum {
		return nil, fmt.Errorf("write of %d bytes: %w", len(r.Data), objstore.ErrChecksum)
	}
	first := int(off / objstore.BlockSize)
	end := (int(off) + len(data) + objstore.BlockSize - 1) / objstore.BlockSize
	if err := g.store.Commit(); err != nil {
		return nil, err
	}
	buf := wire.GetBuf((end - first) * objstore.BlockSize)
	err := g.st.Read(objstore.Key(r.IO.Key), v.chain(r.IO.Vid), first, end-first, buf.B, nil, false)
	if err != nil {
		buf.Release()
		return nil, err
	}
	copy(buf.B[int(off)-first*objstore.BlockSize:], data)
	en := getEntry()
	en.Kind, en.Key, en.Vid, en.Gen = objstore.KindWrite, objstore.Key(r.IO.Key), objstore.Vid(r.IO.Vid), r.IO.Gen
	en.First, en.Count = uint16(first), uint16(end-first)
	en.Data, en.owner = buf.B, buf
	en.SumData()
	return en, nil
}

var zeros [objstore.BlockSize]byte

// zero numbers a trim or a write of zeros: whole blocks become a state, the edges of a write of zeros are merged. mu is held.
func (g *group) zero(r *wire.Request, v *view, b *wire.Batch) {
	off, end := r.IO.Off, r.IO.Off+r.IO.Len
	lo := (off + objstore.BlockSize - 1) &^ (objstore.BlockSize - 1)
	hi := end &^ (objstore.BlockSize - 1)
	var list []*entry
	edge := func(from, to uint32) error {
		if r.Kind == wire.KindTrim || from >= to {
			return nil // a trim is rounded inward
		}
		en, err := g.merged(r, v, from, zeros[:to-from])
		if err == nil {
			list = append(list, en)
		}
		return err
	}
	var err error
	if lo > hi { // within one block
		err = edge(off, end)
	} else {
		err = edge(off, lo)
		if err == nil && lo < hi {
			list = append(list, stateEntry(r, v, lo, hi))
		}
		if err == nil {
			err = edge(hi, end)
		}
	}
	if err != nil {
		for _, en := range list {
			en.free()
		}
		var bad *objstore.BlockError
		if errors.As(err, &bad) { // the rest of an edge's block cannot be read here
			g.repair(r, v, bad)
			return
		}
		g.fail(r, err, b)
		return
	}
	if len(list) == 0 {
		r.Done = wire.Done{Term: g.term, LSN: g.commit}
		b.Complete(r)
		return
	}
	done := g.once.parts(r.IO.Once)
	for i, en := range list {
		en.once, en.part = r.IO.Once, wire.Part(i)
		if i < done { // by an earlier copy of the request, under a primary that got no further
			en.free()
			continue
		}
		if i < len(list)-1 {
			if err := g.take(en, nil, b); err != nil {
				for _, rest := range list[i+1:] {
					rest.free()
				}
				g.fail(r, err, b)
				return
			}
			continue
		}
		en.part |= wire.PartLast
		g.number(en, r, b)
	}
}

// stateEntry makes the entry that empties blocks: with an ancestor they must hide it, without one they may go (STORE.md rule 13).
func stateEntry(r *wire.Request, v *view, lo, hi uint32) *entry {
	en := getEntry()
	en.Kind = objstore.KindTrim
	if len(v.chain(r.IO.Vid)) > 1 {
		en.Kind = objstore.KindZero
	}
	en.Key, en.Vid, en.Gen = objstore.Key(r.IO.Key), objstore.Vid(r.IO.Vid), r.IO.Gen
	en.First, en.Count = uint16(lo/objstore.BlockSize), uint16((hi-lo)/objstore.BlockSize)
	return en
}

// number gives the entry the group's next number, puts it into our journal and on its way to every replica, and answers r when it is
// committed. An entry that cannot be taken by all gets no number (R4). mu is held.
func (g *group) number(en *entry, r *wire.Request, b *wire.Batch) bool {
	err := g.take(en, r, b)
	if err != nil && r != nil {
		g.fail(r, err, b)
	}
	return err == nil
}

var errPaused = errors.New("the group moves to another disk")

// take is number, but leaves what is to be said of an entry that was not taken to its caller. mu is held.
func (g *group) take(en *entry, r *wire.Request, b *wire.Batch) error {
	en.Number = objstore.Number{Term: g.term, LSN: g.last + 1}
	var err error
	switch {
	case g.paused(): // clients' requests are parked before they get here
		err = errPaused
	case !g.hasRoom(en):
		err = syscall.ENOSPC
	default:
		err = g.st.Stage(&en.Entry)
	}
	if err != nil {
		en.free()
		return err
	}
	en.req = r
	if r != nil && en.Number.LSN%paceSample == 0 {
		en.gauge = g.e.pace.writes.of(g.receivers())
		en.began = en.gauge.begin()
	}
	g.stir()
	g.last++
	g.once.note(en.once, en.part, g.last)
	g.tail = append(g.tail, en)
	for _, m := range g.members {
		g.pump(m, b)
	}
	b.Journal(g.store)
	if g.store.Large(len(en.Data)) {
		b.Behind(g.store)
	}
	b.Finish(g, g.last)
	return nil
}

// RoomMargin is what a replica must have left beyond an entry: what may be under way to it from all primaries at once (STORE.md rule 19).
const RoomMargin = 64 << 20

// hasRoom says whether every replica promised space for the entry.
func (g *group) hasRoom(en *entry) bool {
	need := uint64(len(en.Data)) + RoomMargin
	switch en.Kind {
	case objstore.KindWrite:
	case objstore.KindZero: // may need a table; a full replica refuses it only then, so it may take half of the margin
		need = RoomMargin / 2
	default:
		return true // frees, trims and merges go on when the disk is full
	}
	ok := true
	for _, m := range g.members {
		if m.inSync && m.room != nil && m.room.Load() < need {
			g.askRoom(m)
			ok = false
		}
	}
	return ok
}

// fail refuses a request for what the store said.
func (g *group) fail(r *wire.Request, err error, b *wire.Batch) {
	s := statusOf(err)
	if s == wire.StatusFailed && g.store.Err() != nil {
		g.e.early.say(g.e.log, "requests wait: this node's disk has failed", g.node(), g.id, err)
		g.wantSet() // the group goes to another, if there is one; the client asks there. Else it waits for one, as for a node that is down
		g.refuse(r, wire.StatusBehind, b)
		return
	}
	if s == wire.StatusFailed && passes(err) {
		g.e.early.say(g.e.log, "requests wait for what will pass", g.node(), g.id, err)
		g.refuse(r, wire.StatusBusy, b)
		return
	}
	r.Message = err.Error()
	if s == wire.StatusFailed {
		g.e.log.Error("request failed", "kind", r.Kind.String(), "group", g.id, "key", fmt.Sprintf("%016x", r.IO.Key), "off", r.IO.Off, "error", err)
	}
	g.refuse(r, s, b)
}

// passes says that an error says nothing of the disk or the data: the request is to be tried again.
func passes(err error) bool {
	for _, e := range []error{errPaused, objstore.ErrStale, objstore.ErrDropped, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// statusOf says what an error of the store means to who asked.
func statusOf(err error) wire.Status {
	var bad *objstore.BlockError
	switch {
	case err == nil:
		return wire.StatusOK
	case errors.As(err, &bad):
		return wire.StatusBad
	case isNoSpace(err):
		return wire.StatusNoSpace
	case errors.Is(err, objstore.ErrGeneration):
		return wire.StatusGone
	case errors.Is(err, objstore.ErrFormat), errors.Is(err, objstore.ErrChecksum):
		return wire.StatusInvalid
	}
	return wire.StatusFailed
}

// Finish goes on when everything up to upTo is in our journal's file.
func (g *group) Finish(b *wire.Batch, upTo uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.store == nil || upTo <= g.journaled {
		return
	}
	if err := g.store.Err(); err != nil && !broken("R4") {
		g.e.diskFailed(err)
		return // nothing of ours is acknowledged any more; the others will go on without us
	}
	g.journaled = min(upTo, g.last)
	if g.role == serving || g.role == activating {
		g.advance(b)
		return
	}
	g.ack(b)
}

// advance moves the commit point to what every replica that counts has, and answers whose entries that commits. mu is held.
func (g *group) advance(b *wire.Batch) {
	c := g.journaled
	for _, m := range g.members {
		if g.required(m) {
			c = min(c, m.acked)
		}
	}
	if c <= g.commit {
		g.leaseOut = false
		return
	}
	if g.role == activating && (g.takeover == nil || !g.takeover.equal) {
		return
	}
	g.leaseOut = !g.e.cfg.Leased() // invariant 4
	if g.leaseOut {
		return
	}
	low := g.low()
	n := 0
	for _, en := range g.tail {
		if en.Number.LSN > c || low && en.req != nil { // never answered with fewer copies than promised
			c = min(c, en.Number.LSN-1)
			break
		}
		n++
	}
	if c <= g.commit {
		return
	}
	g.commit = c
	for _, en := range g.tail[:n] {
		g.committed(en, b)
		en.free()
	}
	g.tail = g.tail[:copy(g.tail, g.tail[n:])]
	if !g.isLazy && len(g.members) > 0 {
		g.isLazy = true
		g.e.mu.Lock()
		g.e.lazy = append(g.e.lazy, g)
		g.e.mu.Unlock()
	}
	g.rerunReads(b)
	g.wakeWaiters(false)
	if g.role == activating {
		g.takeover.committed(g, b)
	}
	if len(g.tail) == 0 && g.handTo != state.NoNode {
		g.wantSet()
	}
}

// committed answers the entry's request.
func (g *group) committed(en *entry, b *wire.Batch) {
	r := en.req
	if r == nil {
		return
	}
	en.req = nil
	if en.gauge != nil {
		en.gauge.end(en.began)
		en.gauge = nil
	}
	g.answer(r, en.Number, b)
}

// answer says that a change is done: its entry n is committed. mu is held.
func (g *group) answer(r *wire.Request, n objstore.Number, b *wire.Batch) {
	r.Done = wire.Done{Term: n.Term, LSN: n.LSN, Index: g.e.agreed().Index}
	r.Sole = len(g.members) == 0 && len(g.agree.InSync) == 1
	if r.Flags&wire.FlagFUA != 0 {
		g.flushes.add(g, r, n.LSN, b)
		return
	}
	r.Status = wire.StatusOK
	b.Complete(r)
}

// tellCommit tells the replicas how far the group is committed, so that they can let go of what they hold for a takeover.
func (g *group) tellCommit(b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isLazy = false
	if g.role != serving || g.told == g.commit {
		return
	}
	g.told = g.commit
	pos := wire.GroupPos{Group: uint32(g.id), Term: g.term, LSN: g.commit}
	meta := pos.Append(nil)
	for _, m := range g.members {
		if m.conn != nil {
			h := wire.Header{Kind: wire.KindCommits, Group: uint32(g.id), Term: g.term, From: g.e.self().Inc, To: m.Inc}
			m.conn.Send(&h, meta, nil, nil)
			b.Flush(m.conn)
		}
	}
}
