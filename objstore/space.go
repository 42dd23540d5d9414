package objstore

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// Space is the room for new writes.
type Space struct {
	Total int64 // bytes of the file system
	Used  int64
	// Free may be given out for writes: what the file system has free, less
	// what is journaled and has no place in an object's file yet, less what
	// the journal may still grow by.
	Free       int64
	InodesFree int64 // -1 where they are not counted
	Full       bool  // writes fail with ENOSPC
	NearFull   bool
}

// space remembers what the file system said last; asking is a system call.
type space struct {
	mu   sync.Mutex
	at   time.Time
	st   vfs.Stat
	full bool
	near bool
	dirs int64 // inodes that folders of groups will take

	kicked time.Time // when a checkpoint was last asked for to get room

	spent atomic.Int64 // bytes of large writes since
}

const (
	spaceFresh = 20 * time.Millisecond
	// What was freed gives its space back at a checkpoint: while there is no room, one is not waited for longer than this.
	fullCheckpoint = time.Second
	inodesKept     = 64        // for the journal, the catalog and named values
	objectCost     = 64 << 10  // what a new object takes besides its blocks: tables, inode, the file system's own
	nearFullPart   = 16        // near full is below a sixteenth of the disk,
	nearFullMin    = 128 << 20 // or below this, as primaries stop 64 MiB before the end, but not above a quarter of the disk
	freeKept       = 256 << 10 // the last of it is for names and catalogs
)

// Space says how much may still be written.
func (s *Store) Space() Space {
	sp := &s.space
	sp.mu.Lock()
	defer sp.mu.Unlock()
	now := time.Now()
	fresh := sp.at.IsZero() || now.Sub(sp.at) >= spaceFresh
	if fresh {
		if st, err := s.fs.Statfs(s.cfg.Dir); err == nil {
			sp.st = st
		}
		sp.at, sp.dirs = now, s.missingDirs()
		sp.spent.Store(0)
	}
	st := sp.st
	if st.Total == 0 { // it never told: writes will find out
		return Space{Free: math.MaxInt64, InodesFree: -1}
	}
	promised := s.unplaced.Load()*BlockSize + s.dirtyObjects.Load()*objectCost + s.j.growth() + s.reserveMissing() +
		freeKept + sp.spent.Load()
	if bugNothingPromised.active() {
		promised = 0
	}
	v := Space{Total: st.Total, Used: st.Total - st.Free, Free: max(0, st.Free-promised), InodesFree: -1}
	if st.Inodes > 0 {
		v.InodesFree = max(0, st.InodesFree-s.dirtyObjects.Load()-sp.dirs-inodesKept)
	}
	v.Full = v.Free < objectCost || v.InodesFree == 0
	v.NearFull = v.Full || v.Free < max(st.Total/nearFullPart, min(nearFullMin, st.Total/4)) || st.Inodes > 0 && v.InodesFree < st.Inodes/nearFullPart
	if (v.Full || v.Free < min(nearFullMin/2, st.Total/8)) && now.Sub(sp.kicked) >= fullCheckpoint {
		sp.kicked = now
		s.wantCheckpoint(true)
	}
	if v.NearFull != sp.near {
		if sp.near = v.NearFull; sp.near {
			s.log.Warn("disk is nearly full", "dir", s.cfg.Dir, "free", v.Free, "of", v.Total, "inodes", v.InodesFree)
		} else {
			s.log.Info("disk has room again", "dir", s.cfg.Dir, "free", v.Free, "of", v.Total, "inodes", v.InodesFree)
		}
	}
	if fresh && v.NearFull && s.spares.n.Load() > 0 {
		poke(s.checkpointKick) // it gives them back
	}
	if v.Full != sp.full {
		sp.full = v.Full
		s.log.Warn("disk space", "dir", s.cfg.Dir, "full", v.Full, "free", v.Free, "inodes", v.InodesFree)
	}
	return v
}

// refuseWhenFull is asked before every write.
func (s *Store) refuseWhenFull() error {
	if s.Space().Full {
		return syscall.ENOSPC
	}
	return nil
}

// noteFull has the next question ask the file system again.
func (s *Store) noteFull() {
	s.m.full.Add(1)
	s.spaceChanged()
}

func (s *Store) spaceChanged() {
	s.space.mu.Lock()
	s.space.at = time.Time{}
	s.space.mu.Unlock()
}

// growth is what the journal may still take from the disk.
func (j *journal) growth() int64 {
	return max(0, journalSegsMin-j.made.Load()) * j.segBytes
}

// The reserve is a real file: when a checkpoint finds the disk full, it is
// given up so that the checkpoint can end (rule 20).
func (s *Store) reserveName() string { return filepath.Join(s.cfg.Dir, "reserve") }

// makeReserve makes the reserve if it is not there and there is room for it.
func (s *Store) makeReserve() error {
	if s.cfg.ReserveBytes <= 0 || s.reserveHeld.Load() || s.findReserve() {
		return nil
	}
	s.fs.Remove(s.reserveName())
	st, err := s.fs.Statfs(s.cfg.Dir)
	if err != nil || st.Free < 2*s.cfg.ReserveBytes {
		return err
	}
	f, err := s.fs.Create(s.reserveName())
	if err != nil {
		return fmt.Errorf("make reserve: %w", err)
	}
	defer f.Close()
	if err := f.Allocate(0, s.cfg.ReserveBytes); err != nil {
		s.fs.Remove(s.reserveName())
		return fmt.Errorf("make reserve: %w", err)
	}
	s.reserveHeld.Store(true)
	return nil
}

// findReserve says whether the reserve is there, whole.
func (s *Store) findReserve() bool {
	if s.cfg.ReserveBytes <= 0 {
		return false
	}
	f, err := s.fs.Open(s.reserveName())
	if err != nil {
		return false
	}
	defer f.Close()
	n, err := f.Size()
	s.reserveHeld.Store(err == nil && n >= s.cfg.ReserveBytes)
	return s.reserveHeld.Load()
}

// giveUpReserve frees the reserve; false if there was none.
func (s *Store) giveUpReserve() bool {
	if bugReserveKept.active() || !s.reserveHeld.Swap(false) {
		return false
	}
	err := s.fs.Remove(s.reserveName())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("give up reserve", "error", err)
		return false
	}
	s.log.Warn("disk is full: the reserve is given up to finish a checkpoint")
	s.spaceChanged()
	return true
}

// reserveMissing is set aside from what writes may use while the reserve is
// given up.
func (s *Store) reserveMissing() int64 {
	if s.reserveHeld.Load() {
		return 0
	}
	return s.cfg.ReserveBytes
}
