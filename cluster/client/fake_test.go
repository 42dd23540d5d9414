package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// fake is a cluster in memory: a true agreed map, and nodes whose primaries keep each group's entries in one place, as if all replicas were always
// in sync. It watches that clients keep R15, and can lose what was not flushed (R17).
type fake struct {
	t testing.TB

	mu     sync.Mutex
	m      *state.Map
	subs   map[chan struct{}]struct{}
	groups map[state.GroupID]*fakeGroup
	conns  map[string]uint64 // newest connection epoch of each client and node
	open   map[string]int    // client, object and block → changes not answered
	links  map[*wire.Conn]*fakeConn
	cut    map[string]bool // addresses that can't be dialed from outside
	// fault, if set, may decide what becomes of a request.
	fault   func(node state.NodeID, r *wire.Request) verdict
	sole    bool // primaries say of each change that nobody else has it
	served  map[wire.Kind]int
	counted map[*wire.Request]state.NodeID // changes in open, and where they are
}

type verdict uint8

const (
	serve   verdict = iota
	silent          // never answered, never done
	late            // done and answered after a while, unless it is dropped or fenced until then
	ghost           // refused by who passed it on, and done later all the same, unless it is dropped or fenced until then
	tardy           // done at once, answered a second later
	lost            // done, never answered; its connection breaks
	busy            // refused, try again
	behind          // refused, try again
	never           // refused: not the primary
	noSpace         // ENOSPC
	bad             // EIO
)

// fakeGroup is what a group's replicas hold.
type fakeGroup struct {
	durable map[uint64][]byte // objects as a power cut leaves them
	now     map[uint64][]byte
	log     []fakeEntry // not durable
	flushed uint64      // lsn
	lsn     uint64
}

type fakeEntry struct {
	lsn      uint64
	key      uint64
	off, len uint32
	data     []byte // nil: zeros
}

const fakePGs = 16

// newFake is a formatted cluster of n nodes in service.
func newFake(t testing.TB, n int) *fake {
	f := &fake{t: t, m: state.New(), subs: map[chan struct{}]struct{}{}, groups: map[state.GroupID]*fakeGroup{}, conns: map[string]uint64{},
		open: map[string]int{}, links: map[*wire.Conn]*fakeConn{}, cut: map[string]bool{}, served: map[wire.Kind]int{}, counted: map[*wire.Request]state.NodeID{}}
	var leased []state.Member
	for i := range n {
		r := f.must(&state.Command{Register: &state.Register{UUID: fmt.Sprint("node", i), Addr: fmt.Sprint("node", i), VNodes: 64, Inc: uint64(100 + i), Boot: fmt.Sprint(i)}})
		leased = append(leased, state.Member{Node: r.Node, Inc: uint64(100 + i)})
	}
	f.must(&state.Command{InService: &state.InService{Members: leased, Leased: leased}})
	f.must(&state.Command{Format: &state.Format{Cluster: "fake", Copies: min(n, 3), PGs: fakePGs}})
	return f
}

func (f *fake) leased() (list []state.Member) {
	for _, n := range f.m.Nodes {
		if n.Up {
			list = append(list, state.Member{Node: n.ID, Inc: n.Inc})
		}
	}
	return list
}

// must applies a command that has to succeed.
func (f *fake) must(cmd *state.Command) state.Result {
	f.t.Helper()
	r := f.apply(cmd)
	if err := r.Err(); err != nil {
		f.t.Fatalf("%+v: %v", cmd, err)
	}
	return r
}

func (f *fake) apply(cmd *state.Command) state.Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, r := f.m.Apply(f.m.Index+1, cmd)
	f.publish(m)
	return r
}

// edit changes one group beside the state machine. mu is held.
func (f *fake) edit(id state.GroupID, change func(g *state.Group)) {
	m := *f.m
	m.Index++
	m.Groups = slices.Clone(m.Groups)
	for i, g := range m.Groups {
		if g.ID == id {
			c := *g
			change(&c)
			c.Term++
			c.Granted = c.Term
			m.Groups[i] = &c
		}
	}
	for r, node := range f.counted { // the new term fences what is still under way
		if r.Group == uint32(id) {
			f.watch(node, r, -1)
		}
	}
	f.publish(&m)
}

func (f *fake) publish(m *state.Map) {
	f.m = m
	for ch := range f.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (f *fake) Map() *state.Map {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m
}

func (f *fake) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	f.subs[ch] = struct{}{}
	f.mu.Unlock()
	return ch, func() {
		f.mu.Lock()
		delete(f.subs, ch)
		f.mu.Unlock()
	}
}

func (f *fake) Propose(ctx context.Context, cmd *state.Command) (state.Result, error) {
	if ctx.Err() != nil {
		return state.Result{}, ctx.Err()
	}
	return f.apply(cmd), nil
}

// vdi creates one.
func (f *fake) vdi(name string, size uint64) {
	f.must(&state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: size}})
}

// snapshot takes one of a VDI that nobody is writing to.
func (f *fake) snapshot(name, tag string) {
	vid := f.Map().Working(name).Vid
	r := f.must(&state.Command{CloseVDI: &state.CloseVDI{Name: name, Tag: tag}})
	f.freeze(vid, r.Index)
}

// freeze ends the taking of a snapshot.
func (f *fake) freeze(vid uint32, closing uint64) {
	var terms []uint64
	for _, g := range f.Map().PoolGroups(0) {
		terms = append(terms, g.Term)
	}
	f.must(&state.Command{FreezeVDI: &state.FreezeVDI{Vid: vid, Closing: closing, Terms: terms}})
}

// client makes a client of node local, or of no node.
func (f *fake) client(local state.NodeID) *Client {
	cfg := Config{Maps: f, Net: f, Propose: f.Propose, Logger: slog.New(slog.DiscardHandler)}
	if local != state.NoNode {
		cfg.Local, cfg.LocalNode = &fakeLocal{f, local}, local
	}
	return f.clientWith(cfg)
}

func (f *fake) clientWith(cfg Config) *Client {
	c, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

// program is a client that is no part of a node.
func (f *fake) program() *Client { return f.client(state.NoNode) }

type fakeLocal struct {
	f    *fake
	node state.NodeID
}

func (l *fakeLocal) Submit(r *wire.Request, b *wire.Batch) {
	l.f.serve(l.node, r, b, func() {})
}

// serve is a primary.
func (f *fake) serve(node state.NodeID, r *wire.Request, b *wire.Batch, drop func()) {
	f.mu.Lock()
	f.served[r.Kind]++
	if r.Epoch != localEpoch && f.conns[fmt.Sprint(r.Client, node)] != r.Epoch {
		r.Status = wire.StatusOldConn
		f.mu.Unlock()
		b.Complete(r)
		return
	}
	if g := f.m.Group(state.GroupID(r.Group)); g.Primary.Node != node || g.Term != r.Term {
		f.judge(node, r)
		f.mu.Unlock()
		b.Complete(r)
		return
	}
	f.watch(node, r, 1)
	v := serve
	if fault := f.fault; fault != nil {
		f.mu.Unlock()
		v = fault(node, r)
		f.mu.Lock()
	}
	answer := func() {
		f.watch(node, r, -1)
		f.mu.Unlock()
		b.Complete(r)
	}
	switch v {
	case silent:
		f.mu.Unlock()
		return
	case late:
		_, changes := f.counted[r]
		f.mu.Unlock()
		go func() {
			time.Sleep(time.Duration(r.IO.Key%7+1) * time.Second)
			var b wire.Batch
			f.mu.Lock()
			if _, still := f.counted[r]; changes && !still { // dropped or fenced
				f.mu.Unlock()
				return
			}
			if f.judge(node, r) {
				f.do(r)
			}
			f.watch(node, r, -1)
			f.mu.Unlock()
			b.Complete(r)
			b.End()
		}()
		return
	case busy:
		r.Status = wire.StatusBusy
	case behind:
		r.Status = wire.StatusBehind
	case never:
		r.Status = wire.StatusNotPrimary
	case noSpace:
		r.Status = wire.StatusNoSpace
	case bad:
		r.Status, r.Message = wire.StatusFailed, "the disk is on fire"
	case ghost:
		later := *r
		f.counted[&later] = node
		delete(f.counted, r)
		f.mu.Unlock()
		go func() {
			time.Sleep(3 * time.Second)
			f.mu.Lock()
			defer f.mu.Unlock()
			if _, still := f.counted[&later]; still && f.judge(node, &later) {
				f.do(&later)
				f.watch(node, &later, -1)
			}
		}()
		r.Status = wire.StatusBehind
		b.Complete(r)
		return
	case tardy:
		if f.judge(node, r) {
			f.do(r)
		}
		f.mu.Unlock()
		go func() {
			time.Sleep(time.Second)
			var b wire.Batch
			f.mu.Lock()
			f.watch(node, r, -1)
			f.mu.Unlock()
			b.Complete(r)
			b.End()
		}()
		return
	case lost:
		if f.judge(node, r) {
			f.do(r)
		}
		f.mu.Unlock()
		drop()
		return
	default:
		if f.judge(node, r) {
			f.do(r)
		}
	}
	answer()
}

// setFault decides from now on what becomes of requests; nil: they are served.
func (f *fake) setFault(fault func(state.NodeID, *wire.Request) verdict) {
	f.mu.Lock()
	f.fault = fault
	f.mu.Unlock()
}

// watch counts unanswered changes by block and fails the test at the second one (R15). mu is held.
func (f *fake) watch(node state.NodeID, r *wire.Request, by int) {
	switch r.Kind {
	case wire.KindWrite, wire.KindZero, wire.KindTrim:
	default:
		return
	}
	if _, in := f.counted[r]; !in && by < 0 {
		return
	}
	f.counted[r] = node
	if by < 0 {
		delete(f.counted, r)
	}
	for blk := r.IO.Off / blockSize; blk <= (r.IO.Off+r.IO.Len-1)/blockSize; blk++ {
		at := fmt.Sprint(r.Client, r.IO.Key, blk)
		if f.open[at] += by; f.open[at] > 1 {
			f.t.Errorf("R15: %d unanswered changes of object %x block %d", f.open[at], r.IO.Key, blk)
		}
	}
}

// judge refuses what a primary refuses. mu is held.
func (f *fake) judge(node state.NodeID, r *wire.Request) bool {
	g := f.m.Group(state.GroupID(r.Group))
	v := f.m.VDI(r.IO.Vid)
	r.Done.Index = f.m.Index
	changes := r.Kind == wire.KindWrite || r.Kind == wire.KindZero || r.Kind == wire.KindTrim
	switch {
	case g.Primary.Node != node:
		r.Status = wire.StatusNotPrimary
	case r.Term < g.Term:
		r.Status = wire.StatusOldTerm
	case r.Term > g.Term || r.IO.Index > f.m.Index:
		r.Status = wire.StatusBehind
	case r.Kind == wire.KindFlush:
		return true
	case v == nil || v.Gen != r.IO.Gen:
		r.Status = wire.StatusGone
	case r.IO.SessGen != 0 && v.State == state.Frozen:
		r.Status = wire.StatusReadOnly
	case r.IO.SessGen != 0 && r.IO.SessGen != v.SessGen:
		r.Status = wire.StatusFenced
	case changes && v.State == state.Closing && r.Flags&wire.FlagAgain == 0:
		r.Status = wire.StatusBusy
	case changes && (r.IO.SessGen == 0 || v.State > state.Closing):
		r.Status = wire.StatusReadOnly
	default:
		return true
	}
	return false
}

func (f *fake) group(id state.GroupID) *fakeGroup {
	g := f.groups[id]
	if g == nil {
		g = &fakeGroup{durable: map[uint64][]byte{}, now: map[uint64][]byte{}}
		f.groups[id] = g
	}
	return g
}

func object(objs map[uint64][]byte, key uint64) []byte {
	o := objs[key]
	if o == nil {
		o = make([]byte, objectSize)
		objs[key] = o
	}
	return o
}

func (e *fakeEntry) apply(objs map[uint64][]byte) {
	to := object(objs, e.key)[e.off : e.off+e.len]
	if e.data == nil {
		clear(to)
	} else {
		copy(to, e.data)
	}
}

// do does what a primary and all replicas do. mu is held.
func (f *fake) do(r *wire.Request) {
	g := f.group(state.GroupID(r.Group))
	r.Status = wire.StatusOK
	switch r.Kind {
	case wire.KindRead:
		copy(r.Dst, object(g.now, r.IO.Key)[r.IO.Off:])
		return
	case wire.KindExtents:
		r.Extents = append(r.Extents, wire.Extent{Blocks: r.IO.Len / blockSize, State: 2})
		return
	case wire.KindFlush:
		g.flush()
		return
	}
	e := fakeEntry{lsn: g.lsn + 1, key: r.IO.Key, off: r.IO.Off, len: r.IO.Len}
	if r.Kind == wire.KindWrite {
		e.data = slices.Clone(r.Data)
		if !sumsFit(r) {
			f.t.Errorf("write of object %x: checksums do not fit", r.IO.Key)
		}
	}
	g.lsn++
	e.apply(g.now)
	g.log = append(g.log, e)
	r.Done, r.Sole = wire.Done{Term: r.Term, LSN: g.lsn}, f.sole
	if r.Flags&wire.FlagFUA != 0 {
		g.flush()
	}
}

func sumsFit(r *wire.Request) bool {
	if !wholeBlocks(r.IO.Off, r.IO.Len) {
		return r.IO.Sum == wire.Checksum(r.Data)
	}
	p := piece{req: wire.Request{Data: r.Data, IO: wire.IO{Off: r.IO.Off, Len: r.IO.Len}}}
	p.sum()
	return slices.Equal(p.crcs, r.IO.CRCs)
}

func (g *fakeGroup) flush() {
	for i := range g.log {
		g.log[i].apply(g.durable)
	}
	g.log, g.flushed = nil, g.lsn
}

// powerCut has all replicas of a group restart with what was durable and keep entries more.
func (f *fake) powerCut(id state.GroupID, keep int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resume(id, keep)
	f.recovered(id)
}

// resume is the first half: the set goes on, how far is not known yet. mu is held.
func (f *fake) resume(id state.GroupID, keep int) {
	g := f.group(id)
	if keep < len(g.log) {
		g.log = g.log[:keep]
	}
	g.lsn = g.flushed + uint64(len(g.log))
	for k := range g.now {
		delete(g.now, k)
	}
	for k, o := range g.durable {
		g.now[k] = slices.Clone(o)
	}
	for i := range g.log {
		g.log[i].apply(g.now)
	}
	f.edit(id, func(s *state.Group) { s.Resumes++; s.ResumedAt = f.m.Index + 1 })
}

// recovered is the second half. mu is held.
func (f *fake) recovered(id state.GroupID) {
	lsn := f.group(id).lsn
	f.edit(id, func(s *state.Group) { s.Recovered, s.RecoveredAt = lsn, s.Resumes })
}

// move gives a group's primary to a node.
func (f *fake) move(id state.GroupID, to state.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.edit(id, func(g *state.Group) { g.Primary = f.m.Current(to) })
}

// content is what a VDI holds.
func (f *fake) content(name string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.m.Working(name)
	b := make([]byte, v.Size)
	for at := uint64(0); at < v.Size; at += objectSize {
		g := f.group(f.m.GroupFor(v, uint32(at/objectSize)))
		copy(b[at:], object(g.now, uint64(v.Root)<<32|at/objectSize))
	}
	return b
}

// The network: every dial is answered by the node of that name.

type fakeConn struct {
	f      *fake
	node   state.NodeID
	name   string
	client string
	epoch  uint64
	conn   *wire.Conn
}

func (f *fake) Listen(string) (net.Listener, error) { return nil, errors.ErrUnsupported }

func (f *fake) Dial(addr string, _ time.Duration) (net.Conn, error) {
	f.mu.Lock()
	if f.cut[addr] {
		f.mu.Unlock()
		return nil, fmt.Errorf("%s: no route", addr)
	}
	var node state.NodeID
	for _, n := range f.m.Nodes {
		if n.Addr == addr {
			node = n.ID
		}
	}
	f.mu.Unlock()
	a, z := net.Pipe()
	go func() {
		var preface [4]byte
		if _, err := io.ReadFull(z, preface[:]); err != nil {
			return
		}
		fc := &fakeConn{f: f, node: node, name: addr}
		fc.conn = wire.NewConn(z, fc)
		f.mu.Lock()
		f.links[fc.conn] = fc
		f.mu.Unlock()
		fc.conn.Start()
	}()
	return a, nil
}

// hang breaks all connections to a node.
func (f *fake) hang(node state.NodeID) {
	f.mu.Lock()
	var list []*wire.Conn
	for c, fc := range f.links {
		if fc.node == node {
			list = append(list, c)
		}
	}
	f.mu.Unlock()
	for _, c := range list {
		c.Close(errors.New("hung up"))
	}
}

type fakeRequest struct {
	wire.Request
	fc   *fakeConn
	id   uint64
	buf  *wire.Buf
	kind wire.Kind // of the answer
}

func (fc *fakeConn) Frame(c *wire.Conn, fr *wire.Frame, b *wire.Batch) {
	f := fc.f
	switch fr.Kind {
	case wire.KindHello:
		fc.hello(c, fr, b)
		return
	case wire.KindPing:
		c.Send(&wire.Header{Kind: wire.KindPing | wire.KindAnswer, ID: fr.ID}, nil, nil, nil)
		b.Flush(c)
		return
	}
	q := &fakeRequest{fc: fc, id: fr.ID, kind: fr.Kind}
	kind, meta, node, client, epoch := fr.Kind, fr.Meta, fc.node, fc.client, fc.epoch
	if fr.Kind == wire.KindRelay {
		var m wire.Relay
		if m.Parse(fr.Meta) != nil {
			f.t.Error("bad relay")
		}
		kind, meta, client, epoch = m.Kind, m.Meta, m.Client, m.Epoch
		if g := f.Map().Group(state.GroupID(fr.Group)); g != nil {
			node = g.Primary.Node
		}
		f.supersede(client, node, epoch)
	}
	q.Kind, q.Flags, q.Group, q.Term, q.Client, q.Epoch, q.To = kind, fr.Flags, fr.Group, fr.Term, client, epoch, q
	if err := q.IO.Parse(meta); err != nil {
		f.t.Errorf("%s: %v", fr.Kind, err)
	}
	q.IO.CRCs = slices.Clone(q.IO.CRCs)
	q.Data = slices.Clone(fr.Data)
	if q.Kind == wire.KindRead {
		q.Dst = make([]byte, q.IO.Len)
	}
	f.serve(node, &q.Request, b, func() { go c.Close(errors.New("cut")) })
}

func (fc *fakeConn) hello(c *wire.Conn, fr *wire.Frame, b *wire.Batch) {
	var m wire.ClientHello
	if err := m.Parse(fr.Meta); err != nil {
		fc.f.t.Error(err)
	}
	h := wire.Header{Kind: wire.KindHello | wire.KindAnswer, ID: fr.ID}
	fc.client, fc.epoch = m.Client, m.Epoch
	if !fc.f.supersede(m.Client, fc.node, m.Epoch) {
		h.Status = wire.StatusOldConn
	}
	c.Send(&h, nil, nil, nil)
	b.Flush(c)
}

// supersede drops what older connections of a client left undone (R15).
func (f *fake) supersede(client string, node state.NodeID, epoch uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := fmt.Sprint(client, node)
	if epoch < f.conns[at] {
		return false
	}
	f.conns[at] = epoch
	for r, n := range f.counted {
		if r.Client == client && n == node && r.Epoch < epoch && r.Epoch != localEpoch {
			f.watch(node, r, -1)
		}
	}
	return true
}

func (q *fakeRequest) Answered(r *wire.Request, b *wire.Batch) {
	fc := q.fc
	h := wire.Header{Kind: q.kind | wire.KindAnswer, ID: q.id, Status: r.Status, Group: r.Group}
	var meta []byte
	switch {
	case r.Status == wire.StatusFailed:
		meta = []byte(r.Message)
	case r.Status != wire.StatusOK:
		meta = (&wire.Moved{Index: r.Done.Index}).Append(nil)
	case r.Kind == wire.KindRead:
		meta = readSums(r)
	case r.Kind == wire.KindExtents:
		for i := range r.Extents {
			meta = r.Extents[i].Append(meta)
		}
	case r.Kind != wire.KindFlush:
		meta = r.Done.Append(nil)
	}
	fc.conn.Send(&h, meta, r.Dst, nil)
	b.Flush(fc.conn)
}

func readSums(r *wire.Request) []byte {
	p := piece{req: wire.Request{Data: r.Dst, IO: wire.IO{Off: r.IO.Off, Len: r.IO.Len}}}
	p.sum()
	if wholeBlocks(r.IO.Off, r.IO.Len) {
		return p.crcs
	}
	return (&wire.Moved{Index: uint64(p.req.IO.Sum)}).Append(nil)[:4]
}

func (fc *fakeConn) Closed(c *wire.Conn, _ error) {
	fc.f.mu.Lock()
	delete(fc.f.links, c)
	fc.f.mu.Unlock()
}
