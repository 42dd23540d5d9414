package replica

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/memnet"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// authority stands in for raft and its leader: it applies commands in order and gives the maps to every node it can reach.
type authority struct {
	t     testing.TB
	mu    sync.Mutex
	m     *state.Map
	nodes []*testNode

	noReports atomic.Bool // of closed groups: they get lost
}

func (a *authority) leased() []state.Member {
	var list []state.Member
	for _, n := range a.nodes {
		if n.lease.Load() && n.inc != 0 {
			list = append(list, state.Member{Node: n.id, Inc: n.inc})
		}
	}
	return list
}

// apply does a command and tells the nodes.
func (a *authority) apply(cmd *state.Command) state.Result {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cmd.ID == "" {
		cmd.ID = fmt.Sprint("cmd", a.m.Index+1)
	}
	cmd.Time = time.Now()
	l := a.leased()
	switch {
	case cmd.Register != nil:
		cmd.Register.Leased = l
	case cmd.Ended != nil:
		cmd.Ended.Leased = l
	case cmd.InService != nil:
		cmd.InService.Leased = l
	case cmd.Sync != nil:
		cmd.Sync.Leased = l
	case cmd.Resume != nil:
		cmd.Resume.Leased = l
	case cmd.Force != nil:
		cmd.Force.Leased = l
	}
	m, res := a.m.Apply(a.m.Index+1, cmd)
	a.m = m
	for _, n := range a.nodes {
		n.tell(m)
	}
	return res
}

func (a *authority) must(cmd *state.Command) state.Result {
	a.t.Helper()
	res := a.apply(cmd)
	if err := res.Err(); err != nil {
		a.t.Fatalf("command %+v: %v", cmd, err)
	}
	return res
}

func (a *authority) cur() *state.Map {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m
}

// testNode is one node: an engine on a store, in a process that can be killed.
type testNode struct {
	a     *authority
	net   *memnet.Net
	host  string
	fs    *simfs.FS
	uuid  string
	id    state.NodeID
	inc   uint64
	lease atomic.Bool
	up    atomic.Bool
	cut   atomic.Bool // from raft: no new maps, no proposals

	deafTo     func(*state.Command) bool                   // of its own proposals: done, but it hears nothing of that and of anything later
	failWrites atomic.Bool                                 // its disk takes nothing
	hook       atomic.Pointer[func(op, name string) error] // called before each call to its disk

	store    *objstore.Store
	lostDisk bool
	files    int             // how many it keeps open; 0: the default
	tables   int64           // how many bytes of tables it keeps; 0: the default
	other    *objstore.Store // a second disk; nil: none
	homes    sync.Map        // state.GroupID → *objstore.Store, of those not on the first
	e        *Engine
	mux      *wire.Mux
	maps     chan *state.Map
	done     chan struct{}
	wg       sync.WaitGroup
}

var incs, mapDelay atomic.Uint64

func (n *testNode) tell(m *state.Map) {
	if n.cut.Load() || !n.up.Load() {
		return
	}
	for {
		select {
		case n.maps <- m:
			return
		default:
			select {
			case <-n.maps:
			default:
			}
		}
	}
}

// start begins a new incarnation.
func (n *testNode) start() {
	t := n.a.t
	if !n.fs.Hooked() {
		n.fs.Before(n.failing)
	}
	store, err := objstore.Open(n.config())
	if err != nil {
		t.Fatalf("open %s: %v", n.host, err)
	}
	n.store = store
	prev, inc := n.inc, incs.Add(1)+1000
	res := n.a.apply(&state.Command{Register: &state.Register{UUID: n.uuid, Addr: n.host + ":7000", VNodes: 64, Disk: 1 << 30, PrevInc: prev, Inc: inc, Boot: "boot",
		Cluster: n.a.cur().Cluster}})
	if err := res.Err(); err != nil {
		t.Fatalf("register %s: %v", n.host, err)
	}
	n.a.mu.Lock()
	n.id, n.inc = res.Node, inc
	n.a.mu.Unlock()
	h := n.net.Host(n.host)
	n.done = make(chan struct{})
	self := state.Member{Node: n.id, Inc: n.inc}
	e := New(Config{
		Self:     func() state.Member { return self },
		Net:      h,
		Store:    func(id state.GroupID) *objstore.Store { return n.home(id, store) },
		LostDisk: func() bool { return n.lostDisk },
		Leased:   n.lease.Load,
		Propose: func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			time.Sleep(3 * time.Millisecond)
			if n.deafTo != nil && n.deafTo(cmd) {
				n.cut.Store(true)
				n.a.apply(cmd)
			}
			if n.cut.Load() {
				<-ctx.Done()
				return state.Result{}, ctx.Err()
			}
			return n.a.apply(cmd), nil
		},
		ReportClosed: n.a.closed,
		Logger:       testLog().With("node", n.id),
	})
	n.e = e
	l, err := h.Listen(n.host + ":7000")
	if err != nil {
		t.Fatal(err)
	}
	n.mux = wire.NewMux(l)
	frames := n.mux.Listen(wire.PrefaceFrames)
	maps, done := n.maps, n.done
	n.up.Store(true)
	n.wg.Go(func() { n.mux.Serve() })
	n.wg.Go(func() {
		for {
			nc, err := frames.Accept()
			if err != nil {
				return
			}
			wire.NewConn(nc, e).Start()
		}
	})
	n.wg.Go(func() {
		for {
			select {
			case m := <-maps:
				time.Sleep(time.Duration(mapDelay.Add(7919)%31) * time.Millisecond) // nodes learn of changes at different times
				e.MapChanged(m)
			case <-done:
				return
			}
		}
	})
	n.lease.Store(true)
	n.a.apply(&state.Command{InService: &state.InService{Members: []state.Member{self}}})
	n.tell(n.a.cur())
}

// home is the disk a group is on.
func (n *testNode) home(id state.GroupID, first *objstore.Store) *objstore.Store {
	if s, ok := n.homes.Load(id); ok {
		return s.(*objstore.Store)
	}
	if first.Err() != nil && n.other != nil {
		return n.other
	}
	return first
}

func (n *testNode) config() objstore.Config {
	return objstore.Config{Dir: "/d", OnBad: func(bad *objstore.BlockError) {
		if n.e != nil {
			n.e.Rotten(bad)
		}
	}, FS: n.fs, OpenFilesMax: n.files, TableCacheBytes: n.tables, JournalBytesMax: 8 << 20, SegmentBytes: 1 << 20, ReserveBytes: 1 << 20, Logger: testLog()}
}

// kill ends the process; what it wrote to files stays.
func (n *testNode) kill() { n.end(func() *simfs.FS { return n.fs.Clone() }) }

// cutPower ends the process and loses some of what was not synced.
func (n *testNode) cutPower() { n.end(func() *simfs.FS { return n.fs.Cut() }) }

func (n *testNode) end(left func() *simfs.FS) {
	fs := left()
	defer func() { n.fs = fs }()
	n.lease.Store(false)
	n.net.Kill(n.host)
	n.up.Store(false)
	close(n.done)
	n.mux.Close()
	n.e.Close()
	n.wg.Wait()
	n.store.Close()
	if n.other != nil {
		n.other.Close()
		n.other = nil
	}
}

// exited is what a guardian reports.
func (n *testNode) exited() {
	n.a.apply(&state.Command{Ended: &state.Ended{Members: []state.Member{{Node: n.id, Inc: n.inc}}, Why: "test"}})
}

func (a *authority) closed(r ClosedReport) {
	if a.noReports.Load() {
		return
	}
	a.mu.Lock()
	d := a.m.VDI(r.Vid)
	if d == nil || d.State != state.Closing || d.Closing != r.Closing {
		a.mu.Unlock()
		return
	}
	a.mu.Unlock()
	reports.Lock()
	defer reports.Unlock()
	if reports.m[r.Closing] == nil {
		reports.m[r.Closing] = map[state.GroupID]uint64{}
	}
	got := reports.m[r.Closing]
	for _, gt := range r.Groups {
		got[gt.Group] = gt.Term
	}
	groups := a.cur().PoolGroups(d.Pool)
	f := &state.FreezeVDI{Vid: r.Vid, Closing: r.Closing}
	for _, g := range groups {
		term, ok := got[g.ID]
		if !ok || term != g.Term {
			return
		}
		f.Terms = append(f.Terms, term)
	}
	a.apply(&state.Command{FreezeVDI: f})
}

var reports = struct {
	sync.Mutex
	m map[uint64]map[state.GroupID]uint64
}{m: map[uint64]map[state.GroupID]uint64{}}

func testLog() *slog.Logger {
	if os.Getenv("SIM_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// cluster is some nodes and their authority.
type cluster struct {
	t     testing.TB
	net   *memnet.Net
	a     *authority
	nodes []*testNode
}

func newCluster(t testing.TB, nodes, copies, pgs int) *cluster {
	c := &cluster{t: t, net: memnet.New(), a: &authority{t: t, m: state.New()}}
	for i := range nodes {
		c.addNode(i)
	}
	for _, n := range c.nodes {
		n.start()
	}
	c.a.must(&state.Command{Format: &state.Format{Cluster: "test", Copies: copies, PGs: pgs}})
	for _, n := range c.nodes {
		c.a.apply(&state.Command{InService: &state.InService{Members: []state.Member{{Node: n.id, Inc: n.inc}}}})
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			if n.up.Load() {
				n.kill()
			}
		}
	})
	return c
}

func (c *cluster) addNode(i int) *testNode {
	n := &testNode{a: c.a, net: c.net, host: fmt.Sprintf("h%d", i), uuid: fmt.Sprintf("uuid-%d", i), fs: simfs.New(uint64(i) + 1), maps: make(chan *state.Map, 1)}
	n.fs.Before(n.failing)
	if err := n.fs.Mkdir("/d"); err != nil {
		c.t.Fatal(err)
	}
	if err := objstore.Create(n.config(), objstore.Identity{Cluster: "test", Disk: n.uuid}); err != nil {
		c.t.Fatal(err)
	}
	c.nodes = append(c.nodes, n)
	c.a.mu.Lock()
	c.a.nodes = c.nodes
	c.a.mu.Unlock()
	return n
}

// wait polls a condition in virtual time.
func (c *cluster) wait(what string, limit time.Duration, ok func() bool) {
	c.t.Helper()
	end := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(end) {
			c.dump()
			c.t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *cluster) dump() {
	for _, g := range c.a.cur().Groups {
		s := fmt.Sprintf("group %d: term %d primary %v insync %v target %v back %v", g.ID, g.Term, g.Primary, g.InSync, g.Target, g.Back)
		for _, n := range c.nodes {
			if !n.up.Load() {
				continue
			}
			x := n.e.group(g.ID)
			x.mu.Lock()
			s += fmt.Sprintf("\n\tnode %d: %v term %d fence %d last %d journaled %d commit %d durable %d tail %d parked %d reads %d members", n.id, x.role, x.term, x.fence, x.last, x.journaled, x.commit, x.durable, len(x.tail), len(x.parked), len(x.reads))
			for _, m := range x.members {
				s += fmt.Sprintf(" {%d acked %d sent %d live %v insync %v removed %v joiner %v}", m.Node, m.acked, m.sent, m.live, m.inSync, m.removed, m.joiner != nil)
			}
			x.mu.Unlock()
		}
		c.t.Log(s)
	}
}

// whole waits until every group has all its targets in sync and serves.
func (c *cluster) whole(limit time.Duration) {
	c.t.Helper()
	c.wait("all groups whole", limit, func() bool {
		for _, g := range c.a.cur().Groups {
			if len(g.InSync) != len(g.Target) || g.Primary.Node == state.NoNode {
				return false
			}
			for _, n := range c.nodes {
				if n.id == g.Primary.Node && n.up.Load() {
					x := n.e.group(g.ID)
					x.mu.Lock()
					ok := x.role == serving
					x.mu.Unlock()
					if !ok {
						return false
					}
				}
			}
		}
		return true
	})
}

// equal compares all replicas byte by byte.
func (c *cluster) equal() {
	c.t.Helper()
	objects := int64(0)
	for _, n := range c.nodes {
		if !n.up.Load() {
			continue
		}
		err := n.e.Check(context.Background(), nil, func(p CheckProgress) {
			for _, f := range p.Findings {
				c.t.Error(f)
			}
			objects = p.Objects
		})
		if err != nil {
			c.t.Error(err)
		}
	}
	_ = objects
}

// testClient writes and reads one VDI through connections of its own, and tries again until it is answered.
type testClient struct {
	c     *cluster
	name  string
	mu    chan struct{} // a lock that lets virtual time pass while it is held
	conns map[state.NodeID]*wire.Caller
	epoch uint64
	sess  *state.Session
	vdi   string

	number wire.Once // of the next change of a shared VDI
}

func (c *cluster) client(name, vdi string) *testClient {
	res := c.a.must(&state.Command{OpenSess: &state.OpenSess{Name: vdi, Client: name, Holder: state.Member{Node: state.NoNode}}})
	return &testClient{c: c, name: name, mu: make(chan struct{}, 1), conns: map[state.NodeID]*wire.Caller{}, sess: res.Sess, vdi: vdi}
}

func (tc *testClient) conn(ctx context.Context, m *state.Map, id state.NodeID) (*wire.Caller, uint64, error) {
	tc.mu <- struct{}{}
	defer func() { <-tc.mu }()
	if c := tc.conns[id]; c != nil && c.Err() == nil {
		return c, tc.epoch, nil
	}
	tc.epoch++
	for _, c := range tc.conns {
		c.Close()
	}
	clear(tc.conns) // one epoch for all: simple
	c, err := wire.DialCaller(tc.c.net.Host("client-"+tc.name), m.Node(id).Addr, 500*time.Millisecond)
	if err != nil {
		return nil, 0, err
	}
	hello := wire.ClientHello{Client: tc.name, Epoch: tc.epoch}
	h, _, _, err := c.Do(ctx, wire.Header{Kind: wire.KindHello}, hello.Append(nil), nil)
	if err != nil || h.Status != wire.StatusOK {
		c.Close()
		return nil, 0, fmt.Errorf("hello: %v %v", h.Status, err)
	}
	tc.conns[id] = c
	return c, tc.epoch, nil
}

// do sends a request until it is answered for good.
func (tc *testClient) do(ctx context.Context, kind wire.Kind, flags uint8, index uint32, off, n uint32, data []byte) ([]byte, wire.Status) {
	for ctx.Err() == nil {
		out, status, err := tc.once(ctx, kind, flags, index, off, n, data)
		if err == nil {
			switch status {
			case wire.StatusOK, wire.StatusFenced, wire.StatusNoSpace, wire.StatusBad, wire.StatusInvalid, wire.StatusFailed:
				return out, status
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, wire.StatusBusy
}

func (tc *testClient) once(ctx context.Context, kind wire.Kind, flags uint8, index uint32, off, n uint32, data []byte) ([]byte, wire.Status, error) {
	m := tc.c.a.cur()
	s := m.Session(tc.sess.ID)
	if s == nil {
		return nil, wire.StatusFenced, nil
	}
	d := m.VDI(s.Vid)
	pool := m.Pool(d.Pool)
	g := m.Group(state.GroupOf(pool, d.Root, index))
	if g.Primary.Node == state.NoNode {
		return nil, 0, io.EOF
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, epoch, err := tc.conn(ctx, m, g.Primary.Node)
	if err != nil {
		return nil, 0, err
	}
	req := wire.IO{Key: uint64(objstore.MakeKey(d.Root, index)), Gen: d.Gen, Vid: d.Vid, Off: off, SessGen: s.Gen, Len: n, Index: m.Index, Once: tc.number}
	if kind == wire.KindWrite {
		if off%4096 == 0 && n%4096 == 0 {
			for i := 0; i < len(data); i += 4096 {
				req.CRCs = binary.LittleEndian.AppendUint32(req.CRCs, objstore.Checksum(data[i:i+4096]))
			}
		} else {
			req.Sum = wire.Checksum(data)
		}
	}
	h, _, out, err := c.Do(ctx, wire.Header{Kind: kind, Flags: flags, Group: uint32(g.ID), Term: g.Term, From: epoch}, req.Append(nil), data)
	if err != nil {
		c.Close()
		return nil, 0, err
	}
	return out, h.Status, nil
}
