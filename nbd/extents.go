package nbd

// extentsMax bounds one BLOCK_STATUS reply and the memory behind it. The client asks again for the rest; the specification
// lets a server cut where it likes, and recommends at most 2^20.
const extentsMax = 8192

type extent struct{ len, flags uint64 }

// extentList collects the extents of one metadata context. Neighbours with equal flags become one.
type extentList struct {
	list    []extent
	covered uint64
	full    bool
}

func (l *extentList) reset() { *l = extentList{list: l.list[:0]} }

// extentCost is the memory behind one extent: in its list, and encoded.
const extentCost = 16 + 16

// statusCost is the most memory that the answer to an OpBlockStatus takes.
func (r *Request) statusCost() int64 {
	most := min(r.Length, extentsMax)
	if r.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	return int64(len(r.contexts)) * int64(most) * extentCost
}

// Contexts says how many metadata contexts an OpBlockStatus asks about; Context names one.
func (r *Request) Contexts() int        { return len(r.contexts) }
func (r *Request) Context(i int) string { return r.contexts[i].name }

// AddExtent appends an extent to the answer for context number i: the next length bytes have these flags. Extents start at
// r.Offset and follow each other. It returns false when nothing more can be used: the request is covered, or enough was
// said. What a Device leaves out the client asks for again; if it adds nothing at all, the status is 0, which is
// always legal.
func (r *Request) AddExtent(i int, length, flags uint64) bool {
	if r.Op != OpBlockStatus || i < 0 || i >= len(r.extents) {
		return false
	}
	l := &r.extents[i]
	if l.full {
		return false
	}
	left := r.Length - l.covered
	length = min(length, left)
	if length == 0 {
		l.full = left == 0
		return !l.full
	}
	if n := len(l.list); n > 0 && l.list[n-1].flags == flags {
		l.list[n-1].len += length
	} else if n == extentsMax || n == 1 && r.ReqOne {
		l.full = true
		return false
	} else {
		l.list = append(l.list, extent{length, flags})
	}
	l.covered += length
	l.full = l.covered == r.Length
	return !l.full
}

// prepareExtents gives every context of a BLOCK_STATUS its list.
func (r *Request) prepareExtents() {
	for len(r.extents) < len(r.contexts) {
		if cap(r.extents) > len(r.extents) {
			r.extents = r.extents[:len(r.extents)+1] // with the memory of an earlier request
			r.extents[len(r.extents)-1].reset()
		} else {
			r.extents = append(r.extents, extentList{})
		}
	}
}

// align rounds the ends of extents down to the minimum block, except at the end of the request, and so that no length is
// beyond what 32 bits can say where the reply has only those. An extent that vanishes gives its bytes to the next one,
// with flags 0: nothing may be claimed of a block that is half one thing and half another.
func (l *extentList) align(minBlock, lenMax, total uint64) {
	if len(l.list) == 0 {
		l.list = append(l.list, extent{total, 0})
	}
	if minBlock > 1 {
		l.alignTo(minBlock, total)
	}
	for i := range l.list {
		if l.list[i].len > lenMax {
			l.list[i].len = lenMax - lenMax%minBlock
			l.list = l.list[:i+1] // the client asks again from there
			return
		}
	}
}

func (l *extentList) alignTo(minBlock, total uint64) {
	out := l.list[:0:0]
	add := func(n, flags uint64) {
		if n == 0 {
			return
		}
		if k := len(out); k > 0 && out[k-1].flags == flags {
			out[k-1].len += n
			return
		}
		out = append(out, extent{n, flags})
	}
	var pos, end uint64 // pos: aligned, all before is in out
	for _, e := range l.list {
		start := end
		end += e.len
		if start > pos { // the block at pos is mixed
			stop := min(pos+minBlock, total)
			if end < stop {
				continue
			}
			add(stop-pos, 0)
			pos = stop
		}
		stop := end - end%minBlock
		if end == total {
			stop = end
		}
		if stop > pos {
			add(stop-pos, e.flags)
			pos = stop
		}
	}
	if pos == 0 { // less than one block was said
		add(min(minBlock, total), 0)
	}
	l.list = append(l.list[:0], out...)
}
