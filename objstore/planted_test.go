package objstore

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

var plantedRuns = flag.Int("planted.runs", 200, "model runs per planted bug")

// TestPlanted puts each bug in, one at a time, and wants the model, or the
// test made for it, to find it.
func TestPlanted(t *testing.T) {
	runs := *plantedRuns
	if runs == 0 || testing.Short() {
		t.Skip("a short run")
	}
	directed := map[bug]func(seed uint64) error{
		bugTableUnchecked:  rotOnce,
		bugReadTrusted:     rotOnce,
		bugNoMark:          journalRotOnce,
		bugSyncRetried:     func(seed uint64) error { _, err := runFault(seed, "sync", 1+int(seed%20), syscall.EIO); return err },
		bugRetireEarly:     wrapInCheckpoint,
		bugReadOnce:        readersOnce,
		bugNothingPromised: func(uint64) error { return fullOnce() },
	}
	for b := bugNone + 1; b < bugEnd; b++ {
		planted = b
		found := 0
		var err error
		for seed := 1; seed <= runs && err == nil; seed++ {
			err = findBug(b, uint64(seed), directed[b])
			found = seed
		}
		planted = bugNone
		if err == nil {
			t.Errorf("bug %d is not found in %d runs", b, runs)
			continue
		}
		t.Logf("bug %d found by run %d: %.150v", b, found, err)
	}
}

func findBug(b bug, seed uint64, directed func(uint64) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if directed != nil {
		return directed(seed)
	}
	r := rand.New(rand.NewPCG(seed, 3))
	_, err = runWorld(seed, 150, 1+r.IntN(60), 1+r.IntN(60), 0)
	return err
}

// rotOnce flips bits of object files under a store with some history.
func rotOnce(seed uint64) error {
	w, err := newWorld(seed)
	if err != nil {
		return err
	}
	for i := range 100 {
		if err := w.entry(GroupID(i % worldGroups)); err != nil {
			return err
		}
		if i%20 == 19 {
			if err := w.s.Checkpoint(); err != nil {
				return err
			}
		}
	}
	if err := w.s.Close(); err != nil {
		return err
	}
	image := w.fs.Clone()
	r := rand.New(rand.NewPCG(seed, 4))
	for name, size := range image.Files() {
		if size < 100<<10 || len(name) < 20 {
			continue
		}
		fs := image.Clone()
		if err := fs.Flip(name, r.Int64N(min(size, 128<<10)*8)); err != nil {
			return err
		}
		if _, err := w.rotten(fs); err != nil {
			return err
		}
	}
	return nil
}

// journalRotOnce damages a record that was synced, with another sync behind
// it.
func journalRotOnce(seed uint64) error {
	w, err := newWorld(seed)
	if err != nil {
		return err
	}
	for range 3 {
		if err := w.entry(0); err != nil {
			return err
		}
		if err := w.s.SyncWait(); err != nil {
			return err
		}
	}
	abandonStore(w.s)
	fs := w.fs.Clone()
	for name, size := range fs.Files() {
		if size == w.cfg.SegmentBytes {
			fs.Flip(name, 80*8)
		}
	}
	_, err = w.rotten(fs)
	return err
}

// wrapInCheckpoint fills the journal while a checkpoint is about to commit,
// and then the power goes.
func wrapInCheckpoint(seed uint64) error {
	w, err := newWorld(seed)
	if err != nil {
		return err
	}
	write := func() error {
		top := w.h[0].top()
		e := Entry{Kind: KindWrite, Key: MakeKey(1, 0), Vid: 1, Gen: 10, First: uint16(w.rng.IntN(16)), Count: 1, Number: Number{1, top.last.LSN + 1}}
		w.seeds++
		e.Data = pattern(w.seeds)
		e.SumData()
		w.h[0] = append(w.h[0], top.apply(&e, []uint64{w.seeds}))
		return w.s.Group(0).Stage(&e)
	}
	for range 70 {
		if err := write(); err != nil {
			return err
		}
	}
	if err := w.s.SyncWait(); err != nil {
		return err
	}
	w.settled()
	j := w.s.j
	room := func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(j.free) > 0 || j.end < j.segBytes-16<<10
	}
	var failed error
	once := false
	w.fs.Before = func(op, name string) error {
		if op != "write" || name != "/catalog" || once {
			return nil
		}
		once = true
		for n := 0; n < 300 && room() && failed == nil; n++ {
			failed = write()
		}
		if failed == nil {
			failed = w.s.Commit()
		}
		w.fs.CutAtSync(1)
		return nil
	}
	if err := w.s.Checkpoint(); err == nil || failed != nil {
		return fmt.Errorf("checkpoint %v, writes %v", err, failed)
	}
	return w.powerCut()
}

func TestRule6SegmentsOutliveTheCommit(t *testing.T) {
	for seed := range uint64(20) {
		if err := wrapInCheckpoint(seed + 1); err != nil {
			t.Fatal(err)
		}
	}
}

// readersOnce reads beside writers and checkpoints: nothing may look bad.
func readersOnce(seed uint64) error {
	cfg := simConfig(simfs.New(seed))
	if err := Create(cfg, testIdentity); err != nil {
		return err
	}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	defer abandonStore(s)
	return readBesideWrites(s, 300*time.Millisecond)
}

// readBesideWrites has readers check that every block they see is one that
// was written to it, and not older than one they saw before.
func readBesideWrites(s *Store, length time.Duration) error {
	const blocks = 24
	key, chain := MakeKey(1, 1), []VidGen{{1, 1}}
	g := s.Group(1)
	var stop atomic.Bool
	errs := make(chan error, 8)
	for r := range 4 {
		go func() {
			buf := make([]byte, blocks*BlockSize)
			var seen [blocks]uint64
			for !stop.Load() {
				first, count := 0, blocks
				if r%2 == 0 {
					first, count = rand.IntN(blocks), 1
				}
				err := g.Read(key, chain, first, count, buf, nil, false)
				if errors.Is(err, ErrStale) {
					continue
				}
				for i := range count {
					if err != nil {
						break
					}
					b := buf[i*BlockSize : (i+1)*BlockSize]
					var v uint64
					for k := range 8 {
						v |= uint64(b[k]) << (8 * k)
					}
					if v < seen[first+i] || v != 0 && string(b) != string(pattern(v)) {
						err = fmt.Errorf("block %d: read version %d after %d", first+i, v, seen[first+i])
					}
					seen[first+i] = v
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var err error
	var n uint64
	deadline := time.Now().Add(length)
	for i := 0; err == nil && time.Now().Before(deadline); i++ {
		e := Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: uint16(rand.IntN(blocks - 8)), Count: uint16(1 + rand.IntN(8)), Number: Number{1, g.Last().LSN + 1}}
		for range e.Count {
			n++
			e.Data = append(e.Data, pattern(n)...)
		}
		e.SumData()
		err = g.Stage(&e)
		if err == nil && i%20 == 0 {
			err = s.Checkpoint()
		}
	}
	stop.Store(true)
	for range 4 {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	return err
}

func TestReadBesideWrites(t *testing.T) {
	if err := readBesideWrites(openNew(t, testConfig(t)), time.Second); err != nil {
		t.Fatal(err)
	}
	if err := readersOnce(1); err != nil {
		t.Fatal(err)
	}
}

// fullOnce fills a small disk with small writes and wants to empty the
// journal then.
func fullOnce() error {
	sim := simfs.New(1)
	cfg := simConfig(sim)
	if err := Create(cfg, testIdentity); err != nil {
		return err
	}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	defer abandonStore(s)
	sim.SetCapacity(sim.Used()+1<<20, 0)
	s.spaceChanged()
	g := s.Group(1)
	for i := range 2000 {
		e := Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Count: 1, Data: pattern(1), Number: Number{1, g.Last().LSN + 1}}
		e.SumData()
		if err := g.Stage(&e); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			return err
		}
		if i%100 == 99 && s.j.liveBytes() > 500<<10 {
			break
		}
	}
	return s.Checkpoint()
}

func TestRule19Promises(t *testing.T) {
	if err := fullOnce(); err != nil {
		t.Fatal(err)
	}
}
