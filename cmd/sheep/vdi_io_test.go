package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"
)

// memory is a disk to pour into.
type memory struct {
	mu    sync.Mutex
	bytes []byte
	fail  error
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.bytes[off:], p), nil
}

func TestPourAndFetchInOrder(t *testing.T) {
	data := make([]byte, 5*chunkBytes+777)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data)
	for _, offset := range []uint64{0, 1, 511, chunkBytes - 1, chunkBytes + 3} {
		m := &memory{bytes: make([]byte, int(offset)+len(data)+10)}
		sp := span{offset, uint64(len(data))}
		n, err := pour(t.Context(), iotest.HalfReader(bytes.NewReader(append(data, 1, 2, 3))), sp, m, func(uint64) {})
		if err != nil || n != sp.length || !bytes.Equal(m.bytes[offset:offset+sp.length], data) || m.bytes[offset+sp.length] != 0 {
			t.Fatalf("offset %d: %d bytes, %v", offset, n, err)
		}
		var out bytes.Buffer
		err = inOrder(sp, func(off uint64, n int) ([]byte, error) { return m.bytes[off : off+uint64(n)], nil },
			func(_ uint64, chunk []byte) error { _, err := out.Write(chunk); return err })
		if err != nil || !bytes.Equal(out.Bytes(), data) {
			t.Fatalf("offset %d: %d bytes came back, %v", offset, out.Len(), err)
		}
	}
}

func TestPourEnds(t *testing.T) {
	short := &memory{bytes: make([]byte, 4*chunkBytes)}
	n, err := pour(t.Context(), bytes.NewReader(make([]byte, 1000)), span{0, 2000}, short, func(uint64) {})
	if n != 1000 || err != nil {
		t.Error(n, err)
	}
	broken := errors.New("no such luck")
	if _, err := pour(t.Context(), bytes.NewReader(make([]byte, 100)), span{0, 100}, &memory{fail: broken}, func(uint64) {}); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := pour(t.Context(), iotest.ErrReader(broken), span{0, 100}, short, func(uint64) {}); !errors.Is(err, broken) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pour(ctx, bytes.NewReader(make([]byte, 100)), span{0, 100}, short, func(uint64) {}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestInOrderEnds(t *testing.T) {
	broken := errors.New("no such luck")
	if err := inOrder(span{0, 10 * chunkBytes}, func(uint64, int) ([]byte, error) { return nil, broken }, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
	err := inOrder(span{0, 10 * chunkBytes}, func(_ uint64, n int) ([]byte, error) { return make([]byte, n), nil },
		func(uint64, []byte) error { return io.ErrClosedPipe })
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func TestAtEnd(t *testing.T) {
	if !atEnd(bytes.NewReader(nil)) || atEnd(bytes.NewReader([]byte{1})) {
		t.Error("wrong")
	}
}
