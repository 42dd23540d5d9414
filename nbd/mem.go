package nbd

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
)

// MemBackend keeps its exports in memory. It is there for tests, benchmarks, and as an example of a Backend.
type MemBackend struct {
	mu      sync.Mutex // guards what follows
	exports map[string]*memExport
}

type memExport struct {
	info ExportInfo
	disk *MemDisk
}

// NewMemBackend returns a backend without exports.
func NewMemBackend() *MemBackend { return &MemBackend{exports: make(map[string]*memExport)} }

// Add creates an export. Size, name, block sizes and flags are taken from info; what the disk can do is added.
func (b *MemBackend) Add(info ExportInfo) *MemDisk {
	info.CanTrim, info.CanZero, info.CanFastZero, info.CanCache = true, true, true, true
	info.BlockStatus, info.MultiConn = true, true
	d := NewMemDisk(info.Size)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exports[info.Name] = &memExport{info, d}
	return d
}

// Remove forgets an export. Those who have it open keep it.
func (b *MemBackend) Remove(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.exports, name)
}

// List implements Backend.
func (b *MemBackend) List(context.Context) ([]ExportInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]ExportInfo, 0, len(b.exports))
	for _, e := range b.exports {
		list = append(list, e.info)
	}
	slices.SortFunc(list, func(x, y ExportInfo) int {
		if x.Name < y.Name {
			return -1
		}
		return 1
	})
	return list, nil
}

// Info implements Backend.
func (b *MemBackend) Info(_ context.Context, name string) (ExportInfo, error) {
	e, err := b.find(name)
	if err != nil {
		return ExportInfo{}, err
	}
	return e.info, nil
}

// Open implements Backend.
func (b *MemBackend) Open(_ context.Context, name string) (Device, ExportInfo, error) {
	e, err := b.find(name)
	if err != nil {
		return nil, ExportInfo{}, err
	}
	return e.disk, e.info, nil
}

func (b *MemBackend) find(name string) (*memExport, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.exports[name]
	if e == nil {
		return nil, fmt.Errorf("memory export %q: %w", clip(name), fs.ErrNotExist)
	}
	return e, nil
}

// MemDisk is a sparse disk in memory, and a Device for as many connections as there are.
type MemDisk struct {
	size uint64
	dirs []atomic.Pointer[memDir]
}

const (
	memPageSize = 64 << 10
	memDirPages = 1024
	memDirSize  = memPageSize * memDirPages
)

type memDir [memDirPages]memPage

// memPage is nil where nothing was written.
type memPage struct {
	mu   sync.RWMutex // guards data
	data []byte
}

// NewMemDisk returns a disk full of zeros.
func NewMemDisk(size uint64) *MemDisk {
	return &MemDisk{size: size, dirs: make([]atomic.Pointer[memDir], (size+memDirSize-1)/memDirSize)}
}

// Submit implements Device. Everything is done on the spot.
func (d *MemDisk) Submit(r *Request) {
	switch r.Op {
	case OpRead:
		d.each(r.Offset, r.Length, false, func(p *memPage, off, at, n int) {
			if p == nil || !p.read(r.Data[at:at+n], off) {
				r.Zeroes(at, n)
			}
		})
	case OpWrite:
		d.each(r.Offset, r.Length, true, func(p *memPage, off, at, n int) { p.write(r.Data[at:at+n], off) })
	case OpTrim, OpWriteZeroes:
		d.each(r.Offset, r.Length, r.NoHole, func(p *memPage, off, _, n int) {
			if p != nil {
				p.zero(off, n, r.NoHole)
			}
		})
	case OpBlockStatus:
		for i := range r.Contexts() {
			d.status(r, i)
		}
	}
	r.Queue(nil)
}

// Read implements Sharer.
func (d *MemDisk) Read(r *Request) { d.Submit(r) }

// Push implements Device.
func (d *MemDisk) Push() {}

// Close implements Device. The content stays.
func (d *MemDisk) Close() error { return nil }

func (d *MemDisk) status(r *Request, i int) {
	if r.Context(i) != BaseAllocation {
		return
	}
	d.each(r.Offset, r.Length, false, func(p *memPage, _, _, n int) {
		flags := StateHole | StateZero
		if p != nil && p.there() {
			flags = 0
		}
		r.AddExtent(i, uint64(n), flags)
	})
}

// each walks the pages of a range: off is within the page, at within the range. Pages that are not there are nil, or made.
func (d *MemDisk) each(off, length uint64, create bool, f func(p *memPage, off, at, n int)) {
	for at := uint64(0); at < length; {
		pos := off + at
		slot := &d.dirs[pos/memDirSize]
		dir := slot.Load()
		if dir == nil && !create { // the whole directory is a hole
			n := min(length-at, memDirSize-pos%memDirSize)
			f(nil, 0, int(at), int(n))
			at += n
			continue
		}
		if dir == nil {
			slot.CompareAndSwap(nil, new(memDir))
			dir = slot.Load()
		}
		n := min(length-at, memPageSize-pos%memPageSize)
		f(&dir[pos%memDirSize/memPageSize], int(pos%memPageSize), int(at), int(n))
		at += n
	}
}

func (p *memPage) read(dst []byte, off int) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.data == nil {
		return false
	}
	copy(dst, p.data[off:])
	return true
}

func (p *memPage) write(src []byte, off int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		p.data = make([]byte, memPageSize)
	}
	copy(p.data[off:], src)
}

func (p *memPage) zero(off, n int, keep bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case n == memPageSize && !keep:
		p.data = nil
	case p.data != nil:
		clear(p.data[off : off+n])
	case keep:
		p.data = make([]byte, memPageSize)
	}
}

func (p *memPage) there() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.data != nil
}
