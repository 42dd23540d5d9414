package objstore

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// TestRule6CheckpointRests: a checkpoint that nobody waits for leaves the disk to clients most of the time, and one that somebody waits for does not rest,
// nor the one under way that is in its way.
func TestRule6CheckpointRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const objects, sync, interval = 8, 50 * time.Millisecond, 10 * time.Second
		sim := simfs.New(1)
		sim.Before(func(op, name string) error {
			if op == "sync" {
				time.Sleep(sync)
			}
			return nil
		})
		cfg := simConfig(sim) // two open files: each object is a wave
		cfg.CheckpointInterval, cfg.JournalBytesMax = interval, 16<<20
		if err := Create(cfg, testIdentity); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		g := s.Group(1)
		n := uint64(0)
		write := func() {
			t.Helper()
			for k := range objects {
				n++
				stage(t, g, Entry{Kind: KindWrite, Key: Key(1<<32 | k), Vid: 1, Gen: 1, Data: fill(n, 1)})
			}
		}
		ended := func() int64 { return s.Metrics().Checkpoints }
		write()
		at, was := time.Now(), ended()
		for ended() == was && time.Since(at) < time.Minute {
			time.Sleep(sync)
		}
		if d, least := time.Since(at)-interval, (objects-1)*restTimes*sync; d < least || d > 2*least {
			t.Errorf("a checkpoint at leisure took %v, want %v to %v", d, least, 2*least)
		}
		write()
		time.Sleep(interval + 2*sync) // one rests
		was, at = ended(), time.Now()
		for range (cfg.JournalBytesMax / 4) / BlockSize { // as much as may come until it has to be done
			n++
			stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, Data: fill(n, 1)})
		}
		for ended() == was && time.Since(at) < time.Minute {
			time.Sleep(sync)
		}
		if d, most := time.Since(at), 2*objects*sync+restTimes*sync; d > most {
			t.Errorf("a checkpoint beside a flood took %v, want %v at the most", d, most)
		}
		for _, wait := range []func() error{s.Checkpoint, s.Close} {
			write()
			time.Sleep(interval + 2*sync) // one rests
			was := ended()
			at := time.Now()
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			if n := ended() - was; n != 2 {
				t.Errorf("%d checkpoints ended, want the one under way and the one that was asked for", n)
			}
			if d, most := time.Since(at), 2*objects*2*sync; d > most {
				t.Errorf("whoever waited did so for %v, want %v at the most", d, most)
			}
		}
	})
}

// TestSlotsOfWhatWasOverwrittenBesideACheckpoint: the slot of a block that was overwritten while a checkpoint moved it is free after the next one, also where nothing else
// came to the journal between the two.
func TestSlotsOfWhatWasOverwrittenBesideACheckpoint(t *testing.T) {
	sim, _, s := simStore(t, func(c *Config) { c.TableCacheBytes = 4 * tableCost })
	g := s.Group(1)
	const objects = 40
	keyOf := func(i int) Key { return MakeKey(5, uint32(i)) }
	for i := range objects {
		stage(t, g, Entry{Kind: KindWrite, Key: keyOf(i), Vid: 5, Gen: 100, Data: fill(1, 2)})
	}
	var once atomic.Bool
	sim.Before(func(op, name string) error {
		if op == "write" && strings.Contains(name, "catalog") && !once.Swap(true) {
			for i := range objects {
				stage(t, g, Entry{Kind: KindWrite, Key: keyOf(i), Vid: 5, Gen: 100, Data: fill(2, 2)})
			}
		}
		return nil
	})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	sim.Before(nil)
	if !once.Load() {
		t.Fatal("nothing was written beside")
	}
	// Nothing happens before the next checkpoint. From then on life goes on, elsewhere.
	for i := range 5 {
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		stage(t, s.Group(2), Entry{Kind: KindWrite, Key: MakeKey(6, uint32(i)), Vid: 6, Gen: 100, Data: fill(1, 1)})
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	later, busy := 0, 0
	for i := range objects {
		if o := g.objects[keyOf(i)]; o.t != nil {
			for _, l := range o.t.later {
				later += int(l.n)
			}
			if o.t.busy() {
				busy++
			}
		}
	}
	if later > 0 || s.tableCount.Load()*tableCost > s.cfg.TableCacheBytes {
		t.Errorf("after several checkpoints %d slots wait to be free, %d objects may not leave memory, tables in memory: %d, bound %d",
			later, busy, s.tableCount.Load(), s.cfg.TableCacheBytes/tableCost)
	}
}
