package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// The test's addresses: 127.0.0.1, .2, … with these ports.
const (
	testPort   = 17000
	testGossip = 17946
)

// small settings: a test makes many stores.
var smallStore = objstore.Config{SegmentBytes: 1 << 20, JournalBytesMax: 4 << 20, ReserveBytes: 1 << 20, TableCacheBytes: 1 << 20}

type logTo struct{ t testing.TB }

func (l logTo) Write(b []byte) (int, error) {
	if testing.Verbose() {
		os.Stderr.Write(b)
	}
	return len(b), nil
}

func config(t testing.TB, dir string, i int, join ...string) Config {
	h := slog.NewTextHandler(logTo{t}, &slog.HandlerOptions{Level: slog.LevelDebug})
	return Config{Dirs: []string{filepath.Join(dir, strconv.Itoa(i))}, Listen: fmt.Sprintf("127.0.0.%d:%d", i, testPort), GossipPort: testGossip,
		Join: join, VNodes: 64, Store: smallStore, Logger: slog.New(h).With("n", i)}
}

func startNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, n) })
	return n
}

func stop(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Errorf("stop %s: %v", n.Addr(), err)
	}
}

// eventually counts its looks and not the time, so that a machine that stands still is not taken for a cluster that is late.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	const pause = 5 * time.Millisecond
	for range within / pause {
		if ok() {
			return
		}
		time.Sleep(pause)
	}
	if !ok() {
		t.Fatalf("not within %s: %s", within, what)
	}
}

func allServe(nodes ...*Node) func() bool {
	return func() bool {
		for _, n := range nodes {
			if !n.Leased() || !n.Map().InService(n.Self()) {
				return false
			}
		}
		return true
	}
}

// primaries counts groups without one, and says whether all primaries are in service.
func healthy(m *state.Map, copies int) bool {
	for _, g := range m.Groups {
		if g.Primary.Node == state.NoNode || !m.InService(g.Primary) || len(g.InSync) != copies {
			return false
		}
	}
	return m.Formatted()
}

func format(t testing.TB, n *Node, copies int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	start := time.Now()
	if err := n.Format(ctx, copies, 0, 64, false); err != nil {
		t.Fatal(err)
	}
	t.Logf("formatted in %s", time.Since(start))
}

func threeNodes(t testing.TB, dir string) []*Node {
	t.Helper()
	var nodes []*Node
	for i := 1; i <= 3; i++ {
		nodes = append(nodes, startNode(t, config(t, dir, i, "127.0.0.1")))
	}
	return nodes
}

func TestFormatRestartJoin(t *testing.T) {
	dir := t.TempDir()
	nodes := threeNodes(t, dir)
	eventually(t, 5*time.Second, "gossip meets", func() bool { return len(nodes[1].Met()) == 3 })
	if nodes[0].Map().Formatted() {
		t.Fatal("formatted by itself")
	}
	format(t, nodes[1], 3)
	start := time.Now()
	eventually(t, 5*time.Second, "all serve", allServe(nodes...))
	eventually(t, 5*time.Second, "three voters", func() bool { return len(nodes[0].Voters()) == 3 })
	eventually(t, 5*time.Second, "all see the map", func() bool { return healthy(nodes[0].Map(), 3) && healthy(nodes[2].Map(), 3) })
	t.Logf("all serve %s after that", time.Since(start))

	// A fourth node that knows one of them is admitted by itself.
	start = time.Now()
	four := startNode(t, config(t, dir, 4, "127.0.0.3"))
	eventually(t, 10*time.Second, "the fourth serves", allServe(four))
	t.Logf("the fourth serves after %s", time.Since(start))
	if got := len(nodes[0].Map().Nodes); got != 4 {
		t.Errorf("%d nodes", got)
	}

	// Stopped and started again: a new incarnation, quickly.
	was := nodes[2].Self()
	start = time.Now()
	stop(t, nodes[2])
	t.Logf("stopped after %s", time.Since(start))
	eventually(t, time.Second, "the map knows it at once", func() bool { return !nodes[0].Map().InService(was) })
	start = time.Now()
	nodes[2] = startNode(t, config(t, dir, 3, "127.0.0.1"))
	eventually(t, 10*time.Second, "the third serves again", allServe(nodes[2]))
	t.Logf("serves again after %s", time.Since(start))
	if now := nodes[2].Self(); now.Node != was.Node || now.Inc == was.Inc {
		t.Errorf("was %+v, is %+v", was, now)
	}
}
