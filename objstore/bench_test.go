package objstore

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Benchmarks of the store beside the bare file system. Each run of writes
// goes past several checkpoints.

func benchStore(b *testing.B, change func(*Config)) *Store {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("OBJSTORE_BENCH_DIR"), "bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	cfg := Config{Dir: dir, Logger: quiet(), JournalBytesMax: 256 << 20, ReserveBytes: -1}
	if change != nil {
		change(&cfg)
	}
	return openNew(b, cfg)
}

// latencies collects times and reports p99 and maximum.
type latencies struct {
	mu   sync.Mutex
	list []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	l.list = append(l.list, d)
	l.mu.Unlock()
}

func (l *latencies) report(b *testing.B) {
	slices.Sort(l.list)
	if n := len(l.list); n > 0 {
		b.ReportMetric(float64(l.list[n*99/100].Microseconds()), "p99-µs")
		b.ReportMetric(float64(l.list[n-1].Microseconds()), "max-µs")
	}
}

// cpuTime reports the processor time of what follows, which says more than
// the clock on a machine that others use.
func cpuTime(b *testing.B) (report func()) {
	start := processTime()
	return func() { b.ReportMetric(float64(processTime()-start)/float64(b.N), "cpu-ns/op") }
}

func processTime() int64 {
	var r unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &r)
	return r.Utime.Nano() + r.Stime.Nano()
}

const benchObjects = 256 // 1 GiB

// benchWriter stages random 4 KiB writes to a group of its own.
type benchWriter struct {
	g       *Group
	e       Entry
	rng     *rand.Rand
	objects int
}

func newBenchWriter(s *Store, id, writers int) *benchWriter {
	w := &benchWriter{g: s.Group(GroupID(id)), objects: benchObjects / writers, rng: rand.New(rand.NewPCG(uint64(id), 1))}
	w.e = Entry{Kind: KindWrite, Vid: 1, Gen: 1, Count: 1, Data: fill(uint64(id), 1), Number: w.g.Last()}
	w.e.Number.Term = 1
	w.e.SumData()
	return w
}

func (w *benchWriter) write(b *testing.B) {
	w.e.Number.LSN++
	w.e.Key = MakeKey(1, uint32(w.rng.IntN(w.objects)))
	w.e.First = uint16(w.rng.IntN(BlocksPerObject))
	if err := w.g.Stage(&w.e); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkWrite4K(b *testing.B) {
	s := benchStore(b, nil)
	w := newBenchWriter(s, 1, 1)
	lat := latencies{list: make([]time.Duration, 0, 1<<22)}
	b.SetBytes(BlockSize)
	b.ReportAllocs()
	defer cpuTime(b)()
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		w.write(b)
		if i%32 == 31 {
			if err := s.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		lat.add(time.Since(start))
	}
	b.StopTimer()
	lat.report(b)
	b.ReportMetric(float64(s.Metrics().Checkpoints), "checkpoints")
}

func BenchmarkWrite4KSync(b *testing.B) {
	for _, writers := range []int{1, 32, 256} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s := benchStore(b, func(c *Config) { c.SegmentBytes, c.CheckpointBytes, c.JournalBytesMax = 2<<20, 4<<20, 64<<20 })
			var lat latencies
			var left atomic.Int64
			left.Store(int64(b.N))
			b.SetBytes(BlockSize)
			b.ResetTimer()
			defer cpuTime(b)()
			var wg sync.WaitGroup
			for id := range writers {
				wg.Go(func() {
					w := newBenchWriter(s, id, writers)
					for left.Add(-1) >= 0 {
						start := time.Now()
						w.write(b)
						if err := s.SyncWait(); err != nil {
							b.Error(err)
							return
						}
						lat.add(time.Since(start))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			lat.report(b)
			b.ReportMetric(float64(s.Metrics().Checkpoints), "checkpoints")
		})
	}
}

// BenchmarkRawSync is a bare pwrite and fdatasync of 4 KiB in a file that was
// written before.
func BenchmarkRawSync(b *testing.B) {
	f := rawFile(b, 64<<20)
	data := fill(1, 1)
	b.SetBytes(BlockSize)
	for i := 0; b.Loop(); i++ {
		if _, err := f.WriteAt(data, int64(i%(64<<20/BlockSize))*BlockSize); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
}

func rawFile(b *testing.B, size int64) *os.File {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("OBJSTORE_BENCH_DIR"), "raw")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	chunk := fill(3, 256)
	for at := int64(0); at < size; at += int64(len(chunk)) {
		if _, err := f.WriteAt(chunk, at); err != nil {
			b.Fatal(err)
		}
	}
	f.Sync()
	return f
}

// BenchmarkSequentialWrite writes a growing disk with a flush every 64 MiB.
func BenchmarkSequentialWrite(b *testing.B) {
	for _, size := range []int{128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dK", size>>10), func(b *testing.B) {
			s := benchStore(b, nil)
			g := s.Group(1)
			e := Entry{Kind: KindWrite, Vid: 1, Gen: 1, Count: uint16(size / BlockSize), Data: fill(1, size/BlockSize), Number: Number{1, 0}}
			b.SetBytes(int64(size))
			defer cpuTime(b)()
			at := int64(0)
			for b.Loop() {
				e.Number.LSN++
				e.Key = MakeKey(1, uint32(at/ObjectSize%2048))
				e.First = uint16(at % ObjectSize / BlockSize)
				e.SumData()
				if err := g.Stage(&e); err != nil {
					b.Fatal(err)
				}
				if at += int64(size); at%(64<<20) == 0 {
					if err := s.SyncWait(); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := s.SyncWait(); err != nil {
				b.Fatal(err)
			}
		})
		b.Run(fmt.Sprintf("raw%dK", size>>10), func(b *testing.B) {
			f := rawFile(b, 1<<20)
			data := fill(1, size/BlockSize)
			b.SetBytes(int64(size))
			defer cpuTime(b)()
			at := int64(0)
			for b.Loop() {
				if _, err := f.WriteAt(data, at%(8<<30)); err != nil {
					b.Fatal(err)
				}
				if at += int64(size); at%(64<<20) == 0 {
					unix.Fdatasync(int(f.Fd()))
				}
			}
			unix.Fdatasync(int(f.Fd()))
		})
	}
}

const readObjects = 16 // 64 MiB, warm

func benchReadStore(b *testing.B) (*Store, *Group) {
	s := benchStore(b, nil)
	g := s.Group(1)
	e := Entry{Kind: KindWrite, Vid: 1, Gen: 1, Count: BlocksPerObject, Data: fill(1, BlocksPerObject), Number: Number{1, 0}}
	e.SumData()
	for k := range readObjects {
		e.Number.LSN++
		e.Key = MakeKey(1, uint32(k))
		if err := g.Stage(&e); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Checkpoint(); err != nil {
		b.Fatal(err)
	}
	return s, g
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4 << 10, 128 << 10, 1 << 20} {
		blocks := size / BlockSize
		for _, nowait := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dK/nowait=%v", size>>10, nowait), func(b *testing.B) {
				_, g := benchReadStore(b)
				chain := []VidGen{{1, 1}}
				dst := make([]byte, size)
				crcs := make([]uint32, blocks)
				rng := rand.New(rand.NewPCG(1, 1))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				defer cpuTime(b)()
				for b.Loop() {
					key := MakeKey(1, uint32(rng.IntN(readObjects)))
					at := rng.IntN(BlocksPerObject/blocks) * blocks
					err := g.Read(key, chain, at, blocks, dst, crcs, nowait)
					if err == ErrWouldBlock {
						err = g.Read(key, chain, at, blocks, dst, crcs, false)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		b.Run(fmt.Sprintf("%dK/raw", size>>10), func(b *testing.B) {
			f := rawFile(b, readObjects*ObjectSize)
			dst := make([]byte, size)
			rng := rand.New(rand.NewPCG(1, 1))
			b.SetBytes(int64(size))
			defer cpuTime(b)()
			for b.Loop() {
				if _, err := f.ReadAt(dst, rng.Int64N(readObjects*ObjectSize/int64(size))*int64(size)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadJournaled reads what is not checkpointed yet.
func BenchmarkReadJournaled(b *testing.B) {
	s := benchStore(b, nil)
	w := newBenchWriter(s, 1, 1)
	for range 4096 {
		w.write(b)
	}
	if err := s.Commit(); err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, BlockSize)
	b.SetBytes(BlockSize)
	b.ReportAllocs()
	defer cpuTime(b)()
	w.rng = rand.New(rand.NewPCG(1, 1))
	chain := []VidGen{{1, 1}}
	for b.Loop() {
		key := MakeKey(1, uint32(w.rng.IntN(benchObjects)))
		if err := w.g.Read(key, chain, w.rng.IntN(BlocksPerObject), 1, dst, nil, true); err != nil && err != ErrWouldBlock {
			b.Fatal(err)
		}
	}
}
