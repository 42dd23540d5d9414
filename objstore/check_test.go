package objstore

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

func wantSound(t testing.TB, cfg Config) Summary {
	t.Helper()
	sum, err := Check(cfg, func(p Problem) { t.Errorf("%v", p) })
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestCheckAndDump(t *testing.T) {
	cfg := testConfig(t)
	s := openNew(t, cfg)
	g, key := s.Group(1), MakeKey(0xabc, 9)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 0xabc, Gen: 1, First: 5, Data: fill(1, 20)})
	stage(t, g, Entry{Kind: KindZero, Key: key, Vid: 0xabd, Gen: 2, First: 5, Count: 3})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 0xabc, Gen: 1, First: 5, Data: fill(2, 1)})
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(cfg, nil); err == nil {
		t.Fatal("checked a running store")
	}
	abandonStore(s)
	if sum := wantSound(t, cfg); sum.Blocks != 20 || sum.Objects != 1 || sum.Versions != 2 || sum.JournalRecords != 1 {
		t.Fatalf("%+v", sum)
	}
	var b strings.Builder
	if err := Dump(cfg, &b); err != nil {
		t.Fatal(err)
	}
	if err := DumpObject(cfg, key, &b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cluster c0ffee00", "group 1: 1 objects", "vid 000abc generation 1", "blocks 5 to 24: in slots", "blocks 5 to 7: zero"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

var (
	rotFlips = flag.Int("rot.flips", 12, "bits that the rot test flips in each kind of file, besides those in heads")
	rotAll   = flag.Bool("rot.all", false, "flip a bit of every byte of small files and of all heads")
)

// rotKind says what a file of a store's directory is for.
func rotKind(name string) string {
	switch dir := filepath.Dir(name); {
	case dir == "/journal" || dir == "/epoch":
		return dir[1:]
	case strings.HasPrefix(dir, "/obj/"):
		return "object"
	}
	return filepath.Base(name)
}

// rotWorld is a directory with everything in it: several checkpoints, a
// journal of two segments and several synced batches, named values, a reserve.
func rotWorld(t *testing.T) (*world, *simfs.FS) {
	w, err := newWorld(7)
	if err != nil {
		t.Fatal(err)
	}
	w.s.Close()
	w.cfg.ReserveBytes = 64 << 10
	if w.s, err = Open(w.cfg); err != nil {
		t.Fatal(err)
	}
	s := w.s
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 150 {
		must(w.entry(GroupID(i % worldGroups)))
		if i%40 == 20 {
			must(s.Checkpoint())
		}
		if i == 30 { // behind this one the catalog is appended to
			s.cat.base = -catalogSlack
		}
	}
	for len(s.j.live) < 2 {
		must(w.entry(0))
	}
	for i := range 6 {
		must(w.entry(GroupID(i % worldGroups)))
		must(s.SyncWait())
	}
	must(s.SetMeta("incarnation", []byte("17")))
	s.saveScrub()
	// One more batch, so that its mark says the one before is durable. What is
	// wrong with the last one cannot be told from a torn tail.
	top := w.h[0].top()
	e := Entry{Number: Number{top.last.Term, top.last.LSN + 1}}
	w.h[0] = append(w.h[0], top.apply(&e, nil))
	must(s.Group(0).Stage(&e))
	must(s.SyncWait())
	abandonStore(s)
	return w, w.fs.Clone()
}

// rotBits chooses which bits of a file to flip: one in each byte (or in every
// few) of what is small or says where things are, and some anywhere.
func rotBits(rng *rand.Rand, size int64, heads []int64) (bits []int64) {
	step := int64(1)
	if !*rotAll {
		step = 23
	}
	for _, h := range heads {
		for at := h + rng.Int64N(step); at < min(h+200, size); at += step {
			bits = append(bits, at*8+rng.Int64N(8))
		}
	}
	for range *rotFlips {
		bits = append(bits, rng.Int64N(size*8))
	}
	return bits
}

// rotHeads is where a file's fixed parts begin.
func rotHeads(kind string, size int64) []int64 {
	heads := []int64{0}
	switch kind {
	case "object":
		for k := 0; k < 2; k++ {
			for _, slot := range []uint32{tableSlot(k, 0), tableSlot(k, 1), dataSlot(k, 0), dataSlot(k, 5)} {
				heads = append(heads, int64(slot)*BlockSize)
			}
		}
	case "journal":
		for at := int64(BlockSize); at < min(size, 10*BlockSize); at += BlockSize {
			heads = append(heads, at)
		}
	case "catalog":
		for at := int64(BlockSize); at < size; at += BlockSize {
			heads = append(heads, at)
		}
	}
	return heads
}

// TestBitRot flips bits anywhere in a store's directory, of every kind of
// file, and cuts files short: nothing wrong is ever read, nothing panics or
// hangs, and what cannot be read any more is refused or reported.
func TestBitRot(t *testing.T) {
	w, image := rotWorld(t)
	files := image.Files()
	rng := rand.New(rand.NewPCG(8, 8))
	seen := map[string]map[string]int{}
	var mu sync.Mutex // guards seen
	var tries []func()
	var tryRot func(name, how string, rot func(fs *simfs.FS) error)
	try := func(name, how string, rot func(fs *simfs.FS) error) {
		tries = append(tries, func() { tryRot(name, how, rot) })
	}
	tryRot = func(name, how string, rot func(fs *simfs.FS) error) {
		fs := image.Clone()
		if err := rot(fs); err != nil {
			t.Error(err)
			return
		}
		what, err := w.rotten(fs)
		if err != nil {
			t.Errorf("%s of %s: %v", how, name, err)
		}
		mu.Lock()
		defer mu.Unlock()
		k := rotKind(name) + strings.TrimRight(" "+strings.TrimLeft(how, "bit 0123456789"), " ")
		if seen[k] == nil {
			seen[k] = map[string]int{}
		}
		seen[k][what]++
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		size, kind := files[name], rotKind(name)
		if size == 0 {
			continue
		}
		for _, bit := range rotBits(rng, size, rotHeads(kind, size)) {
			try(name, fmt.Sprintf("bit %d", bit), func(fs *simfs.FS) error { return fs.Flip(name, bit) })
		}
		if kind == "journal" {
			continue // where a journal ends early is not told from a torn tail
		}
		for _, to := range []int64{0, 1, size / 2, size - 1} {
			try(name, "cut short", func(fs *simfs.FS) error {
				f, err := fs.Open(name)
				if err != nil {
					return err
				}
				defer f.Close()
				return f.(interface{ Truncate(int64) error }).Truncate(to)
			})
		}
		if kind == "object" {
			for _, v := range []string{"", "v1 c0ffee00 root 000001 index 9 pg 0"} {
				try(name, "attribute", func(fs *simfs.FS) error {
					f, err := fs.Open(name)
					if err != nil {
						return err
					}
					defer f.Close()
					return f.SetXattr(xattrName, v)
				})
			}
		}
	}
	eachOf(len(tries), func(i int) { tries[i]() })
	for _, k := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%-22s %v", k, seen[k])
	}
}

// rotten opens a store with one wrong bit.
func (w *world) rotten(fs *simfs.FS) (what string, err error) {
	cfg := w.cfg
	cfg.FS = fs
	found := 0
	_, checkErr := Check(cfg, func(p Problem) {
		if !strings.Contains(p.What, "marked bad") { // those the model marked
			found++
		}
	})
	s, err := Open(cfg)
	if err != nil {
		if found == 0 && checkErr == nil {
			return "", fmt.Errorf("check is silent, open says: %w", err)
		}
		return "refused", nil
	}
	defer abandonStore(s)
	what = "harmless"
	if found > 0 || checkErr != nil {
		what = "reported"
	}
	if v, err := s.Meta("incarnation"); err == nil && string(v) != "17" {
		return "", fmt.Errorf("wrong named value %q", v)
	}
	for gid, h := range w.h {
		g := s.Group(gid)
		m := h.top()
		if g.Syncing() {
			what = "a mixture"
			continue // nobody reads it before it is compared with others
		}
		if g.Last() != m.last && (gid != 0 || g.Last().LSN+1 != m.last.LSN) {
			return "", fmt.Errorf("group %d is at %v, was flushed at %v", gid, g.Last(), m.last)
		}
		buf := make([]byte, BlockSize)
		for key, o := range m.objects {
			for vid, v := range o.vids {
				chain := []VidGen{{vid, v.gen}}
				for b := range 32 {
					err := g.Read(key, chain, b, 1, buf, nil, false)
					want := v.blocks[b]
					switch {
					case want.state == Bad:
						if err == nil {
							return "", fmt.Errorf("read a bad block")
						}
					case err != nil:
						what = "read error"
					case want.state == Present && string(buf) != string(pattern(want.seed)), want.state != Present && !allZero(buf):
						return "", fmt.Errorf("group %d object %v vid %d block %d: wrong bytes", gid, key, vid, b)
					}
				}
			}
		}
	}
	if found == 0 && checkErr == nil && what != "harmless" {
		return "", fmt.Errorf("%s, and check is silent", what)
	}
	return what, nil
}

// TestScrubTellsOfBlocksThatCameBad: a copy was made while its source could not read a block. The scrub has it repaired, as if it had rotted here.
func TestScrubTellsOfBlocksThatCameBad(t *testing.T) {
	cfg := testConfig(t)
	bad := make(chan *BlockError, 10)
	cfg.OnBad = func(e *BlockError) { bad <- e }
	s := openNew(t, cfg)
	g, key := s.Group(1), MakeKey(1, 3)
	if err := g.SetSyncing(); err != nil {
		t.Fatal(err)
	}
	c, err := g.NewCopy(key)
	if err != nil {
		t.Fatal(err)
	}
	u := &Unit{Key: key, Version: Number{1, 1}, Versions: []UnitVersion{{Vid: 1, Gen: 1, Blocks: []UnitBlock{{Block: 7, State: Bad}}}}}
	if err := c.Install(u); err != nil {
		t.Fatal(err)
	}
	if err := g.EndSyncing(u.Version); err != nil {
		t.Fatal(err)
	}
	s.SetScrubRate(1 << 40)
	if e := <-bad; e.Block != 7 || e.Key != key || e.Vid != 1 {
		t.Errorf("%v", e)
	}
	s.SetScrubRate(0)
}

// sectors counts what is read from the disk itself, and cannot read one place of it.
type sectors struct {
	vfs.FS
	reads int
	bad   int64 // in bytes
}

type sectorsFile struct {
	vfs.File
	disk *sectors
}

func (d *sectors) Open(name string) (vfs.File, error) {
	f, err := d.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return &sectorsFile{f, d}, nil
}

func (f *sectorsFile) ReadDirect(b []byte, off int64) (int, error) {
	f.disk.reads++
	if off <= f.disk.bad && f.disk.bad < off+int64(len(b)) {
		return 0, syscall.EIO
	}
	return f.File.ReadDirect(b, off)
}

// TestScrubReadsOverGaps: what was overwritten here and there lies between free slots. It is read in long runs all the same, and where one cannot be read that block alone is called
// bad which is to blame, and none if nothing needs the place.
func TestScrubReadsOverGaps(t *testing.T) {
	disk := &sectors{FS: simfs.New(1), bad: -1}
	cfg := simConfig(disk.FS.(*simfs.FS))
	cfg.FS = disk
	var bad []int
	cfg.OnBad = func(e *BlockError) { bad = append(bad, e.Block) }
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, cfg)
	defer s.Close()
	g, key := s.Group(1), MakeKey(1, 1)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: fill(1, 256)})
	for b := 0; b < 256; b += 2 {
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: uint16(b), Data: fill(uint64(b), 1)})
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	o := g.objects[key]
	cells := o.t.list[0].cells
	g.mu.Unlock()
	scrub := func(at uint32) []int {
		bad, disk.reads, disk.bad = nil, 0, int64(at)*BlockSize+5
		s.scrubObject(o)
		return bad
	}
	if bad := scrub(1 << 30); len(bad) > 0 || disk.reads > 10 {
		t.Errorf("%d reads for 256 blocks; called bad: %v", disk.reads, bad)
	}
	if bad := scrub(cells[77].value()); !slices.Equal(bad, []int{77}) {
		t.Errorf("block 77 cannot be read; called bad: %v", bad)
	}
	gap := cells[77].value() + 1
	for slices.ContainsFunc(cells[:], func(c cell) bool { return c.kind() == cellSlot && c.value() == gap }) {
		gap++
	}
	if bad := scrub(gap); len(bad) > 0 {
		t.Errorf("nothing needs what cannot be read; called bad: %v", bad)
	}
}

func TestScrubFindsRot(t *testing.T) {
	fs := simfs.New(1)
	cfg := simConfig(fs)
	bad := make(chan *BlockError, 10)
	cfg.OnBad = func(e *BlockError) { bad <- e }
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, cfg)
	g, key := s.Group(1), MakeKey(1, 1)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: 3, Data: fill(1, 8)})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	slot := g.objects[key].t.list[0].cells[5].value()
	name := s.objectName(g.objects[key])
	g.mu.Unlock()
	if err := fs.Flip(name, int64(slot)*BlockSize*8+77); err != nil {
		t.Fatal(err)
	}
	s.SetScrubRate(1 << 40)
	e := <-bad
	if e.Block != 5 || e.Key != key || e.Vid != 1 || e.Group != 1 {
		t.Fatalf("%v", e)
	}
	buf := make([]byte, BlockSize)
	if err := g.Read(key, []VidGen{{1, 1}}, 5, 1, buf, nil, false); err == nil {
		t.Fatal("read rot")
	}
	// A full write heals it.
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: 5, Data: fill(9, 1)})
	wantRead(t, g, key, []VidGen{{1, 1}}, 5, fill(9, 1))
	for s.Metrics().ScrubRounds == 0 {
		s.SetScrubRate(1 << 40)
	}
}
