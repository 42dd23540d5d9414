package objstore

import "sync"

// snapshot is what a checkpoint writes of an object: its changed tables as
// they were at the cut, whatever has happened since.
type snapshot struct {
	version Number
	gone    bool // no version is left
	damaged bool
	tables  []tableCopy
	marks   []tablePlace // chunks whose dead table gets a free mark
	keys    []tableKey   // by chunk, for the sum; those this checkpoint writes have its number
}

// tableCopy is a version's table at the cut and the place it goes to.
type tableCopy struct {
	t       *table
	vid     Vid
	gen     uint64
	version Number
	at      tablePlace
	cells   *[BlocksPerObject]cell
}

// tablePlace is a table place.
type tablePlace struct {
	chunk int
	side  uint8
}

var cellBuffers = sync.Pool{New: func() any { return new([BlocksPerObject]cell) }}

// snapshot takes what has changed since the last one. Holds the group's
// mutex. The keys of what it will write have checkpoint 0 for now.
func (o *object) snapshot() *snapshot {
	t := o.t
	s := &snapshot{
		version: o.version, damaged: o.damaged,
		gone: len(t.list) == 0 && !o.damaged,
		keys: make([]tableKey, len(t.chunks)),
	}
	if s.gone {
		return s
	}
	for k := range t.chunks {
		c := &t.chunks[k]
		v := c.owner
		switch {
		case v == nil && c.needsMark():
			s.marks = append(s.marks, tablePlace{k, c.next()})
		case v != nil && (v.changed || c.stale):
			v.changed = false
			cells := cellBuffers.Get().(*[BlocksPerObject]cell)
			*cells = v.cells
			s.tables = append(s.tables, tableCopy{v, v.vid, v.gen, v.version, tablePlace{k, c.next()}, cells})
			s.keys[k] = tableKey{vid: v.vid, gen: v.gen}
		case v != nil:
			s.keys[k] = c.key
		}
	}
	return s
}

func (s *snapshot) free() {
	for i := range s.tables {
		cellBuffers.Put(s.tables[i].cells)
		s.tables[i].cells = nil
	}
}
