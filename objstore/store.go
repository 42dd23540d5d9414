package objstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// Store is one disk directory.
type Store struct {
	cfg  Config
	fs   vfs.FS // cfg.FS, watched
	log  *slog.Logger
	id   Identity
	lock io.Closer

	j     *journal
	sync  syncer
	cat   catalog
	files files
	cache tableCache
	space space

	spares spares

	groupsMu sync.RWMutex // guards groups and dropping; taken after a group's
	groups   map[GroupID]*Group
	dropping []droppedGroup
	dropped  chan struct{} // closed and made anew when a drop is done

	checkpointLock ioMutex // one checkpoint at a time; guards what follows
	checkpointNext uint64
	checkpointDone uint64
	cutDone        pos
	blocksLost     bool // the running checkpoint found journaled blocks that are bad
	tableBuf       [tableBytes]byte
	moveBuf        []byte // made by the first checkpoint that moves blocks

	checkpointKick  chan struct{}
	checkpointNow   atomic.Bool
	checkpointWaits atomic.Int32  // callers who wait for one
	checkpointHurry chan struct{} // ends a rest
	segmenterKick   chan struct{}
	cutAt           atomic.Uint64 // pos of the last cut
	cutAll          atomic.Bool   // the running checkpoint writes the catalog anew
	largeSince      atomic.Int64  // bytes of large writes since the last cut

	stripes  [64]ioMutex // creation, opening and removal of object files, by key
	metaLock ioMutex
	dirLock  ioMutex // making of groups' folders

	unplaced     atomic.Int64 // journaled blocks that have no slot yet
	dirtyObjects atomic.Int64
	groupDirs    atomic.Int64 // folders of groups; they stay
	tableCount   atomic.Int64 // in memory
	births       atomic.Uint32
	reserveHeld  atomic.Bool

	watch     *watch
	failure   atomic.Pointer[error]
	failed    chan struct{} // closed with the first failure
	closing   atomic.Bool
	replaying bool // in Open, before anything is concurrent
	opening   bool // in Open, while it checkpoints what was replayed: likewise
	stop      chan struct{}
	wg        sync.WaitGroup
	scrub     scrubber
	m         counters
}

// Dirs of a store.
var storeDirs = []string{"epoch", "journal", "obj"}

// Create makes a directory a store. The directory exists and holds none.
func Create(cfg Config, id Identity) error {
	cfg, err := cfg.basics()
	if err == nil {
		cfg, err = cfg.sized(cfg.FS)
	}
	if err != nil {
		return err
	}
	if _, err := parseIdentity(id.encode()); err != nil {
		return err
	}
	s := newStore(cfg, id)
	if err := s.create(); err != nil {
		return fmt.Errorf("create store in %s: %w", cfg.Dir, err)
	}
	return nil
}

func (s *Store) create() error {
	lock, err := s.takeLock()
	if err != nil {
		return err
	}
	defer lock.Close()
	name := filepath.Join(s.cfg.Dir, "identity")
	if f, err := s.fs.Open(name); err == nil {
		f.Close()
		return ErrExists
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.probeXattr(); err != nil {
		return err
	}
	for _, d := range storeDirs {
		if err := s.fs.Mkdir(filepath.Join(s.cfg.Dir, d)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for i := range journalSegsMin {
		s.fs.Remove(segmentName(s.cfg.Dir, i))
		seg, err := createSegment(s.fs, s.cfg.Dir, i, s.cfg.SegmentBytes)
		if err != nil {
			return err
		}
		seg.f.Close()
	}
	if err := s.replaceCatalog(beginBatch(1, 0, true)); err != nil {
		return err
	}
	s.cat.f.Close()
	// The identity comes last: without it there is no store.
	return writeNamed(s.fs, name, s.id.encode())
}

// journalSegsMin is how many segments there always are: one to write to, and
// one that the checkpoint which frees the first can count on.
const journalSegsMin = 2

func (s *Store) takeLock() (io.Closer, error) {
	lock, err := s.fs.Lock(filepath.Join(s.cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrLocked, err)
	}
	return lock, nil
}

// probeXattr refuses file systems on which objects could not say what they
// are.
func (s *Store) probeXattr() error {
	f, err := s.fs.CreateTemp(s.cfg.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.SetXattr(xattrName, "probe"); err != nil {
		return fmt.Errorf("%w: use ext4, xfs or btrfs, or mount with user_xattr (%v)", ErrNoXattr, err)
	}
	return nil
}

// Open opens a store: it brings back what the journal has beyond the last
// checkpoint. Where some of that was lost it checkpoints what there is.
func Open(cfg Config) (*Store, error) {
	s, err := begin(cfg)
	if err != nil {
		return nil, err
	}
	if s.lock, err = s.takeLock(); err != nil {
		s.watch.end()
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	if err := s.open(); err != nil {
		s.watch.end()
		s.closeFiles()
		s.lock.Close()
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	s.wg.Add(4)
	go s.behindLoop()
	go s.checkpointLoop()
	go s.segmentLoop()
	go s.scrubLoop()
	return s, nil
}

// begin is a store of which no more is known than whose it is. Calls to the disk are watched from here on.
func begin(cfg Config) (*Store, error) {
	cfg, err := cfg.basics()
	if err != nil {
		return nil, err
	}
	s := newStore(cfg, Identity{})
	s.watch.start()
	if s.cfg, err = cfg.sized(s.fs); err == nil {
		s.scrub.rate.Store(s.cfg.ScrubBytesPerSecond)
		if s.id, err = readIdentity(s.fs, cfg.Dir); err != nil {
			err = fmt.Errorf("open store: %w", err)
		}
	}
	if err != nil {
		s.watch.end()
		return nil, err
	}
	return s, nil
}

func newStore(cfg Config, id Identity) *Store {
	s := &Store{
		cfg: cfg, log: cfg.Logger, id: id,
		groups: map[GroupID]*Group{}, dropped: make(chan struct{}),
		checkpointLock: newIOMutex(), metaLock: newIOMutex(), dirLock: newIOMutex(),
		checkpointKick: make(chan struct{}, 1), checkpointHurry: make(chan struct{}, 1), segmenterKick: make(chan struct{}, 1),
		stop: make(chan struct{}), failed: make(chan struct{}),
	}
	for i := range s.stripes {
		s.stripes[i] = newIOMutex()
	}
	s.watch = newWatch(s)
	s.fs = watchedFS{cfg.FS, s.watch}
	s.watch.detached.Store(cfg.Detached)
	s.sync.files = map[*objFile]struct{}{}
	s.sync.dirs = map[string]struct{}{}
	s.sync.kick = make(chan struct{}, 1)
	s.sync.behindKick = make(chan struct{}, 1)
	s.sync.round = newIOMutex()
	s.sync.changed = sync.NewCond(&s.sync.mu)
	s.scrub.wake = make(chan struct{}, 1)
	s.scrub.rate.Store(cfg.ScrubBytesPerSecond)
	return s
}

func (s *Store) open() error {
	// What an earlier process wrote or named and died before syncing is read
	// as if it were durable; from here on it is.
	if !bugPriorLife.active() {
		if err := s.fs.SyncFS(s.cfg.Dir); err != nil {
			return err
		}
	}
	if err := s.loadCatalog(); err != nil {
		return err
	}
	dirs, err := s.fs.ReadDir(filepath.Join(s.cfg.Dir, "obj"))
	if err != nil {
		return err
	}
	s.groupDirs.Store(int64(len(dirs)))
	segs, err := s.openSegments()
	if err != nil {
		return err
	}
	s.findReserve()
	if err := s.replay(segs); err != nil {
		return err
	}
	if err := s.makeReserve(); err != nil {
		s.log.Warn("no reserve for checkpoints on a full disk", "error", err)
	}
	return nil
}

// Identity says whose disk this is.
func (s *Store) Identity() Identity { return s.id }

// Large says whether a write of n bytes goes to the object's file at once.
func (s *Store) Large(n int) bool { return n >= s.cfg.LargeWriteBytes }

// Commit has everything staged before the call in the journal's file.
// Callers share: the one who writes, writes for all.
func (s *Store) Commit() error {
	err := s.CommitHere()
	s.kickBehind()
	return err
}

// CommitHere is Commit for a caller that calls WriteBehind soon after it, when
// it has time: nobody else is woken for that.
func (s *Store) CommitHere() error {
	if err := s.Err(); err != nil {
		return err
	}
	return s.j.commit()
}

// Err is the error that ended the disk, if one did (rule 8).
func (s *Store) Err() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

var errHang = errors.New("no answer in time")

// fail ends the disk: a write or a sync that failed is never tried again as
// if it might succeed. It returns the error that every call fails with now.
func (s *Store) fail(what string, cause error) error {
	err := fmt.Errorf("%w: %s: %w", ErrDiskFailed, what, cause)
	if errors.Is(cause, ErrDiskFailed) || errors.Is(cause, ErrClosed) {
		err = cause
	}
	if s.failure.CompareAndSwap(nil, &err) {
		s.log.Error("disk failed", "dir", s.watch.dir, "doing", what, "error", cause)
		close(s.failed)
		go s.wakeAll(err)
	}
	return s.Err()
}

func (s *Store) wakeAll(err error) {
	if s.j != nil {
		s.j.mu.Lock()
		s.j.changed.Broadcast()
		s.j.mu.Unlock()
	}
	s.answer(err)
}

// Close syncs, checkpoints and stops. No other call may be under way. The
// error is the disk's; what it says was flushed before stays so.
func (s *Store) Close() error {
	if s.closing.Swap(true) {
		return nil
	}
	err := s.Err()
	if err == nil {
		err = s.checkpointSoon()
	}
	closed := error(ErrClosed)
	if s.failure.CompareAndSwap(nil, &closed) {
		close(s.failed)
	}
	close(s.stop)
	s.wakeAll(ErrClosed)
	s.wg.Wait()
	s.checkpointLock.Lock()
	s.closeFiles()
	s.checkpointLock.Unlock()
	s.lock.Close()
	return err
}

func (s *Store) closeFiles() {
	for _, f := range s.files.clock {
		f.f.Close()
	}
	s.files.clock = nil
	if s.cat.f != nil {
		s.cat.f.Close()
	}
	if s.j != nil {
		for i := range s.j.segs {
			if seg := s.j.segs[i].Load(); seg != nil {
				seg.f.Close()
			}
		}
	}
}

func (s *Store) stripe(k Key) ioMutex {
	return s.stripes[(uint64(k)*0x9e3779b97f4a7c15)>>58]
}

// newBirth is a number that no other file of the same key has had.
func (s *Store) newBirth() uint64 {
	return uint64(s.j.endNow().gen())<<32 | uint64(s.births.Add(1))
}

func (s *Store) objectDirty() {
	if s.dirtyObjects.Add(1) == int64(s.cfg.CheckpointObjects)+1 {
		s.wantCheckpoint(false)
	}
}

func (s *Store) grewLarge(n int64) {
	if v := s.largeSince.Add(n); v > s.cfg.CheckpointBytes && v-n <= s.cfg.CheckpointBytes {
		s.wantCheckpoint(false)
	}
}

// Groups.

// Group returns a group, which is made if it is not there. While an earlier
// life of the group is being removed, it waits.
func (s *Store) Group(id GroupID) *Group {
	if g := s.groupIfAny(id); g != nil {
		return g
	}
	for {
		s.groupsMu.Lock()
		if !s.isDropping(id) || s.Err() != nil {
			g := s.groupLocked(id)
			s.groupsMu.Unlock()
			return g
		}
		done := s.dropped
		s.groupsMu.Unlock()
		s.wantCheckpoint(true)
		select {
		case <-done:
		case <-s.failed:
		}
	}
}

// groupIfAny returns a group that is there.
func (s *Store) groupIfAny(id GroupID) *Group {
	s.groupsMu.RLock()
	defer s.groupsMu.RUnlock()
	return s.groups[id]
}

// groupLocked holds groupsMu, or has the store for itself.
func (s *Store) groupLocked(id GroupID) *Group {
	g := s.groups[id]
	if g == nil {
		g = newGroup(s, id)
		s.groups[id] = g
	}
	return g
}

func (s *Store) isDropping(id GroupID) bool {
	return slices.ContainsFunc(s.dropping, func(d droppedGroup) bool { return d.g.id == id })
}

// Groups lists the groups that hold something: an entry, an object or a flag.
func (s *Store) Groups() []GroupID {
	s.groupsMu.RLock()
	list := make([]*Group, 0, len(s.groups))
	for _, g := range s.groups {
		list = append(list, g)
	}
	s.groupsMu.RUnlock()
	var ids []GroupID
	for _, g := range list {
		if g.holds() {
			ids = append(ids, g.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Holds says whether Groups would list a group.
func (s *Store) Holds(id GroupID) bool {
	g := s.groupIfAny(id)
	return g != nil && g.holds()
}

func (g *Group) holds() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.last.IsZero() || g.syncing || len(g.objects) > 0
}

// droppedGroup is a group that goes: by the record at, and then by the first
// checkpoint that takes that record.
type droppedGroup struct {
	g  *Group
	at pos
}

// DropGroup removes everything of a group. It is gone for every reader when
// DropGroup returns, for good at the next Sync, and its space comes back in
// the background.
func (s *Store) DropGroup(id GroupID) error {
	if err := s.Err(); err != nil {
		return err
	}
	g := s.groupIfAny(id)
	if g == nil {
		return nil
	}
	if _, err := g.control(recDropGroup, nil, func(pl place) {
		g.dropped, g.droppedAt = true, pl.pos
		s.groupsMu.Lock()
		delete(s.groups, id)
		s.dropping = append(s.dropping, droppedGroup{g, pl.pos})
		s.groupsMu.Unlock()
	}); err != nil {
		return err
	}
	if err := s.j.commit(); err != nil {
		return err
	}
	s.wantCheckpoint(true)
	return nil
}

// finishDropped removes the files of groups that the catalog has no more.
func (s *Store) finishDropped(list []droppedGroup) {
	if len(list) > 0 {
		s.syncNow() // lets go of their files; an error has ended the disk
	}
	for _, d := range list {
		d.g.letGo()
		s.removeOrphans(d.g.id, true)
	}
	if len(list) == 0 {
		return
	}
	s.groupsMu.Lock()
	s.dropping = slices.DeleteFunc(s.dropping, func(d droppedGroup) bool { return slices.Contains(list, d) })
	close(s.dropped)
	s.dropped = make(chan struct{})
	s.groupsMu.Unlock()
	s.spaceChanged()
}

// letGo forgets everything that memory holds of a dropped group.
func (g *Group) letGo() {
	s := g.s
	g.mu.Lock()
	var open []*objFile
	for k, o := range g.objects {
		if o.t != nil {
			if o.t.dirty || o.t.cut || o.t.snap != nil {
				s.dirtyObjects.Add(-1)
			}
			s.unplaced.Add(-int64(o.t.unplaced))
			s.cacheRemove(o)
		}
		if o.file != nil && o.file.refs.Load() == 0 {
			open, o.file = append(open, o.file), nil
		}
		delete(g.objects, k)
	}
	g.mu.Unlock()
	for _, f := range open {
		s.dropOpen(f)
		f.f.Close()
	}
}

// Segments.

func (s *Store) wakeSegmenter() { poke(s.segmenterKick) }

// segmentLoop is the goroutine that makes segments before they are needed.
func (s *Store) segmentLoop() {
	defer s.wg.Done()
	for {
		select {
		case <-s.stop:
			return
		case <-s.segmenterKick:
		}
		if err := s.addSegment(); err != nil && s.Err() == nil {
			s.log.Warn("make journal segment", "error", err)
		}
	}
}

// addSegment makes one if none is free and the bound allows it.
func (s *Store) addSegment() error {
	j := s.j
	index := -1
	j.mu.Lock()
	if len(j.free) == 0 {
		for i := range j.segs {
			if j.segs[i].Load() == nil {
				index = i
				break
			}
		}
	}
	if j.building = index >= 0; !j.building {
		j.changed.Broadcast()
	}
	j.mu.Unlock()
	if index < 0 {
		return nil
	}
	var seg *segment
	var err error
	if s.Space().Free > 2*s.cfg.SegmentBytes {
		s.fs.Remove(segmentName(s.cfg.Dir, index))
		seg, err = createSegment(s.fs, s.cfg.Dir, index, s.cfg.SegmentBytes)
	}
	j.mu.Lock()
	if seg != nil {
		j.segs[index].Store(seg)
		j.free = append(j.free, seg)
		j.made.Add(1)
	}
	j.building = false
	j.changed.Broadcast()
	j.mu.Unlock()
	if err != nil {
		return s.writeError("make journal segment", err)
	}
	return nil
}
