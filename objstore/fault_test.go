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

// TestFaults makes the k-th call of each kind fail, for every k of a short
// history, once, or from there on, or when half of it is done: nothing
// acknowledged is lost, nothing panics, and a disk that failed a write or a
// sync is not used again. Afterwards the power goes, too.
func TestFaults(t *testing.T) {
	ops := []string{"write", "read", "sync", "syncdir", "syncfs", "create", "link", "open", "remove", "rename", "mkdir", "punch",
		"allocate", "setxattr", "getxattr", "size", "writeback", "readdir", "statfs", "lock"}
	causes := map[string]func(call, k int64) error{
		"EIO once":        func(call, k int64) error { return only(call == k, syscall.EIO) },
		"EIO for ever":    func(call, k int64) error { return only(call >= k, syscall.EIO) },
		"ENOSPC once":     func(call, k int64) error { return only(call == k, syscall.ENOSPC) },
		"ENOSPC for long": func(call, k int64) error { return only(call >= k && call < k+6, syscall.ENOSPC) }, // then there is space again
		"EIO half way":    func(call, k int64) error { return only(call == k, simfs.Half{Err: syscall.EIO}) },
		"ENOSPC half way": func(call, k int64) error { return only(call == k, simfs.Half{Err: syscall.ENOSPC}) },
	}
	total := 0
	for _, op := range ops {
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
					t.Errorf("%s, %s, call %d: %v", op, name, k, err)
					break
				}
				if missed++; hit {
					n, missed = n+1, 0
				}
			}
			t.Logf("%-9s %-16s %d", op, name, n)
			total += n
		}
	}
	t.Logf("%d faults", total)
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

func runFaults(seed uint64, op string, fault func(call int64) error) (hit bool, err error) {
	w, err := newWorldWith(seed, func(c *Config) { c.ReserveBytes = 64 << 10 })
	if err != nil {
		return false, err
	}
	defer func() {
		if w.s != nil && !w.s.closing.Load() {
			abandonStore(w.s)
		}
	}()
	var calls atomic.Int64
	var off, failed atomic.Bool
	w.fs.Before = func(o, name string) error {
		if o != op || off.Load() {
			return nil
		}
		err := fault(calls.Add(1))
		if err != nil {
			failed.Store(true)
		}
		return err
	}
	for range 70 {
		err := w.step()
		if err == nil {
			continue
		}
		if w.s == nil || w.s.Err() != nil {
			off.Store(true)
			if w.s != nil && !w.s.closing.Load() {
				abandonStore(w.s)
			}
			if err := w.reopen(); err != nil {
				return false, fmt.Errorf("after the fault: %w", err)
			}
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) && !errors.Is(err, ErrLocked) {
			return false, fmt.Errorf("unexpected: %w", err)
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

// TestRule8SyncFailsOnce: after a failed sync nothing succeeds, although the
// disk would say yes again.
func TestRule8SyncFailsOnce(t *testing.T) {
	fs := simfs.New(1)
	cfg := simConfig(fs)
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, cfg)
	g := s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, Data: fill(1, 1)})
	once := false
	fs.Before = func(op, name string) error {
		if op == "sync" && !once {
			once = true
			return syscall.EIO
		}
		return nil
	}
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

// TestHangIsNoticed: a sync that does not come back ends the disk in bounded
// time, and nobody waits for it any longer.
func TestHangIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := simfs.New(1)
		cfg := simConfig(sim)
		cfg.HangTimeout = 5 * time.Second
		if err := Create(cfg, testIdentity); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		sim.Before = func(op, name string) error {
			if op == "sync" {
				<-release
			}
			return nil
		}
		g := s.Group(1)
		stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, Data: fill(1, 1)})
		start := time.Now()
		if err := s.SyncWait(); !errors.Is(err, ErrDiskFailed) {
			t.Fatalf("sync on a hanging disk: %v", err)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Fatalf("noticed after %v", d)
		}
		close(release)
		s.Close()
	})
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
