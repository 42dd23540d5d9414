package objstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// Scenarios from attempts to break the store, each of which did once.

// simStore is a new store on a simulated disk.
func simStore(t testing.TB, change func(*Config)) (*simfs.FS, Config, *Store) {
	t.Helper()
	sim := simfs.New(1)
	cfg := simConfig(sim)
	if change != nil {
		change(&cfg)
	}
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	return sim, cfg, reopen(t, cfg)
}

// after opens what is left of a store.
func after(t testing.TB, cfg Config, sim *simfs.FS) *Store {
	t.Helper()
	cfg.FS = sim
	return reopen(t, cfg)
}

// TestRule5GenerationsAreNotUsedAgain: a segment's first sector may be lost
// while what was written behind it under that generation is there. No later
// life may use the generation again, or those records would be valid in it.
func TestRule5GenerationsAreNotUsedAgain(t *testing.T) {
	sim, cfg, s := simStore(t, nil)
	g := s.Group(1)
	used := uint32(0)
	for used < 3 { // a few segments, none of them synced
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 3)})
		used = s.j.endNow().gen() - s.j.live[0].gen + 1
	}
	stage(t, g, Entry{Kind: KindNoop})
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	last := s.j.endNow().gen()
	var heads []string
	for _, seg := range s.j.live[1:] {
		heads = append(heads, segmentName("/", seg.index))
	}
	abandonStore(s)
	left := sim.Clone()
	for _, h := range heads {
		f, err := left.Open(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if s := after(t, cfg, left); s.j.endNow().gen() <= last {
		t.Fatalf("generation %d was used up to %d before, is used again from %d", last, last, s.j.endNow().gen())
	}
}

// TestRule5SegmentHead: where the first record of the newest segment rots, the
// synced batches behind it are not forgotten.
func TestRule5SegmentHead(t *testing.T) {
	for _, before := range []int{0, 100} { // records before, so that the cut lies in the segment, or in one before
		sim, cfg, s := simStore(t, nil)
		g := s.Group(1)
		for range before {
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 1)})
		}
		for range 3 {
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 1)})
			if err := s.SyncWait(); err != nil {
				t.Fatal(err)
			}
		}
		if before > 0 && len(s.j.live) < 2 {
			t.Fatal("one segment only")
		}
		name := segmentName("/", s.j.cur.index)
		last := g.Last()
		abandonStore(s)
		left := sim.Clone()
		if err := left.Flip(name, 30*8); err != nil {
			t.Fatal(err)
		}
		found := 0
		cfg.FS = left
		if _, err := Check(cfg, func(Problem) { found++ }); err != nil {
			t.Fatal(err)
		}
		s = after(t, cfg, left)
		if g := s.Group(1); g.Last() != last && !g.Syncing() {
			t.Errorf("%d before: at %v, was synced at %v, and says nothing", before, g.Last(), last)
		}
		if found == 0 {
			t.Errorf("%d before: check is silent", before)
		}
	}
}

// TestRule6CatalogFallsBack: where the newest batch of the catalog rots, its
// checkpoint looks as if it never finished. If the journal it emptied has been
// used again, that is said.
func TestRule6CatalogFallsBack(t *testing.T) {
	sim, cfg, s := simStore(t, func(c *Config) {
		c.DirtyBytesMax, c.JournalBytesMax, c.CheckpointBytes = 1<<40, 2<<20, 3<<19
	})
	g := s.Group(1)
	write := func() {
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(g.Last().LSN%7)), Vid: 1, Gen: 1, Data: fill(g.Last().LSN, 3)})
	}
	for len(s.j.live) < 3 {
		write()
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	at := g.Last()
	batch := s.cat.end
	for range 45 {
		write()
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	if s.cat.end != batch {
		t.Fatal("another checkpoint came in between")
	}
	list, _, err := readCatalog(s.cat.f)
	if err != nil {
		t.Fatal(err)
	}
	abandonStore(s)
	left := sim.Clone()
	if err := left.Flip("/catalog", (batch-list[len(list)-1].len+20)*8); err != nil {
		t.Fatal(err)
	}
	s = after(t, cfg, left)
	if g := s.Group(1); g.Last().Less(at) && !g.Syncing() {
		t.Fatalf("at %v, was checkpointed at %v, and says nothing", g.Last(), at)
	}
}

// TestCopyOutlivesItsGroup: a copy that is under way when its group is
// dropped is aborted after the group is gone.
func TestCopyOutlivesItsGroup(t *testing.T) {
	_, _, s := simStore(t, nil)
	g := s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 1)})
	var copies []*Copy
	for _, puts := range []int{0, 3} {
		c, err := g.NewCopy(MakeKey(1, uint32(5+puts)))
		if err != nil {
			t.Fatal(err)
		}
		for b := range puts {
			if err := c.Put(1, b, []uint32{Checksum(pattern(1))}, pattern(1)); err != nil {
				t.Fatal(err)
			}
		}
		copies = append(copies, c)
	}
	if err := s.DropGroup(1); err != nil {
		t.Fatal(err)
	}
	s.Group(1) // waits for the drop
	for _, c := range copies {
		c.Abort()
	}
	verify(t, s)
	if m := s.Metrics(); m.ObjectsDirty != 0 || m.TablesCached != 0 {
		t.Fatalf("%+v", m)
	}
	if n := len(s.cache.clock); n != 0 {
		t.Fatalf("%d objects in the cache", n)
	}
}

// TestRule2NamesOfARunningRound: a checkpoint does not count on the names
// that a sync round has taken and not synced yet.
func TestRule2NamesOfARunningRound(t *testing.T) {
	for seed := range uint64(20) {
		sim := simfs.New(seed)
		cfg := simConfig(sim)
		if err := Create(cfg, testIdentity); err != nil {
			t.Fatal(err)
		}
		s := reopen(t, cfg)
		g := s.Group(1)
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 8)})
		var begun atomic.Bool
		sim.Before(func(op, name string) error {
			if op == "syncdir" && strings.HasPrefix(name, "/obj") && begun.CompareAndSwap(false, true) {
				go func() {
					s.Checkpoint()
					sim.Cut()
				}()
				for end := time.Now().Add(time.Minute); !sim.Off(); runtime.Gosched() {
					if time.Now().After(end) {
						debug.SetTraceback("all")
						panic("the checkpoint waits for the sync round, or comes to no end")
					}
				}
			}
			return nil
		})
		s.SyncWait()
		abandonStore(s)
		s = after(t, cfg, sim.Cut())
		g = s.Group(1)
		buf := make([]byte, BlockSize)
		if err := g.Read(MakeKey(1, 1), []VidGen{{1, 1}}, 0, 1, buf, nil, false); err != nil {
			t.Fatalf("seed %d: at %v: %v", seed, g.Last(), err)
		}
		abandonStore(s)
	}
}

// TestRule8WriteErrorsEndTheDisk: an I/O error ends the disk wherever it comes.
func TestRule8WriteErrorsEndTheDisk(t *testing.T) {
	for _, at := range []string{"write /catalog", "write /catalog.new", "sync /catalog.new", "rename /catalog.new"} {
		sim, _, s := simStore(t, nil)
		g := s.Group(1)
		op, name, _ := strings.Cut(at, " ")
		hit := false
		sim.Before(func(o, n string) error {
			if o == op && n == name {
				hit = true
				return syscall.EIO
			}
			return nil
		})
		for range 200 {
			e := Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Count: 1, Data: fill(1, 1), Number: Number{1, g.Last().LSN + 1}}
			e.SumData()
			if g.Stage(&e) != nil {
				break
			}
		}
		if strings.Contains(at, ".new") {
			s.cat.base = -catalogSlack
		}
		s.Checkpoint()
		if err := s.Err(); !hit || !errors.Is(err, ErrDiskFailed) {
			t.Errorf("%s: called %v, disk is %v", at, hit, err)
		}
	}
}

// TestRule8ErrorIsToldOnce: a file's write-back error is told to one of those
// who sync it at the same time. The others do not take it for durable.
func TestRule8ErrorIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := simfs.New(1)
		cfg := simConfig(sim)
		if err := Create(cfg, testIdentity); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		g := s.Group(1)
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 8)})
		name := filepath.Join("/obj/00000001", MakeKey(1, 1).String())
		first := true
		done := make(chan error, 1)
		sim.Before(func(op, n string) error {
			if op == "sync" && n == name && first {
				first = false
				go func() { done <- s.Checkpoint() }()
				synctest.Wait() // it is as far as it comes
				return syscall.EIO
			}
			return nil
		})
		if err := s.SyncWait(); !errors.Is(err, ErrDiskFailed) {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, ErrDiskFailed) {
			t.Fatalf("checkpoint: %v", err)
		}
		abandonStore(s)
	})
}

// TestRule8OpenAfterAFailedSync: a disk whose sync failed is opened again, in
// the same kernel, which still reads what never reached the disk; then the
// power goes.
func TestRule8OpenAfterAFailedSync(t *testing.T) {
	for _, name := range []string{"/catalog", "/obj/00000001/" + MakeKey(1, 1).String(), "/journal/000"} {
		for _, synced := range []bool{true, false} {
			sim, cfg, s := simStore(t, nil)
			g := s.Group(1)
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 8)})
			if synced {
				if err := s.SyncWait(); err != nil {
					t.Fatal(err)
				}
			}
			last := g.Last()
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(2, 8)})
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, First: 9, Data: fill(2, 2)})
			once := false
			sim.Before(func(op, n string) error {
				if op == "sync" && n == name && !once {
					once = true
					return syscall.EIO
				}
				return nil
			})
			if s.SyncWait() == nil {
				s.Checkpoint()
			}
			if !once || s.Err() == nil {
				t.Fatalf("%s: no error", name)
			}
			abandonStore(s)
			s = reopen(t, cfg)
			g = s.Group(1)
			if synced && g.Last().Less(last) {
				t.Fatalf("%s: at %v, was synced at %v", name, g.Last(), last)
			}
			last = g.Last()
			stage(t, g, Entry{Kind: KindNoop})
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			left := sim.Cut()
			abandonStore(s)
			s = after(t, cfg, left)
			g = s.Group(1)
			if g.Last().Less(last) {
				t.Fatalf("%s: at %v after the cut, %v before", name, g.Last(), last)
			}
			buf := make([]byte, 16*BlockSize)
			if err := g.Read(MakeKey(1, 1), []VidGen{{1, 1}}, 0, 16, buf, nil, false); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			abandonStore(s)
		}
	}
}

// TestRule18DamageAndCounters: what a damaged object had is not counted for
// ever once the object was copied again.
func TestRule18DamageAndCounters(t *testing.T) {
	for _, what := range []string{"head", "table"} {
		sim, cfg, s := simStore(t, nil)
		g := s.Group(1)
		key := MakeKey(1, 1)
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: fill(1, 8)})
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 2, Gen: 2, Data: fill(1, 3)})
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 2), Vid: 1, Gen: 1, Data: fill(1, 2)})
		u, err := g.Unit(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		bit := int64(20 * 8)
		if what == "table" {
			bit += int64(tableSlot(0, 0)) * BlockSize * 8
		}
		if err := sim.Flip("/obj/00000001/"+key.String(), bit); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, cfg)
		g = s.Group(1)
		if err := g.SetSyncing(); err != nil {
			t.Fatal(err)
		}
		c, err := g.NewCopy(key)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range u.Versions {
			for i, b := range v.Blocks {
				if err := c.Put(v.Vid, int(b.Block), []uint32{b.CRC}, fill(1, 8)[i*BlockSize:(i+1)*BlockSize]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.Install(u); err != nil {
			t.Fatal(err)
		}
		if err := g.EndSyncing(Number{1, 3}); err != nil {
			t.Fatal(err)
		}
		want := map[Vid]Usage{1: {Gen: 1, Objects: 2, Present: 10}, 2: {Gen: 2, Objects: 1, Present: 3}}
		check := func(when string) {
			t.Helper()
			for vid, w := range want {
				if got := g.Used(vid); got != w {
					t.Errorf("%s, %s: vid %d uses %+v, want %+v", what, when, vid, got, w)
				}
			}
		}
		check("copied")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, cfg)
		g = s.Group(1)
		check("opened again")
	}
}

// TestRule20ReserveAtOpen: the disk was filled by others, then the power went:
// the reserve is there for the checkpoint that an open begins with.
func TestRule20ReserveAtOpen(t *testing.T) {
	if err := reserveOnce(); err != nil {
		t.Fatal(err)
	}
}

func reserveOnce() error {
	sim := simfs.New(1)
	cfg := simConfig(sim)
	cfg.ReserveBytes = 4 << 20
	if err := Create(cfg, testIdentity); err != nil {
		return err
	}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	g := s.Group(1)
	for i := range 40 {
		e := Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Count: 2, Data: fill(1, 2), Number: Number{1, g.Last().LSN + 1}}
		e.SumData()
		if err := g.Stage(&e); err != nil {
			return err
		}
	}
	if err := s.SyncWait(); err != nil {
		return err
	}
	last := g.Last()
	abandonStore(s)
	left := sim.Clone()
	left.SetCapacity(left.Used(), 0)
	cfg.FS = left
	if s, err = Open(cfg); err != nil {
		return err
	}
	defer abandonStore(s)
	if got := s.Group(1).Last(); got != last {
		return fmt.Errorf("at %v, want %v", got, last)
	}
	return s.Checkpoint()
}

// TestRule20ZerosOnAFullDisk: what needs a new table is refused on a full
// disk, so that frees and deletes never wait for ever.
func TestRule20ZerosOnAFullDisk(t *testing.T) {
	sim, _, s := simStore(t, func(c *Config) { c.ReserveBytes = 256 << 10 })
	g := s.Group(1)
	for i := range 50 {
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Data: fill(1, 2)})
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	sim.SetCapacity(sim.Used()+1<<20, 0)
	s.spaceChanged()
	full := false
	for i := range 5000 {
		e := Entry{Kind: KindZero, Key: MakeKey(1, uint32(1000+i)), Vid: 1, Gen: 1, Count: 5, Number: Number{1, g.Last().LSN + 1}}
		if err := g.Stage(&e); errors.Is(err, syscall.ENOSPC) {
			full = true
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !full {
		t.Fatal("5000 new objects on a full disk")
	}
	// Where there is a table already, zeros give space back.
	stage(t, g, Entry{Kind: KindZero, Key: MakeKey(1, 0), Vid: 1, Gen: 1, Count: 2})
	for i := range 50 {
		stage(t, g, Entry{Kind: KindDelete, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1})
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
}

// TestDroppedGroupLeavesNothing: the power goes while a dropped group's files
// are being removed. They are removed in the next life.
func TestDroppedGroupLeavesNothing(t *testing.T) {
	sim, cfg, s := simStore(t, nil)
	for i := range 20 {
		stage(t, s.Group(1), Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Data: fill(1, 8)})
	}
	stage(t, s.Group(2), Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, Data: fill(1, 8)})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	var left *simfs.FS
	removed := 0
	sim.Before(func(op, name string) error {
		if op == "remove" && strings.HasPrefix(name, "/obj") {
			if removed++; removed == 5 {
				left = sim.Cut()
			}
		}
		return nil
	})
	if err := s.DropGroup(1); err != nil {
		t.Fatal(err)
	}
	s.Checkpoint()
	abandonStore(s)
	s = after(t, cfg, left)
	s.SetScrubRate(1 << 40)
	waitFor(t, func() bool { return s.Metrics().ScrubRounds > 0 })
	for name := range left.Files() {
		if strings.HasPrefix(name, "/obj/00000001/") {
			t.Errorf("%s is left", name)
		}
	}
	wantRead(t, s.Group(2), MakeKey(1, 1), []VidGen{{1, 1}}, 0, fill(1, 8))
}

// TestSegmentSizeChanges: a journal written with small segments is replayed
// under a configuration with large ones.
func TestSegmentSizeChanges(t *testing.T) {
	sim, cfg, s := simStore(t, func(c *Config) { c.JournalBytesMax, c.CheckpointBytes = 16<<20, 15<<20 })
	g := s.Group(1)
	for len(s.j.live) < 10 {
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, First: uint16(g.Last().LSN % 1000), Data: pattern(g.Last().LSN + 1)})
	}
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	last := g.Last()
	abandonStore(s)
	other := cfg
	other.SegmentBytes, other.JournalBytesMax, other.CheckpointBytes = 1<<30, 4<<30, 0
	sim.Before(func(op, name string) error {
		if op == "create" && strings.HasPrefix(name, "/journal") { // gigabytes of zeros, in memory
			return syscall.EIO
		}
		return nil
	})
	if _, err := Open(other); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	sim.Before(nil)
	g = reopen(t, cfg).Group(1)
	if g.Last() != last {
		t.Fatalf("at %v, want %v", g.Last(), last)
	}
	for n := last.LSN; n > 0 && n+1000 > last.LSN; n-- { // those that no later one went over
		wantRead(t, g, MakeKey(1, 1), []VidGen{{1, 1}}, int((n-1)%1000), pattern(n))
	}
}

// TestFailedWriteLeavesNoFile: a large write to a new object that finds no
// space does not leave the object's file behind.
func TestFailedWriteLeavesNoFile(t *testing.T) {
	sim, _, s := simStore(t, nil)
	g := s.Group(1)
	sim.Before(func(op, name string) error {
		if op == "write" && strings.HasSuffix(name, MakeKey(1, 5).String()) {
			return syscall.ENOSPC
		}
		return nil
	})
	e := Entry{Kind: KindWrite, Key: MakeKey(1, 5), Vid: 1, Gen: 1, Count: 8, Data: fill(1, 8), Number: Number{1, 1}}
	e.SumData()
	if err := g.Stage(&e); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	for name := range sim.Files() {
		if strings.HasPrefix(name, "/obj") {
			t.Errorf("%s is left", name)
		}
	}
	verify(t, s)
	if n := len(s.cache.clock); n != 0 {
		t.Errorf("%d objects in the cache", n)
	}
}

// TestRule2ObjectComesBack: an object goes in a checkpoint and comes back
// before its file went; the next checkpoints never finish. What they left in
// its file is not taken for newer than what counts.
func TestRule2ObjectComesBack(t *testing.T) {
	sim, cfg, s := simStore(t, nil)
	g, key := s.Group(1), MakeKey(1, 1)
	data := fill(1, 8)
	back := Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: data}
	stage(t, g, back)
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	stage(t, g, Entry{Kind: KindDelete, Key: key, Vid: 1, Gen: 1})
	once := false
	sim.Before(func(op, name string) error {
		if op == "write" && name == "/catalog" && !once {
			once = true
			stage(t, g, back)
		}
		return nil
	})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	for range 3 { // these write the table, and their commit finds no space
		sim.Before(func(op, name string) error {
			if op == "write" && name == "/catalog" {
				return syscall.ENOSPC
			}
			return nil
		})
		if err := s.Checkpoint(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	sim.Before(nil)
	abandonStore(s)
	left := sim.Clone()
	s = after(t, cfg, left)
	g = s.Group(1)
	for i := range 8 { // other versions of it, so that the first's table stays as it is
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: Vid(2 + i), Gen: 2, First: 9, Data: fill(2, 1)})
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	abandonStore(s)
	cfg.FS = left
	wantSound(t, cfg)
	wantRead(t, after(t, cfg, left).Group(1), key, []VidGen{{1, 1}}, 0, data)
}

// TestRule8ErrorBehindSyncFS: a file system's sync succeeds although a file of
// it failed, if somebody else has been told of that before. The file's own
// descriptor still knows.
func TestRule8ErrorBehindSyncFS(t *testing.T) {
	sim, _, s := simStore(t, func(c *Config) { c.OpenFilesMax = 100 })
	g := s.Group(1)
	for i := range syncfsFrom + 5 {
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Data: fill(1, 8)})
	}
	sim.FailWriteBack("/obj/00000001/" + MakeKey(1, 7).String())
	if err := s.SyncWait(); !errors.Is(err, ErrDiskFailed) {
		t.Fatalf("sync: %v", err)
	}
}

// TestCreateOnAFailingDisk: an error wherever it comes is an error, and a
// later attempt succeeds.
func TestCreateOnAFailingDisk(t *testing.T) {
	for k := 1; ; k++ {
		sim := simfs.New(uint64(k))
		calls := 0
		sim.Before(func(op, name string) error {
			if calls++; calls == k {
				return syscall.EIO
			}
			return nil
		})
		err := Create(simConfig(sim), testIdentity)
		if calls < k {
			return
		}
		sim.Before(nil)
		if err == nil {
			err = ErrExists
		} else {
			err = Create(simConfig(sim), testIdentity)
		}
		if err != nil && !errors.Is(err, ErrExists) {
			t.Fatalf("call %d: %v", k, err)
		}
		reopen(t, simConfig(sim)).Close()
	}
}

// TestCopySyncCountsWhatItCovered: blocks that come while an earlier part of the copy is being synced, and that a flush is left to cover, are not taken
// for those that the sync was for.
func TestCopySyncCountsWhatItCovered(t *testing.T) {
	sim, _, s := simStore(t, nil)
	c, err := s.Group(1).NewCopy(MakeKey(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	put := func(n int) {
		t.Helper()
		data := fill(1, n)
		crcs := make([]uint32, n)
		for i := range crcs {
			crcs[i] = Checksum(data[i*BlockSize : (i+1)*BlockSize])
		}
		if err := c.Put(1, 0, crcs, data); err != nil {
			t.Error(err)
		}
	}
	put(512)
	once := false
	sim.Before(func(op, name string) error {
		if op == "sync" && strings.HasPrefix(name, "/obj") && !once {
			once = true
			for range 3 {
				put(1024) // more than a copy keeps for itself: the next flush's
			}
			put(512)
		}
		return nil
	})
	if err := c.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := c.written - c.synced; !once || n < 512*BlockSize || c.file == nil {
		t.Fatalf("%d bytes to be synced, in %v", n, c.file)
	}
	if err := c.Sync(); err != nil || c.file != nil {
		t.Fatalf("%v, %d bytes to be synced", err, c.written-c.synced)
	}
	c.Abort()
}

// TestEndedDiskIsLetGo: calls that are not made any more, since the disk has ended, do not keep its files open: it could not be unmounted.
func TestEndedDiskIsLetGo(t *testing.T) {
	_, _, s := simStore(t, nil)
	s.Detach(true)
	f, err := s.fs.Open("/catalog")
	if err != nil {
		t.Fatal(err)
	}
	s.fail("test", syscall.EIO)
	buf := make([]byte, BlockSize)
	calls := map[string]error{"sync": f.Datasync()}
	_, calls["read"] = f.ReadAt(buf, 0)
	_, calls["write"] = f.WriteAt(buf, 0)
	_, calls["size"] = f.Size()
	for name, err := range calls {
		if !errors.Is(err, ErrDiskFailed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := f.(*watchedFile).users; n != 0 {
		t.Errorf("%d calls under way", n)
	}
}
