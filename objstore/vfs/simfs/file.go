package simfs

import (
	"errors"
	"io"
	"maps"
	"syscall"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// file is an open file.
type file struct {
	fs     *FS
	i      *inode
	name   string
	closed bool
	told   int // of the inode's failures
}

var _ vfs.File = (*file)(nil)

// page returns a page, made as a hole if it is not there.
func (i *inode) page(f *FS, n int64) *page {
	p := i.pages[n]
	if p == nil {
		p = &page{hole: true}
		i.pages[n] = p
	}
	return p
}

// touch prepares sectors of a page for a change.
func (p *page) touch(from, to int) {
	if p.old == nil {
		old := p.data
		p.old = &old
	}
	for s := from / sectorSize; s*sectorSize < to; s++ {
		if (p.dirty|p.lost)&(1<<s) == 0 {
			at := s * sectorSize
			copy(p.old[at:at+sectorSize], p.data[at:at+sectorSize])
		}
		p.dirty |= 1 << s
		p.lost &^= 1 << s
	}
}

func (i *inode) sync() {
	for _, p := range i.pages {
		if p.dirty = 0; p.lost == 0 {
			p.old = nil
		}
	}
	i.durable = i.size
}

// syncAll is sync with what fdatasync leaves behind.
func (i *inode) syncAll() {
	i.sync()
	i.xattrOld = nil
}

// syncFailed is what a kernel does: the pages count as clean, what they hold
// is read until they are evicted, and it never reaches the disk.
func (i *inode) syncFailed() {
	for _, p := range i.pages {
		p.lost |= p.dirty
		p.dirty = 0
	}
	i.failures++
}

// FailWriteBack has the kernel write a file back by itself, and fail: whoever
// has it open is told by its next sync, each once.
func (f *FS) FailWriteBack(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _, i := f.lookup(name)
	i.syncFailed()
}

func (h *file) ReadAt(b []byte, off int64) (int, error) {
	err := h.fs.before("read", h.name)
	if half, cause := halfOf(err); half {
		n, _ := h.readAt(b[:len(b)/2], off)
		return n, fail("read", h.name, cause)
	}
	if err != nil {
		return 0, err
	}
	h.fs.mu.Unlock()
	return h.readAt(b, off)
}

// Half is an error for FS.Before: of a read or a write half is done, then Err
// is returned. Other calls fail with it as with any error.
type Half struct{ Err error }

func (h Half) Error() string { return h.Err.Error() + " half way" }
func (h Half) Unwrap() error { return h.Err }

func halfOf(err error) (bool, error) {
	var h Half
	return errors.As(err, &h), h.Err
}

func (h *file) readAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	n := 0
	for n < len(b) && off+int64(n) < h.i.size {
		at := off + int64(n)
		end := min(at/pageSize*pageSize+pageSize, h.i.size)
		part := b[n:min(len(b), n+int(end-at))]
		if p := h.i.pages[at/pageSize]; p != nil {
			copy(part, p.data[at%pageSize:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *file) ReadNowait(b []byte, off int64) (int, error) { return h.ReadAt(b, off) }

// ReadDirect writes back what is dirty and reads the disk.
func (h *file) ReadDirect(b []byte, off int64) (int, error) {
	n, err := h.ReadAt(b, off)
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	for at := off / sectorSize * sectorSize; at < off+int64(n); at += sectorSize {
		p := h.i.pages[at/pageSize]
		if s := at % pageSize / sectorSize; p != nil && p.lost&(1<<s) != 0 && at >= off {
			copy(b[at-off:min(int64(n), at-off+sectorSize)], p.old[s*sectorSize:])
		}
	}
	return n, err
}

func (h *file) WriteAt(b []byte, off int64) (int, error) {
	err := h.fs.before("write", h.name)
	if half, cause := halfOf(err); half {
		n, _ := h.writeAt(b[:len(b)/2], off)
		return n, fail("write", h.name, cause)
	}
	if err != nil {
		return 0, err
	}
	h.fs.mu.Unlock()
	return h.writeAt(b, off)
}

func (h *file) writeAt(b []byte, off int64) (int, error) {
	f := h.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return 0, fail("write", h.name, ErrPower)
	}
	n := 0
	for n < len(b) {
		at := off + int64(n)
		p := h.i.page(f, at/pageSize)
		if !f.take(p) {
			return n, fail("write", h.name, syscall.ENOSPC)
		}
		from := int(at % pageSize)
		k := min(pageSize-from, len(b)-n)
		p.touch(from, from+k)
		copy(p.data[from:], b[n:n+k])
		n += k
		h.i.size = max(h.i.size, at+int64(k))
		if f.flushOne > 0 && f.rng.IntN(f.flushOne) == 0 {
			p.dirty &= uint8(f.rng.Uint32()) // these sectors are on the disk now
			for s := range pageSize / sectorSize {
				if (p.dirty|p.lost)&(1<<s) == 0 {
					copy(p.old[s*sectorSize:(s+1)*sectorSize], p.data[s*sectorSize:])
				}
			}
		}
	}
	return n, nil
}

// take gives a page its space.
func (f *FS) take(p *page) bool {
	if !p.hole {
		return true
	}
	if f.capacity > 0 && f.used+pageSize > f.capacity {
		return false
	}
	p.hole = false
	f.used += pageSize
	return true
}

func (h *file) Datasync() error {
	if err := h.fs.before("sync", h.name); err != nil {
		if errors.Is(err, syscall.EIO) {
			h.fs.mu.Lock()
			h.i.syncFailed()
			h.told = h.i.failures
			h.fs.mu.Unlock()
		}
		return err
	}
	defer h.fs.mu.Unlock()
	if err := h.failure("sync"); err != nil {
		return err
	}
	return h.fs.syncing("sync", h.name, h.i.sync)
}

func (h *file) failure(op string) error {
	if h.told == h.i.failures {
		return nil
	}
	h.told = h.i.failures
	return fail(op, h.name, syscall.EIO)
}

// StartWriteBack changes nothing, since what is not synced may survive a cut anyway; one that fails is told to the descriptor's next sync.
func (h *file) StartWriteBack() error {
	err := h.fs.before("writebehind", h.name)
	if err == nil {
		h.fs.mu.Unlock()
	} else if errors.Is(err, syscall.EIO) {
		h.fs.mu.Lock()
		h.i.syncFailed()
		h.fs.mu.Unlock()
	}
	return err
}

func (h *file) WriteBackError() error {
	if err := h.fs.before("writeback", h.name); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	return h.failure("writeback")
}

// WillRead changes nothing: everything is in memory.
func (h *file) WillRead(off, n int64) error {
	err := h.fs.before("willread", h.name)
	if err == nil {
		h.fs.mu.Unlock()
	}
	return err
}

// Forget changes nothing: what is read is the same from memory and from the disk.
func (h *file) Forget(off, n int64) error {
	err := h.fs.before("forget", h.name)
	if err == nil {
		h.fs.mu.Unlock()
	}
	return err
}

func (h *file) Punch(off, n int64) error {
	if err := h.fs.before("punch", h.name); err != nil {
		return err
	}
	f := h.fs
	defer f.mu.Unlock()
	for at := off; at < off+n; at += pageSize {
		if p := h.i.pages[at/pageSize]; p != nil {
			p.touch(0, pageSize)
			clear(p.data[:])
			if !p.hole {
				p.hole = true
				f.used -= pageSize
			}
		}
	}
	return nil
}

func (h *file) Allocate(off, n int64) error {
	if err := h.fs.before("allocate", h.name); err != nil {
		return err
	}
	f := h.fs
	defer f.mu.Unlock()
	for at := off; at < off+n; at += pageSize {
		if !f.take(h.i.page(f, at/pageSize)) {
			return fail("allocate", h.name, syscall.ENOSPC)
		}
	}
	h.i.size = max(h.i.size, off+n)
	return nil
}

func (h *file) Truncate(size int64) error {
	if err := h.fs.before("truncate", h.name); err != nil {
		return err
	}
	f := h.fs
	defer f.mu.Unlock()
	for k, p := range h.i.pages {
		from := k * pageSize
		if from+pageSize <= size {
			continue
		}
		p.touch(0, pageSize)
		clear(p.data[max(0, size-from):])
		if from >= size && !p.hole {
			p.hole = true
			f.used -= pageSize
		}
	}
	h.i.size = size
	return nil
}

func (h *file) Size() (int64, error) {
	if err := h.fs.before("size", h.name); err != nil {
		return 0, err
	}
	defer h.fs.mu.Unlock()
	return h.i.size, nil
}

func (h *file) SetXattr(name, value string) error {
	if err := h.fs.before("setxattr", h.name); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	if h.fs.noXattr {
		return fail("setxattr", h.name, syscall.ENOTSUP)
	}
	if h.i.links > 0 && h.i.xattrOld == nil {
		h.i.xattrOld = maps.Clone(h.i.xattr)
	}
	h.i.xattr[name] = value
	return nil
}

func (h *file) GetXattr(name string) (string, error) {
	if err := h.fs.before("getxattr", h.name); err != nil {
		return "", err
	}
	defer h.fs.mu.Unlock()
	v, ok := h.i.xattr[name]
	if !ok {
		return "", fail("getxattr", h.name, syscall.ENODATA)
	}
	return v, nil
}

func (h *file) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.closed {
		return fail("close", h.name, syscall.EBADF)
	}
	h.closed = true
	h.i.opens--
	h.fs.collect(h.i)
	return nil
}
