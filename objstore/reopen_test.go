package objstore

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// TestRule9JournalGoesOn: a store that was killed, or lost its power behind a
// sync, is open without a checkpoint, life after life, until no segment is
// free; and no file that it makes has a birth that another one had.
func TestRule9JournalGoesOn(t *testing.T) {
	sim, cfg, s := simStore(t, func(c *Config) {
		c.SegmentBytes, c.JournalBytesMax, c.CheckpointBytes = 256<<10, 4<<20, 3<<20
	})
	births := map[uint64]Key{}
	const lives, blocks = 24, 30
	kept, inRow, longest := 0, 0, 0
	for life := range lives {
		g := s.Group(1)
		for i := range blocks {
			n := g.Last().LSN + 1
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i%4)), Vid: 1, Gen: 1, First: uint16(i), Data: pattern(n)})
		}
		key := MakeKey(2, uint32(life)) // a file of this life
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: fill(uint64(life), 32)})
		g.mu.Lock()
		birth := g.objects[key].birth
		g.mu.Unlock()
		if other, ok := births[birth]; ok {
			t.Fatalf("life %d: file of %v has the birth %x of that of %v", life, key, birth, other)
		}
		births[birth] = key
		if err := s.SyncWait(); err != nil {
			t.Fatal(err)
		}
		last := g.Last()
		if life%3 == 2 { // some that no sync covers
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 0), Vid: 1, Gen: 1, First: 500, Data: fill(uint64(life), 32)})
			stage(t, g, Entry{Kind: KindZero, Key: MakeKey(1, 1), Vid: 1, Gen: 1, First: 500, Count: 3})
			if err := s.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		abandonStore(s)
		if life%3 != 0 {
			sim = sim.Cut()
			cfg.FS = sim
		}
		s = reopen(t, cfg)
		g = s.Group(1)
		if s.m.checkpoints.Load() == 0 {
			kept++
			inRow++
			longest = max(longest, inRow)
		} else {
			inRow = 0
		}
		if got := g.Last(); got.LSN < last.LSN || got.LSN > last.LSN+2 {
			t.Fatalf("life %d: at %v, flushed at %v", life, got, last)
		}
		for i := range blocks {
			wantRead(t, g, MakeKey(1, uint32(i%4)), []VidGen{{1, 1}}, i, pattern(last.LSN-uint64(blocks-i)))
		}
		for old := range life + 1 {
			wantRead(t, g, MakeKey(2, uint32(old)), []VidGen{{1, 1}}, 0, fill(uint64(old), 32))
		}
	}
	if kept < lives/2 || longest < 5 {
		t.Errorf("%d of %d openings kept the journal, at most %d in a row", kept, lives, longest)
	}
	t.Logf("%d of %d openings kept the journal, at most %d in a row", kept, lives, longest)
}

// failSync has the next sync of a file whose name ends so fail.
func failSync(sim *simfs.FS, name string) (failed *bool) {
	failed = new(bool)
	sim.Before(func(op, n string) error {
		if op == "sync" && strings.HasSuffix(n, name) && !*failed {
			*failed = true
			return syscall.EIO
		}
		return nil
	})
	return failed
}

// write4k stages a block and says what error a sync of it has.
func write4k(g *Group, key Key, first int, data []byte) error {
	e := Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: uint16(first), Count: 1, Data: data, Number: Number{1, g.Last().LSN + 1}}
	e.SumData()
	if err := g.Stage(&e); err != nil {
		return err
	}
	return g.s.SyncWait()
}

// TestRule9DroppedStaysDropped: records of a batch whose sync failed are in
// memory only. One life reads the disk and goes on without them; the next
// finds them in memory still, behind where the journal went on.
func TestRule9DroppedStaysDropped(t *testing.T) {
	if err := droppedOnce(); err != nil {
		t.Fatal(err)
	}
}

func droppedOnce() error {
	sim := simfs.New(1)
	cfg, key := simConfig(sim), MakeKey(1, 1)
	if err := Create(cfg, testIdentity); err != nil {
		return err
	}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	err = write4k(s.Group(1), key, 0, pattern(1))
	failSync(sim, segmentName("/", s.j.cur.index))
	lost := write4k(s.Group(1), key, 0, pattern(1000))
	abandonStore(s)
	if err != nil || lost == nil {
		return fmt.Errorf("first life: %v; its last sync: %v", err, lost)
	}
	sim.Before(nil)
	if s, err = Open(cfg); err != nil {
		return err
	}
	for n := uint64(2); n <= 4 && err == nil; n++ {
		err = write4k(s.Group(1), key, 0, pattern(n))
	}
	kept := s.m.checkpoints.Load() == 0
	abandonStore(s)
	if err != nil || !kept {
		return fmt.Errorf("second life: %w; kept %v", err, kept)
	}
	if s, err = Open(cfg); err != nil {
		return err
	}
	defer abandonStore(s)
	if g := s.Group(1); g.Last().LSN != 4 || g.Syncing() {
		return fmt.Errorf("third life: at %v, syncing %v, flushed at 1.4", g.Last(), g.Syncing())
	}
	got := make([]byte, BlockSize)
	if err := s.Group(1).ReadSlotOf(key, 1, 0, got); err != nil || !bytes.Equal(got, pattern(4)) {
		return fmt.Errorf("third life: wrong bytes (%v)", err)
	}
	return nil
}

// TestRule9SegmentInMemoryOnly: a new segment's first sync fails, so that it is
// no part of the journal on the disk. The next life does not go on behind it.
func TestRule9SegmentInMemoryOnly(t *testing.T) {
	for _, how := range []string{"cut", "kill"} {
		t.Run(how, func(t *testing.T) {
			sim, cfg, s := simStore(t, func(c *Config) { c.JournalBytesMax, c.CheckpointBytes = 4<<20, 3<<20 })
			g, key := s.Group(1), MakeKey(1, 1)
			next := func() error { n := g.Last().LSN + 1; return write4k(g, key, int(n%1000), pattern(n)) }
			if err := next(); err != nil {
				t.Fatal(err)
			}
			failed := failSync(sim, segmentName("/", s.j.free[0].index))
			for err := error(nil); err == nil; err = next() {
			}
			if !*failed {
				t.Fatal("another sync failed")
			}
			abandonStore(s)
			sim.Before(nil)
			s = reopen(t, cfg)
			g = s.Group(1)
			for range 3 {
				if err := next(); err != nil {
					t.Fatal(err)
				}
			}
			last := g.Last()
			abandonStore(s)
			if how == "cut" {
				cfg.FS = sim.Cut()
			}
			if g = reopen(t, cfg).Group(1); g.Last() != last || g.Syncing() {
				t.Errorf("at %v, syncing %v; flushed at %v", g.Last(), g.Syncing(), last)
			}
		})
	}
}

// TestRule9RotBringsNothingBack: the power went during a sync, and of two
// batches that it covered only the second reached the disk. Later a bit of an
// older record rots: what was not taken then is not taken now.
func TestRule9RotBringsNothingBack(t *testing.T) {
	sim, cfg, s := simStore(t, nil)
	a, b := MakeKey(1, 1), MakeKey(1, 2)
	var starts []int64 // of the batches
	for n := range uint64(2) {
		starts = append(starts, alignUp(s.j.endNow().off(), BlockSize))
		if err := write4k(s.Group(1), a, 0, pattern(n)); err != nil {
			t.Fatal(err)
		}
	}
	torn := alignUp(s.j.endNow().off(), BlockSize)
	name, once := segmentName("/", s.j.cur.index), false
	sim.Before(func(op, n string) error {
		if op == "sync" && n == name && !once {
			once = true
			stage(t, s.Group(2), Entry{Kind: KindWrite, Key: b, Vid: 1, Gen: 1, Data: pattern(1000)})
			return s.j.commit()
		}
		return nil
	})
	if err := write4k(s.Group(1), a, 0, pattern(3)); err != nil {
		t.Fatal(err)
	}
	abandonStore(s)
	sim.Before(nil)
	sim = sim.Clone()
	f, err := sim.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 512), torn); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s = after(t, cfg, sim)
	for n := range uint64(3) {
		if err := write4k(s.Group(2), b, 0, pattern(n)); err != nil {
			t.Fatal(err)
		}
	}
	if s.m.checkpoints.Load() > 0 {
		t.Fatal("the journal was not kept")
	}
	abandonStore(s)
	sim = sim.Clone()
	if err := sim.Flip(name, (starts[1]+30)*8); err != nil {
		t.Fatal(err)
	}
	s = after(t, cfg, sim)
	if g := s.Group(2); g.Last().LSN != 3 {
		t.Errorf("group 2 at %v, flushed at 1.3", g.Last())
	}
	wantRead(t, s.Group(2), b, []VidGen{{1, 1}}, 0, pattern(2))
}

// TestRule7OneSegment: the process died while it made the journal anew. One
// segment alone is no journal: when it is full nothing frees it.
func TestRule7OneSegment(t *testing.T) {
	sim, cfg, s := simStore(t, nil)
	stage(t, s.Group(1), Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 3)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.SegmentBytes, cfg.JournalBytesMax = 512<<10, 4<<20
	sim.Before(func(op, n string) error {
		if op == "create" && n == segmentName("/", 1) {
			return syscall.EIO
		}
		return nil
	})
	if _, err := Open(cfg); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	sim.Before(nil)
	s = reopen(t, cfg)
	if s.j.made.Load() < journalSegsMin {
		t.Fatalf("a journal of %d segments", s.j.made.Load())
	}
}

// TestRule8CheckpointBesideFailedSync: a checkpoint that is under way when a
// sync fails does not commit what that sync lost, by way of a descriptor
// opened since, which is told nothing.
func TestRule8CheckpointBesideFailedSync(t *testing.T) {
	sim, cfg, s := simStore(t, nil) // two open files
	g := s.Group(1)
	for i := range 8 {
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Data: fill(1, 1)})
	}
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	synced, key := g.Last(), MakeKey(1, 9)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: fill(2, 8)})
	first, failed := true, false
	var lost error
	sim.Before(func(op, name string) error {
		switch {
		case op == "write" && strings.HasPrefix(name, "/obj") && first:
			first = false
			lost = s.SyncWait()
		case op == "sync" && strings.HasSuffix(name, key.String()) && !failed:
			failed = true
			return syscall.EIO
		}
		return nil
	})
	if err := s.Checkpoint(); err == nil || !errors.Is(lost, ErrDiskFailed) {
		t.Errorf("checkpoint: %v; sync: %v", err, lost)
	}
	sim.Before(nil)
	abandonStore(s)
	if g = after(t, cfg, sim.Cut()).Group(1); g.Last() != synced {
		wantRead(t, g, key, []VidGen{{1, 1}}, 0, fill(2, 8))
	}
}
