package replica

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// The fault model of this simulation: processes are killed at any moment and start again on the files they left; machines lose power, one or all, and with
// it a random part of what was not synced; a node is cut from others, in one direction or both, or from raft; bytes are late. Raft itself is an authority that never fails.
// Each block has one writer, which writes a growing counter, tries again until it is answered, and flushes now and then; readers run beside it. Checked: a read never sees less
// than was acknowledged before it began or seen before (linearizability of a register with one writer; after all machines lost power at once: less than was flushed), every block is all one value, replicas
// are equal at the end.

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run this seed only")
	simSeeds = flag.Int("sim.seeds", 8, "how many seeds")
)

func TestSimulation(t *testing.T) {
	first, n := uint64(1), *simSeeds
	if *simSeed != 0 {
		first, n = *simSeed, 1
	} else if n > 8 {
		first = uint64(time.Now().UnixNano())
	}
	for seed := first; seed < first+uint64(n); seed++ {
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
		if !ok {
			t.Fatalf("replay with -sim.seed=%d", seed)
		}
	}
}

type simBlock struct {
	index, off uint32
	issued     atomic.Uint64
	acked      atomic.Uint64
	flushed    atomic.Uint64
}

type sim struct {
	*cluster
	rng    *rand.Rand
	tc     *testClient
	stop   chan struct{}
	ops    atomic.Int64
	cuts   atomic.Int64 // how often all machines lost power at once
	blocks []*simBlock
}

func simulate(t *testing.T, seed uint64) {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7)), stop: make(chan struct{})}
	nodes := 3 + s.rng.IntN(3)
	s.cluster = newCluster(t, nodes, 3, 4)
	s.whole(10 * time.Second)
	s.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
	s.tc = s.client("c", "d")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	blocks := make([]*simBlock, 24)
	for i := range blocks {
		b := &simBlock{index: uint32(i % 8), off: uint32(i/8) * 4096}
		blocks[i] = b
		wseed, rseed := s.rng.Uint64(), s.rng.Uint64()
		wg.Go(func() { s.writer(ctx, b, wseed) })
		wg.Go(func() { s.reader(ctx, b, rseed) })
	}
	s.blocks = blocks
	for range 12 {
		s.fault()
	}
	s.net.HealAll()
	for _, n := range s.nodes {
		n.cut.Store(false)
		n.tell(s.a.cur())
		if !n.up.Load() {
			n.start()
		}
	}
	s.whole(60 * time.Second)
	close(s.stop)
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		s.dump()
		t.Fatal("a request is not answered though nothing is wrong any more")
	}
	cancel()
	s.equal()
	if s.ops.Load() == 0 {
		t.Fatal("nothing was done")
	}
	t.Logf("seed %d: %d nodes, %d operations, term of group 0: %d", seed, nodes, s.ops.Load(), s.a.cur().Groups[0].Term)
}

// fault does one thing to the cluster, lets time pass, and mostly undoes it.
func (s *sim) fault() {
	pause := func(max time.Duration) { time.Sleep(time.Duration(s.rng.Int64N(int64(max)))) }
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	o := s.nodes[s.rng.IntN(len(s.nodes))]
	switch s.rng.IntN(8) {
	case 0, 1: // killed; its guardian says so
		if s.rng.IntN(2) == 0 {
			s.log("kill", n)
			n.kill()
		} else {
			s.log("cut power", n)
			n.cutPower()
		}
		pause(100 * time.Millisecond)
		n.exited()
		pause(2 * time.Second)
		s.log("start", n)
		n.start()
	case 2: // all killed, started in another order
		if s.rng.IntN(2) == 0 {
			s.log("all lose power")
			for _, x := range s.nodes {
				x.lease.Store(false)
				s.net.Kill(x.host)
			}
			for _, x := range s.nodes {
				x.cutPower()
			}
			s.cuts.Add(1)
			for _, b := range s.blocks {
				b.acked.Store(b.flushed.Load())
			}
		} else {
			s.log("all killed")
			for _, x := range s.nodes {
				x.kill()
				pause(20 * time.Millisecond)
			}
		}
		for _, x := range s.nodes {
			x.exited()
		}
		for _, i := range s.rng.Perm(len(s.nodes)) {
			s.nodes[i].start()
			pause(500 * time.Millisecond)
		}
		s.resume()
	case 3: // cut between two nodes, both directions
		s.log("partition", n, o)
		s.net.Cut(n.host, o.host)
		s.net.Cut(o.host, n.host)
		pause(4 * time.Second)
		s.net.HealAll()
	case 4: // one direction
		s.log("one way", n, o)
		s.net.Cut(n.host, o.host)
		pause(4 * time.Second)
		s.net.HealAll()
	case 5: // silent machine: from everybody, raft too; its lease ends; it comes back as a new incarnation
		s.log("silent", n)
		for _, x := range s.nodes {
			s.net.Cut(n.host, x.host)
			s.net.Cut(x.host, n.host)
		}
		n.cut.Store(true)
		pause(4 * time.Second) // clients still reach it, as long as its lease runs
		n.lease.Store(false)
		n.exited()
		pause(2 * time.Second)
		s.net.HealAll()
		n.cut.Store(false)
		n.kill()
		n.start()
	case 7: // two killed; one comes back, later the other
		if n == o {
			return
		}
		s.log("kill two", n, o)
		n.kill()
		pause(50 * time.Millisecond)
		o.kill()
		pause(100 * time.Millisecond)
		n.exited()
		o.exited()
		pause(time.Second)
		n.start()
		pause(3 * time.Second)
		o.start()
	case 6: // killed and started at once
		s.log("restart", n)
		n.kill()
		n.start()
	}
	pause(time.Second)
	s.resume()
}

func (s *sim) log(what string, nodes ...*testNode) {
	text := fmt.Sprintf("%v %s", time.Now().Format("05.000"), what)
	for _, n := range nodes {
		text += " " + n.host
	}
	s.t.Log(text)
}

// resume is what the leader does for sets whose members all restarted.
func (s *sim) resume() {
	s.a.mu.Lock()
	m, leased := s.a.m, s.a.leased()
	s.a.mu.Unlock()
	if due := m.ResumeDue(leased, func(*state.Group) bool { return false }); len(due) > 0 {
		s.log(fmt.Sprintf("resume %d groups", len(due)))
		s.a.apply(&state.Command{Resume: &state.Resume{Groups: due}})
	}
}

func (s *sim) stopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

func (s *sim) writer(ctx context.Context, b *simBlock, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 4096)
	for v := uint64(1); !s.stopped(); v++ {
		for i := 0; i < len(buf); i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], v)
		}
		b.issued.Store(v)
		cuts := s.cuts.Load()
		flags := uint8(0)
		if rng.IntN(8) == 0 {
			flags = wire.FlagFUA
		}
		if _, st := s.tc.do(ctx, wire.KindWrite, flags, b.index, b.off, 4096, buf); st != wire.StatusOK {
			s.t.Errorf("write object %d+%d: %v", b.index, b.off, st)
			return
		}
		if s.cuts.Load() == cuts {
			b.acked.Store(v)
		}
		s.ops.Add(1)
		if flags != 0 || rng.IntN(6) == 0 {
			if flags == 0 {
				if _, st := s.tc.do(ctx, wire.KindFlush, 0, b.index, 0, 0, nil); st != wire.StatusOK {
					s.t.Errorf("flush object %d: %v", b.index, st)
					return
				}
			}
			if s.cuts.Load() == cuts { // a client that keeps what is not flushed would send it again; this one does not
				b.flushed.Store(v)
			}
		}
		time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
	}
}

func (s *sim) reader(ctx context.Context, b *simBlock, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	seen := uint64(0)
	cuts := int64(0)
	for !s.stopped() {
		if c := s.cuts.Load(); c != cuts {
			cuts, seen = c, 0
		}
		low := max(b.acked.Load(), seen)
		out, st := s.tc.do(ctx, wire.KindRead, 0, b.index, b.off, 4096, nil)
		high := b.issued.Load()
		if st != wire.StatusOK {
			s.t.Errorf("read object %d+%d: %v", b.index, b.off, st)
			return
		}
		v := binary.LittleEndian.Uint64(out)
		for i := 0; i < len(out); i += 8 {
			if x := binary.LittleEndian.Uint64(out[i:]); x != v {
				s.t.Errorf("object %d+%d is torn: %d and %d", b.index, b.off, v, x)
				return
			}
		}
		if s.cuts.Load() != cuts {
			continue
		}
		if v < low || v > high {
			s.t.Errorf("%v read %d of object %d+%d; acknowledged or seen before: %d, written at most %d", time.Now().Format("05.000"), v, b.index, b.off, low, high)
			return
		}
		seen = v
		s.ops.Add(1)
		time.Sleep(time.Duration(rng.Int64N(int64(120 * time.Millisecond))))
	}
}
