package node

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

func (w *world) propose(h string, c *state.Command) state.Result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	res, err := w.nodes[h].Propose(ctx, c)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.Code != state.OK {
		w.t.Fatal(res.Error)
	}
	return res
}

// ask asks a node from outside the cluster.
func (w *world) ask(from, to string, h wire.Header, meta []byte) (wire.Header, []byte) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := wire.DialCaller(w.net.Host(from), to+":7000", time.Second)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	ans, m, _, err := c.Do(ctx, h, meta, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return ans, m
}

func TestR22SnapshotFreezesOrIsGivenUp(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		w.propose("n2", &state.Command{CreateVDI: &state.CreateVDI{Name: "a", Size: 1 << 30}})
		start := time.Now()
		w.propose("n2", &state.Command{CloseVDI: &state.CloseVDI{Name: "a", Tag: "one"}})
		w.until(2*time.Second, "the snapshot is there", func() bool { v, err := w.newest().Lookup("a", "one"); return err == nil && v.State == state.Frozen })
		t.Logf("frozen after %s", time.Since(start))

		// A leader that dies in between leaves nothing parked.
		w.propose("n2", &state.Command{CloseVDI: &state.CloseVDI{Name: "a", Tag: "two"}})
		gone := w.leader()
		w.crash(gone)
		settled := func(tag string) func() bool {
			return func() bool {
				v := w.newest().Working("a")
				_, err := w.newest().Lookup("a", tag)
				return v != nil && v.State == state.Working && (err == nil || v.Closing == 0)
			}
		}
		d := w.until(30*time.Second, "it is frozen or given up", settled("two"))
		t.Logf("settled %s after the leader's death", d)
		w.run(gone)
		w.until(10*time.Second, "all serve", func() bool { return w.allServe(w.hosts...) && w.served() })

		// Two of three nodes are gone: nothing is agreed, nothing frozen. They return, and it is settled.
		h := w.leader()
		w.propose(h, &state.Command{CloseVDI: &state.CloseVDI{Name: "a", Tag: "three"}})
		for _, o := range w.others(h) {
			w.isolate(o)
		}
		w.pass(3 * time.Second)
		w.net.HealAll()
		d = w.until(40*time.Second, "it is frozen or given up", settled("three"))
		t.Logf("settled %s after healing", d)
	})
}

func TestSessionsOfProgramsEndWithoutKeepAlive(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		w.propose("n1", &state.Command{CreateVDI: &state.CreateVDI{Name: "a", Size: 1 << 30}})
		w.propose("n1", &state.Command{OpenSess: &state.OpenSess{Name: "a", Client: "c1", Holder: state.Member{Node: state.NoNode}}})
		for i := range 15 {
			h := w.hosts[i%3] // through any node
			if ans, _ := w.ask("client", h, wire.Header{Kind: wire.KindKeep}, []byte("c1")); ans.Status != wire.StatusOK {
				t.Fatalf("keep through %s: %s", h, ans.Status)
			}
			w.pass(2 * time.Second)
		}
		if len(w.newest().Sessions) != 1 {
			t.Fatal("a session that was kept alive is gone")
		}
		d := w.until(15*time.Second, "the session ends", func() bool { return len(w.newest().Sessions) == 0 })
		t.Logf("ended after %s", d)
	})
}

func TestVotersAreReplaced(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 5)
		defer w.end()
		w.formatted(3)
		w.until(5*time.Second, "five vote", func() bool { return len(w.nodes["n1"].Voters()) == 5 })
		// A node is removed for good: it is drained, stopped, removed.
		gone := w.others(w.leader())[0]
		self, uuid := w.nodes[gone].Self(), w.nodes[gone].UUID()
		h := w.leader()
		w.propose(h, &state.Command{NodeOut: &state.NodeOut{Node: self.Node, Out: true, Drain: true}})
		w.until(60*time.Second, "it is drained", func() bool {
			return !slices.ContainsFunc(w.newest().Groups, func(g *state.Group) bool {
				return slices.ContainsFunc(g.InSync, func(b state.Member) bool { return b.Node == self.Node })
			})
		})
		w.crash(gone)
		w.until(10*time.Second, "it has ended", func() bool { return !w.newest().InService(self) })
		w.propose(w.others(gone)[0], &state.Command{NodeOut: &state.NodeOut{Node: self.Node, Remove: true}})
		w.until(10*time.Second, "three of the four others vote", func() bool {
			v := w.nodes[w.others(gone)[0]].Voters()
			return len(v) == 3 && !slices.Contains(v, uuid)
		})
		// It does not come back.
		w.run(gone)
		n := w.nodes[gone]
		w.until(30*time.Second, "it gives up", func() bool { return n.Err() != nil })
		t.Logf("it said: %v", n.Err())
	})
}

func TestWatchersFollow(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		f := &follower{m: state.New()}
		c, err := wire.DialFrames(w.net.Host("client"), "n2:7000", time.Second, f)
		if err != nil {
			t.Fatal(err)
		}
		c.Start()
		c.Send(&wire.Header{Kind: wire.KindWatch}, nil, nil, nil)
		c.Flush()
		for _, name := range []string{"a", "b", "c"} {
			w.propose("n3", &state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: 1 << 20}})
		}
		w.until(time.Second, "the follower has it all", func() bool { return f.at() >= w.newest().Index })
		c.Close(nil)
		w.pass(100 * time.Millisecond)
		f.mu.Lock()
		defer f.mu.Unlock()
		want, _ := state.EncodeMap(w.nodes["n2"].Map())
		got, _ := state.EncodeMap(f.m)
		if string(got) != string(want) || f.err != nil {
			t.Errorf("the follower has another map (%v)", f.err)
		}
		if f.maps != 1 {
			t.Errorf("sent %d whole maps", f.maps)
		}
	})
}

// TestWatchersLeaveANodeThatHearsNothing: the node that a program follows the map by lives on, and answers it, but is cut off from the others.
func TestWatchersLeaveANodeThatHearsNothing(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		f, err := client.Watch(ctx, client.WatchConfig{Nodes: []string{"n1:7000", "n2:7000", "n3:7000"}, Net: w.net.Host("client"), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, h := range w.hosts { // some time or other it is the one that is followed
			w.isolate(h)
			others := w.others(h)
			w.until(10*time.Second, "the others go on", func() bool { return !w.newest().InService(w.nodes[h].Self()) && w.leader() != h && w.leader() != "" })
			w.propose(others[0], &state.Command{CreateVDI: &state.CreateVDI{Name: "a" + h, Size: 1 << 20}})
			d := w.until(20*time.Second, "the program hears of it", func() bool { return f.Map().Working("a"+h) != nil })
			t.Logf("without %s: after %s", h, d)
			w.net.HealAll()
			w.until(20*time.Second, "all serve again", func() bool { return w.allServe(w.hosts...) })
		}
		for _, h := range w.hosts { // nobody has anything to tell; whoever is heard again first is followed
			w.isolate(h)
		}
		w.pass(time.Minute)
		w.net.HealAll()
		w.until(20*time.Second, "all serve again", func() bool { return w.allServe(w.hosts...) })
		w.propose("n2", &state.Command{CreateVDI: &state.CreateVDI{Name: "b", Size: 1 << 20}})
		w.until(5*time.Second, "the program hears of it", func() bool { return f.Map().Working("b") != nil })
	})
}

// follower applies what a watch sends.
type follower struct {
	mu   sync.Mutex // guards what follows
	m    *state.Map
	maps int
	err  error
}

func (f *follower) at() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m.Index
}

func (f *follower) Frame(_ *wire.Conn, fr *wire.Frame, _ *wire.Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch fr.Kind {
	case wire.KindMap:
		f.maps++
		if f.m, f.err = state.DecodeMap(fr.Meta); f.err != nil {
			f.m = state.New()
		}
	case wire.KindCommand:
		index, b, err := wire.ParseCommand(fr.Meta)
		if err != nil {
			f.err = err
			return
		}
		cmd, err := state.DecodeCommand(b)
		if err != nil {
			f.err = err
			return
		}
		f.m, _ = f.m.Apply(index, cmd)
	}
}
func (f *follower) Closed(*wire.Conn, error) {}

func TestInvariant12GarbageDisturbsNobody(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		for k := wire.Kind(60); k < 75; k++ {
			for _, meta := range [][]byte{nil, {1}, []byte("{}"), []byte(`{"uuid": "x"}`), make([]byte, 300)} {
				if k == wire.KindWatch {
					continue
				}
				ans, _ := w.ask("client", "n1", wire.Header{Kind: k}, meta)
				if ans.Status == wire.StatusOK && k != wire.KindWho && k != wire.KindKeep && k != wire.KindClosed {
					t.Errorf("%s with %q was taken", k, meta)
				}
			}
		}
		var who wire.Who
		if _, m := w.ask("client", "n3", wire.Header{Kind: wire.KindWho}, nil); who.Parse(m) != nil || who.Cluster == "" || who.Leader == "" {
			t.Errorf("who: %+v", who)
		}
		// The same command twice, through different nodes: one outcome.
		cmd := &state.Command{ID: "same", CreateVDI: &state.CreateVDI{Name: "a", Size: 4096}}
		var first, second state.Result
		b, _ := state.EncodeCommand(cmd)
		_, m := w.ask("client", "n1", wire.Header{Kind: wire.KindPropose}, b)
		json.Unmarshal(m, &first)
		_, m = w.ask("client", "n2", wire.Header{Kind: wire.KindPropose}, b)
		json.Unmarshal(m, &second)
		if first.Code != state.OK || first.Vid == 0 || first != second {
			t.Errorf("first %+v, then %+v", first, second)
		}
		w.pass(time.Second)
		if !w.allServe(w.hosts...) {
			t.Error("not everybody serves")
		}
	})
}
