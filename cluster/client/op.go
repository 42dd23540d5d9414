package client

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// pieceWindow bounds the pieces of one Op that are under way. 64 MiB, the longest payload, are 17 pieces; only trims, zeroes
// and extents of large ranges are longer, and go on as their first pieces are done.
const pieceWindow = 64

// zeroWindow is that of zeros that are written, each piece of which may move an object's 4 MiB on all replicas: others' writes go the same ways.
const zeroWindow = 4

// Op is one request to a Disk. It belongs to the client from Submit until Done is called, and may be used again after that:
// whoever keeps Ops in a pool pays no allocation for a request.
type Op struct {
	Kind wire.Kind // KindRead, KindWrite, KindZero, KindTrim, KindFlush or KindExtents
	Off  uint64    // bytes within the disk
	Len  uint64    // bytes; of a read or a write: len(Data)
	Data []byte    // KindRead: to be filled; KindWrite: the payload
	// Sums is what AppendSums says of a write's payload and Off, if the caller asked it already; else empty.
	Sums []byte
	// Owner keeps the payload of a write alive: it is retained for as long as the bytes are needed, which is until they are flushed
	// (R17). nil: the client copies them.
	Owner wire.Holder
	FUA   bool // durable on every in-sync replica before it is done
	// Provision has KindZero write zeros, so that the range has its space, instead of making a hole.
	Provision bool
	// Gone, if not nil, says when nobody waits for the outcome any more: pieces that have not begun then do not, and the Op ends as soon as the others have.
	Gone *atomic.Bool

	// Done is told the outcome, exactly once, without any lock held, in the goroutine that got the last answer. It may submit more to b, which its caller ends.
	Done func(op *Op, b *wire.Batch)
	// Err is the outcome; valid in Done. It wraps syscall.ENOSPC, EROFS, EINVAL or EIO, or context.Canceled after Gone.
	Err error
	// Extents is what KindExtents found, in order, valid in Done. Its memory is used again.
	Extents []wire.Extent

	User any // the caller's own

	s       *session
	next    uint64       // offset of the next piece to be made
	left    atomic.Int32 // pieces under way, and one while more are to be made
	kick    atomic.Int32 // calls of issue that want a turn
	issued  atomic.Bool  // no more pieces are to be made
	failed  atomic.Pointer[error]
	nextOp  *Op  // in a flush round
	quiet   bool // the flush of a Close: nobody hears what it says of losses
	ordered []*piece
	first   piece // most requests need no other
}

// Submit starts an Op. What it gathers in b is done when the caller ends b. Done may be called before Submit returns. Only memory bounds
// the number of Ops: whoever submits them bounds that.
func (d *Disk) Submit(op *Op, b *wire.Batch) {
	s := d.s
	op.s, op.Err = s, nil
	if op.failed.Load() != nil {
		op.failed.Store(nil)
	}
	if err := s.admit(op, d.readOnly); err != nil {
		op.Err = err
		op.Done(op, b)
		return
	}
	s.c.Stats.count(op)
	if op.Kind == wire.KindFlush {
		s.flush(op, b)
		return
	}
	op.Extents = op.Extents[:0]
	op.next = op.Off
	op.left.Store(1)
	op.kick.Store(0)
	op.issued.Store(false)
	op.issue(b)
}

// admit holds each refusal of an Op.
func (s *session) admit(op *Op, readOnly bool) error {
	id := s.ident.Load()
	if err := s.deadErr(); err != nil {
		return err
	}
	switch op.Kind {
	case wire.KindRead, wire.KindExtents, wire.KindFlush:
	case wire.KindWrite, wire.KindZero, wire.KindTrim:
		if readOnly {
			return fmt.Errorf("%s %s: it was opened read-only: %w", op.Kind, s.name, syscall.EROFS)
		}
	default:
		return fmt.Errorf("%s %s: not a request for a disk: %w", op.Kind, s.name, syscall.EINVAL)
	}
	switch {
	case op.Kind == wire.KindFlush:
		return nil
	case (op.Kind == wire.KindRead || op.Kind == wire.KindWrite) && uint64(len(op.Data)) != op.Len:
		return fmt.Errorf("%s %s at %d: %d bytes of memory for %d: %w", op.Kind, s.name, op.Off, len(op.Data), op.Len, syscall.EINVAL)
	case op.Off > id.size || op.Len > id.size-op.Off:
		kind := syscall.EINVAL
		if op.Kind == wire.KindWrite || op.Kind == wire.KindZero {
			kind = syscall.ENOSPC
		}
		return fmt.Errorf("%s %s at %d+%d: the VDI has %d bytes: %w", op.Kind, s.name, op.Off, op.Len, id.size, kind)
	}
	return nil
}

// issue makes pieces until the range is covered or the window is full. Completions call it from any goroutine, also from within itself: whoever
// finds it running leaves its turn to that one.
func (op *Op) issue(b *wire.Batch) {
	if op.kick.Add(1) > 1 {
		return
	}
	window := int32(pieceWindow)
	if op.Kind == wire.KindZero && op.Provision {
		window = zeroWindow
	}
	for {
		turns := op.kick.Load()
		end := op.Off + op.Len
		for op.next < end && op.left.Load() <= window && op.failed.Load() == nil {
			if op.Gone != nil && op.Gone.Load() {
				op.fail(fmt.Errorf("%s %s at %d+%d: given up before %d, since nobody waits for it: %w", op.Kind, op.s.name, op.Off, op.Len, op.next, context.Canceled))
				break
			}
			off := uint32(op.next % objectSize)
			n := min(end-op.next, uint64(objectSize-off))
			p := op.piece()
			p.prepare(op, uint32(op.next/objectSize), off, uint32(n))
			op.next += n
			op.left.Add(1)
			op.s.submit(p, b)
		}
		if op.next >= end || op.failed.Load() != nil {
			op.issued.Store(true)
			op.release(b)
			return
		}
		if op.kick.Add(-turns) == 0 {
			return
		}
	}
}

// piece is the embedded one for the first, a pooled one for the others.
func (op *Op) piece() *piece {
	if op.next == op.Off {
		return &op.first
	}
	p := getPiece()
	if op.Kind == wire.KindExtents {
		op.ordered = append(op.ordered, p)
	}
	return p
}

// pieceDone takes the outcome of a piece. The piece's count keeps the Op from being finished until the last line.
func (op *Op) pieceDone(p *piece, err error, b *wire.Batch) {
	if err != nil {
		op.fail(err)
	}
	if p != &op.first && op.Kind != wire.KindExtents {
		putPiece(p)
	}
	if !op.issued.Load() {
		op.issue(b)
	}
	op.release(b)
}

// fail notes the first error.
func (op *Op) fail(err error) { op.failed.CompareAndSwap(nil, &err) }

// release gives one count back; the last one finishes the Op.
func (op *Op) release(b *wire.Batch) {
	if op.left.Add(-1) == 0 {
		op.finish(b)
	}
}

func (op *Op) finish(b *wire.Batch) {
	if e := op.failed.Load(); e != nil {
		op.Err = *e
		op.s.c.Stats.Errors.Add(1)
	}
	if op.Kind == wire.KindExtents {
		op.gatherExtents()
	}
	op.Done(op, b)
}

// gatherExtents puts the pieces' extents in the order of their offsets.
func (op *Op) gatherExtents() {
	if op.Len > 0 {
		op.Extents = append(op.Extents, op.first.req.Extents...)
	}
	for i, p := range op.ordered {
		op.Extents = append(op.Extents, p.req.Extents...)
		op.ordered[i] = nil
		putPiece(p)
	}
	op.ordered = op.ordered[:0]
}
