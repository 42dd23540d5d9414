package client

// inflight are the requests sent on one connection and not answered, by their ids. An id names a slot and how often it was used, so that a late
// answer to a request that was withdrawn meets nobody.
type inflight struct {
	slots []slot
	free  []uint32
	n     int
}

type slot struct {
	id uint64
	p  *piece
}

const slotBits = 24

// add takes p in and returns its id.
func (t *inflight) add(p *piece) uint64 {
	var i uint32
	if k := len(t.free); k > 0 {
		i = t.free[k-1]
		t.free = t.free[:k-1]
	} else {
		i = uint32(len(t.slots))
		t.slots = append(t.slots, slot{id: uint64(i)})
	}
	s := &t.slots[i]
	s.id += 1 << slotBits
	s.p = p
	t.n++
	return s.id
}

// take returns the request with this id, which is the table's no more; nil if there is none.
func (t *inflight) take(id uint64) *piece {
	i := id & (1<<slotBits - 1)
	if i >= uint64(len(t.slots)) || t.slots[i].id != id {
		return nil
	}
	s := &t.slots[i]
	p := s.p
	if p == nil {
		return nil
	}
	s.p = nil
	t.free = append(t.free, uint32(i))
	t.n--
	return p
}

// takeIf moves to list all requests that f picks.
func (t *inflight) takeIf(list *pieceList, f func(*piece) bool) {
	if t.n == 0 {
		return
	}
	for i := range t.slots {
		if p := t.slots[i].p; p != nil && f(p) {
			t.slots[i].p = nil
			t.free = append(t.free, uint32(i))
			t.n--
			list.push(p)
		}
	}
}

// oldest is the smallest tick of sending.
func (t *inflight) oldest() (tick int64, ok bool) {
	if t.n == 0 {
		return 0, false
	}
	for i := range t.slots {
		if p := t.slots[i].p; p != nil && (!ok || p.sent < tick) {
			tick, ok = p.sent, true
		}
	}
	return tick, ok
}
