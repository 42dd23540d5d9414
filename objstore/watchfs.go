package objstore

import (
	"errors"
	"io"
	"sync"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// watchedFS is a file system whose calls are watched.
type watchedFS struct {
	vfs.FS
	w *watch
}

func (f watchedFS) Open(name string) (vfs.File, error) {
	return f.file(callOpen, name, func() (vfs.File, error) { return f.FS.Open(name) })
}

func (f watchedFS) Create(name string) (vfs.File, error) {
	return f.file(callCreate, name, func() (vfs.File, error) { return f.FS.Create(name) })
}

func (f watchedFS) CreateTemp(dir string) (vfs.File, error) {
	return f.file(callCreate, dir, func() (vfs.File, error) { return f.FS.CreateTemp(dir) })
}

func (f watchedFS) file(c diskCall, name string, open func() (vfs.File, error)) (vfs.File, error) {
	h, err := doFor(f.w, c, &name, open, func(h vfs.File) { h.Close() })
	if err != nil {
		return nil, err
	}
	return &watchedFile{File: h, w: f.w, name: name}, nil
}

func (f watchedFS) Link(file vfs.File, name string) error {
	h := file.(*watchedFile)
	return h.do(callLink, func() error { return f.FS.Link(h.File, name) })
}

func (f watchedFS) Mkdir(name string) error {
	return f.w.do(callMkdir, name, func() error { return f.FS.Mkdir(name) })
}

func (f watchedFS) Remove(name string) error {
	return f.w.do(callRemove, name, func() error { return f.FS.Remove(name) })
}

func (f watchedFS) Rename(old, new string) error {
	return f.w.do(callRename, old, func() error { return f.FS.Rename(old, new) })
}

func (f watchedFS) ReadDir(name string) ([]string, error) {
	return doFor(f.w, callReadDir, &name, func() ([]string, error) { return f.FS.ReadDir(name) }, nil)
}

func (f watchedFS) SyncDir(name string) error {
	return f.w.do(callSyncDir, name, func() error { return f.FS.SyncDir(name) })
}

func (f watchedFS) SyncFS(name string) error {
	return f.w.do(callSyncFS, name, func() error { return f.FS.SyncFS(name) })
}

func (f watchedFS) Statfs(name string) (vfs.Stat, error) {
	return doFor(f.w, callStatfs, &name, func() (vfs.Stat, error) { return f.FS.Statfs(name) }, nil)
}

func (f watchedFS) Lock(name string) (io.Closer, error) {
	return doFor(f.w, callLock, &name, func() (io.Closer, error) { return f.FS.Lock(name) }, func(c io.Closer) { c.Close() })
}

// watchedFile is an open file whose calls are watched.
type watchedFile struct {
	vfs.File
	w    *watch
	name string

	mu     sync.Mutex // guards what follows
	users  int        // detached calls under way: the descriptor stays theirs until the last has come back
	closed bool
}

// do makes a call on the file.
func (h *watchedFile) do(c diskCall, f func() error) error {
	_, err := h.count(c, func() (int64, error) { return 0, f() })
	return err
}

func (h *watchedFile) count(c diskCall, f func() (int64, error)) (int64, error) {
	if !h.w.detached.Load() {
		defer h.w.enter(c, &h.name).leave()
		return f()
	}
	h.mu.Lock()
	h.users++
	h.mu.Unlock()
	n, err := doFor(h.w, c, &h.name, func() (int64, error) {
		defer h.release()
		return f()
	}, nil)
	if errors.As(err, new(notCalled)) {
		h.release()
	}
	return n, err
}

func (h *watchedFile) release() {
	h.mu.Lock()
	h.users--
	last := h.users == 0 && h.closed
	h.mu.Unlock()
	if last {
		h.File.Close()
	}
}

func (h *watchedFile) Close() error {
	h.mu.Lock()
	busy := h.users > 0
	h.closed = true
	h.mu.Unlock()
	if busy {
		return nil
	}
	return h.w.do(callClose, h.name, h.File.Close)
}

func (h *watchedFile) ReadAt(p []byte, off int64) (int, error) {
	if !h.w.detached.Load() {
		s := h.w.enter(callRead, &h.name)
		n, err := h.File.ReadAt(p, off)
		s.leave()
		return n, err
	}
	return h.readDetached(p, off, h.File.ReadAt)
}

func (h *watchedFile) ReadDirect(p []byte, off int64) (int, error) {
	if !h.w.detached.Load() {
		s := h.w.enter(callRead, &h.name)
		n, err := h.File.ReadDirect(p, off)
		s.leave()
		return n, err
	}
	return h.readDetached(p, off, h.File.ReadDirect)
}

// readDetached reads into memory of its own: what comes late must not land in what is somebody else's by then.
func (h *watchedFile) readDetached(p []byte, off int64, read func([]byte, int64) (int, error)) (int, error) {
	b := alignedBuffer(len(p))
	n, err := h.count(callRead, func() (int64, error) {
		n, err := read(b, off)
		return int64(n), err
	})
	return copy(p, b[:n]), err
}

func (h *watchedFile) WriteAt(p []byte, off int64) (int, error) {
	if !h.w.detached.Load() {
		s := h.w.enter(callWrite, &h.name)
		n, err := h.File.WriteAt(p, off)
		s.leave()
		return n, err
	}
	n, err := h.count(callWrite, func() (int64, error) {
		n, err := h.File.WriteAt(p, off)
		return int64(n), err
	})
	return int(n), err
}

func (h *watchedFile) Datasync() error { return h.do(callSync, h.File.Datasync) }

func (h *watchedFile) StartWriteBack() error { return h.do(callWriteBehind, h.File.StartWriteBack) }

func (h *watchedFile) WriteBackError() error { return h.do(callWriteBack, h.File.WriteBackError) }

func (h *watchedFile) WillRead(off, n int64) error {
	return h.do(callWillRead, func() error { return h.File.WillRead(off, n) })
}

func (h *watchedFile) Forget(off, n int64) error {
	return h.do(callForget, func() error { return h.File.Forget(off, n) })
}

func (h *watchedFile) Punch(off, n int64) error {
	return h.do(callPunch, func() error { return h.File.Punch(off, n) })
}

func (h *watchedFile) Allocate(off, n int64) error {
	return h.do(callAllocate, func() error { return h.File.Allocate(off, n) })
}

func (h *watchedFile) Size() (int64, error) { return h.count(callSize, h.File.Size) }

func (h *watchedFile) SetXattr(name, value string) error {
	return h.do(callSetXattr, func() error { return h.File.SetXattr(name, value) })
}

func (h *watchedFile) GetXattr(name string) (string, error) {
	v := new(string) // its own, if it comes late
	err := h.do(callGetXattr, func() (err error) {
		*v, err = h.File.GetXattr(name)
		return err
	})
	if err != nil {
		return "", err
	}
	return *v, nil
}
