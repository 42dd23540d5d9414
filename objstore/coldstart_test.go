package objstore

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

var (
	coldObjects = flag.Int("cold.objects", 0, "objects of the cold start on a real disk (needs root)")
	coldDir     = flag.String("cold.dir", "", "where; kept and used again by the next run")
)

// TestColdStart opens a store of many objects on the real file system with
// nothing of it in memory: under 10 s for 250,000 objects, under 200 bytes
// each at rest.
func TestColdStart(t *testing.T) {
	if *coldObjects == 0 {
		t.Skip("no -cold.objects")
	}
	cfg := Config{Dir: *coldDir, Logger: quiet(), TableCacheBytes: 1 << 20, ScrubBytesPerSecond: -1}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "identity")); err != nil {
		coldFill(t, cfg)
	}
	drop := func() {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	drop()
	start := time.Now()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	n := 0
	for _, id := range s.Groups() {
		s.Group(id).Objects(0, func(ObjectInfo) bool { n++; return true })
	}
	each := float64(int64(after.HeapAlloc)-int64(before.HeapAlloc)) / float64(n)
	drop()
	start = time.Now()
	buf := make([]byte, BlockSize)
	if err := s.Group(5).Read(MakeKey(1, 5), []VidGen{{1, 1}}, 0, 1, buf, nil, false); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d objects: opened cold in %v, %.0f bytes each; a first cold read took %v", n, took, each, time.Since(start))
	if n != *coldObjects || took > 10*time.Second || each > 200 {
		t.Errorf("%d objects, %v, %.0f bytes each", n, took, each)
	}
	s.Close()
}

// coldFill makes the objects, a block in each.
func coldFill(t *testing.T, cfg Config) {
	start := time.Now()
	s := openNew(t, cfg)
	const groups = 256
	data := fill(1, 1)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < *coldObjects; i++ {
				if i%groups%4 != w {
					continue
				}
				g := s.Group(GroupID(i % groups))
				e := Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i)), Vid: 1, Gen: 1, Count: 1, Data: data, Number: Number{1, g.Last().LSN + 1}}
				e.SumData()
				if err := g.Stage(&e); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("made %d objects in %v", *coldObjects, time.Since(start).Round(time.Second))
}
