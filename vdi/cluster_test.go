package vdi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// True nodes in this process, on 127.0.0.1, .2, .3 with these ports.
const (
	testPort   = 17100
	testGossip = 17146
)

type testCluster struct {
	t     testing.TB
	dir   string
	nodes []*node.Node
}

func (c *testCluster) config(i int) node.Config {
	level := slog.LevelWarn
	if os.Getenv("TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("n", i)
	if !testing.Verbose() {
		log = slog.New(slog.DiscardHandler)
	}
	return node.Config{Dirs: []string{filepath.Join(c.dir, strconv.Itoa(i))}, Listen: fmt.Sprintf("127.0.0.%d:%d", i+1, testPort), GossipPort: testGossip,
		Join: []string{"127.0.0.1"}, VNodes: 64, Logger: log,
		Store: objstore.Config{SegmentBytes: 4 << 20, JournalBytesMax: 64 << 20, ReserveBytes: 1 << 20, TableCacheBytes: 16 << 20}}
}

// startCluster formats n nodes with as many copies, at most 3.
func startCluster(t testing.TB, n int) *testCluster {
	c := &testCluster{t: t, dir: t.TempDir()}
	for i := range n {
		c.nodes = append(c.nodes, nil)
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i)
		}
	})
	c.until("nodes meet", func() bool { return len(c.nodes[0].Met()) == n })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.nodes[0].Format(ctx, min(n, 3), 0, 64, false); err != nil {
		t.Fatal(err)
	}
	c.until("all serve", c.healthy)
	return c
}

func (c *testCluster) start(i int) {
	n, err := node.Start(c.config(i))
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i] = n
}

func (c *testCluster) stop(i int) {
	if c.nodes[i] == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.nodes[i].Stop(ctx); err != nil {
		c.t.Errorf("stop node %d: %v", i, err)
	}
	c.nodes[i] = nil
}

// until counts its looks and not the time, so that a machine that stands still is not taken for a cluster that is late.
func (c *testCluster) until(what string, ok func() bool) {
	c.t.Helper()
	const pause, within = 5 * time.Millisecond, 30 * time.Second
	for range within / pause {
		if ok() {
			return
		}
		time.Sleep(pause)
	}
	if !ok() {
		for _, g := range c.nodes[0].Map().Groups {
			c.t.Logf("%+v", *g)
		}
		c.t.Fatalf("not within %s: %s", within, what)
	}
}

func (c *testCluster) healthy() bool {
	for _, n := range c.nodes {
		m := n.Map()
		if !n.Leased() || !m.Formatted() {
			return false
		}
		for _, g := range m.Groups {
			if !m.InService(g.Primary) || len(g.InSync) != min(len(c.nodes), 3) {
				return false
			}
		}
	}
	return true
}

type nodeMaps struct{ *node.Node }

func (m nodeMaps) Subscribe() (<-chan struct{}, func()) {
	sub := m.Node.Subscribe()
	return sub.C, sub.Cancel
}

// gateway is a client inside node i.
func (c *testCluster) gateway(i int) *client.Client {
	n := c.nodes[i]
	cl, err := client.New(client.Config{Maps: nodeMaps{n}, Net: n.Net(), Propose: n.Propose, Latest: n.Latest, Local: n.Engine(), LocalNode: n.Self().Node, Owner: n.Addr(),
		Logger: c.config(i).Logger})
	if err != nil {
		c.t.Fatal(err)
	}
	return cl
}

// program is a client beside the nodes, which knows one of them.
func (c *testCluster) program(i int) (*client.Client, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	id := fmt.Sprint("program", rand.Uint64())
	w, err := client.Watch(ctx, client.WatchConfig{Nodes: []string{c.nodes[i].Addr()}, Net: wire.TCP{}, ID: id, Logger: c.config(9).Logger})
	if err != nil {
		c.t.Fatal(err)
	}
	cl, err := client.New(client.Config{Maps: w, Net: wire.TCP{}, Propose: w.Propose, Latest: w.Latest, ID: id, Logger: c.config(9).Logger})
	if err != nil {
		c.t.Fatal(err)
	}
	return cl, func() { cl.Close(); w.Close() }
}

func (c *testCluster) propose(cmd *state.Command) state.Result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, n := range c.nodes {
		if n == nil {
			continue
		}
		r, err := n.Propose(ctx, cmd)
		if err = errors.Join(err, r.Err()); err != nil {
			c.t.Fatal(err)
		}
		return r
	}
	return state.Result{}
}

func (c *testCluster) snapshot(name, tag string) {
	c.t.Helper()
	n := c.nodes[0]
	r := c.propose(&state.Command{CloseVDI: &state.CloseVDI{Name: name, Tag: tag}})
	c.until("snapshot", func() bool {
		v := n.Map().VDI(r.Vid)
		return v != nil && v.State == state.Frozen
	})
}

func openStream(t testing.TB, cl *client.Client, name, snap string) (*Stream, func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	d, err := cl.Open(ctx, name, snap, client.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return NewStream(ctx, d), func() {
		if err := d.Close(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

// exercise writes and reads at random for a while, from several goroutines in ranges of their own, and returns what ought to be there.
func exercise(t testing.TB, s *Stream, want []byte, rounds int, seed uint64) {
	t.Helper()
	const workers = 8
	part := len(want) / workers
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			mine := want[w*part : (w+1)*part]
			for range rounds {
				at, n := rnd.IntN(part), 1+rnd.IntN(64<<10)
				if rnd.IntN(2) == 0 {
					at, n = at&^4095, (n+4095)&^4095
				}
				n = min(n, part-at)
				var err error
				switch rnd.IntN(8) {
				case 0, 1, 2:
					got := make([]byte, n)
					if _, err = s.ReadAt(got, int64(w*part+at)); err == nil && !bytes.Equal(got, mine[at:at+n]) {
						t.Errorf("read at %d+%d: not what was written", w*part+at, n)
						return
					}
				case 3:
					clear(mine[at : at+n])
					err = s.ZeroAt(int64(w*part+at), int64(n))
				case 4:
					err = s.Flush()
				default:
					for i := range n {
						mine[at+i] = byte(rnd.Uint32())
					}
					_, err = s.WriteAt(mine[at:at+n], int64(w*part+at))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func compare(t testing.TB, s *Stream, want []byte, what string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := s.ReadAt(got, 0); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: differs at %d", what, i)
		}
	}
}

func TestDiskOnTrueNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	c := startCluster(t, 3)
	c.propose(&state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 32 << 20}})
	want := make([]byte, 32<<20)

	gw := c.gateway(0)
	s, closeDisk := openStream(t, gw, "alpha", "")
	exercise(t, s, want, 60, 1)
	compare(t, s, want, "gateway")
	closeDisk()

	cl, closeClient := c.program(1)
	s, closeDisk = openStream(t, cl, "alpha", "")
	compare(t, s, want, "program")
	exercise(t, s, want, 60, 2)
	c.snapshot("alpha", "one")
	one := bytes.Clone(want)
	exercise(t, s, want, 60, 3)
	compare(t, s, want, "after a snapshot")
	old, closeOld := openStream(t, gw, "alpha", "one")
	compare(t, old, one, "the snapshot")
	closeOld()

	// A node stops and comes back while the disk is in use.
	done := make(chan struct{})
	go func() { defer close(done); exercise(t, s, want, 300, 4) }()
	time.Sleep(50 * time.Millisecond)
	c.stop(2)
	c.start(2)
	<-done
	compare(t, s, want, "after a node's restart")
	c.until("all in sync again", c.healthy)
	compare(t, s, want, "after resync")
	closeDisk()

	// What was made through one node is there for clients of all others at once.
	backends := []*Backend{NewBackend(gw, BackendOptions{}), NewBackend(cl, BackendOptions{}), NewBackend(c.gateway(2), BackendOptions{})}
	for i := range 50 {
		name := fmt.Sprint("new", i)
		c.propose(&state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: 1 << 20}})
		for k, b := range backends {
			if _, err := b.Info(t.Context(), name); err != nil {
				t.Fatalf("%s, made a moment ago, is not known at %d: %v", name, k, err)
			}
		}
	}
	backends[2].c.Close()
	closeClient()
	gw.Close()
}
