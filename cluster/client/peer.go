package client

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// peer is the way to one node's primaries.
//
//	idle ─(a request)─▶ dialing ─▶ greeting ─(hello answered, R15)─▶ ready ─(lost, silent)─▶ broken ─(a moment)─▶ dialing
//	                       │           │                                                       ▲
//	                       └───────────┴──────────────(failed)────────────────────────────────┘
//
// Every connection has a higher epoch than all before it. Requests that come while it is not ready wait.
type peer struct {
	c     *Client
	node  state.NodeID
	heard atomic.Int64 // tick of the last frame

	mu      sync.Mutex // guards what follows
	state   peerState
	conn    *wire.Conn
	epoch   uint64
	inc     uint64    // incarnation of the node it was dialed for
	table   inflight  // sent on conn
	waiting pieceList // until it is ready
	meta    []byte    // scratch
	since   int64     // tick of the last change of state
	fails   int       // in a row
	retryAt int64     // broken: tick of the next try
	lostAt  int64     // tick since which it can't be reached, 0 while it can
	wanted  int64     // tick of the last request for it
	pinged  bool      // since the last frame
	over    bool      // the client is closed
	relayed uint64    // epoch of requests that go through another node (R18), 0: none yet
}

type peerState uint8

const (
	peerIdle peerState = iota
	peerDialing
	peerGreeting
	peerReady
	peerBroken
)

const (
	dialTimeout = 2 * time.Second
	tick        = 100 * time.Millisecond
	pingAfter   = time.Second
	// A node that talks but owes an answer this long may have lost the request: it is asked again on a new connection.
	answerMax = 30 * time.Second
	// A node that nobody wants any more is not tried again.
	forgetAfter = 10 * time.Second
)

func ticks(d time.Duration) int64 { return int64((d + tick - 1) / tick) }

// peer is the way to a node.
func (c *Client) peer(id state.NodeID) *peer {
	if p, ok := c.peers.Load(id); ok {
		return p.(*peer)
	}
	p, _ := c.peers.LoadOrStore(id, &peer{c: c, node: id})
	return p.(*peer)
}

// send sends a piece, or keeps it until that is possible.
func (p *peer) send(pc *piece, m *state.Map, b *wire.Batch) {
	p.mu.Lock()
	if p.over {
		p.mu.Unlock()
		p.c.settle(pc, ErrClosed, b)
		return
	}
	if p.state == peerReady {
		conn := p.conn
		p.put(pc)
		p.mu.Unlock()
		b.Flush(conn)
		return
	}
	p.wanted = p.c.now.Load()
	far := p.unreachable()
	if far {
		pc.epoch = p.relayEpoch(pc)
	}
	p.mu.Unlock()
	if far && p.c.relay(pc, m, b) {
		return
	}
	p.mu.Lock()
	if p.over { // in this moment
		p.mu.Unlock()
		p.c.settle(pc, ErrClosed, b)
		return
	}
	if p.state == peerReady { // likewise
		conn := p.conn
		p.put(pc)
		p.mu.Unlock()
		b.Flush(conn)
		return
	}
	p.waiting.push(pc)
	if p.state == peerIdle {
		p.dial(m)
	}
	p.mu.Unlock()
}

// put queues a request on the connection. mu is held.
func (p *peer) put(pc *piece) {
	r := &pc.req
	pc.sent, pc.epoch = p.c.now.Load(), 0
	p.meta = r.IO.Append(p.meta[:0])
	h := wire.Header{Kind: r.Kind, Flags: r.Flags, ID: p.table.add(pc), Group: r.Group, Term: r.Term, From: p.epoch, To: pc.inc}
	p.conn.Send(&h, p.meta, r.Data, r.Owner)
}

// dial begins a connection. mu is held.
func (p *peer) dial(m *state.Map) {
	n := m.Node(p.node)
	if n == nil || p.c.closed.Load() {
		p.broken()
		return
	}
	p.set(peerDialing)
	p.epoch = p.c.epochs.Add(1)
	p.inc = n.Inc
	addr, epoch := n.Addr, p.epoch
	p.c.wg.Go(func() { p.connect(addr, epoch) })
}

// set changes the state. mu is held.
func (p *peer) set(s peerState) {
	p.state, p.since = s, p.c.now.Load()
}

// broken has the tender try again after a while. mu is held.
func (p *peer) broken() {
	p.set(peerBroken)
	p.fails++
	wait := ticks(backoff(p.fails + 2))
	if p.fails == 1 {
		wait = 0
	}
	p.retryAt = p.since + wait
	if p.lostAt == 0 {
		p.lostAt = p.since
	}
	p.c.wakeTender()
}

// connect dials and greets. The answer comes to Frame.
func (p *peer) connect(addr string, epoch uint64) {
	conn, err := wire.DialFrames(p.c.cfg.Net, addr, dialTimeout, p)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if p.fails == 0 {
			p.c.log.Debug("dial", "node", p.node, "address", addr, "error", err)
		}
		p.broken()
		return
	}
	if p.c.closed.Load() {
		conn.Start()
		conn.Close(ErrClosed)
		p.broken()
		return
	}
	p.conn = conn
	p.set(peerGreeting)
	p.heard.Store(p.c.now.Load())
	p.pinged = false
	conn.Start()
	hello := wire.ClientHello{Client: p.c.cfg.ID, Epoch: epoch}
	conn.Send(&wire.Header{Kind: wire.KindHello, From: epoch}, hello.Append(nil), nil, nil)
	conn.Flush()
}

// Frame takes an answer.
func (p *peer) Frame(conn *wire.Conn, f *wire.Frame, b *wire.Batch) {
	if now := p.c.now.Load(); p.heard.Load() != now {
		p.heard.Store(now)
	}
	switch f.Kind {
	case wire.KindHello | wire.KindAnswer:
		p.greeted(conn, f, b)
		return
	case wire.KindPing | wire.KindAnswer:
		return
	}
	if f.Kind&wire.KindAnswer == 0 {
		return
	}
	p.mu.Lock()
	if p.conn != conn {
		p.mu.Unlock()
		return
	}
	pc := p.table.take(f.ID)
	p.mu.Unlock()
	if pc == nil {
		return // withdrawn
	}
	if err := pc.parse(f); err != nil {
		p.c.Stats.Mismatches.Add(1)
		p.c.log.Warn("bad answer", "node", p.node, "kind", f.Kind, "error", err)
		p.c.retry(pc, 0)
		conn.Close(err)
		return
	}
	superseded := pc.req.Status == wire.StatusOldConn && pc.epoch == 0
	p.c.answered(pc, b)
	if superseded { // by what was relayed under a higher epoch: this connection is refused for ever
		conn.Close(fmt.Errorf("node %d has heard of a newer connection", p.node))
	}
}

// greeted: the primary has dropped what was unnumbered from our older connections (R15). What waits may go.
func (p *peer) greeted(conn *wire.Conn, f *wire.Frame, b *wire.Batch) {
	p.mu.Lock()
	if p.conn != conn || p.state != peerGreeting {
		p.mu.Unlock()
		return
	}
	if f.Status != wire.StatusOK {
		p.mu.Unlock()
		conn.Close(fmt.Errorf("greeting refused: %s %s", f.Status, f.Meta))
		return
	}
	p.set(peerReady)
	p.fails, p.lostAt, p.relayed = 0, 0, 0
	list := p.waiting.take()
	p.mu.Unlock()
	for pc := list.pop(); pc != nil; pc = list.pop() {
		p.c.dispatch(pc, b) // the map may have moved on
	}
}

// Closed: what was sent is to be sent again. What was relayed (R18) goes another way.
func (p *peer) Closed(conn *wire.Conn, err error) {
	p.mu.Lock()
	if p.conn != conn {
		p.mu.Unlock()
		return
	}
	p.conn = nil
	n := p.table.n
	var relayed pieceList
	p.table.takeIf(&relayed, func(pc *piece) bool { return pc.epoch != 0 })
	p.table.takeIf(&p.waiting, func(*piece) bool { return true })
	p.c.Stats.Reconnects.Add(1)
	if !p.c.closed.Load() {
		p.c.log.Debug("connection lost", "node", p.node, "unanswered", n, "error", err)
	}
	p.broken()
	p.mu.Unlock()
	for pc := relayed.pop(); pc != nil; pc = relayed.pop() {
		p.c.peer(pc.node).renewRelay(pc.epoch)
		p.c.retry(pc, 0)
	}
}

// parse fills a request's outcome from an answer.
func (p *piece) parse(f *wire.Frame) error {
	r := &p.req
	if k := f.Kind &^ wire.KindAnswer; k != r.Kind && k != wire.KindRelay {
		return fmt.Errorf("%s for a %s", f.Kind, r.Kind)
	}
	r.Status = f.Status
	if f.Status != wire.StatusOK {
		var moved wire.Moved
		if moved.Parse(f.Meta) == nil {
			r.Done.Index = moved.Index
		} else {
			r.Message = string(f.Meta)
		}
		return nil
	}
	switch r.Kind {
	case wire.KindRead:
		return p.take(f)
	case wire.KindExtents:
		r.Extents = r.Extents[:0]
		return wire.EachExtent(f.Meta, func(e wire.Extent) { r.Extents = append(r.Extents, e) })
	case wire.KindFlush:
		return nil
	}
	return r.Done.Parse(f.Meta)
}

// take checks and copies what was read. The meta holds a checksum for each block, or one for all where blocks are not whole.
func (p *piece) take(f *wire.Frame) error {
	r := &p.req
	if len(f.Data) != len(r.Dst) {
		return fmt.Errorf("%d bytes for %d", len(f.Data), len(r.Dst))
	}
	step := len(f.Data)
	if wholeBlocks(r.IO.Off, r.IO.Len) {
		step = blockSize
	}
	if want := (len(f.Data) + step - 1) / max(step, 1) * 4; len(f.Meta) != want {
		return fmt.Errorf("%d bytes of checksums for %d", len(f.Meta), want)
	}
	for at, sums := 0, f.Meta; at < len(f.Data); at, sums = at+step, sums[4:] {
		if wire.Checksum(f.Data[at:at+step]) != binary.LittleEndian.Uint32(sums) {
			return fmt.Errorf("object %016x at %d: checksum mismatch on the way: %w", r.IO.Key, int(r.IO.Off)+at, syscall.EIO)
		}
	}
	copy(r.Dst, f.Data)
	return nil
}

// sweep has everything that a newer map sends elsewhere go there.
func (p *peer) sweep(m *state.Map, b *wire.Batch) {
	p.mu.Lock()
	elsewhere := func(pc *piece) bool {
		g := m.Group(pc.group())
		return g == nil || g.Primary.Node != pc.node || g.Primary.Inc != pc.inc || g.Resumes != pc.resumes
	}
	var list pieceList
	p.table.takeIf(&list, elsewhere)
	waiting := p.waiting.take()
	for pc := waiting.pop(); pc != nil; pc = waiting.pop() {
		if elsewhere(pc) {
			list.push(pc)
		} else {
			p.waiting.push(pc)
		}
	}
	p.mu.Unlock()
	for pc := list.pop(); pc != nil; pc = list.pop() {
		p.c.Stats.Retries.Add(1)
		p.c.dispatch(pc, b)
	}
}

// look asks whether the node is silent, and whether it is time to try again. The tender calls it.
func (p *peer) look(m *state.Map, now int64, b *wire.Batch) {
	p.mu.Lock()
	var end *wire.Conn
	var why error
	var far bool
	var list pieceList
	silence := ticks(p.c.cfg.SilenceMax)
	switch p.state {
	case peerBroken:
		n := m.Node(p.node)
		far = p.unreachable()
		switch {
		case p.waiting.n == 0 && now-p.wanted > ticks(forgetAfter):
			p.set(peerIdle)
			p.fails, p.lostAt = 0, 0
		case now >= p.retryAt || n != nil && n.Inc != p.inc:
			p.dial(m)
		}
	case peerGreeting:
		if now-p.since >= silence {
			end, why = p.conn, fmt.Errorf("node %d does not answer a greeting", p.node)
		}
	case peerReady:
		end, why = p.silent(now, silence)
	}
	if far {
		list = p.waiting.take()
	}
	p.mu.Unlock()
	if end != nil {
		end.Close(why)
	}
	for pc := list.pop(); pc != nil; pc = list.pop() {
		p.c.dispatch(pc, b)
	}
}

// silent decides whether a node that owes answers is given up. It is asked for a sign of life first. mu is held.
func (p *peer) silent(now, silence int64) (*wire.Conn, error) {
	sent, ok := p.table.oldest()
	if !ok {
		p.pinged = false
		return nil, nil
	}
	quiet := now - max(p.heard.Load(), sent)
	switch {
	case quiet >= silence:
		return p.conn, fmt.Errorf("node %d owes answers and says nothing", p.node)
	case now-sent >= ticks(answerMax):
		return p.conn, fmt.Errorf("node %d owes an answer for %s", p.node, answerMax)
	case quiet >= ticks(pingAfter) && !p.pinged:
		p.pinged = true
		p.conn.Send(&wire.Header{Kind: wire.KindPing}, nil, nil, nil)
		p.conn.Flush() // doesn't wait for the socket
	case quiet < ticks(pingAfter):
		p.pinged = false
	}
	return nil, nil
}

// close ends the connection and returns what waited.
func (p *peer) close() (list pieceList) {
	p.mu.Lock()
	conn := p.conn
	list = p.waiting.take()
	p.table.takeIf(&list, func(*piece) bool { return true })
	p.conn, p.over = nil, true
	p.mu.Unlock()
	if conn != nil {
		conn.Close(ErrClosed)
	}
	return list
}
