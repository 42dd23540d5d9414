package vdi

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Stream reads and writes a disk as a file is read and written: one call at a time, each waiting for its outcome. Calls may come from several
// goroutines at once; the context bounds how long they wait for a cluster that cannot serve.
type Stream struct {
	ctx context.Context
	d   *client.Disk
}

// NewStream makes a Stream of a disk. The disk stays the caller's to close.
func NewStream(ctx context.Context, d *client.Disk) *Stream { return &Stream{ctx, d} }

// Size is the disk's.
func (s *Stream) Size() int64 { return int64(s.d.Size()) }

// ReadAt implements io.ReaderAt.
func (s *Stream) ReadAt(p []byte, off int64) (int, error) {
	size := s.Size()
	if off < 0 || off >= size {
		if off >= 0 && len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), size-off))
	// A buffer of our own: the context may end while somebody still writes to it.
	buf := make([]byte, n)
	if err := s.do(&client.Op{Kind: wire.KindRead, Off: uint64(off), Len: uint64(n), Data: buf}); err != nil {
		return 0, err
	}
	copy(p, buf)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (s *Stream) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("write %s at %d: %w", s.d.Name(), off, fs.ErrInvalid)
	}
	buf := append([]byte(nil), p...)
	if err := s.do(&client.Op{Kind: wire.KindWrite, Off: uint64(off), Len: uint64(len(p)), Data: buf, Owner: garbage{}}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ZeroAt makes a range read as zeros, and gives its space back where it can.
func (s *Stream) ZeroAt(off, n int64) error {
	return s.do(&client.Op{Kind: wire.KindZero, Off: uint64(off), Len: uint64(n)})
}

// Flush makes everything written so far durable.
func (s *Stream) Flush() error { return s.do(&client.Op{Kind: wire.KindFlush}) }

// do waits for an Op.
func (s *Stream) do(op *client.Op) error {
	done := make(chan struct{})
	op.Done = func(*client.Op, *wire.Batch) { close(done) }
	var b wire.Batch
	s.d.Submit(op, &b)
	b.End()
	select {
	case <-done:
		return op.Err
	case <-s.ctx.Done():
		return fmt.Errorf("%s %s at %d+%d: no answer: %w", op.Kind, s.d.Name(), op.Off, op.Len, context.Cause(s.ctx))
	}
}

// garbage is the owner of bytes that the garbage collector takes care of.
type garbage struct{}

func (garbage) Retain()  {}
func (garbage) Release() {}
