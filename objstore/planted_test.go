package objstore

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

var plantedRuns = flag.Int("planted.runs", 500, "model runs per planted bug")

// plantedBugs says of each planted bug which rule it breaks, and which test
// is made for it where the model cannot find it. The model's own runs find the
// others.
//
// What a store alone cannot break of rules 1 to 21 lies above it: of rule 13
// that the primary decides, of 16 that a replica catches up on merges, of 17
// how long a tombstone stays, of 19 who gives numbers, and all of 21.
var plantedBugs = []struct {
	bug      bug
	rule     string
	what     string
	made     string // why the model cannot
	directed func(seed uint64) error
}{
	{bugSlotFreeAtOnce, "1, 15", "superseded slots are free at once", "", nil},
	{bugTableInPlace, "2", "tables are overwritten in place", "", nil},
	{bugNameUnsynced, "2", "files' names are not synced", "", nil},
	{bugAttributeLate, "2", "the attribute comes after the name", "", nil},
	{bugUnfinished, "2", "unfinished checkpoints' tables count", "", nil},
	{bugTableUnchecked, "2", "an older table replaces a rotten one", "nothing rots in it", rotOnce},
	{bugSlotsNotReused, "3", "free slots are not reused", "it looks at no size", layoutOnce},
	{bugNeverPunched, "3", "free runs are not given back", "it looks at no size", layoutOnce},
	{bugFlushJournal, "4", "a flush leaves large writes out", "", nil},
	{bugCopyUnsynced, "4", "a copy is taken for synced", "", nil},
	{bugUnseeded, "5", "records' checksums have no seed", "", nil},
	{bugNoFreshBatch, "5", "synced sectors are written again", "", nil},
	{bugNoMark, "5", "damage counts as a torn tail", "nothing rots in it", journalRotOnce},
	{bugCommitEarly, "6", "the catalog is written before the tables", "", nil},
	{bugRetireEarly, "6", "segments are free before the commit", "it writes nothing beside a checkpoint", wrapInCheckpoint},
	{bugLateCut, "6, 9", "a checkpoint takes more than its cut", "it seldom writes beside a checkpoint", writeBehindCut},
	{bugNoBound, "7", "writers do not wait at the bounds", "it looks at no size", boundOnce},
	{bugSyncRetried, "8", "a failed sync is tried again", "no call fails in it",
		func(seed uint64) error { _, err := runFault(seed, "sync", 1+int(seed%20), syscall.EIO); return err }},
	{bugLargeTrusted, "9", "large writes are replayed unseen", "", nil},
	{bugGapTaken, "9", "replay goes on behind a gap", "", nil},
	{bugVersionKept, "10", "a merge changes no version", "", nil},
	{bugGenerations, "11", "generations are not compared", "", nil},
	{bugReadOnce, "12", "a read is not looked up again", "it reads beside nothing", readersOnce},
	{bugReadTrusted, "12", "checksums are not compared", "nothing rots in it", rotOnce},
	{bugBadIsZero, "13", "a bad block becomes an absent one", "", nil},
	{bugScrubCached, "14", "the scrub reads memory", "memory and disk agree in it", scrubOnce},
	{bugMergeOver, "16", "a merge overwrites the heir", "", nil},
	{bugMergeFrees, "16", "a merge frees what it moves", "", nil},
	{bugUnlinkEarly, "17", "files go before the commit", "", nil},
	{bugUsageMerge, "18", "a merge moves no counters", "", nil},
	{bugNothingPromised, "19", "the journal is not counted as used", "it never fills a disk", func(uint64) error { return fullOnce() }},
	{bugReserveKept, "20", "the reserve is not given up", "it never fills a disk", func(uint64) error { return reserveOnce() }},
	{bugOddKept, "9", "a journal with a hole goes on", "", nil},
	{bugEndUnknown, "9", "dropped records come back in a later life", "each of its syncs succeeds", func(uint64) error { return droppedOnce() }},
	{bugPriorLife, "1, 9", "a killed process's writes count as durable", "", nil},
}

// TestPlanted puts each bug in, one at a time, and wants the model, or the
// test made for it, to find it.
func TestPlanted(t *testing.T) {
	runs := *plantedRuns
	if runs == 0 || testing.Short() {
		t.Skip("a short run")
	}
	if len(plantedBugs) != int(bugEnd)-1 {
		t.Errorf("%d bugs in the table, %d there are", len(plantedBugs), bugEnd-1)
	}
	t.Logf("%-6s %-45s %-8s %5s", "rule", "broken so", "found by", "runs")
	for _, p := range plantedBugs {
		planted = p.bug
		found := 0
		var err error
		if p.directed == nil {
			found, err = findByModel(runs)
		}
		for seed, begun := 1, time.Now(); seed <= runs && err == nil && p.directed != nil && time.Since(begun) < plantedHang; seed++ {
			err = findBug(uint64(seed), p.directed)
			found = seed
		}
		planted = bugNone
		by := "model"
		if p.directed != nil {
			by = "directed"
			if err := p.directed(1); err != nil {
				t.Errorf("%s: found where it is not: %v", p.what, err)
			}
		}
		if err == nil {
			t.Errorf("rule %s, %s: not found in %d runs", p.rule, p.what, found)
			continue
		}
		t.Logf("%-6s %-45s %-8s %5d  %.90v", p.rule, p.what, by, found, err)
	}
}

// findByModel returns the first seed whose run finds the bug, and what it found. Later ones may have been tried at the same time.
func findByModel(runs int) (first int, what error) {
	begun := time.Now()
	var mu sync.Mutex // guards first and what
	eachOf(runs, func(i int) {
		mu.Lock()
		done := first != 0 && first < i+1 || time.Since(begun) > plantedHang
		mu.Unlock()
		if done {
			return
		}
		err := findBug(uint64(i+1), nil)
		mu.Lock()
		defer mu.Unlock()
		if err != nil && (first == 0 || i+1 < first) {
			first, what = i+1, err
		}
	})
	return first, what
}

// plantedHang is when a run counts as one that hangs, which finds a bug, too, and how long a bug is looked for.
const plantedHang = time.Minute

func findBug(seed uint64, directed func(uint64) error) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v", p)
			}
		}()
		if directed != nil {
			done <- directed(seed)
			return
		}
		r := rand.New(rand.NewPCG(seed, 3))
		_, err := runWorld(seed, 150, 1+r.IntN(60), 1+r.IntN(60), 0)
		done <- err
	}()
	timer := time.NewTimer(plantedHang)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		stacks := make([]byte, 1<<20)
		return fmt.Errorf("hangs\n%s", stacks[:runtime.Stack(stacks, true)])
	}
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
		data := int64(dataSlot(0, 0)) * BlockSize
		if size <= data || len(name) < 20 {
			continue
		}
		at := r.Int64N(min(size-data, 100<<10))
		if r.IntN(5) > 0 { // else what lies before the data
			at += data
		}
		fs := image.Clone()
		if err := fs.Flip(name, at*8+r.Int64N(8)); err != nil {
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
	w.fs.Before(func(op, name string) error {
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
	})
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

// writeBehindCut writes to an object that a running checkpoint took and has not come to yet, and then the power goes.
func writeBehindCut(seed uint64) error {
	w, err := newWorld(seed)
	if err != nil {
		return err
	}
	write := func(object uint32) error {
		top := w.h[0].top()
		e := Entry{Kind: KindWrite, Key: MakeKey(1, object), Vid: 1, Gen: 10, First: uint16(w.rng.IntN(16)), Count: 1, Number: Number{1, top.last.LSN + 1}}
		w.seeds++
		e.Data = pattern(w.seeds)
		e.SumData()
		w.h[0] = append(w.h[0], top.apply(&e, []uint64{w.seeds}))
		return w.s.Group(0).Stage(&e)
	}
	for i := range uint32(8) {
		if err := write(i % 2); err != nil {
			return err
		}
	}
	if err := w.s.SyncWait(); err != nil {
		return err
	}
	w.settled()
	var failed error
	once := false
	w.fs.Before(func(op, name string) error {
		if op == "write" && strings.HasSuffix(name, MakeKey(1, 0).String()) && !once {
			once = true
			failed = write(1)
		}
		return nil
	})
	if err := w.s.Checkpoint(); err != nil || failed != nil || !once {
		return fmt.Errorf("checkpoint %v, write %v", err, failed)
	}
	return w.powerCut()
}

func TestRule9CheckpointTakesItsCut(t *testing.T) {
	for seed := range uint64(20) {
		if err := writeBehindCut(seed + 1); err != nil {
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

// layoutOnce looks at the shape of a file and at what it takes: fresh objects
// lie in block order, slots are used again, runs go back (rule 3).
func layoutOnce(seed uint64) error {
	sim := simfs.New(seed)
	cfg := simConfig(sim)
	if err := Create(cfg, testIdentity); err != nil {
		return err
	}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	defer abandonStore(s)
	g, key := s.Group(1), MakeKey(1, 1)
	do := func(kind EntryKind, first, count int) error {
		e := Entry{Kind: kind, Key: key, Vid: 1, Gen: 1, First: uint16(first), Count: uint16(count), Number: Number{1, g.Last().LSN + 1}}
		if kind == KindWrite {
			e.Data = fill(g.Last().LSN, count)
			e.SumData()
		}
		return g.Stage(&e)
	}
	for b := 0; b < 256; b += 32 { // small and large
		if err := errors.Join(do(KindWrite, b, 2), do(KindWrite, b+2, 30)); err != nil {
			return err
		}
	}
	if err := s.Checkpoint(); err != nil {
		return err
	}
	for b, c := range g.objects[key].t.find(1).cells[:256] {
		if c.at != cellSlot|dataSlot(0, b) {
			return fmt.Errorf("block %d of a fresh object is at %x", b, c.at)
		}
	}
	for range 20 {
		if err := errors.Join(do(KindWrite, 0, 256), s.Checkpoint()); err != nil {
			return err
		}
	}
	if n := len(g.objects[key].t.chunks); n > 2 {
		return fmt.Errorf("%d chunks for 256 blocks written again", n)
	}
	before := sim.Used()
	if err := errors.Join(do(KindTrim, 0, 256), s.Checkpoint()); err != nil {
		return err
	}
	if freed := before - sim.Used(); freed < 200*BlockSize {
		return fmt.Errorf("256 blocks were trimmed, %d bytes freed", freed)
	}
	return nil
}

func TestRule3Layout(t *testing.T) {
	if err := layoutOnce(1); err != nil {
		t.Fatal(err)
	}
}

// boundOnce stages without ever committing (rule 7).
func boundOnce(seed uint64) error {
	cfg := simConfig(simfs.New(seed))
	cfg.PendingBytesMax = 64 << 10
	if err := Create(cfg, testIdentity); err != nil {
		return err
	}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	defer abandonStore(s)
	g := s.Group(1)
	for i := range 60 {
		e := Entry{Kind: KindWrite, Key: MakeKey(1, 1), Vid: 1, Gen: 1, First: uint16(i), Count: 1, Data: pattern(1), Number: Number{1, g.Last().LSN + 1}}
		e.SumData()
		if err := g.Stage(&e); err != nil {
			return err
		}
		if n := s.j.pendingBytes(); n > cfg.PendingBytesMax+16<<10 {
			return fmt.Errorf("%d bytes are pending, the bound is %d", n, cfg.PendingBytesMax)
		}
	}
	return nil
}

func TestRule7Bounds(t *testing.T) {
	if err := boundOnce(1); err != nil {
		t.Fatal(err)
	}
}

// scrubOnce has a block that memory holds and the disk never got (rule 14).
func scrubOnce(seed uint64) error {
	sim := simfs.New(seed)
	cfg := simConfig(sim)
	if err := Create(cfg, testIdentity); err != nil {
		return err
	}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	defer abandonStore(s)
	g, key := s.Group(1), MakeKey(1, 1)
	e := Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Count: 8, Data: fill(1, 8), Number: Number{1, 1}}
	e.SumData()
	if err := errors.Join(g.Stage(&e), s.Checkpoint()); err != nil {
		return err
	}
	name := s.objectName(g.objects[key])
	f, err := sim.Open(name)
	if err != nil {
		return err
	}
	slot := g.objects[key].t.find(1).cells[3].value()
	if err := sim.Flip(name, int64(slot)*BlockSize*8+5); err != nil { // the disk has rotted,
		return err
	}
	b := e.Data[3*BlockSize : 4*BlockSize]
	if _, err := f.WriteAt(b, int64(slot)*BlockSize); err != nil { // and memory has it well
		return err
	}
	sim.FailWriteBack(name)
	f.Close()
	s.scrubObject(g.objects[key])
	if n := s.m.scrubBad.Load(); n != 1 {
		return fmt.Errorf("the scrub found %d bad blocks", n)
	}
	return nil
}

func TestRule14ScrubReadsTheDisk(t *testing.T) {
	if err := scrubOnce(1); err != nil {
		t.Fatal(err)
	}
}

func TestRule19Promises(t *testing.T) {
	if err := fullOnce(); err != nil {
		t.Fatal(err)
	}
}
