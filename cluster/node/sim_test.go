package node

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/memnet"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// world is a cluster in virtual time: true nodes on a network in memory.
type world struct {
	t     *testing.T
	dir   string
	net   *memnet.Net
	start time.Time
	hosts []string
	nodes map[string]*Node // running
	raft  map[string]*consensus.Memory
	hub   *hub
	tune  func(h string, cfg *Config) // what is special about a node
}

func newWorld(t *testing.T, n int) *world { return newWorldOf(t, n, func(string, *Config) {}) }

func newWorldOf(t *testing.T, n int, tune func(h string, cfg *Config)) *world {
	w := &world{t: t, dir: t.TempDir(), net: memnet.New(), start: time.Now(), nodes: map[string]*Node{}, raft: map[string]*consensus.Memory{},
		hub: &hub{met: map[string]gossip.Meta{}}, tune: tune}
	for i := range n {
		h := fmt.Sprintf("n%d", i+1)
		w.hosts = append(w.hosts, h)
		w.raft[h] = consensus.NewMemory()
		w.run(h)
	}
	return w
}

// hub is gossip that always works.
type hub struct {
	mu  sync.Mutex
	met map[string]gossip.Meta
}

type hubFinder struct {
	h    *hub
	uuid string
}

func (f hubFinder) Met() (list []gossip.Meta) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	for _, m := range f.h.met {
		if m.UUID != f.uuid {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b gossip.Meta) int { return strings.Compare(a.Addr, b.Addr) })
	return list
}

func (f hubFinder) Addr(uuid string) string {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return f.h.met[uuid].Addr
}

func (f hubFinder) Update(m gossip.Meta) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	f.h.met[m.UUID] = m
}

func (f hubFinder) Close() {}

func (w *world) run(h string) { w.runAt(h, h) }

// runAt starts a node whose directory is h's at a host.
func (w *world) runAt(h, host string) {
	w.t.Helper()
	cfg := Config{
		Dirs: []string{filepath.Join(w.dir, h)}, Listen: host + ":7000", VNodes: 64, Store: smallStore, Net: w.net.Host(host), Raft: w.raft[h], BootID: strings.Repeat("b", 36),
		Clock: func() time.Duration { return time.Since(w.start) + time.Hour },
		Finder: func(self gossip.Meta, _ func()) (Finder, error) {
			f := hubFinder{w.hub, self.UUID}
			f.Update(self)
			return f, nil
		},
		Logger: slog.New(virtual{slog.NewTextHandler(logTo{w.t}, &slog.HandlerOptions{Level: slog.LevelInfo}), w.start}).With("n", h),
	}
	w.tune(h, &cfg)
	n, err := Start(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[h] = n
}

// virtual stamps log lines with virtual time.
type virtual struct {
	slog.Handler
	start time.Time
}

func (v virtual) Handle(ctx context.Context, r slog.Record) error {
	r.AddAttrs(slog.Duration("at", time.Since(v.start)))
	r.Time = time.Time{}
	return v.Handler.Handle(ctx, r)
}

func (v virtual) WithAttrs(a []slog.Attr) slog.Handler {
	return virtual{v.Handler.WithAttrs(a), v.start}
}

// crash ends a node as a kill does: nobody is told but by its connections.
func (w *world) crash(h string) {
	w.net.Kill(h)
	n := w.nodes[h]
	delete(w.nodes, h)
	n.Crash()
}

func (w *world) end() {
	w.net.HealAll()
	for h := range w.nodes {
		w.crash(h)
	}
	time.Sleep(2 * time.Second) // virtual: a node that stops does not wait for a dial that it gave up, which the bubble must
}

// newest is the map that is furthest, on running nodes or crashed ones.
func (w *world) newest() *state.Map {
	best := state.New()
	for _, n := range w.nodes {
		if m := n.Map(); m.Index > best.Index {
			best = m
		}
	}
	return best
}

// check asserts what must hold at any instant (R12, invariant 4): whoever has a valid lease is in service by the newest map of all, so that no map
// anywhere has given its place to another.
func (w *world) check() {
	w.t.Helper()
	m := w.newest()
	for h, n := range w.nodes {
		if n.Leased() && !m.InService(n.Self()) {
			w.t.Fatalf("%s: %s has a lease as %+v, but map %d says it is not in service", time.Since(w.start), h, n.Self(), m.Index)
		}
	}
}

// until lets time pass, checking, until ok.
func (w *world) until(within time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > within {
			w.t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
		w.check()
	}
	return time.Since(start)
}

func (w *world) pass(d time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		w.check()
	}
}

func (w *world) formatted(copies int) *world {
	w.t.Helper()
	if err := w.nodes["n1"].Format(context.Background(), copies, 0, 64, false); err != nil {
		w.t.Fatal(err)
	}
	w.until(5*time.Second, "all serve", func() bool { return w.allServe(w.hosts...) && healthy(w.newest(), copies) })
	w.until(5*time.Second, "voters", func() bool {
		for _, n := range w.nodes {
			if len(n.Voters()) < min(3, len(w.hosts)) {
				return false
			}
		}
		return true
	})
	return w
}

func (w *world) allServe(hosts ...string) bool {
	m := w.newest()
	for _, h := range hosts {
		if n := w.nodes[h]; n == nil || !n.Leased() || !m.InService(n.Self()) {
			return false
		}
	}
	return true
}

func (w *world) leader() string {
	for h, n := range w.nodes {
		if n.IsLeader() {
			return h
		}
	}
	return ""
}

func (w *world) others(h string) (list []string) {
	for _, o := range w.hosts {
		if o != h {
			list = append(list, o)
		}
	}
	return list
}

func (w *world) isolate(h string) {
	for _, o := range w.others(h) {
		w.net.Cut(h, o)
		w.net.Cut(o, h)
	}
}

func (w *world) served() bool {
	m := w.newest()
	for _, g := range m.Groups {
		if g.Primary.Node == state.NoNode {
			return false
		}
		ok := false
		for _, n := range w.nodes {
			ok = ok || n.Self() == g.Primary && n.Leased()
		}
		if !ok {
			return false
		}
	}
	return true
}

// agree says whether all nodes have the same map, and that it is the same.
func (w *world) agree() bool {
	w.t.Helper()
	m := w.newest()
	want, err := state.EncodeMap(m)
	if err != nil {
		w.t.Fatal(err)
	}
	for h, n := range w.nodes {
		o := n.Map()
		if o.Index != m.Index {
			return false
		}
		if o == m {
			continue
		}
		if got, _ := state.EncodeMap(o); !bytes.Equal(got, want) {
			w.t.Fatalf("%s has another map at index %d", h, m.Index)
		}
	}
	return true
}

func sim(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// A new incarnation is agreed, but the node gave up waiting for the answer before: it takes up what it finds agreed.
func TestR5RegistrationWhoseAnswerIsLost(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		h, o := w.others(w.leader())[0], w.leader()
		n := w.nodes[h]
		was := n.Self()
		n.leaving.Store(true) // live rests: this test does its work
		w.isolate(h)
		w.until(6*time.Second, "it is replaced", func() bool { return !w.newest().InService(was) })
		w.net.HealAll()
		w.until(6*time.Second, "it knows", func() bool { return !n.Map().InService(was) })
		n.holder.Drop()
		r, err := n.newRegistration()
		if err != nil {
			t.Fatal(err)
		}
		n.registering = r
		w.propose(o, &state.Command{ID: r.id, Time: time.Now(), Register: &r.cmd})
		w.until(6*time.Second, "the map has it", func() bool { return n.Map().Node(was.Node).Inc == r.cmd.Inc })
		n.leaving.Store(false)
		w.until(5*time.Second, "it is back", func() bool { return n.Self() != was && w.allServe(w.hosts...) })
	})
}

// A node whose disk hangs gives its place up, and comes back when it can be used again.
func TestPitfall27HungNodeAsksForNoLease(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		for _, h := range []string{w.others(w.leader())[0], w.leader()} {
			n := w.nodes[h]
			was := n.Self()
			n.usingSince.Store(int64(n.cfg.Clock() - mapLateMax)) // a map that the engine does not come back from
			w.until(5*time.Second, "it is replaced", func() bool { return w.served() && !w.newest().InService(was) })
			w.until(10*time.Second, "it is back", func() bool { return n.Self() != was && w.allServe(w.hosts...) && healthy(w.newest(), 3) })
		}
	})
}

func TestSimFormat(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		t.Logf("serving after %s", time.Since(w.start))
		w.pass(20 * time.Second)
		if got := w.newest().Epoch; got > 5 {
			t.Errorf("%d epochs without a fault", got)
		}
	})
}

func TestInvariant4SilentPrimaryIsReplacedWithin5s(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		h := w.others(w.leader())[0]
		w.isolate(h)
		d := w.until(5*time.Second, "its groups have new primaries", func() bool { return w.served() && !w.newest().InService(w.nodes[h].Self()) })
		t.Logf("replaced after %s", d)
		was := w.nodes[h].Self()
		w.net.HealAll()
		d = w.until(5*time.Second, "it is back", func() bool { return w.nodes[h].Self() != was && w.allServe(w.hosts...) })
		t.Logf("back after %s", d)
	})
}

func TestR13SilentLeaderIsReplacedWithin5s(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		for range 3 {
			w.pass(time.Duration(rand.IntN(700)) * time.Millisecond)
			h := w.leader()
			w.isolate(h)
			d := w.until(5*time.Second, "a new leader has replaced it", func() bool { return w.served() && !w.newest().InService(w.nodes[h].Self()) })
			t.Logf("replaced after %s", d)
			w.net.HealAll()
			w.until(5*time.Second, "it is back", func() bool { return w.allServe(w.hosts...) })
		}
	})
}

// A leader that only thinks it leads grants nothing (R12 b): it is cut off from the other voters but not from a fourth node, which asks it.
func TestR12PartitionedLeaderGrantsNoLease(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 4)
		defer w.end()
		w.formatted(3)
		old := w.leader()
		voters := w.nodes[old].Voters()
		var fourth string
		for h, n := range w.nodes {
			if !slices.Contains(voters, n.UUID()) {
				fourth = h
			}
		}
		for _, h := range w.hosts {
			if h != old && h != fourth {
				for _, x := range []string{old, fourth} {
					w.net.Cut(x, h)
					w.net.Cut(h, x)
				}
			}
		}
		w.until(6*time.Second, "the others go on without", func() bool {
			m := w.newest()
			return w.served() && !m.InService(w.nodes[old].Self()) && !m.InService(w.nodes[fourth].Self())
		})
		w.pass(3 * time.Second)
		w.net.HealAll()
		w.until(6*time.Second, "all are back", func() bool { return w.allServe(w.hosts...) })
	})
}

func TestR6AllRestart(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		for _, h := range w.hosts {
			w.crash(h)
		}
		w.pass(time.Second)
		for _, h := range []string{"n3", "n1", "n2"} {
			w.run(h)
			w.pass(300 * time.Millisecond)
		}
		d := w.until(10*time.Second, "all groups go on", func() bool { return w.allServe(w.hosts...) && w.served() })
		t.Logf("served after %s", d)
		for _, g := range w.newest().Groups {
			if len(g.InSync) != 3 {
				t.Fatalf("group %d has %v in sync: all members restarted, all are candidates", g.ID, g.InSync)
			}
		}
	})
}

// TestR12RestartedVotersHaveTheirSay: a majority of the voters restarts at once. They are heard before they are registered, which has to wait until their former selves'
// leases have run out; so the one that lived on keeps its place, and with it its clients' sessions.
func TestR12RestartedVotersHaveTheirSay(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		for i, h := range w.hosts {
			was := w.nodes[h].Self()
			for _, o := range w.others(h) {
				w.crash(o)
			}
			w.pass(time.Duration(i) * 2 * time.Second) // up to long after its own lease has run out
			for _, o := range w.others(h) {
				w.run(o)
			}
			d := w.until(10*time.Second, "all groups go on", func() bool { return w.allServe(w.hosts...) && w.served() })
			t.Logf("served after %s", d)
			if is := w.nodes[h].Self(); is != was {
				t.Errorf("%s lived on as %v, and is %v", h, was, is)
			}
		}
	})
}

// TestR12WhoHasNoSay: a voter that is not registered says nothing where its directory is an older image of what the map knows, nor while it leaves.
func TestR12WhoHasNoSay(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		n := w.nodes["n1"]
		says := func() bool {
			var r wire.Renew
			return n.word(&r) && r.Inc == 0 && uint64(r.Asked) == n.Self().Inc
		}
		if !says() {
			t.Error("a voter has no say")
		}
		known := n.dir.get().Incarnations
		remember := func(list []uint64) {
			t.Helper()
			if err := n.dir.change(func(id *identity) { id.Incarnations = list }); err != nil {
				t.Fatal(err)
			}
		}
		remember(known[:len(known)-1])
		if says() {
			t.Error("an older image has a say")
		}
		remember(known)
		n.leaving.Store(true)
		if says() {
			t.Error("a node that leaves has a say")
		}
		n.leaving.Store(false)
	})
}

func TestNodesThatMovedToOtherAddresses(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		for _, h := range w.hosts { // all at once: no address that raft knows is true any more
			w.crash(h)
		}
		for _, h := range w.hosts {
			w.runAt(h, "new-"+h)
		}
		d := w.until(15*time.Second, "all serve", func() bool { return w.allServe(w.hosts...) && w.served() })
		t.Logf("serving after %s", d)
		w.until(5*time.Second, "raft knows the addresses", func() bool {
			for _, s := range w.nodes["n1"].cons.Servers() {
				if !strings.HasPrefix(s.Addr, "new-") {
					return false
				}
			}
			return true
		})
	})
}

func TestR8KilledNodeWithGuardian(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		for _, which := range []string{"follower", "leader"} {
			h := w.leader()
			if which == "follower" {
				h = w.others(h)[0]
			}
			gone := w.nodes[h].Self()
			w.crash(h)
			for _, o := range w.others(h) { // as the guardian does
				n := w.nodes[o]
				go n.sayExited(n.ctx, gone, false)
			}
			d := w.until(time.Second, which+" is replaced", w.served)
			t.Logf("%s replaced after %s", which, d)
			w.run(h)
			w.until(10*time.Second, "it is back", func() bool { return w.allServe(w.hosts...) && healthy(w.newest(), 3) })
		}
	})
}

// Random faults: the invariant of check holds at every instant, and after healing everybody serves.
func TestSimRandomFaults(t *testing.T) {
	seeds := 6
	if testing.Short() {
		seeds = 2
	}
	for range seeds {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			sim(t, func(t *testing.T) { randomFaults(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func randomFaults(t *testing.T, r *rand.Rand) {
	w := newWorld(t, 3+r.IntN(3))
	defer w.end()
	w.formatted(3)
	for range 15 {
		h := w.hosts[r.IntN(len(w.hosts))]
		o := w.others(h)[r.IntN(len(w.hosts)-1)]
		switch r.IntN(6) {
		case 0:
			w.net.Cut(h, o)
		case 1:
			w.isolate(h)
		case 2:
			if w.nodes[h] != nil {
				w.crash(h)
			}
		case 3:
			if w.nodes[h] == nil {
				w.run(h)
			}
		default:
			w.net.HealAll()
		}
		w.pass(time.Duration(r.IntN(3000)) * time.Millisecond)
	}
	w.net.HealAll()
	for _, h := range w.hosts {
		if w.nodes[h] == nil {
			w.run(h)
		}
	}
	// Where all members restarted and some were ended one by one, a set waits for its last one; it is here now.
	w.until(60*time.Second, "everybody serves", func() bool { return w.allServe(w.hosts...) && w.served() })
	w.until(60*time.Second, "every group is whole", func() bool { return healthy(w.newest(), 3) })
	w.until(5*time.Second, "all agree", w.agree)
}
