package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/memnet"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// trio is three Consensus on a network in memory, without anything above.
type trio struct {
	t    *testing.T
	net  *memnet.Net
	cons []*Consensus
	disk []*hanging
}

// hanging is a log store that a test makes hang.
type hanging struct {
	*raft.InmemStore
	mu   sync.Mutex
	gate chan struct{} // nil: works
}

func (h *hanging) StoreLogs(l []*raft.Log) error {
	h.mu.Lock()
	gate := h.gate
	h.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return h.InmemStore.StoreLogs(l)
}

func (h *hanging) hang() {
	h.mu.Lock()
	h.gate = make(chan struct{})
	h.mu.Unlock()
}

func (h *hanging) release() {
	h.mu.Lock()
	close(h.gate)
	h.gate = nil
	h.mu.Unlock()
}

func newTrio(t *testing.T) *trio {
	x := &trio{t: t, net: memnet.New()}
	for i := range 3 {
		host := x.net.Host(fmt.Sprint("n", i))
		addr := fmt.Sprintf("n%d:7000", i)
		l, err := host.Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		mux := wire.NewMux(l)
		frames, rl := mux.Listen(wire.PrefaceFrames), mux.Listen(wire.PrefaceRaft)
		disk := &hanging{InmemStore: raft.NewInmemStore()}
		peers := NewCallers(host)
		c, err := open(Config{UUID: fmt.Sprint("u", i), Addr: addr, Cluster: func() string { return "c" }, Memory: NewMemory(), Listen: rl, Net: host, Peers: peers,
			Lookup:  func(uuid string) string { return "n" + uuid[1:] + ":7000" },
			Prepare: func(uint64, *state.Command) error { return nil }, Begin: func(*Consensus, uint64) {},
			Lead:  func(ctx context.Context, _ *Consensus, _ uint64) { <-ctx.Done() },
			Fatal: func(err error) { t.Error(err) }, Logger: slog.New(slog.DiscardHandler)}, disk)
		if err != nil {
			t.Fatal(err)
		}
		go mux.Serve()
		go x.serve(frames, c)
		x.cons, x.disk = append(x.cons, c), append(x.disk, disk)
		t.Cleanup(func() { mux.Close(); peers.Close() })
	}
	if err := x.cons[0].Bootstrap(); err != nil {
		t.Fatal(err)
	}
	x.until(3*time.Second, "a leader", func() bool { return x.cons[0].Leading() != 0 })
	for i := 1; i < 3; i++ {
		if err := x.cons[0].AddVoter(fmt.Sprint("u", i), fmt.Sprintf("n%d:7000", i)); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// serve answers proposals only.
func (x *trio) serve(l net.Listener, c *Consensus) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		wire.NewConn(nc, proposals{c}).Start()
	}
}

type proposals struct{ c *Consensus }

func (p proposals) Frame(c *wire.Conn, f *wire.Frame, _ *wire.Batch) {
	if f.Kind != wire.KindPropose {
		return
	}
	h, cmd := f.Header, must(state.DecodeCommand(f.Meta))
	go func() {
		ans := wire.Header{Kind: h.Kind | wire.KindAnswer, ID: h.ID}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		res, err := p.c.ProposeHere(ctx, cmd)
		if err != nil {
			ans.Status = wire.StatusNotPrimary
		}
		c.Send(&ans, fmt.Appendf(nil, `{"index":%d}`, res.Index), nil, nil)
		c.Flush()
	}()
}
func (proposals) Closed(*wire.Conn, error) {}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (x *trio) until(within time.Duration, what string, ok func() bool) {
	x.t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > within {
			x.t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func (x *trio) close() {
	for _, c := range x.cons {
		c.Close()
	}
}

func TestScenario27LeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTrio(t)
		defer x.close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := x.cons[2].Propose(ctx, setting(1)); err != nil {
			t.Fatal(err)
		}
		x.disk[0].hang()
		start := time.Now()
		if _, err := x.cons[1].Propose(ctx, setting(2)); err != nil { // goes to the leader that hangs, and then to another
			t.Fatal(err)
		}
		t.Logf("decided after %s", time.Since(start))
		if time.Since(start) > 6*time.Second {
			t.Error("too late")
		}
		x.disk[0].release()
		x.until(10*time.Second, "the hung node has it too", func() bool { return x.cons[0].Map().Index == x.cons[1].Map().Index })
	})
}

func TestProposalsThroughEveryNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTrio(t)
		defer x.close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for i := range 30 {
			c := x.cons[i%3]
			res, err := c.Propose(ctx, setting(i))
			if err != nil || res.Code != state.OK {
				t.Fatalf("proposal %d: %v %s", i, err, res.Error)
			}
			if c.Map().Index < res.Index {
				t.Fatal("the proposer does not see its own command")
			}
		}
		short, stop := context.WithTimeout(context.Background(), 2*time.Second)
		defer stop()
		x.net.Kill("n1")
		x.net.Kill("n2")
		x.cons[1].Close()
		x.cons[2].Close()
		if _, err := x.cons[0].Propose(short, setting(99)); err == nil {
			t.Error("a minority decided")
		}
	})
}
