package objstore

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Every call to the disk is watched, but for reads of what is in memory. One that has not come back after Config.HangTimeout is late, and ends the disk, if Config.MayEnd allows
// it.
//
// Time is counted in ticks of the watcher's own, so that it stands still while this process does not run: a process that was stopped, or gets no processor, does not take its
// disk for hung. A disk that is merely slow for others' load answers some calls, but each may take long; that is what MayEnd and the length of HangTimeout are for.
//
// A call that hangs holds whoever made it, unless calls are detached (Store.Detach): then each is made by a goroutine of its own, and its caller goes on with an error when the
// disk ends. What it does when it comes back after all changes nothing that is served: the disk has ended for this process, and the next one judges what it finds as after a
// crash. Its buffer stays its own: a late read fills memory that nobody looks at, and a late write takes bytes that may have changed meanwhile, to where no entry that counts
// points.

const (
	watchTicks = 20  // of which HangTimeout has
	watchSlots = 256 // calls that are watched at once: whoever finds none free goes unwatched, behind others that are
)

// call is what is done to the disk.
type diskCall uint32

const (
	callOpen diskCall = iota
	callCreate
	callLink
	callMkdir
	callRemove
	callRename
	callReadDir
	callSyncDir
	callSyncFS
	callStatfs
	callLock
	callRead
	callWrite
	callSync
	callWriteBehind
	callWriteBack
	callWillRead
	callForget
	callPunch
	callAllocate
	callSize
	callSetXattr
	callGetXattr
	callClose
)

var callNames = [...]string{"open", "create", "link", "make directory", "remove", "rename", "read directory", "sync directory", "sync file system", "ask for free space of",
	"lock", "read", "write", "sync", "begin write-back of", "wait for write-back of", "begin to read", "drop from memory part of", "punch", "allocate", "ask for the size of", "set attribute of", "get attribute of", "close"}

type watchSlot struct {
	since atomic.Int64 // tick it began at; 0: free
	call  atomic.Uint32
	name  atomic.Pointer[string]
}

// watch is the watcher of one store.
type watch struct {
	s        *Store
	dir      string        // of what it is told at first: Store.cfg is not complete when it begins
	limit    time.Duration // Config.HangTimeout
	mayEnd   func() bool
	detached atomic.Bool
	tick     atomic.Int64
	next     atomic.Uint32
	late     atomic.Int64 // ticks that the oldest late call is there; 0: none is late
	slots    [watchSlots]watchSlot
	stop     chan struct{}
	stopped  sync.Once
}

func newWatch(s *Store) *watch {
	w := &watch{s: s, dir: s.cfg.Dir, limit: s.cfg.HangTimeout, mayEnd: s.cfg.MayEnd, stop: make(chan struct{})}
	w.tick.Store(1)
	return w
}

// start begins to watch.
func (w *watch) start() {
	if w.limit > 0 {
		go w.run()
	}
}

func (w *watch) end() { w.stopped.Do(func() { close(w.stop) }) }

func (w *watch) run() {
	t := time.NewTicker(w.limit / watchTicks)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			w.look(w.tick.Add(1))
		case <-w.s.failed:
			return
		case <-w.stop:
			return
		}
	}
}

// look finds the oldest call, and ends the disk if it is late.
func (w *watch) look(now int64) {
	var oldest *watchSlot
	age := int64(0)
	for i := range w.slots {
		if since := w.slots[i].since.Load(); since != 0 && now-since > age {
			oldest, age = &w.slots[i], now-since
		}
	}
	if age <= watchTicks {
		if w.late.Swap(0) != 0 {
			w.s.log.Info("the disk answers again", "dir", w.dir)
		}
		return
	}
	name := ""
	if p := oldest.name.Load(); p != nil {
		name = *p
	}
	doing := callNames[oldest.call.Load()] + " " + name
	if w.mayEnd == nil || w.mayEnd() {
		w.s.fail(doing, errHang)
		return
	}
	if w.late.Swap(age) == 0 {
		w.s.log.Error("a disk does not answer", "dir", w.dir, "doing", doing, "for", w.limit)
	}
}

// Late says for how long a call to the disk has been late that did not end it (Config.MayEnd); 0: none is.
func (s *Store) Late() time.Duration {
	return time.Duration(s.watch.late.Load()) * s.watch.limit / watchTicks
}

// Detach has every call to the disk from now on made by a goroutine of its own, or not: then a disk that hangs holds nobody longer than until it is ended. It costs some microseconds
// for each call, and a copy of what is read cold, so it is for who has something else to do: a node with other disks.
func (s *Store) Detach(on bool) { s.watch.detached.Store(on) }

// enter notes that a call begins.
func (w *watch) enter(c diskCall, name *string) *watchSlot {
	at, now := w.next.Add(1), w.tick.Load()
	for i := range uint32(8) {
		s := &w.slots[(at+i)%watchSlots]
		if s.since.Load() == 0 && s.since.CompareAndSwap(0, now) {
			s.call.Store(uint32(c))
			s.name.Store(name)
			return s
		}
	}
	return nil
}

func (s *watchSlot) leave() {
	if s != nil {
		s.since.Store(0)
	}
}

// do makes a call, in place or detached.
func (w *watch) do(c diskCall, name string, f func() error) error {
	_, err := doFor(w, c, &name, func() (struct{}, error) { return struct{}{}, f() }, nil)
	return err
}

// notCalled is the error of a call that was not made, since the disk has ended.
type notCalled struct{ error }

func (e notCalled) Unwrap() error { return e.error }

// doFor makes a call that returns something; undo takes back what comes when nobody waits for it any more.
func doFor[T any](w *watch, c diskCall, name *string, f func() (T, error), undo func(T)) (T, error) {
	if !w.detached.Load() {
		defer w.enter(c, name).leave()
		return f()
	}
	type answer struct {
		v   T
		err error
	}
	if err := w.s.Err(); err != nil && c != callClose && !errors.Is(err, ErrClosed) {
		var none T
		return none, notCalled{err}
	}
	done := make(chan answer, 1)
	var gone atomic.Bool
	go func() {
		slot := w.enter(c, name)
		v, err := f()
		slot.leave()
		done <- answer{v, err}
		if gone.Load() && err == nil && undo != nil {
			select {
			case a := <-done:
				undo(a.v)
			default:
			}
		}
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-w.s.failed:
	}
	if errors.Is(w.s.Err(), ErrClosed) { // it closes in good order: nothing hangs
		a := <-done
		return a.v, a.err
	}
	gone.Store(true)
	select {
	case a := <-done: // it came all the same
		return a.v, a.err
	default:
	}
	var none T
	return none, fmt.Errorf("%s %s: %w", callNames[c], *name, w.s.Err())
}
