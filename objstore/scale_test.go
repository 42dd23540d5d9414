package objstore

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// TestManyObjects: a start with 250,000 objects is fast, and an object at
// rest costs little.
func TestManyObjects(t *testing.T) {
	cfg := simConfig(simfs.New(1))
	cfg.TableCacheBytes = 0
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	// As if 250,000 objects had been checkpointed: the catalog has them all.
	const objects, groups = 250_000, 256
	b := beginBatch(s.checkpointNext, s.j.endNow(), true)
	for g := range GroupID(groups) {
		b = newGroup(s, g).appendRecord(b)
	}
	for i := range objects {
		b = objectRecord{group: GroupID(i % groups), key: MakeKey(1, uint32(i)), version: Number{1, uint64(i + 1)},
			checkpoint: s.checkpointNext, birth: 1, sum: 1}.append(b)
	}
	if err := s.replaceCatalog(b); err != nil {
		t.Fatal(err)
	}
	abandonStore(s)
	b, s = nil, nil

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	s, err = Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / objects // less may be left than before: of what earlier tests have in pools
	t.Logf("opened in %v, %.0f bytes an object", took, each)
	if took > 10*time.Second || each > 200 {
		t.Errorf("opened in %v, %.0f bytes an object", took, each)
	}
	n := 0
	for _, id := range s.Groups() {
		s.Group(id).Objects(0, func(ObjectInfo) bool { n++; return true })
	}
	if n != objects {
		t.Fatalf("%d objects", n)
	}
	abandonStore(s)
}

// deepStore has an object with many versions, each with a block of its own
// and all of them over block 0.
func deepStore(t testing.TB, depth int) (*Group, Key, []VidGen) {
	cfg := testConfig(t)
	cfg.SegmentBytes, cfg.JournalBytesMax = 8<<20, 64<<20
	s := openNew(t, cfg)
	g, key := s.Group(1), MakeKey(1, 0)
	var chain []VidGen
	data := fill(1, 1)
	for v := 1; v <= depth; v++ {
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: Vid(v), Gen: uint64(v), First: uint16(v % BlocksPerObject), Data: data})
		chain = append([]VidGen{{Vid(v), uint64(v)}}, chain...)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	return g, key, chain
}

func TestDeepChain(t *testing.T) {
	g, key, chain := deepStore(t, 1000)
	data, other := fill(1, 1), fill(2, 1)
	for b := 1; b <= 1000; b++ {
		wantRead(t, g, key, chain, b, data)
	}
	wantRead(t, g, key, chain, 0, make([]byte, BlockSize))
	// What was found is found anew after a change, of the top and beneath it.
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1000, Gen: 1000, First: 7, Data: other})
	wantRead(t, g, key, chain, 7, other)
	stage(t, g, Entry{Kind: KindFree, Key: key, Vid: 1000, Gen: 1000, First: 7, Count: 1})
	wantRead(t, g, key, chain, 7, data)
	stage(t, g, Entry{Kind: KindFree, Key: key, Vid: 7, Gen: 7, First: 7, Count: 1})
	wantRead(t, g, key, chain, 7, make([]byte, BlockSize))
	stage(t, g, Entry{Kind: KindMerge, Key: key, Vid: 500, Gen: 500, Into: 501, IntoGen: 501})
	shorter := append(bytesOf(chain[:500]), chain[501:]...)
	wantRead(t, g, key, shorter, 500, data)
	stage(t, g, Entry{Kind: KindDelete, Key: key, Vid: 501, Gen: 501})
	shorter = append(bytesOf(chain[:499]), chain[501:]...)
	wantRead(t, g, key, shorter, 500, make([]byte, BlockSize))
}

func bytesOf(c []VidGen) []VidGen { return append([]VidGen(nil), c...) }

func BenchmarkReadChain(b *testing.B) {
	for _, depth := range []int{1, 3, 1000} {
		b.Run(fmt.Sprint(depth), func(b *testing.B) {
			g, key, chain := deepStore(b, depth)
			dst := make([]byte, BlockSize)
			b.ReportAllocs()
			defer cpuTime(b)()
			for b.Loop() {
				if err := g.Read(key, chain, 1, 1, dst, nil, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWriteAfterSnapshot: random 4 KiB writes, to a fresh version of
// blocks that an older one has, and to the same version.
func BenchmarkWriteAfterSnapshot(b *testing.B) {
	for _, fresh := range []bool{false, true} {
		b.Run(fmt.Sprintf("snapshot=%v", fresh), func(b *testing.B) {
			s := benchStore(b, nil)
			w := newBenchWriter(s, 1, 1)
			w.e.Count, w.e.Data = BlocksPerObject, bytes.Repeat(w.e.Data, BlocksPerObject)
			w.e.SumData()
			for k := range benchObjects {
				w.e.Number.LSN++
				w.e.Key = MakeKey(1, uint32(k))
				if err := w.g.Stage(&w.e); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Checkpoint(); err != nil {
				b.Fatal(err)
			}
			w.e.Count, w.e.Data = 1, w.e.Data[:BlockSize]
			w.e.SumData()
			if fresh {
				w.e.Vid = 2
			}
			defer cpuTime(b)()
			for i := 0; b.Loop(); i++ {
				w.write(b)
				if i%32 == 31 {
					if err := s.Commit(); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := s.Checkpoint(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
