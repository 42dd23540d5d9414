package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// fakeNodes are nodes that tell their map and take proposals, over the fake's map.
type fakeNodes struct {
	f    *fake
	mu   sync.Mutex
	dead map[string]bool // answers nothing
	kept map[string]int
	junk bool // the next map sent is garbage
}

type fakeNode struct {
	n    *fakeNodes
	addr string
	stop chan struct{}
}

func (n *fakeNodes) Listen(string) (net.Listener, error) { return nil, errors.ErrUnsupported }

func (n *fakeNodes) Dial(addr string, _ time.Duration) (net.Conn, error) {
	n.mu.Lock()
	dead := n.dead[addr]
	n.mu.Unlock()
	if dead {
		time.Sleep(time.Second)
		return nil, fmt.Errorf("%s: %w", addr, os.ErrDeadlineExceeded)
	}
	a, z := net.Pipe()
	go func() {
		z.Read(make([]byte, 4))
		wire.NewConn(z, &fakeNode{n, addr, make(chan struct{})}).Start()
	}()
	return a, nil
}

func (n *fakeNodes) kill(addr string, dead bool) {
	n.mu.Lock()
	n.dead[addr] = dead
	n.mu.Unlock()
}

func (x *fakeNode) Closed(*wire.Conn, error) { close(x.stop) }

func (x *fakeNode) Frame(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	x.n.mu.Lock()
	dead, junk := x.n.dead[x.addr], x.n.junk
	x.n.mu.Unlock()
	if dead {
		return
	}
	h := wire.Header{Kind: f.Kind | wire.KindAnswer, ID: f.ID}
	var meta []byte
	switch f.Kind {
	case wire.KindWatch:
		if junk {
			x.n.mu.Lock()
			x.n.junk = false
			x.n.mu.Unlock()
			c.Send(&wire.Header{Kind: wire.KindMap}, []byte("garbage"), nil, nil)
			b.Flush(c)
			return
		}
		go x.tell(c)
		return
	case wire.KindPropose:
		cmd, err := state.DecodeCommand(f.Meta)
		if err != nil {
			h.Status, meta = wire.StatusInvalid, []byte(err.Error())
			break
		}
		meta, _ = json.Marshal(x.n.f.apply(cmd))
	case wire.KindKeep:
		x.n.mu.Lock()
		x.n.kept[string(f.Meta)]++
		x.n.mu.Unlock()
	}
	c.Send(&h, meta, nil, nil)
	b.Flush(c)
}

// tell sends the whole map at every change, as a node does whose history is short.
func (x *fakeNode) tell(c *wire.Conn) {
	changed, cancel := x.n.f.Subscribe()
	defer cancel()
	for {
		x.n.mu.Lock()
		dead := x.n.dead[x.addr]
		x.n.mu.Unlock()
		if b, err := state.EncodeMap(x.n.f.Map()); err == nil && !dead {
			c.Send(&wire.Header{Kind: wire.KindMap}, b, nil, nil)
			c.Flush()
		}
		select {
		case <-changed:
		case <-x.stop:
			return
		}
	}
}

func TestWatcherSurvivesItsNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		n := &fakeNodes{f: f, dead: map[string]bool{}, kept: map[string]int{}}
		n.kill("nowhere", true)
		ctx := context.Background()
		w, err := Watch(ctx, WatchConfig{Nodes: []string{"nowhere", "node1"}, Net: n, ID: "me", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		create := func(name string) {
			t.Helper()
			r, err := w.Propose(ctx, &state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: 1 << 20}})
			if err = errors.Join(err, r.Err()); err != nil {
				t.Fatal(err)
			}
			if w.Map().Working(name) == nil {
				t.Fatal("proposed, and not in the map")
			}
		}
		create("alpha")
		for i, addr := range []string{"node1", "node0"} { // whoever is asked falls silent; another is found
			n.kill(addr, true)
			start := time.Now()
			create(fmt.Sprint("beta", i))
			if d := time.Since(start); d > 15*time.Second {
				t.Errorf("another node was found after %s", d)
			}
		}
		n.kill("node1", false)
		n.mu.Lock()
		n.junk = true
		n.mu.Unlock()
		n.kill("node2", true)
		create("gamma")
		time.Sleep(10 * time.Second)
		n.mu.Lock()
		if n.kept["me"] < 5 {
			t.Errorf("kept alive %d times", n.kept["me"])
		}
		n.mu.Unlock()
		w.Close()
	})
}

func TestWatchGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &fakeNodes{f: newFake(t, 1), dead: map[string]bool{"nowhere": true}}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := Watch(ctx, WatchConfig{Nodes: []string{"nowhere"}, Net: n, Logger: slog.New(slog.DiscardHandler)}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	})
}

// TestWatchSaysThatNobodyAnswers: at once, and not all the time.
func TestWatchSaysThatNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &fakeNodes{f: newFake(t, 1), dead: map[string]bool{"nowhere": true, "elsewhere": true}}
		var said bytes.Buffer
		ctx, cancel := context.WithTimeoutCause(context.Background(), 21*time.Second, errors.New("none within 21 s"))
		defer cancel()
		_, err := Watch(ctx, WatchConfig{Nodes: []string{"nowhere", "elsewhere"}, Net: n, Logger: slog.New(slog.NewTextHandler(&said, nil))})
		if err == nil || !strings.Contains(err.Error(), "none within 21 s") || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the end: %v", err)
		}
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		if len(lines) != 4 { // after 2 s, the time that a dead node takes, and then every 5 to 7
			t.Errorf("%d lines: %s", len(lines), &said)
		}
		for _, l := range lines {
			if !strings.Contains(l, "no node of the cluster answers") || !strings.Contains(l, "nodes=nowhere,elsewhere") {
				t.Error(l)
			}
		}
	})
}

// TestWatcherOfAnotherCluster: the nodes were emptied and made another cluster, with a smaller map index. sheep-nbd goes on.
func TestWatcherOfAnotherCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		for i := range 20 {
			f.vdi(fmt.Sprint("v", i), 1<<20)
		}
		n := &fakeNodes{f: f, dead: map[string]bool{}, kept: map[string]int{}}
		w, err := Watch(context.Background(), WatchConfig{Nodes: []string{"node0", "node1"}, Net: n, ID: "me", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		was := w.Map()
		g := newFake(t, 3)
		other := *g.m
		other.Cluster = "another"
		for _, a := range []string{"node0", "node1", "node2"} {
			n.kill(a, true)
		}
		time.Sleep(10 * time.Second)
		f.mu.Lock()
		f.m = &other
		f.mu.Unlock()
		for _, a := range []string{"node0", "node1", "node2"} {
			n.kill(a, false)
		}
		time.Sleep(10 * time.Minute)
		w.mu.Lock()
		why, good := w.why, w.good
		w.mu.Unlock()
		t.Logf("map index %d of cluster %q (nodes have %d of %q), good %q, why %v", w.Map().Index, w.Map().Cluster, other.Index, other.Cluster, good, why)
		if w.Map() == was && why == nil {
			t.Error("ten minutes later it follows another cluster's nodes with the old cluster's map, and says nothing")
		}
		for i := range 40 {
			f.vdi(fmt.Sprint("n", i), 1<<20)
		}
		time.Sleep(time.Second)
		if w.Map().Cluster == "another" {
			t.Errorf("and at index %d it takes the other cluster's map for its own", w.Map().Index)
		}
		w.Close()
	})
}

func FuzzAnswer(f *testing.F) {
	done := wire.Done{Term: 1, LSN: 2}
	f.Add(uint8(wire.KindWrite), uint16(0), done.Append(nil), []byte{})
	f.Add(uint8(wire.KindRead), uint16(0), []byte{1, 2, 3, 4}, make([]byte, 4096))
	f.Fuzz(func(t *testing.T, kind uint8, status uint16, meta, data []byte) {
		for _, k := range []wire.Kind{wire.KindRead, wire.KindWrite, wire.KindExtents, wire.KindFlush} {
			p := new(piece)
			p.req.Kind, p.req.IO.Len = k, uint32(len(data))
			p.req.Dst = make([]byte, len(data))
			p.parse(&wire.Frame{Header: wire.Header{Kind: wire.Kind(kind), Status: wire.Status(status)}, Meta: meta, Data: data})
		}
		s := &watchStream{w: &Watcher{}}
		s.w.cur.Store(state.New())
		s.command(meta)
	})
}
