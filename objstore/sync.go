package objstore

import (
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// syncer makes what was committed durable, in rounds: all who wait share one.
//
// Rounds are made by whoever holds the syncer's role, one at a time. It is
// given up, or passed on where more is wanted, before a round is answered:
// those whom it answers take locks whose holders may wait for the next one.
type syncer struct {
	mu      sync.Mutex
	waiting []func(error)
	running []func(error) // whom the round under way answers
	spare   []func(error) // an empty list
	wanted  bool          // a round is, though nobody may wait for it
	held    bool          // somebody has the role: who comes now is in his next round
	idle    int           // goroutines that wait for the role; at most one stays
	began   time.Time     // the round under way; zero: there is none
	took    time.Duration // rounds, a moving mean

	files map[*objFile]struct{} // written since the last round took them; each is held
	dirs  map[string]struct{}   // with names that are not durable yet
	names map[string]struct{}   // those that the round under way syncs

	behind     []*objFile  // that the write-behind is to look at; each is held
	behindDue  atomic.Bool // there are some
	behindKick chan struct{}

	dirty   int64      // bytes written since the last round took them
	flight  int64      // bytes the round under way covers
	changed *sync.Cond // dirty shrank, or the disk failed

	round ioMutex // one round at a time
	kick  chan struct{}
}

// Sync has done called, from another goroutine, once everything staged
// before the call is durable, or with the error that ended the disk. All who
// wait share a round, which writes the journal, too. The goroutine that calls
// done has nothing else to do, and holds no lock.
func (s *Store) Sync(done func(error)) {
	y := &s.sync
	y.mu.Lock()
	if err := s.Err(); err != nil {
		y.mu.Unlock()
		go done(err)
		return
	}
	y.waiting = append(y.waiting, done)
	if !y.held {
		s.startRounds()
	}
	y.mu.Unlock()
}

// SyncHere is Sync for a caller that has nothing else to do, holds no lock and
// is free to wait: where the role is free and the disk a fast one, it makes
// the round itself, and answers it. The call takes as long as the
// disk does then; who hangs in it with the disk is answered all the same.
func (s *Store) SyncHere(done func(error)) {
	y := &s.sync
	y.mu.Lock()
	if !s.syncsHere() {
		y.mu.Unlock()
		s.Sync(done)
		return
	}
	y.waiting = append(y.waiting, done)
	s.takeRole()
	y.mu.Unlock()
	s.makeRound()
}

// SyncsHere says whether SyncHere would, now.
func (s *Store) SyncsHere() bool {
	s.sync.mu.Lock()
	defer s.sync.mu.Unlock()
	return s.syncsHere()
}

func (s *Store) syncsHere() bool {
	y := &s.sync
	return !y.held && y.took <= syncHereMax && !s.watch.detached.Load() && s.Err() == nil
}

// syncHereMax is up to what mean time of a round it is made by who wants it:
// to wake another goroutine's thread and to be woken by it costs some 50 us at
// each end (a write and a flush 250 us, without it 180), of a round of 130 us.
const syncHereMax = 500 * time.Microsecond

// SyncWait is Sync for callers that wait for it, for no longer than the disk
// lives.
func (s *Store) SyncWait() error {
	ch := make(chan error, 1)
	s.Sync(func(err error) { ch <- err })
	return <-ch
}

func poke(kick chan struct{}) {
	select {
	case kick <- struct{}{}:
	default:
	}
}

// takeRole and giveRole are before and after a round, which Close waits for,
// though not for its answers. mu is held.
func (s *Store) takeRole() {
	s.sync.held = true
	s.wg.Add(1)
}

func (s *Store) giveRole() {
	s.sync.held = false
	s.wg.Done()
}

// startRounds gives the role, which is free, to a goroutine that has nothing
// else to do. mu is held.
func (s *Store) startRounds() {
	y := &s.sync
	if s.Err() != nil {
		return // nobody waits any more
	}
	s.takeRole()
	if y.idle == 0 {
		go s.rounds()
		return
	}
	y.idle--
	y.kick <- struct{}{}
}

// rounds is a goroutine that was given the role. One of them stays, for the
// next time.
func (s *Store) rounds() {
	y := &s.sync
	for {
		y.gather()
		s.makeRound()
		y.mu.Lock()
		if y.idle > 0 {
			y.mu.Unlock()
			return
		}
		y.idle++
		y.mu.Unlock()
		select {
		case <-y.kick:
		case <-s.failed:
			y.mu.Lock()
			select {
			case <-y.kick: // the role came, too
				y.mu.Unlock()
			default:
				y.idle--
				y.mu.Unlock()
				return
			}
		}
	}
}

// makeRound makes a round as the holder of the role, which is another's or
// nobody's afterwards, and answers it.
func (s *Store) makeRound() {
	y := &s.sync
	y.mu.Lock()
	y.running, y.waiting, y.spare = y.waiting, y.spare, nil
	y.wanted = false
	y.began = time.Now()
	y.mu.Unlock()
	err := s.syncNow()
	y.mu.Lock()
	took := time.Since(y.began)
	y.began = time.Time{}
	list := y.running // nil: the disk ended, and they have been told
	y.running = nil
	y.took += (took - y.took) / 8
	s.giveRole()
	if len(y.waiting) > 0 || y.wanted {
		s.startRounds()
	}
	y.mu.Unlock()
	for i, done := range list { // none waits for another's; who is alone wakes no thread
		if i < len(list)-1 {
			go done(err)
		} else {
			done(err)
		}
	}
	clear(list)
	y.mu.Lock()
	y.spare = list[:0]
	y.mu.Unlock()
}

// gather lets those run who were answered by the last round, or are about to ask, before the next one begins, as long as that brings more of them: else the first to come back
// would have a round of its own, and all others wait for it. There is no timer in it: where nobody else is about to run it takes no time.
func (y *syncer) gather() {
	for range gatherMax {
		had := y.waiters()
		runtime.Gosched()
		if y.waiters() == had {
			return
		}
	}
}

// gatherMax bounds how often others are let run, should there be no end of them.
const gatherMax = 64

func (y *syncer) waiters() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return len(y.waiting)
}

// answer ends everybody's wait.
func (s *Store) answer(err error) {
	y := &s.sync
	y.mu.Lock()
	list := append(y.running, y.waiting...)
	y.running, y.waiting = nil, nil
	y.changed.Broadcast()
	y.mu.Unlock()
	for _, done := range list {
		go done(err)
	}
}

// syncNow makes everything staged before the call durable: the journal and
// the files that large writes went to, side by side.
func (s *Store) syncNow() error {
	y := &s.sync
	y.round.Lock()
	defer y.round.Unlock()
	if err := s.Err(); err != nil {
		return err
	}
	target := s.j.seal()
	if err := s.j.commit(); err != nil {
		return err
	}
	y.mu.Lock()
	var fileSet map[*objFile]struct{} // never the live maps: what comes from now on is the next round's
	var dirSet map[string]struct{}
	if len(y.files) > 0 {
		fileSet, y.files = y.files, map[*objFile]struct{}{}
	}
	if len(y.dirs) > 0 {
		dirSet, y.dirs = y.dirs, map[string]struct{}{}
	}
	y.flight, y.dirty, y.names = y.dirty, 0, dirSet
	y.mu.Unlock()

	syncFiles := fileSet
	if bugFlushJournal.active() {
		syncFiles = nil
	}
	err := s.syncSet(s.j.takeUnsynced(), syncFiles, dirSet)
	if err != nil && !bugSyncRetried.active() {
		err = s.fail("sync", err) // before the files are let go: a descriptor opened after that is told nothing
	}
	for f := range fileSet {
		f.release()
	}
	y.mu.Lock()
	y.flight, y.names = 0, nil
	y.changed.Broadcast()
	y.mu.Unlock()
	if err != nil {
		return err
	}
	s.j.settled(target)
	s.m.syncs.Add(1)
	return nil
}

// syncfsFrom is from how many files on one syncfs is cheaper than syncing
// each (rule 6); syncParallel bounds the goroutines otherwise.
const (
	syncfsFrom   = 24
	syncParallel = 8
)

func (s *Store) syncSet(segs []*segment, files map[*objFile]struct{}, dirs map[string]struct{}) error {
	n := len(segs) + len(files) + len(dirs)
	if n == 0 {
		return nil
	}
	start := time.Now()
	defer func() { s.m.syncTime(time.Since(start)) }()
	if n >= syncfsFrom {
		if err := s.fs.SyncFS(s.cfg.Dir); err != nil {
			return err
		}
		for f := range files {
			if err := f.sync(true); err != nil {
				return err
			}
		}
		for _, g := range segs {
			if err := g.f.WriteBackError(); err != nil {
				return err
			}
		}
		return nil
	}
	work := make([]func() error, 0, n)
	for _, g := range segs {
		work = append(work, g.f.Datasync)
	}
	for f := range files {
		work = append(work, func() error { return f.sync(false) })
	}
	for d := range dirs {
		work = append(work, func() error { return s.fs.SyncDir(d) })
	}
	return parallel(work, syncParallel)
}

// parallel runs all work, at most width at once, and returns the first error.
func parallel(work []func() error, width int) error {
	if len(work) == 1 {
		return work[0]()
	}
	jobs := make(chan func() error, len(work))
	for _, w := range work {
		jobs <- w
	}
	close(jobs)
	width = min(width, len(work))
	errs := make(chan error, width)
	for range width {
		go func() {
			var first error
			for w := range jobs {
				if err := w(); err != nil && first == nil {
					first = err
				}
			}
			errs <- first
		}()
	}
	var first error
	for range width {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// written has the next sync cover a file.
func (s *Store) written(f *objFile, n int64) {
	y := &s.sync
	y.mu.Lock()
	if _, ok := y.files[f]; !ok {
		f.refs.Add(1)
		y.files[f] = struct{}{}
	}
	if f.waiting += n; f.waiting >= writeBehindBytes {
		f.waiting = 0
		f.refs.Add(1)
		y.behind = append(y.behind, f)
		y.behindDue.Store(true)
	}
	y.mu.Unlock()
	s.addDirty(n)
}

// writeBehindBytes is from how much written to a file on the disk begins with
// it, so that it is at work while more comes and a sync finds little to wait
// for. (Large writes went 1.25 times as fast, those that waited longest 3 ms
// instead of 9; with 256 KiB the same, with 2 MiB a little less.)
const writeBehindBytes = 1 << 20

// behindLoop is the write-behind goroutine, for those who may not take the
// disk's time.
func (s *Store) behindLoop() {
	defer s.wg.Done()
	for {
		select {
		case <-s.sync.behindKick:
			s.startWriteBack()
		case <-s.stop:
			return
		}
	}
}

func (s *Store) kickBehind() {
	if s.sync.behindDue.Load() {
		poke(s.sync.behindKick)
	}
}

// WriteBehind has the disk begin with what large writes have put into files,
// where that is much; the caller finds out no more than that the disk took it.
// While a sync takes long it leaves that to behindLoop: a disk that hangs takes
// no more at some point, and would keep the caller.
func (s *Store) WriteBehind() {
	y := &s.sync
	if !y.behindDue.Load() {
		return
	}
	y.mu.Lock()
	slow := !y.began.IsZero() && time.Since(y.began) > slowRound
	y.mu.Unlock()
	if slow {
		s.kickBehind()
		return
	}
	s.startWriteBack()
}

// slowRound is from when on a round that is under way is taken for one of a
// disk that may hang. Until then it has been given little: a round begins at
// half of what may be dirty.
const slowRound = time.Second

// startWriteBack takes the list, and Close waits for it. What fails here, the
// sync that covers the file says.
func (s *Store) startWriteBack() {
	y := &s.sync
	y.mu.Lock()
	if s.Err() != nil {
		y.mu.Unlock()
		return
	}
	s.wg.Add(1)
	defer s.wg.Done()
	list := y.behind
	y.behind = nil
	y.behindDue.Store(false)
	y.mu.Unlock()
	for _, f := range list {
		_ = f.f.StartWriteBack()
		f.release()
	}
}

// namesChanged has the next sync cover a directory.
func (s *Store) namesChanged(dir string) {
	if bugNameUnsynced.active() {
		return
	}
	s.sync.mu.Lock()
	s.sync.dirs[filepath.Clean(dir)] = struct{}{}
	s.sync.mu.Unlock()
}

// addDirty counts bytes that a flush would have to wait for; from half the
// bound on they are synced without anybody asking.
func (s *Store) addDirty(n int64) {
	y := &s.sync
	y.mu.Lock()
	y.dirty += n
	if y.dirty > s.cfg.DirtyBytesMax/2 {
		s.wantRound()
	}
	y.mu.Unlock()
}

// wantRound has a round made that nobody may wait for. mu is held.
func (s *Store) wantRound() {
	s.sync.wanted = true
	if !s.sync.held {
		s.startRounds()
	}
}

// waitDirty holds writers at the bound.
func (s *Store) waitDirty() error {
	y := &s.sync
	y.mu.Lock()
	defer y.mu.Unlock()
	for y.dirty+y.flight > s.cfg.DirtyBytesMax {
		if err := s.Err(); err != nil {
			return err
		}
		s.wantRound()
		y.changed.Wait()
	}
	return nil
}
