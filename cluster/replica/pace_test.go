package replica

import (
	"testing"
	"testing/synctest"
	"time"
)

// In virtual time, where what a test says took a millisecond did: a process that gets no processor for some of them in the middle of a write is taken for a slow disk.

// What resync and scrub may take: all without clients, the floor where clients feel it, and back when they do not.
func TestPaceTakesWhatClientsLeave(t *testing.T) { synctest.Test(t, takesWhatClientsLeave) }

func takesWhatClientsLeave(t *testing.T) {
	const floor, ceiling = 10 << 20, 100 << 20
	var p pace
	look := func(times int, clients bool, latency time.Duration, taken int64) {
		for range times {
			if clients {
				for range 8 {
					took(p.writes.of(2), latency)
				}
			}
			p.taken.Add(taken)
			p.look(floor)
		}
	}
	look(2*paceQuiet, false, 0, 0)
	if v := p.between(floor, ceiling); v != ceiling {
		t.Fatalf("without clients: %d, want the ceiling", v)
	}
	look(50, true, time.Millisecond, 0)
	if v := p.get(); v != paceStart {
		t.Fatalf("beside clients, before anything is copied: %v of the range, want %v", v, paceStart)
	}
	const much = 5 << 20
	look(20, true, 3*time.Millisecond, much)
	if v := p.between(floor, ceiling); v > floor+(ceiling-floor)/100 {
		t.Fatalf("clients take three times as long: %d, want about the floor of %d", v, floor)
	}
	look(40, true, 1100*time.Microsecond, much)
	if v := p.between(floor, ceiling); v != ceiling {
		t.Fatalf("clients do not feel it: %d, want the ceiling", v)
	}
	// A few slow writes are no evidence: nothing changes by them.
	before := p.get()
	p.taken.Add(much)
	took(p.writes.of(2), time.Second)
	p.look(floor)
	if v := p.get(); v != before {
		t.Fatalf("one write moved the share from %v to %v", before, v)
	}
	// Where everything waits, nothing ends: what waits is evidence.
	waits := p.writes.of(2).begin() - time.Second
	p.writes.of(2).begun.Add(-int64(time.Second))
	p.taken.Add(much)
	p.look(floor)
	if v := p.get(); v >= before {
		t.Fatalf("a write waits for a second, and the share goes from %v to %v", before, v)
	}
	p.writes.of(2).drop(waits)
	if n, sum := p.writes.of(2).open.Load(), p.writes.of(2).begun.Load(); n != 0 || sum != 0 {
		t.Fatalf("all have ended, and %d are under way, begun at %d", n, sum)
	}
}

// took has something taken so long.
func took(ga *gauge, d time.Duration) {
	began := ga.begin() - d
	ga.begun.Add(-int64(d))
	ga.end(began)
}

// A floor above the ceiling, or a ceiling below the floor's default, is the ceiling.
// A write's way from its number to its commit is half of what its client waits for, a flush's round is all of it: 1.6 times as long is too much for flushes only.
func TestPaceSlack(t *testing.T) { synctest.Test(t, slackOfWritesAndFlushes) }

func slackOfWritesAndFlushes(t *testing.T) {
	const floor, ceiling, much = 10 << 20, 100 << 20, 5 << 20
	for _, flushes := range []bool{false, true} {
		var p pace
		look := func(times int, latency time.Duration, taken int64) {
			for range times {
				of := &p.writes
				if flushes {
					of = &p.flushes
				}
				now, copied := latency, taken
				if p.breath.Load() {
					now, copied = time.Millisecond, 0
				}
				for range 8 {
					took(of.of(2), now)
				}
				p.taken.Add(copied)
				p.look(floor)
			}
		}
		look(50, time.Millisecond, 0)
		look(40, 1600*time.Microsecond, much)
		if v := p.between(floor, ceiling); flushes && v > floor+(ceiling-floor)/100 {
			t.Errorf("flushes take 1.6 times as long: %d, want about the floor", v)
		} else if !flushes && v != ceiling {
			t.Errorf("writes take 1.6 times as long: %d, want the ceiling", v)
		}
	}
}

func TestPaceFloorAboveCeiling(t *testing.T) {
	var p pace
	for range 2 * paceQuiet {
		p.look(10 << 20)
	}
	if v := p.between(10<<20, 1<<20); v != 1<<20 {
		t.Fatalf("%d, want the ceiling", v)
	}
}

// What a third copy costs in itself is not the copying's: with as many replicas as before, what is normal is what was normal then.
func TestPaceKnowsWhatACopyCosts(t *testing.T) { synctest.Test(t, knowsWhatACopyCosts) }

func knowsWhatACopyCosts(t *testing.T) {
	const floor, ceiling, much = 10 << 20, 100 << 20, 5 << 20
	for _, known := range []bool{true, false} {
		var p pace
		look := func(times, replicas int, latency time.Duration, taken int64) {
			for range times {
				for range 8 {
					took(p.writes.of(replicas), latency)
				}
				p.taken.Add(taken)
				p.look(floor)
			}
		}
		if known {
			look(50, 2, 1800*time.Microsecond, 0)
		}
		look(50, 1, time.Millisecond, 0) // one is away
		look(40, 2, 1900*time.Microsecond, much)
		v := p.between(floor, ceiling)
		if known && v != ceiling {
			t.Errorf("writes take what they did with as many replicas: %d, want the ceiling", v)
		}
		if !known && v > floor+(ceiling-floor)/100 {
			t.Errorf("nothing is known of as many replicas, and writes take twice what they did: %d, want about the floor", v)
		}
	}
}

// Clients whose writes take longer for some other reason than the copying do not hold it up for long; those that feel it do.
func TestPaceFollowsWhatIsNormal(t *testing.T) { synctest.Test(t, followsWhatIsNormal) }

func followsWhatIsNormal(t *testing.T) {
	const floor, ceiling, much = 10 << 20, 100 << 20, 5 << 20
	for _, guilty := range []bool{false, true} {
		var p pace
		look := func(times int, latency, beside time.Duration, taken int64) {
			for range times {
				breath := taken == 0 || p.breath.Load()
				for range 8 {
					if breath {
						took(p.writes.of(2), latency)
					} else {
						took(p.writes.of(2), beside)
					}
				}
				if !breath {
					p.taken.Add(taken)
				}
				p.look(floor)
			}
		}
		look(50, time.Millisecond, time.Millisecond, 0)
		look(40, time.Millisecond, 1100*time.Microsecond, much)
		if guilty {
			look(200, time.Millisecond, 2*time.Millisecond, much)
		} else {
			look(200, 2*time.Millisecond, 2200*time.Microsecond, much)
		}
		v := p.between(floor, ceiling)
		if !guilty && v != ceiling {
			t.Errorf("writes take longer without copying, too: %d, want the ceiling", v)
		}
		if guilty && v > floor+(ceiling-floor)/100 {
			t.Errorf("writes take longer beside copying: %d, want about the floor", v)
		}
	}
}
