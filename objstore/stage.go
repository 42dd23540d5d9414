package objstore

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Stage takes the next entry of the group: it joins the journal's pending
// batch, and reads see it at once. A large write's data go to the object's
// file first. Neither e nor what it points to is kept. At a bound (journal,
// unsynced bytes) Stage waits; on an error nothing was staged.
func (g *Group) Stage(e *Entry) error {
	if err := e.Validate(); err != nil {
		return err
	}
	if len(e.Data) != e.DataLen() {
		return fmt.Errorf("entry %v: %d bytes of data, want %d: %w", e.Number, len(e.Data), e.DataLen(), ErrFormat)
	}
	if err := g.admit(e); err != nil {
		return err
	}
	large := e.Kind == KindWrite && g.s.Large(len(e.Data))
	for {
		var err error
		if large {
			err = g.stageLarge(e)
		} else {
			err = g.stageSmall(e)
		}
		if !errors.Is(err, errNoRoom) {
			return err
		}
		if err := g.s.j.waitRoom(); err != nil {
			return err
		}
	}
}

// admit waits at the bounds that are the store's and refuses what there is
// no space for: writes, and zeros that need a table. Everything else goes on
// when the disk is full.
func (g *Group) admit(e *Entry) error {
	s := g.s
	if err := s.Err(); err != nil {
		return err
	}
	if e.Kind.creates() {
		err := s.refuseWhenFull()
		if err != nil && e.Kind == KindZero && g.hasVersion(e.Key, e.Vid) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("entry %v: %v to object %v: %w", e.Number, e.Kind, e.Key, err)
		}
	}
	if bugNoBound.active() {
		return nil
	}
	if s.j.pendingBytes() > s.cfg.PendingBytesMax {
		if err := s.j.commit(); err != nil {
			return err
		}
	}
	return s.waitDirty()
}

func (g *Group) hasVersion(key Key, vid Vid) bool {
	o, unlock, err := g.lockLoaded(key)
	if err != nil || o == nil {
		return false
	}
	defer unlock()
	return o.t.find(vid) != nil
}

func (g *Group) stageSmall(e *Entry) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	o, err := g.prepare(e)
	if err != nil {
		return err
	}
	pl, err := g.s.j.appendEntry(g.id, e)
	if err != nil {
		g.abandon(o)
		return err
	}
	g.touch(pl)
	g.advance(e.Number)
	if o == nil {
		return nil
	}
	o.touch()
	o.apply(e, pl.pos, func(i int) uint32 { return cellJournal | (pl.data + uint32(i)*(BlockSize/recordAlign)) })
	g.s.m.staged.Add(1)
	return nil
}

// prepare checks that the entry is next and brings its object into memory;
// nil where the entry changes nothing. Holds mu, but lets go of it to load.
func (g *Group) prepare(e *Entry) (*object, error) {
	for {
		if err := g.next(e.Number); err != nil {
			return nil, err
		}
		if e.Kind == KindNoop {
			return nil, nil
		}
		o := g.objects[e.Key]
		switch {
		case o == nil && !e.Kind.creates():
			return nil, nil
		case o == nil:
			o = g.newObject(e.Key)
		case o.t == nil:
			g.mu.Unlock()
			err := g.s.load(o)
			g.mu.Lock()
			if err != nil {
				return nil, err
			}
			continue
		}
		o.t.recent = true
		if err := o.check(e); err != nil {
			g.abandon(o)
			return nil, err
		}
		return o, nil
	}
}

// newObject makes an object without versions. Holds mu.
func (g *Group) newObject(key Key) *object {
	o := &object{g: g, key: key, t: &tables{}}
	g.objects[key] = o
	g.s.cacheAdd(o)
	return o
}

// abandon forgets an object that was made for something that failed, unless
// the group was dropped meanwhile and with it the object. Holds mu.
func (g *Group) abandon(o *object) {
	if o == nil || g.objects[o.key] != o || o.t == nil || o.exists() || o.t.busy() {
		return
	}
	if o.birth != 0 { // a file for nothing: the next checkpoint removes it
		o.touch()
		g.changed = true
		return
	}
	delete(g.objects, o.key)
	g.s.cacheRemove(o)
}

// busy says that the tables may not leave memory.
func (t *tables) busy() bool {
	return t.dirty || t.cut || t.plan || t.snap != nil || t.pins > 0 || len(t.later) > 0
}

// stageLarge writes the data to free slots, then journals where they are, so
// that they are not paid for twice (rule 4).
func (g *Group) stageLarge(e *Entry) error {
	g.mu.Lock()
	o, err := g.prepare(e)
	if err != nil {
		g.mu.Unlock()
		return err
	}
	o.t.pins++
	var buf [4]slotRun
	runs := o.t.alloc(o.t.homeOf(e.Vid), int(e.First), int(e.Count), buf[:0])
	var bufOld [4]slotRun
	old := o.t.writtenWhole(runs, bufOld[:0])
	g.mu.Unlock()

	err = g.s.writeSlots(o, runs, old, e.Data)

	g.mu.Lock()
	defer g.mu.Unlock()
	o.t.pins--
	if err == nil {
		err = g.next(e.Number)
	}
	if err == nil {
		err = o.check(e)
	}
	var pl place
	if err == nil {
		pl, err = g.s.j.appendBody(recLarge, g.id, appendLarge(e, o.birth, runs))
	}
	if err != nil {
		o.t.freeRuns(runs)
		g.abandon(o)
		return err
	}
	g.touch(pl)
	g.advance(e.Number)
	o.touch()
	o.apply(e, pl.pos, slotsOf(runs))
	g.s.m.stagedLarge.Add(1)
	g.s.space.spent.Add(int64(len(e.Data)))
	g.s.grewLarge(int64(len(e.Data)))
	return nil
}

// homeOf is the chunk where a version's table is or will be.
func (t *tables) homeOf(vid Vid) int {
	if v := t.find(vid); v != nil {
		return v.chunk
	}
	k := 0
	for k < len(t.chunks) && t.chunks[k].owner != nil {
		k++
	}
	return k
}

// slotsOf gives the i-th block's cell, for rising i.
func slotsOf(runs []slotRun) func(i int) uint32 {
	r, base := 0, 0
	return func(i int) uint32 {
		for i-base >= int(runs[r].n) {
			base += int(runs[r].n)
			r++
		}
		return cellSlot | (runs[r].slot + uint32(i-base))
	}
}

// writeSlots writes data to runs of slots of the object's file, which is
// created if need be, and has the next sync cover it. What the page cache has
// of the runs in old is dropped before.
func (s *Store) writeSlots(o *object, runs, old []slotRun, data []byte) error {
	f, err := s.acquireForWrite(o)
	if err != nil {
		return err
	}
	defer f.release()
	for _, r := range old {
		_ = f.f.Forget(int64(r.slot)*BlockSize, int64(r.n)*BlockSize) // it only costs time if they stay
	}
	if err := s.writeRuns(f, runs, data); err != nil {
		return err
	}
	s.written(f, int64(len(data)))
	return nil
}

func (s *Store) writeRuns(f *objFile, runs []slotRun, data []byte) error {
	at := 0
	for _, r := range runs {
		n := int(r.n) * BlockSize
		if _, err := f.f.WriteAt(data[at:at+n], int64(r.slot)*BlockSize); err != nil {
			return s.writeError("write object "+f.o.key.String(), err)
		}
		at += n
	}
	return nil
}

// The body of recLarge:
//
//	entry head
//	birth  u64       of the object's file
//	runs   u32       how many follow
//	{ slot u32, n u32 } × runs
func appendLarge(e *Entry, birth uint64, runs []slotRun) []byte {
	b := make([]byte, 0, e.HeadSize()+12+8*len(runs))
	b = e.AppendHead(b)
	b = binary.LittleEndian.AppendUint64(b, birth)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(runs)))
	for _, r := range runs {
		b = binary.LittleEndian.AppendUint32(b, r.slot)
		b = binary.LittleEndian.AppendUint32(b, r.n)
	}
	return b
}

func parseLarge(b []byte) (e Entry, birth uint64, runs []slotRun, ok bool) {
	e, n, err := ParseHead(b)
	if err != nil || e.Kind != KindWrite || len(b) < n+12 {
		return e, 0, nil, false
	}
	birth = binary.LittleEndian.Uint64(b[n:])
	count := int(binary.LittleEndian.Uint32(b[n+8:]))
	b = b[n+12:]
	if count > BlocksPerObject || len(b) != 8*count {
		return e, 0, nil, false
	}
	total := 0
	for i := range count {
		r := slotRun{binary.LittleEndian.Uint32(b[8*i:]), binary.LittleEndian.Uint32(b[8*i+4:])}
		if !r.valid() {
			return e, 0, nil, false
		}
		total += int(r.n)
		runs = append(runs, r)
	}
	return e, birth, runs, total == int(e.Count)
}

// valid says that the run lies among one chunk's data slots.
func (r slotRun) valid() bool {
	_, n, ok := slotPlace(r.slot)
	return ok && r.n > 0 && r.n <= BlocksPerObject && n+int(r.n) <= BlocksPerObject
}
