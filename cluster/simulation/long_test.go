package simulation

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// longRound is after how many faults everything is mended, and what is known of the past forgotten.
const longRound = 50

// After longFirst rounds all that is made once is there. What the nodes take is the least of longFirst measurements, since buffers come and go, and what leaked is in all of
// them: the next ones, and the last ones, are compared.
const longFirst = 4

// TestLong has one cluster live through many faults (-sim.long 1000): afterwards its nodes have as many goroutines as before, and as much memory, give or take what
// connections happen to be there: what leaked at every twentieth fault, or 6 KB at each, would show.
// Nobody joins and nobody leaves, so that there are as many nodes; what disks and raft's logs hold is not counted, since those of the simulation are memory.
func TestLong(t *testing.T) {
	if *simLong == 0 {
		t.Skip("-sim.long 1000 has a cluster live through 1000 faults")
	}
	seed := *simSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixMilli())
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed)
		w.terse, w.copies = true, 3
		for range 3 {
			w.addMachine("", 64).run()
		}
		ctx, cancel := timeout(30 * time.Second)
		err := w.machines[0].node.Format(ctx, 3, 0, 4, false)
		cancel()
		if err != nil || !w.until(10*time.Second, "the new cluster serves", w.whole) {
			t.Fatal(err)
		}
		for i := range 2 {
			if v := w.create(fmt.Sprint("v", i), i == 1); v != nil {
				w.useVolume(v)
			}
		}
		var took []use
		for done := 0; ; done += longRound {
			if !w.rest() {
				break
			}
			took = append(took, w.measure())
			t.Logf("%5d faults, %8s: %v", done, time.Since(w.start).Round(time.Second), took[len(took)-1])
			if done >= *simLong {
				break
			}
			w.resting.Store(false)
			w.faults(rand.New(rand.NewPCG(seed, uint64(done))), longRound)
		}
		if n := len(took); n >= 3*longFirst {
			before, after := least(took[longFirst:2*longFirst]), least(took[n-longFirst:])
			t.Logf("before: %v; after: %v", before, after)
			if after.goroutines > before.goroutines+before.goroutines/5 {
				t.Errorf("%d goroutines, %d before", after.goroutines, before.goroutines)
			}
			if after.heap > before.heap+before.heap/2 {
				t.Errorf("%d bytes of memory, %d before", after.heap, before.heap)
			}
		} else {
			t.Errorf("%d measurements are not enough to compare: more faults", n)
		}
		t.Logf("seed %d: %d operations answered, %d unknown", seed, w.done.ops.Load(), w.done.unknown.Load())
		w.endAll()
	})
}

// least is the least of each.
func least(list []use) use {
	u := list[0]
	for _, x := range list[1:] {
		u.goroutines, u.heap, u.disks = min(u.goroutines, x.goroutines), min(u.heap, x.heap), min(u.disks, x.disks)
	}
	return u
}

// faults happens to the cluster, everything but joining and leaving.
func (w *world) faults(r *rand.Rand, n int) {
	d := &driver{w: w, r: r, kinds: []func(*driver){(*driver).kill, (*driver).power, (*driver).all, (*driver).several, (*driver).partition, (*driver).isolate,
		(*driver).pause, (*driver).resets, (*driver).slow, (*driver).disk, (*driver).clients, (*driver).restart}}
	for range n {
		d.fault()
	}
	d.heal()
}

// rest mends everything and has all clients end.
func (w *world) rest() bool {
	w.net.HealAll()
	ok := w.until(healTime, "every group is whole", w.whole)
	w.resting.Store(true)
	ok = w.until(healTime, "clients come to an end", func() bool { return w.using.Load() == 0 }) && ok
	for _, v := range w.volumes {
		v.mu.Lock()
		v.events, v.sessions = nil, nil
		v.mu.Unlock()
	}
	w.mu.Lock()
	w.losses = nil
	w.mu.Unlock()
	time.Sleep(time.Minute) // timers of what has ended
	return ok
}

// use is what the nodes take.
type use struct {
	goroutines int
	heap       int64 // bytes, without the disks and raft's logs
	disks      int64
}

func (u use) String() string {
	return fmt.Sprintf("%d goroutines, heap %.1f MB, and %.1f MB of disks", u.goroutines, float64(u.heap)/1e6, float64(u.disks)/1e6)
}

// raftMemory is about how much a log in memory takes; a true one is on a disk.
func raftMemory(s *raft.InmemStore) (n int64) {
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	for i := first; i <= last && i > 0; i++ {
		var l raft.Log
		if s.GetLog(i, &l) == nil {
			n += 160 + int64(len(l.Data))
		}
	}
	return n
}

func (w *world) measure() (u use) {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	for _, x := range w.machines {
		u.disks += x.disk.Memory() + raftMemory(x.raft.Store)
	}
	u.goroutines, u.heap = runtime.NumGoroutine(), int64(m.HeapAlloc)-u.disks
	return u
}
