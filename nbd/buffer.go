package nbd

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Payloads live in pooled buffers, one pool per power of two, all aligned to 4096 so that O_DIRECT can take them.
const (
	bufferAlign   = 4096
	bufferMinBits = 12 // 4 KiB
	bufferMaxBits = 26 // 64 MiB, the longest payload of the default configuration
)

var bufferPools [bufferMaxBits - bufferMinBits + 1]sync.Pool

// Buffer is a reference-counted piece of memory. The request it came with holds one reference, until its reply is on its
// way; a Device that keeps the bytes longer takes another one with Retain before it calls Done.
type Buffer struct {
	mem  []byte
	refs atomic.Int32
	pool int // index in bufferPools, or -1
}

// NewBuffer returns a buffer of at least n bytes with one reference. Its content is arbitrary.
func NewBuffer(n int) *Buffer {
	k := bufferMinBits
	if n > 1<<bufferMinBits {
		k = bits.Len(uint(n - 1))
	}
	if k > bufferMaxBits {
		b := &Buffer{mem: alignedBytes(n), pool: -1}
		b.refs.Store(1)
		return b
	}
	b, _ := bufferPools[k-bufferMinBits].Get().(*Buffer)
	if b == nil {
		b = &Buffer{mem: alignedBytes(1 << k), pool: k - bufferMinBits}
	}
	b.refs.Store(1)
	return b
}

// bufferBytes is how much memory NewBuffer takes for n bytes.
func bufferBytes(n uint64) int64 {
	switch {
	case n <= 1<<bufferMinBits:
		return 1 << bufferMinBits
	case n > 1<<bufferMaxBits:
		return int64(n)
	}
	return 1 << bits.Len64(n-1)
}

// Bytes is the whole of the memory, which may be longer than what was asked for.
func (b *Buffer) Bytes() []byte { return b.mem }

// Retain adds a reference.
func (b *Buffer) Retain() {
	if b.refs.Add(1) <= 1 {
		panic("nbd: Retain of a released buffer")
	}
}

// Release gives a reference back. After the last one the memory belongs to somebody else.
func (b *Buffer) Release() {
	switch n := b.refs.Add(-1); {
	case n > 0:
		return
	case n < 0:
		panic("nbd: buffer released twice")
	}
	if b.pool >= 0 {
		bufferPools[b.pool].Put(b)
	}
}

// alignedBytes relies on nothing, although Go's allocator aligns powers of two by itself.
func alignedBytes(n int) []byte {
	m := make([]byte, n)
	if uintptr(unsafe.Pointer(unsafe.SliceData(m)))%bufferAlign == 0 {
		return m
	}
	m = make([]byte, n+bufferAlign)
	skip := bufferAlign - int(uintptr(unsafe.Pointer(unsafe.SliceData(m)))%bufferAlign)
	return m[skip : skip+n : skip+n]
}
