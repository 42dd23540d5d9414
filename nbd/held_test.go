package nbd

import (
	"runtime"
	"sync"
	"testing"
)

// heldBy fills a server with reads (or writes) of one length, of which none is answered, and returns the budget that is held and the memory that is.
func heldBy(t *testing.T, cmd uint16, length uint32, conns, each int) (budget, memory int64, n int) {
	var mu sync.Mutex
	var held []*Request
	b := &fakeBackend{info: allCan(1 << 30), submit: func(r *Request) {
		mu.Lock()
		held = append(held, r)
		mu.Unlock()
	}}
	r := newRig(t, b, func(c *Config) { c.MaxPayload, c.MaxBytes = 32<<20, 128<<20 })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	var all []byte
	for i := range each {
		all = append(all, request(cmd, 0, uint64(i), 0, length)...)
		if cmd == cmdWrite {
			all = append(all, make([]byte, length)...)
		}
	}
	var wires []*wire
	for range conns {
		w := r.ready(t, "x", simpleReplies)
		wires = append(wires, w)
		go w.nc.Write(all)
	}
	last, same := 0, 0
	within(t, "the server to take what it may", func() bool {
		mu.Lock()
		defer mu.Unlock()
		if len(held) == last {
			same++
		} else {
			last, same = len(held), 0
		}
		return last > 0 && same > 200
	})
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	budget = r.srv.Stats().BytesHeld
	for _, w := range wires {
		w.nc.Close()
	}
	for n > -1 && r.srv.Stats().Sessions > 0 {
		mu.Lock()
		list := held
		held = nil
		mu.Unlock()
		for _, q := range list {
			q.Done(nil)
		}
		runtime.Gosched()
	}
	return budget, int64(after.HeapAlloc) - int64(before.HeapAlloc), last
}

// TestBudgetIsMemory: what is held is what is charged, more or less.
func TestBudgetIsMemory(t *testing.T) {
	for _, c := range []struct {
		cmd    uint16
		length uint32
		conns  int
		each   int
	}{{cmdRead, 1, 128, 1024}, {cmdRead, 512, 128, 1024}, {cmdRead, 4097, 64, 1024}, {cmdWrite, 33 << 10, 32, 200}} {
		budget, memory, n := heldBy(t, c.cmd, c.length, c.conns, c.each)
		t.Logf("command %d of %d bytes: %d held, charged %d MiB, in memory %d MiB: %.1f times", c.cmd, c.length, n, budget>>20, memory>>20, float64(memory)/float64(budget))
		if memory > 2*budget {
			t.Errorf("command %d of %d bytes: %d MiB of memory for %d MiB of budget (of 128)", c.cmd, c.length, memory>>20, budget>>20)
		}
	}
}
