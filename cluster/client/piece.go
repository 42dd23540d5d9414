package client

import (
	"encoding/binary"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// piece is the part of an Op that concerns one object, or the flush of one group, or a retained write that is sent again. At any
// moment exactly one place has it:
//
//	submit ─▶ overlap table, waiting (R15) ─▶ dispatch ─┬─▶ local primary ──────┐
//	  ▲ (throttled list, when too much is retained)     ├─▶ peer's waiting list │
//	  │                                                 ├─▶ peer's table ───────┼─▶ settle ─▶ Op
//	  │                                                 ├─▶ held, group resumes │
//	  │                                                 └─▶ parked list ◀───────┘
//	  └────────────────────────────────────────────────────── tender ◀── (again)
//
// Writes stay in the overlap table until they are settled.
type piece struct {
	req   wire.Request
	s     *session
	op    *Op // nil: a group's flush, or a resent write
	index uint32
	crcs  []byte // memory of req.IO.CRCs
	owned bool   // req.Owner is the piece's to release
	next  *piece // in whatever list has it

	// In the overlap table.
	chain    *piece // the next younger one of the bucket
	blockers int    // older ones that overlap

	sg     *sgroup       // flush, resent write: its group
	round  *round        // flush
	upTo   uint64        // flush: acknowledgements it covers
	all    bool          // flush: covers predecessors too
	again  *retainedItem // resent write
	replay *replay       // resent write: the resending it is part of

	node state.NodeID // it was sent to
	inc  uint64       // of that node
	// resumes of the group at that time: what was sent before a set resumed is never answered.
	resumes uint64
	// epoch under which it was relayed (R18); 0: it was not.
	epoch uint64

	until time.Time // parked: not before
	want  uint64    // parked: not before a map of this index
	tries int
	sent  int64 // tick of sending
	// parked is the tick when it was first put aside; 0: never.
	parked int64
}

var piecePool = sync.Pool{New: func() any { return new(piece) }}

func getPiece() *piece { return piecePool.Get().(*piece) }

// putPiece gives a piece of which nothing is in use any more back.
func putPiece(p *piece) {
	p.disown()
	*p = piece{crcs: p.crcs[:0], req: wire.Request{Extents: p.req.Extents[:0]}}
	piecePool.Put(p)
}

// prepare makes p the part of op that concerns one object.
func (p *piece) prepare(op *Op, index, off, n uint32) {
	s := op.s
	p.s, p.op, p.index, p.tries, p.parked = s, op, index, 0, 0
	r := &p.req
	r.Kind, r.Flags = op.Kind, 0
	if op.Provision && op.Kind == wire.KindZero {
		r.Kind = wire.KindWrite
	}
	if op.FUA {
		r.Flags = wire.FlagFUA
	}
	r.Group = uint32(state.GroupOf(s.pool, s.root, index))
	if r.Kind == wire.KindExtents {
		n = (n + blockSize - 1) &^ (blockSize - 1) // the disk's last block may be partly beyond its end
	}
	r.IO = wire.IO{Key: uint64(s.root)<<32 | uint64(index), Off: off, Len: n}
	r.Client, r.Epoch, r.To = s.c.cfg.ID, localEpoch, p
	r.Data, r.Owner, r.Dst, r.Extents, r.Message = nil, nil, nil, r.Extents[:0], ""
	at := uint64(index)*objectSize + uint64(off) - op.Off
	switch {
	case r.Kind == wire.KindRead:
		r.Dst = op.Data[at : at+uint64(n) : at+uint64(n)]
	case r.Kind != op.Kind:
		r.Data, r.Owner = zeros()[:n:n], forever{}
		p.sum()
	case r.Kind == wire.KindWrite:
		r.Data, r.Owner = op.Data[at:at+uint64(n):at+uint64(n)], op.Owner
		p.own()
		if len(op.Sums) > 0 {
			p.crcs = append(p.crcs[:0], op.Sums[at/blockSize*4:][:n/blockSize*4]...)
			r.IO.CRCs = p.crcs
			break
		}
		p.sum()
	}
}

// zeros are as many as a piece can have.
var zeros = sync.OnceValue(func() []byte { return make([]byte, objectSize) })

// forever is the Owner of bytes that are never given back.
type forever struct{}

func (forever) Retain()  {}
func (forever) Release() {}

// own copies a payload that came without an Owner. One with an Owner is the caller's until the Op is done.
func (p *piece) own() {
	if r := &p.req; r.Owner == nil {
		b := wire.GetBuf(len(r.Data))
		copy(b.B, r.Data)
		r.Data, r.Owner, p.owned = b.B, b, true
	}
}

// sum computes the checksums that travel with the payload: one for each block, or one for all where blocks are not whole.
func (p *piece) sum() {
	r := &p.req
	if !wholeBlocks(r.IO.Off, r.IO.Len) {
		r.IO.Sum = wire.Checksum(r.Data)
		return
	}
	p.crcs = appendSums(p.crcs[:0], r.Data)
	r.IO.CRCs = p.crcs
}

// AppendSums appends the checksums of the blocks of a write to off, for Op.Sums; none if it is not whole blocks.
func AppendSums(sums []byte, off uint64, data []byte) []byte {
	if (off|uint64(len(data)))%blockSize != 0 {
		return sums
	}
	return appendSums(sums, data)
}

func appendSums(sums, data []byte) []byte {
	for at := 0; at < len(data); at += blockSize {
		sums = binary.LittleEndian.AppendUint32(sums, wire.Checksum(data[at:at+blockSize]))
	}
	return sums
}

func wholeBlocks(off, n uint32) bool { return (off|n)%blockSize == 0 }

// disown lets go of the payload.
func (p *piece) disown() {
	if p.owned {
		p.req.Owner.Release()
		p.owned = false
	}
	p.req.Owner, p.req.Data = nil, nil
}

func (p *piece) changes() bool {
	switch p.req.Kind {
	case wire.KindWrite, wire.KindZero, wire.KindTrim:
		return true
	}
	return false
}

func (p *piece) group() state.GroupID { return state.GroupID(p.req.Group) }

// blocks are the first and the one past the last 4 KiB block that p touches, within its object.
func (p *piece) blocks() (first, end uint32) {
	io := &p.req.IO
	return io.Off / blockSize, (io.Off + io.Len + blockSize - 1) / blockSize
}

// errorf says what p was doing to what.
func (p *piece) errorf(kind syscall.Errno, why string) error {
	what := fmt.Sprintf("%s %s object %016x at %d+%d", p.req.Kind, p.s.name, p.req.IO.Key, p.req.IO.Off, p.req.IO.Len)
	if p.req.Kind == wire.KindFlush {
		what = fmt.Sprintf("flush %s group %d", p.s.name, p.req.Group)
	}
	if why == "" {
		return fmt.Errorf("%s (term %d): %w", what, p.req.Term, kind)
	}
	return fmt.Errorf("%s (term %d): %s: %w", what, p.req.Term, why, kind)
}

// pieceList is a queue without memory of its own.
type pieceList struct {
	first, last *piece
	n           int
}

func (l *pieceList) push(p *piece) {
	p.next = nil
	if l.first == nil {
		l.first = p
	} else {
		l.last.next = p
	}
	l.last = p
	l.n++
}

func (l *pieceList) pop() *piece {
	p := l.first
	if p != nil {
		l.first, p.next = p.next, nil
		if l.first == nil {
			l.last = nil
		}
		l.n--
	}
	return p
}

// take empties the list.
func (l *pieceList) take() pieceList {
	all := *l
	*l = pieceList{}
	return all
}
