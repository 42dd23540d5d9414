package wire

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	bufAlign    = 4096
	bufMinShift = 12 // 4 KiB
	bufMaxShift = 23 // 8 MiB
)

// Holder keeps a payload alive: whoever wants the bytes beyond the call it was given them in retains, and releases once.
type Holder interface {
	Retain()
	Release()
}

// Buf is a pooled, 4096-aligned buffer with a reference count. It returns to its pool when the last reference is released.
type Buf struct {
	B     []byte // as long as was asked for
	full  []byte
	refs  atomic.Int32
	class int8
}

var bufPools [bufMaxShift + 1]sync.Pool

// GetBuf returns a buffer of n bytes with one reference. Its content is arbitrary. n up to 8 MiB is pooled.
func GetBuf(n int) *Buf {
	shift := bufMinShift
	if n > 1<<bufMinShift {
		shift = bits.Len(uint(n - 1))
	}
	if shift > bufMaxShift {
		b := &Buf{B: make([]byte, n), class: -1}
		b.refs.Store(1)
		return b
	}
	b, _ := bufPools[shift].Get().(*Buf)
	if b == nil {
		b = &Buf{full: aligned(1 << shift), class: int8(shift)}
	}
	b.B = b.full[:n]
	b.refs.Store(1)
	return b
}

// Retain adds a reference.
func (b *Buf) Retain() { b.refs.Add(1) }

// Release drops a reference; after the last one the bytes belong to somebody else.
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n == 0 && b.class >= 0:
		bufPools[b.class].Put(b)
	case n < 0:
		panic("wire: buffer released more often than retained")
	}
}

func aligned(n int) []byte {
	raw := make([]byte, n+bufAlign)
	off := -int(uintptr(unsafe.Pointer(&raw[0]))) & (bufAlign - 1)
	return raw[off : off+n : off+n]
}
