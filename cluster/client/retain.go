package client

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// retainedItem is an acknowledged change that a power cut may still take back (R17).
type retainedItem struct {
	next  *retainedItem
	seq   uint64 // place among the session's acknowledgements
	term  uint64 // with order: its first number, which says for ever what came before what
	order uint64
	lsn   uint64 // the number it has now, which says whether it survived
	under uint64 // the term of that
	kind  wire.Kind
	index uint32
	off   uint32
	len   uint32
	data  []byte
	owner wire.Holder
	// sole: a write whose payload is not kept, because the only replica that has it is in this process and ends with it. Nothing but a force, which has
	// the group go on without that replica, can lose it.
	sole bool
}

// itemCost is charged for an item besides its payload: trims are not free either. A write whose payload is not kept is charged a block, so that a list is
// as short with such ones as with others.
const itemCost = 128

var itemPool = sync.Pool{New: func() any { return new(retainedItem) }}

func (it *retainedItem) cost() int64 {
	n := int64(len(it.data))
	if n > 0 || it.sole {
		n = max(n, blockSize) // a smaller payload keeps a whole buffer
	}
	return n + itemCost
}

func (it *retainedItem) overlaps(x *retainedItem) bool {
	return it.index == x.index && it.off/blockSize < (x.off+x.len+blockSize-1)/blockSize &&
		x.off/blockSize < (it.off+it.len+blockSize-1)/blockSize
}

// free gives the payload and the item back.
func (it *retainedItem) free() {
	if it.owner != nil {
		it.owner.Release()
	}
	*it = retainedItem{}
	itemPool.Put(it)
}

// retained are the items of a group in the order in which they were acknowledged. The session's mu guards it.
type retained struct {
	first, last *retainedItem
}

// add keeps what p changed.
func (k *retained) add(p *piece, seq uint64) *retainedItem {
	it := itemPool.Get().(*retainedItem)
	r := &p.req
	*it = retainedItem{seq: seq, term: r.Done.Term, order: r.Done.LSN, lsn: r.Done.LSN, under: r.Done.Term, kind: r.Kind, index: p.index, off: r.IO.Off, len: r.IO.Len}
	if it.sole = r.Sole && r.Kind == wire.KindWrite; !it.sole {
		it.data, it.owner = r.Data, r.Owner
	}
	if it.owner != nil {
		it.owner.Retain()
	}
	if k.first == nil {
		k.first = it
	} else {
		k.last.next = it
	}
	k.last = it
	return it
}

// flushed drops what was acknowledged up to seq, and returns how many bytes that frees.
func (k *retained) flushed(seq uint64) (n int64) {
	for k.first != nil && k.first.seq <= seq {
		n += k.pop()
	}
	return n
}

func (k *retained) pop() int64 {
	it := k.first
	if k.first = it.next; k.first == nil {
		k.last = nil
	}
	n := it.cost()
	it.free()
	return n
}

// durableBelow drops what a durable entry with this number made durable: a group is always at a prefix of its numbers (R1).
func (k *retained) durableBelow(lsn uint64) (n int64) {
	return k.dropIf(func(it *retainedItem) bool { return it.lsn < lsn })
}

// dropIf drops the items that f picks, and returns how many bytes that frees.
func (k *retained) dropIf(f func(*retainedItem) bool) (n int64) {
	var list retained
	for it := k.first; it != nil; {
		next := it.next
		if f(it) {
			n += it.cost()
			it.free()
		} else {
			list.append(it)
		}
		it = next
	}
	*k = list
	return n
}

func (k *retained) append(it *retainedItem) {
	it.next = nil
	if k.first == nil {
		k.first = it
	} else {
		k.last.next = it
	}
	k.last = it
}

// remove takes one item out, which the caller owns then.
func (k *retained) remove(it *retainedItem) {
	var list retained
	for x := k.first; x != nil; {
		next := x.next
		if x != it {
			list.append(x)
		}
		x = next
	}
	*k = list
}

// certain is the highest number that is there for sure, whatever resumed: that of a sole write since the last force. A group is always at a prefix of its
// numbers (R1), so everything below is there too, and must not be sent again: it would land on top of the sole write, which is not.
func (k *retained) certain(forced uint64) (lsn uint64) {
	for it := k.first; it != nil; it = it.next {
		if it.sole && it.term >= forced {
			lsn = max(lsn, it.lsn)
		}
	}
	return lsn
}

// ordered lists the items that f picks, in the order in which they were first done.
func (k *retained) ordered(f func(*retainedItem) bool) []*retainedItem {
	var list []*retainedItem
	for it := k.first; it != nil; it = it.next {
		if f(it) {
			list = append(list, it)
		}
	}
	slices.SortFunc(list, func(a, b *retainedItem) int {
		return cmp.Or(cmp.Compare(a.term, b.term), cmp.Compare(a.order, b.order))
	})
	return list
}

// drop forgets all. A resending may still look at the items, so they go to the garbage collector.
func (k *retained) drop() (n int64) {
	for it := k.first; it != nil; it = it.next {
		n += it.cost()
		if it.owner != nil {
			it.owner.Release()
			it.owner, it.data = nil, nil
		}
	}
	*k = retained{}
	return n
}

// account adds to what is retained, has the tender flush when that is too much, and let go what waits when it is so no more. mu is held.
func (s *session) account(n int64) {
	s.kept += n
	now := s.c.Stats.Retained.Add(n)
	switch bound := s.c.cfg.RetainBytesMax; {
	case n > 0 && now >= bound && now-n < bound:
		s.c.wakeTender()
	case n < 0 && now < 2*bound && now-n >= 2*bound:
		s.c.wakeTender()
	}
}

// lostRange is where acknowledged bytes are lost: reads of these blocks fail until they are written again.
type lostRange struct{ index, first, end uint32 }

// lose notes that a retained change can't be made good. mu is held.
func (s *session) lose(it *retainedItem, why error) {
	r := lostRange{it.index, it.off / blockSize, (it.off + it.len + blockSize - 1) / blockSize}
	s.lost = append(s.lost, r)
	s.lossy.Store(true)
	s.lostFlush = fmt.Errorf("%s: an acknowledged %s of object %016x at %d+%d was lost when its nodes lost power, and could not be sent again (%v): %w",
		s.name, it.kind, uint64(s.root)<<32|uint64(it.index), it.off, it.len, why, syscall.EIO)
	s.c.Stats.Lost.Add(1)
	s.c.log.Error("acknowledged write lost", "vdi", s.name, "object", it.index, "offset", it.off, "bytes", it.len, "error", why)
}

// isLost says whether p would read lost bytes.
func (s *session) isLost(p *piece) bool {
	first, end := p.blocks()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.lost {
		if r.index == p.index && first < r.end && r.first < end {
			return true
		}
	}
	return false
}

// heal forgets losses in the whole blocks that p wrote. mu is held.
func (s *session) heal(p *piece) {
	io := &p.req.IO
	first, end := (io.Off+blockSize-1)/blockSize, (io.Off+io.Len)/blockSize
	var left []lostRange
	for _, r := range s.lost {
		if r.index != p.index || first >= r.end || r.first >= end {
			left = append(left, r)
			continue
		}
		if r.first < first {
			left = append(left, lostRange{r.index, r.first, first})
		}
		if end < r.end {
			left = append(left, lostRange{r.index, end, r.end})
		}
	}
	s.lost = left
	s.lossy.Store(len(left) > 0)
}

// loss is what a session knew to be lost and had not told when it ended. A VM that connects again is the one that wrote it.
type loss struct {
	identity, gen uint64
	lost          []lostRange
	flush         error
}

// untold is what the next session of this VDI has to be told, nil if nothing. mu is held.
func (s *session) untold() *loss {
	if s.lostFlush == nil && len(s.lost) == 0 {
		return nil
	}
	return &loss{identity: s.identity, gen: s.ident.Load().sessGen, lost: s.lost, flush: s.lostFlush}
}

// take has a new session know what an earlier one had not told. If others had the VDI in between, they may have written those blocks.
func (s *session) take(l *loss) {
	if l == nil || l.identity != s.identity {
		return
	}
	s.lostFlush = l.flush
	if !s.shared && s.ident.Load().sessGen <= l.gen+1 {
		s.lost = l.lost
		s.lossy.Store(len(l.lost) > 0)
	}
}
