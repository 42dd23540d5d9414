package simulation

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// longRound is after how many faults everything is mended, and what is known of the past forgotten.
const longRound = 50

// TestLong has one cluster live through many faults (-sim.long 1000): afterwards its nodes have as many goroutines as before, and as much memory.
// Nobody joins and nobody leaves, so that there are as many nodes; what disks hold is not counted, since a disk of the simulation is memory.
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
		w.terse = true
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
		var before, after use
		for done := 0; ; done += longRound {
			if !w.rest() {
				break
			}
			after = w.measure()
			t.Logf("%5d faults, %8s: %v", done, time.Since(w.start).Round(time.Second), after)
			if done == longRound { // all that is made once is there
				before = after
			}
			if done >= *simLong {
				break
			}
			w.resting.Store(false)
			w.faults(rand.New(rand.NewPCG(seed, uint64(done))), longRound)
		}
		if after.goroutines > before.goroutines+before.goroutines/20 {
			t.Errorf("%d goroutines, %d before", after.goroutines, before.goroutines)
		}
		if after.heap > before.heap+before.heap/4 {
			t.Errorf("%d bytes of memory, %d before", after.heap, before.heap)
		}
		t.Logf("seed %d: %d operations answered, %d unknown", seed, w.done.ops.Load(), w.done.unknown.Load())
		w.endAll()
	})
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
	heap       int64 // bytes, without the disks
	disks      int64
}

func (u use) String() string {
	return fmt.Sprintf("%d goroutines, heap %.1f MB, and %.1f MB of disks", u.goroutines, float64(u.heap)/1e6, float64(u.disks)/1e6)
}

func (w *world) measure() (u use) {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	for _, x := range w.machines {
		u.disks += x.disk.Used()
	}
	u.goroutines, u.heap = runtime.NumGoroutine(), int64(m.HeapAlloc)-u.disks
	return u
}
