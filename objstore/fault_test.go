package objstore

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// faultOps are the calls to a disk, as simfs names them.
var faultOps = []string{"write", "read", "sync", "syncdir", "syncfs", "create", "link", "open", "remove", "rename", "mkdir", "punch",
	"allocate", "setxattr", "getxattr", "size", "writeback", "readdir", "statfs", "lock"}

// TestFaults makes the k-th call of each kind fail, for every k of a short
// history, once, or from there on, or when half of it is done: nothing
// acknowledged is lost, nothing panics, and a disk that failed a write or a
// sync is not used again. Afterwards the power goes, too.
func TestFaults(t *testing.T) {
	causes := map[string]func(call, k int64) error{
		"EIO once":        func(call, k int64) error { return only(call == k, syscall.EIO) },
		"EIO for ever":    func(call, k int64) error { return only(call >= k, syscall.EIO) },
		"ENOSPC once":     func(call, k int64) error { return only(call == k, syscall.ENOSPC) },
		"ENOSPC for long": func(call, k int64) error { return only(call >= k && call < k+6, syscall.ENOSPC) }, // then there is space again
		"EIO half way":    func(call, k int64) error { return only(call == k, simfs.Half{Err: syscall.EIO}) },
		"ENOSPC half way": func(call, k int64) error { return only(call == k, simfs.Half{Err: syscall.ENOSPC}) },
	}
	var total atomic.Int64
	t.Run("each", func(t *testing.T) {
		for _, op := range faultOps {
			t.Run(op, func(t *testing.T) {
				t.Parallel()
				for _, name := range slices.Sorted(maps.Keys(causes)) {
					reads := op == "read" || op == "open" || op == "size" || op == "readdir" || op == "getxattr"
					if strings.HasSuffix(name, "half way") && op != "write" && op != "read" || reads && strings.HasPrefix(name, "ENOSPC") {
						continue
					}
					if op == "read" && name == "EIO for ever" {
						continue // then tables are lost, as they should be: see TestBitRot
					}
					n, missed := 0, 0
					for k := 1; k < *faultCalls && missed < 3; k += 1 + k / *faultEvery {
						watch := time.AfterFunc(2*time.Minute, func() {
							debug.SetTraceback("all")
							panic(fmt.Sprintf("%s, %s, call %d: hangs", op, name, k))
						})
						hit, err := runFaults(uint64(k%5), op, func(call int64) error { return causes[name](call, int64(k)) })
						watch.Stop()
						if err != nil {
							t.Errorf("%s, call %d: %v", name, k, err)
							break
						}
						if missed++; hit {
							n, missed = n+1, 0
						}
					}
					if n == 0 {
						t.Errorf("%s: no call failed", name)
					}
					t.Logf("%-16s %d", name, n)
					total.Add(int64(n))
				}
			})
		}
	})
	t.Logf("%d faults", total.Load())
}

var (
	faultEvery = flag.Int("fault.every", 4, "every k-th call fails up to this, then ever fewer")
	faultCalls = flag.Int("fault.calls", 1000, "calls of a kind that may fail")
)

func only(now bool, err error) error {
	if !now {
		return nil
	}
	return err
}

func runFault(seed uint64, op string, k int, cause error) (hit bool, err error) {
	return runFaults(seed, op, func(call int64) error { return only(call == int64(k), cause) })
}

// runFaults runs a short history in which every kind of call is made, with faults.
func runFaults(seed uint64, op string, fault func(call int64) error) (hit bool, err error) {
	var calls atomic.Int64
	var off, failed atomic.Bool
	off.Store(true)
	w, err := newWorldWith(seed, func(c *Config) {
		c.ReserveBytes = 64 << 10
		c.FS.(*simfs.FS).Before(func(o, name string) error {
			if o != op || off.Load() {
				return nil
			}
			err := fault(calls.Add(1))
			if err != nil {
				failed.Store(true)
			}
			return err
		})
	})
	if err != nil {
		return false, err
	}
	defer func() {
		if w.s != nil && !w.s.closing.Load() {
			abandonStore(w.s)
		}
	}()
	off.Store(false)
	do := func(step func() error) error {
		err := step()
		if err == nil {
			return nil
		}
		if w.s == nil || w.s.Err() != nil {
			off.Store(true)
			if w.s != nil && !w.s.closing.Load() {
				abandonStore(w.s)
			}
			if err := w.reopen(); err != nil {
				return fmt.Errorf("after the fault: %w", err)
			}
			return nil
		}
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) && !errors.Is(err, ErrLocked) {
			return fmt.Errorf("unexpected: %w", err)
		}
		return nil
	}
	for range 30 {
		if err := do(w.step); err != nil {
			return false, err
		}
	}
	for _, step := range w.rare(&off) {
		if err := do(step); err != nil {
			return false, err
		}
	}
	for range 20 {
		if err := do(w.step); err != nil {
			return false, err
		}
	}
	off.Store(true)
	if err := w.compare(); err != nil {
		return false, err
	}
	abandonStore(w.s)
	if err := w.reopen(); err != nil {
		return false, err
	}
	for range 10 {
		if err := w.step(); err != nil {
			return false, fmt.Errorf("after the fault: %w", err)
		}
	}
	return failed.Load(), w.powerCut()
}

var rareData = fill(1, 32)

// rare are steps to calls that random ones seldom or never come to: a sync of many files at once, punching, named values, a check of the stopped store, and a start that makes the
// reserve. They leave what the model knows as it is. What is checked while off is set, nothing disturbs.
func (w *world) rare(off *atomic.Bool) []func() error {
	const many = GroupID(worldGroups) // a group of no model
	large := func(index, first, blocks int, kind EntryKind) error {
		g := w.s.Group(many)
		e := Entry{Number: Number{1, g.Last().LSN + 1}, Kind: kind, Key: MakeKey(2, uint32(index)), Vid: 1, Gen: 10, First: uint16(first), Count: uint16(blocks)}
		if kind == KindWrite {
			e.Data = rareData[:blocks*BlockSize]
			e.SumData()
		}
		return g.Stage(&e)
	}
	return []func() error{
		func() error {
			for i := range syncfsFrom {
				if err := large(i, 0, 4, KindWrite); err != nil {
					return err
				}
			}
			return w.s.SyncWait()
		},
		func() error { return large(0, 0, 32, KindWrite) },
		func() error { return w.s.Checkpoint() },
		func() error { return large(0, 0, 32, KindZero) },
		func() error { return w.s.Checkpoint() },
		func() error { return w.s.Checkpoint() }, // punches what the one before let go of
		func() error { return w.s.DropGroup(many) },
		func() error { return w.s.Checkpoint() },
		func() error { return w.s.SetMeta("name", []byte("value")) },
		func() error { return w.s.SetMeta("name", nil) },
		func() error {
			if err := w.s.Close(); err != nil {
				return err
			}
			w.settled()
			return nil
		},
		func() error {
			if !w.s.closing.Load() { // closing it failed
				return nil
			}
			if _, err := Check(w.cfg, func(Problem) {}); err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrLocked) {
				return fmt.Errorf("check: %w", err)
			}
			return nil
		},
		func() error {
			if !w.s.closing.Load() {
				return nil
			}
			was := off.Swap(true)
			if err := w.fs.Remove("/reserve"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			off.Store(was)
			var err error
			if w.s, err = Open(w.cfg); err != nil {
				return err
			}
			return w.compare()
		},
	}
}

// TestRule8SyncFailsOnce: after a failed sync nothing succeeds, although the
// disk would say yes again.
func TestRule8SyncFailsOnce(t *testing.T) {
	fs := simfs.New(1)
	cfg := simConfig(fs)
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	var once atomic.Bool
	fs.Before(func(op, name string) error {
		if op == "sync" && once.CompareAndSwap(true, false) {
			return syscall.EIO
		}
		return nil
	})
	s := reopen(t, cfg)
	g := s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, Data: fill(1, 1)})
	once.Store(true)
	for range 3 {
		if err := s.SyncWait(); !errors.Is(err, ErrDiskFailed) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("sync: %v", err)
		}
	}
	e := Entry{Number: Number{1, 2}, Kind: KindNoop}
	if err := g.Stage(&e); !errors.Is(err, ErrDiskFailed) {
		t.Fatalf("stage: %v", err)
	}
	if err := s.SetMeta("x", []byte("y")); !errors.Is(err, ErrDiskFailed) {
		t.Fatalf("set value: %v", err)
	}
}

// TestFullDisk: writes fail with ENOSPC, what was acknowledged is there,
// deleting goes on, and then writing does, without a restart (rules 19, 20).
func TestFullDisk(t *testing.T) {
	for _, inodes := range []int64{0, 90} {
		sim := simfs.New(1)
		capacity := int64(24 << 20)
		if inodes > 0 {
			capacity = 256 << 20
		}
		sim.SetCapacity(capacity, inodes)
		cfg := simConfig(sim)
		cfg.ReserveBytes = 1 << 20
		cfg.TableCacheBytes = 0
		if err := Create(cfg, testIdentity); err != nil {
			t.Fatal(err)
		}
		s := reopen(t, cfg)
		g := s.Group(1)
		written := map[Key]uint64{}
		next := 0
		fillUp := func() {
			t.Helper()
			for more := true; more; {
				more = false
				for ; ; next++ {
					i := next
					e := Entry{Number: Number{1, g.Last().LSN + 1}, Kind: KindWrite, Key: MakeKey(1, uint32(i%400)), Vid: 1, Gen: 1,
						First: uint16(i / 400 * 2 % 1000), Count: uint16(1 + i%20), Data: fill(uint64(i), 1+i%20)}
					e.SumData()
					err := g.Stage(&e)
					if errors.Is(err, syscall.ENOSPC) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					more = true
					if e.First == 0 {
						written[e.Key] = uint64(i)
					}
				}
				if err := s.SyncWait(); err != nil {
					t.Fatal(err)
				}
				// A full disk must still be able to empty its journal.
				if err := s.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
		}
		fillUp()
		if !s.Space().Full {
			t.Fatalf("not full: %+v", s.Space())
		}
		n := len(written)
		if n < 10 {
			t.Fatalf("only %d objects fit", n)
		}
		// Everything is there, also for the next process.
		abandonStore(s)
		s = reopen(t, cfg)
		g = s.Group(1)
		buf := make([]byte, BlockSize)
		for k, i := range written {
			if err := g.Read(k, []VidGen{{1, 1}}, 0, 1, buf, nil, false); err != nil || !bytes.Equal(buf, fill(i, 1)) {
				t.Fatalf("object %v: %v", k, err)
			}
		}
		for k := range written {
			stage(t, g, Entry{Kind: KindDelete, Key: k, Vid: 1, Gen: 1})
		}
		clear(written)
		next = 0
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		if s.Space().Full {
			t.Fatalf("still full: %+v", s.Space())
		}
		fillUp()
		if len(written) < n/2 {
			t.Fatalf("after deleting only %d objects fit, %d before", len(written), n)
		}
		s.Close()
		wantSound(t, cfg)
	}
}

// TestHangs lets a call of each kind never come back. The disk is ended in bounded time, whoever uses it gets an error by then, and what comes back after all, before or after
// the next process has opened the disk, changes nothing of what counts.
func TestHangs(t *testing.T) {
	for _, op := range faultOps {
		t.Run(op, func(t *testing.T) {
			n := 0
			for k := 1; k < 40; k += k + k/2 {
				synctest.Test(t, func(t *testing.T) {
					if hangAt(t, op, k) {
						n++
					}
				})
			}
			if n == 0 {
				t.Error("no call hung")
			}
		})
	}
}

// hangAt runs a short history whose k-th call of a kind hangs.
func hangAt(t *testing.T, op string, k int) bool {
	const limit = 5 * time.Second
	var calls atomic.Int64
	var off, hung atomic.Bool
	off.Store(true)
	release := make(chan struct{})
	w, err := newWorldWith(uint64(k%5), func(c *Config) {
		c.ReserveBytes, c.HangTimeout, c.Detached = 64<<10, limit, true
		c.FS.(*simfs.FS).Before(func(o, name string) error {
			if o == op && !off.Load() && calls.Add(1) == int64(k) {
				hung.Store(true)
				<-release
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	off.Store(false)
	running := func() bool { return w.s != nil && !w.s.closing.Load() } // else it is being opened, or checked
	some := slices.Repeat([]func() error{w.step}, 12)
	steps := slices.Concat(some, w.rare(&off), some)
	for i, step := range steps {
		start := time.Now()
		err := step()
		// What runs beside has come to its end, or hangs: from here on nothing begins to hang before the next step.
		synctest.Wait()
		if hung.Load() && running() && w.s.Err() == nil { // somebody else's call: a checkpoint's, the scrub's
			time.Sleep(limit + limit/10)
		}
		if took := time.Since(start); took > limit+2*limit/watchTicks {
			t.Errorf("call %d: step %d was held for %v", k, i, took)
		}
		if hung.Load() {
			break
		}
		if err != nil {
			t.Fatalf("call %d: step %d, nothing hung: %v", k, i, err)
		}
	}
	off.Store(true)
	if hung.Load() && running() {
		if err := w.s.Err(); !errors.Is(err, ErrDiskFailed) || !errors.Is(err, errHang) {
			t.Errorf("call %d: the disk says %v", k, err)
		}
	}
	if running() {
		abandonStore(w.s)
	}
	before := k%2 == 0
	if before { // it comes back, and then the next process opens the disk
		close(release)
		synctest.Wait()
	}
	if err := w.reopen(); err != nil {
		t.Fatalf("call %d: reopen: %v", k, err)
	}
	if !before {
		close(release)
		synctest.Wait()
	}
	if err := w.compare(); err != nil {
		t.Errorf("call %d: %v", k, err)
	}
	abandonStore(w.s)
	return hung.Load()
}

// TestHangMayNotEnd: where the disk is not to be ended for slowness, it says that it is late, and goes on when it answers again.
func TestHangMayNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := simfs.New(1)
		cfg := simConfig(sim)
		cfg.HangTimeout = 5 * time.Second
		cfg.MayEnd = func() bool { return false }
		if err := Create(cfg, testIdentity); err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		var hangs atomic.Bool
		sim.Before(func(op, name string) error {
			if op == "sync" && hangs.Load() {
				<-release
			}
			return nil
		})
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		hangs.Store(true)
		g := s.Group(1)
		stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, Data: fill(1, 1)})
		done := make(chan error, 1)
		go func() { done <- s.SyncWait() }()
		time.Sleep(4 * time.Second)
		if d := s.Late(); d != 0 {
			t.Errorf("late by %v after 4 s", d)
		}
		time.Sleep(time.Minute)
		if d := s.Late(); d < 50*time.Second || s.Err() != nil {
			t.Errorf("late for %v after a minute, %v", d, s.Err())
		}
		close(release)
		if err := <-done; err != nil {
			t.Errorf("it answered after all: %v", err)
		}
		time.Sleep(time.Second)
		if d := s.Late(); d != 0 {
			t.Errorf("late by %v after it answered", d)
		}
	})
}

// TestHangIsNoticed: a sync that does not come back ends the disk in bounded
// time, and nobody waits for it any longer.
func TestHangIsNoticed(t *testing.T) {
	for _, detached := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			sim := simfs.New(1)
			cfg := simConfig(sim)
			cfg.HangTimeout, cfg.Detached = 5*time.Second, detached
			if err := Create(cfg, testIdentity); err != nil {
				t.Fatal(err)
			}
			release := make(chan struct{})
			var hangs atomic.Bool
			sim.Before(func(op, name string) error {
				if op == "sync" && hangs.Load() {
					<-release
				}
				return nil
			})
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			hangs.Store(true)
			g := s.Group(1)
			stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, Data: fill(1, 1)})
			start := time.Now()
			if err := s.SyncWait(); !errors.Is(err, ErrDiskFailed) {
				t.Fatalf("sync on a hanging disk: %v", err)
			}
			if d := time.Since(start); d < 5*time.Second || d > 5500*time.Millisecond {
				t.Fatalf("noticed after %v", d)
			}
			close(release)
			s.Close()
		})
	}
}

func TestRefusals(t *testing.T) {
	sim := simfs.New(1)
	cfg := simConfig(sim)
	if _, err := Open(cfg); !errors.Is(err, ErrNotStore) {
		t.Fatalf("open nothing: %v", err)
	}
	sim.SetNoXattr(true)
	if err := Create(cfg, testIdentity); !errors.Is(err, ErrNoXattr) {
		t.Fatalf("no attributes: %v", err)
	}
	sim.SetNoXattr(false)
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	if err := Create(cfg, testIdentity); !errors.Is(err, ErrExists) {
		t.Fatalf("create twice: %v", err)
	}
	s := reopen(t, cfg)
	if _, err := Open(cfg); !errors.Is(err, ErrLocked) {
		t.Fatalf("open twice: %v", err)
	}
	if _, err := s.Meta("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("value that is not there: %v", err)
	}
	if err := s.SetMeta("a/b", nil); !errors.Is(err, ErrFormat) {
		t.Fatalf("bad name: %v", err)
	}
}

// TestNoDescriptorLeft: where the process may open no more files, those that are open without need are closed, and nobody notices.
func TestNoDescriptorLeft(t *testing.T) {
	const objects, most = 12, 3
	sim, _, s := simStore(t, func(c *Config) { c.TableCacheBytes, c.OpenFilesMax = tableCost, most })
	g := s.Group(1)
	write := func(seed uint64, blocks int) {
		for i := range objects {
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Data: fill(seed+uint64(i), blocks)})
		}
	}
	write(1, 1)
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	refused := 0
	sim.Before(func(op, name string) error {
		if op != "open" && op != "create" || !strings.Contains(name, "/obj/") {
			return nil
		}
		s.files.mu.Lock()
		defer s.files.mu.Unlock()
		if len(s.files.clock) < most {
			return nil
		}
		refused++
		return syscall.EMFILE
	})
	for i := range objects {
		wantRead(t, g, MakeKey(1, uint32(i)), []VidGen{{1, 1}}, 0, fill(1+uint64(i), 1))
	}
	if refused == 0 || s.Err() != nil {
		t.Errorf("%d refused, %v", refused, s.Err())
	}
	sim.Before(nil)
}
