package objstore

import (
	"io"
	"sync"
)

// load brings an object's tables into memory. A damaged object loads, too:
// it says so to every read. The error is the disk's.
func (s *Store) load(o *object) error {
	for {
		o.g.mu.Lock()
		if o.t != nil {
			o.g.mu.Unlock()
			return nil
		}
		want, sum, birth := o.checkpoint, o.sum, o.birth
		o.g.mu.Unlock()

		t, keys, err := s.readTables(o, want, birth, false)
		if err != nil {
			return err
		}
		damaged := t == nil || sumOf(keys) != sum && !bugTableUnchecked.active() && !bugUnfinished.active()
		if t == nil {
			t = &tables{}
		}
		o.g.mu.Lock()
		if o.g.objects[o.key] != o { // dropped meanwhile: what was read says nothing
			o.g.mu.Unlock()
			return nil
		}
		if o.t == nil && o.checkpoint == want {
			o.t = t
			t.durable = o.version
			t.recent = true
			if damaged && !o.damaged {
				o.damaged = true
				o.g.suspects++
				s.m.damaged.Add(1)
				s.log.Error("block table is damaged", "object", o.key, "group", uint32(o.g.id))
			}
			for _, v := range t.list {
				v.u = o.g.usageOf(v.vid, v.gen)
			}
			s.cacheAdd(o)
			o.g.mu.Unlock()
			s.cacheShrink(o)
			return nil
		}
		o.g.mu.Unlock()
	}
}

// readTables reads every chunk's table places. Of the two the one with the
// greater checkpoint counts, among those that finished: not later than want.
// No tables and no error means that the file is lost. direct: from the disk,
// whatever memory has.
func (s *Store) readTables(o *object, want, birth uint64, direct bool) (*tables, []tableKey, error) {
	s.m.loads.Add(1)
	f, err := s.acquire(o, false)
	switch {
	case isLost(err):
		s.log.Error("object's file is lost", "object", o.key, "group", uint32(o.g.id), "error", err)
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}
	defer f.release()
	var size int64
	if err := s.lookUp("read object "+o.key.String(), func() (err error) { size, err = f.f.Size(); return }); err != nil {
		return nil, nil, err
	}
	t := &tables{}
	var keys []tableKey
	buf := placeBuffers.Get().(*[2 * tableBytes]byte)
	defer placeBuffers.Put(buf)
	read := f.f.ReadAt
	if direct {
		read = f.f.ReadDirect
	}
	for k := 0; int64(tableSlot(k, 0))*BlockSize < size; k++ {
		if err := readPlaces(read, buf, k); err != nil {
			s.m.readErrors.Add(1)
			s.log.Error("block table is unreadable", "object", o.key, "group", uint32(o.g.id), "error", err)
			clear(buf[:]) // the sum over the tables will tell
		}
		t.grow(k + 1)
		c, v := chooseTable(buf, o.key, birth, k, want)
		t.chunks[k] = c
		keys = append(keys, c.key)
		if v != nil {
			t.list = append(t.list, v)
		}
	}
	for _, v := range t.list {
		for _, c := range v.cells {
			if c.kind() == cellSlot {
				t.markUsed(c.value())
			}
		}
	}
	return t, keys, nil
}

// tableReads is how often an unreadable table is tried before it counts as
// lost: with it goes the whole object until it is copied again.
const tableReads = 3

func readPlaces(read func([]byte, int64) (int, error), buf *[2 * tableBytes]byte, chunk int) (err error) {
	for range tableReads {
		clear(buf[:])
		if _, err = read(buf[:], int64(tableSlot(chunk, 0))*BlockSize); err == nil || err == io.EOF {
			return nil
		}
	}
	return err
}

var placeBuffers = sync.Pool{New: func() any { return (*[2 * tableBytes]byte)(alignedBuffer(2 * tableBytes)) }}

// chooseTable decides between the two places of chunk k.
func chooseTable(b *[2 * tableBytes]byte, key Key, birth uint64, k int, want uint64) (c chunkState, v *table) {
	var heads [2]tableHead
	best := -1
	for side := range heads {
		h, st := parseTable(b[side*tableBytes:(side+1)*tableBytes], nil)
		if st != placeFree && st != placeTable || h.key != key || h.chunk != k || h.birth != birth {
			continue
		}
		if h.checkpoint > want && !bugUnfinished.active() {
			c.stale = true
			continue
		}
		heads[side] = h
		if best < 0 || h.checkpoint > heads[best].checkpoint {
			best = side
		}
	}
	if best < 0 {
		return c, nil
	}
	h := heads[best]
	c.held, c.side, c.live = true, uint8(best), !h.free
	if h.free {
		return c, nil
	}
	c.key = tableKey{h.vid, h.gen, h.checkpoint}
	v = &table{vid: h.vid, gen: h.gen, version: h.version, chunk: k}
	parseTable(b[best*tableBytes:(best+1)*tableBytes], &v.cells)
	c.owner = v
	return c, v
}
