package objstore

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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

var rotFlips = flag.Int("rot.flips", 400, "bits that the rot test flips")

// TestBitRot flips bits anywhere in a store's directory: nothing wrong is
// ever read, nothing panics, and what cannot be read any more is reported.
func TestBitRot(t *testing.T) {
	base := simfs.New(1)
	cfg := simConfig(base)
	w := &world{fs: base, cfg: cfg, rng: rand.New(rand.NewPCG(7, 7)), h: map[GroupID]history{}}
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	for g := range GroupID(worldGroups) {
		w.h[g] = history{&mGroup{objects: map[Key]*mObject{}}}
	}
	for i := range 150 {
		if err := w.entry(GroupID(i % worldGroups)); err != nil {
			t.Fatal(err)
		}
		if i%40 == 20 {
			s.Checkpoint()
		}
	}
	if err := s.SetMeta("incarnation", []byte("17")); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	// One more batch, so that its mark says the one before is durable. What is
	// wrong with the last one cannot be told from a torn tail.
	top := w.h[0].top()
	e := Entry{Number: Number{top.last.Term, top.last.LSN + 1}}
	w.h[0] = append(w.h[0], top.apply(&e, nil))
	if err := s.Group(0).Stage(&e); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	abandonStore(s)
	image := base.Clone()
	files := image.Files()
	names := make([]string, 0, len(files))
	for n, size := range files {
		if size > 0 {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	rng := rand.New(rand.NewPCG(8, 8))
	seen := map[string]int{}
	for range *rotFlips {
		fs := image.Clone()
		name := names[rng.IntN(len(names))]
		bit := rng.Int64N(files[name] * 8)
		if rng.IntN(2) == 0 {
			bit = rng.Int64N(min(files[name], 16<<10) * 8)
		}
		if err := fs.Flip(name, bit); err != nil {
			t.Fatal(err)
		}
		what, err := w.rotten(fs)
		if err != nil {
			t.Fatalf("bit %d of %s: %v", bit, name, err)
		}
		seen[filepath.Base(filepath.Dir(name))+" "+what]++
	}
	t.Log(seen)
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
