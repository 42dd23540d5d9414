package objstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// files keeps the open object files under their bound.
type files struct {
	mu    sync.Mutex
	clock []*objFile
	hand  int
}

func (s *Store) groupDir(id GroupID) string {
	return filepath.Join(s.cfg.Dir, "obj", fmt.Sprintf("%08x", uint32(id)))
}

func (s *Store) objectName(o *object) string {
	return filepath.Join(s.groupDir(o.g.id), o.key.String())
}

func newObjFile(f vfs.File, o *object) *objFile {
	return &objFile{f: f, o: o, syncing: newIOMutex()}
}

// sync makes durable what was written to the file, or, behind a sync of the
// whole file system, sees that it is. A write-back error is told once to a
// descriptor; here everybody hears of it, also who syncs at the same time.
func (f *objFile) sync(all bool) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	if f.syncErr == nil && all {
		f.syncErr = f.f.WriteBackError()
	} else if f.syncErr == nil {
		f.syncErr = f.f.Datasync()
	}
	return f.syncErr
}

// release lets the file be closed again.
func (f *objFile) release() { f.refs.Add(-1) }

// hold takes the open file, if there is one. Holds the group's mutex.
func (o *object) hold() *objFile {
	f := o.file
	if f != nil {
		f.refs.Add(1)
		if !f.used.Load() {
			f.used.Store(true)
		}
	}
	return f
}

// acquire opens the object's file, or makes it; the caller releases it. The
// caller has the object pinned.
func (s *Store) acquire(o *object, create bool) (*objFile, error) {
	o.g.mu.Lock()
	f := o.hold()
	o.g.mu.Unlock()
	if f != nil {
		return f, nil
	}
	stripe := s.stripe(o.key)
	stripe.Lock()
	defer stripe.Unlock()
	o.g.mu.Lock()
	f = o.hold()
	birth, damaged, dropped := o.birth, o.damaged, o.g.dropped && o.g.objects[o.key] != o
	o.g.mu.Unlock()
	if f != nil {
		return f, nil
	}
	if dropped { // the file of that name is the next life's
		return nil, fmt.Errorf("open object %v: group %d: %w", o.key, o.g.id, ErrDropped)
	}
	if birth == 0 && !create {
		return nil, fmt.Errorf("open object %v: %w", o.key, fs.ErrNotExist)
	}
	var err error
	if birth == 0 {
		f, birth, err = s.createFile(o)
	} else {
		f, err = s.openFile(o, birth)
		if create && damaged && isLost(err) {
			f, birth, err = s.createFile(o)
		}
	}
	if err != nil {
		return nil, err
	}
	f.refs.Store(1)
	f.used.Store(true)
	o.g.mu.Lock()
	o.file, o.birth = f, birth
	o.g.mu.Unlock()
	s.keepOpen(f)
	return f, nil
}

// acquireForWrite opens the object's file or makes it. If it is not there any
// more, or is another's, the object is damaged, and a new file takes its
// place.
func (s *Store) acquireForWrite(o *object) (*objFile, error) {
	f, err := s.acquire(o, true)
	if !isLost(err) {
		return f, err
	}
	s.log.Error("object's file is lost", "object", o.key, "group", uint32(o.g.id), "error", err)
	o.g.mu.Lock()
	o.g.markDamaged(o)
	o.g.mu.Unlock()
	return s.acquire(o, true)
}

// isLost says that a file is not there, or is not what it should be.
func isLost(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) || errors.Is(err, io.EOF)
}

// lookUp does what needs only the file system's own tables. Where these cannot be read, or opened for writing, the file system is broken: what fails again and again ends the
// disk, so that others serve its groups. While the journal is replayed that is Open's to say.
func (s *Store) lookUp(what string, do func() error) (err error) {
	for range tableReads {
		if err = do(); err == nil {
			return nil
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOMEM) {
			break
		}
		if isShort(err) {
			s.closeSome() // that may do for this one
			continue
		}
		s.m.readErrors.Add(1)
	}
	if errors.Is(err, fs.ErrNotExist) || isShort(err) || s.replaying {
		return fmt.Errorf("%s: %w", what, err)
	}
	return s.fail(what, err)
}

// isShort says that an error is of this process or machine, which has too little of something, not of the disk.
func isShort(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

func (s *Store) openFile(o *object, birth uint64) (*objFile, error) {
	var f vfs.File
	if err := s.lookUp("open object "+o.key.String(), func() (err error) { f, err = s.fs.Open(s.objectName(o)); return }); err != nil {
		return nil, err
	}
	var err error
	b := make([]byte, headerBytes)
	for range tableReads {
		if s.replaying { // after a sync that failed, memory may have what the disk has not
			b = alignedBuffer(BlockSize)
			_, err = f.ReadDirect(b, 0)
		} else {
			_, err = f.ReadAt(b, 0)
		}
		if err == nil || err == io.EOF {
			break
		}
	}
	if err != nil { // like a table that cannot be read: the object is copied from another replica
		s.m.readErrors.Add(1)
		f.Close()
		return nil, fmt.Errorf("open object %v: its file's header cannot be read: %w: %w", o.key, err, ErrDamaged)
	}
	h, ok := parseFileHeader(b)
	if !ok || h.key != o.key || h.group != o.g.id || h.birth != birth {
		f.Close()
		return nil, fmt.Errorf("open object %v: its file's header is another's or damaged: %w", o.key, ErrDamaged)
	}
	return newObjFile(f, o), nil
}

const xattrName = "user.sheepdog"

// createFile makes the object's file whole before it has its name (rule 2).
// A file that has the name already belongs to no object: the catalog and the
// journal know of none.
func (s *Store) createFile(o *object) (*objFile, uint64, error) {
	dir := s.groupDir(o.g.id)
	if err := s.makeGroupDir(dir); err != nil {
		return nil, 0, s.writeError("make "+dir, err)
	}
	birth := s.newBirth()
	f, err := s.fs.CreateTemp(dir)
	if err != nil {
		return nil, 0, s.writeError("create object "+o.key.String(), err)
	}
	_, err = f.WriteAt(fileHeader{o.key, birth, o.g.id}.encode(), 0)
	if err == nil && !bugAttributeLate.active() {
		err = f.SetXattr(xattrName, s.describe(o))
	}
	if err == nil {
		name := s.objectName(o)
		err = s.fs.Link(f, name)
		if errors.Is(err, fs.ErrExist) {
			if err = s.fs.Remove(name); err == nil {
				err = s.fs.Link(f, name)
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, 0, s.writeError("create object "+o.key.String(), err)
	}
	if bugAttributeLate.active() {
		f.SetXattr(xattrName, s.describe(o))
	}
	s.namesChanged(dir)
	s.m.created.Add(1)
	return newObjFile(f, o), birth, nil
}

// describe is the one attribute a file has: what never changes, in words.
func (s *Store) describe(o *object) string {
	return fmt.Sprintf("v1 %.8s root %06x index %x pg %x", s.id.Cluster, o.key.Root(), o.key.Index(), uint32(o.g.id))
}

// makeGroupDir returns when the folder is there and the next sync covers its
// name, also where somebody else is just making it.
func (s *Store) makeGroupDir(dir string) error {
	s.dirLock.Lock()
	defer s.dirLock.Unlock()
	err := s.fs.Mkdir(dir)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		s.groupDirs.Add(1)
		s.namesChanged(filepath.Dir(dir))
	}
	return err
}

// missingDirs is how many groups have no folder yet: each takes an inode when
// its first object gets a file.
func (s *Store) missingDirs() int64 {
	s.groupsMu.RLock()
	defer s.groupsMu.RUnlock()
	return max(0, int64(len(s.groups))-s.groupDirs.Load())
}

// writeError ends the disk unless there was just no space, or no descriptor
// or memory.
func (s *Store) writeError(what string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		s.noteFull()
		return fmt.Errorf("%s: %w", what, err)
	case isShort(err):
		s.closeSome() // for who tries again
		return fmt.Errorf("%s: %w", what, err)
	}
	return s.fail(what, err)
}

// keepOpen adds a file to the clock and closes one that was not used lately
// if there are too many.
func (s *Store) keepOpen(f *objFile) {
	c := &s.files
	c.mu.Lock()
	f.at = len(c.clock)
	c.clock = append(c.clock, f)
	over := len(c.clock) - s.cfg.OpenFilesMax
	c.mu.Unlock()
	s.closeUnused(f, over, 2*s.cfg.OpenFilesMax)
}

// closeSome gives a part of the open files back, where there are no descriptors any more.
func (s *Store) closeSome() {
	s.files.mu.Lock()
	n := len(s.files.clock)
	s.files.mu.Unlock()
	s.closeUnused(nil, n/4+1, 2*n)
}

// closeUnused closes up to so many files that were not used lately, but not keep.
func (s *Store) closeUnused(keep *objFile, over, tries int) {
	c := &s.files
	for ; over > 0 && tries > 0; tries-- {
		c.mu.Lock()
		if len(c.clock) == 0 {
			c.mu.Unlock()
			return
		}
		c.hand = (c.hand + 1) % len(c.clock)
		v := c.clock[c.hand]
		c.mu.Unlock()
		if v != keep && !v.used.Swap(false) && s.closeFile(v) {
			over--
		}
	}
}

// closeFile closes a file that nobody holds.
func (s *Store) closeFile(f *objFile) bool {
	g := f.o.g
	g.mu.Lock()
	if f.o.file != f || f.refs.Load() != 0 {
		g.mu.Unlock()
		return false
	}
	f.o.file = nil
	g.mu.Unlock()
	s.dropOpen(f)
	f.f.Close() // nothing of it is unsynced
	return true
}

func (s *Store) dropOpen(f *objFile) {
	c := &s.files
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.clock[len(c.clock)-1]
	c.clock[f.at], last.at = last, f.at
	c.clock = c.clock[:len(c.clock)-1]
}
