package replica

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	dialTimeout = time.Second
	redialAfter = 100 * time.Millisecond
)

// peer is the connection on which this node, as a primary, talks to another node.
type peer struct {
	e     *Engine
	node  state.NodeID
	heard atomic.Int64 // when it last said anything, as time since start

	mu      sync.Mutex
	conn    *wire.Conn
	dialing bool
	closed  bool
	tried   time.Time
	credits map[uint32]*atomic.Uint64 // by disk: bytes it can still take, as it said last (STORE.md rule 19)
	calls   map[uint64]*call
	nextID  uint64
}

// call waits for an answer.
type call struct {
	deadline time.Time
	done     func(a *wire.Frame, b *wire.Batch) // a nil: there will be none
}

var start = time.Now()

// peer returns the connection to a node, made at first use.
func (e *Engine) peer(id state.NodeID) *peer {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.peers[id]
	if p == nil {
		p = &peer{e: e, node: id, calls: map[uint64]*call{}, credits: map[uint32]*atomic.Uint64{}}
		e.peers[id] = p
	}
	return p
}

// nodesChanged closes connections to incarnations that ended.
func (e *Engine) nodesChanged(m *state.Map) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, p := range e.peers {
		if n := m.Node(id); n == nil || n.Removed {
			delete(e.peers, id)
			go p.close()
		}
	}
}

// current returns the connection, nil while there is none.
func (p *peer) current() *wire.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

// ensure has the peer dialed, unless that was tried a moment ago.
func (p *peer) ensure() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil || p.dialing || p.closed || time.Since(p.tried) < redialAfter || p.e.ctx.Err() != nil { // Close waits for what was begun before it
		return
	}
	p.dialing, p.tried = true, time.Now()
	p.e.wg.Go(p.dial)
}

func (p *peer) dial() {
	var conn *wire.Conn
	err := fmt.Errorf("node %d is unknown", p.node)
	if n := p.e.agreed().Node(p.node); n != nil {
		conn, err = wire.DialFrames(p.e.cfg.Net, n.Addr, dialTimeout, p)
	}
	p.mu.Lock()
	p.dialing = false
	if err == nil && p.closed {
		p.mu.Unlock()
		conn.Close(nil)
		return
	}
	if err == nil {
		p.conn = conn
		p.heard.Store(int64(time.Since(start)))
	}
	p.mu.Unlock()
	if err != nil {
		p.e.peerFailed(p, err)
		return
	}
	conn.Start()
	p.e.peerUp(p)
}

// peerUp resumes the streams of all groups to p.
func (e *Engine) peerUp(p *peer) {
	var b wire.Batch
	e.eachGroup(func(g *group) {
		g.mu.Lock()
		for _, m := range g.members {
			if m.p == p {
				g.pump(m, &b)
			}
		}
		g.mu.Unlock()
	})
	b.End()
}

// peerFailed has p taken out of every set of ours (R8): it cannot be reached, or owes an answer and is silent.
func (e *Engine) peerFailed(p *peer, err error) {
	n := 0
	e.eachGroup(func(g *group) {
		g.mu.Lock()
		for _, m := range g.members {
			if m.p == p {
				g.suspect(m)
				n++
			}
		}
		g.mu.Unlock()
	})
	if n > 0 {
		e.early.say(e.log, "a replica does not answer", p.node, 0, fmt.Errorf("%d groups: %w", n, err))
	}
}

// suspect wants m out of the set. mu is held.
func (g *group) suspect(m *member) {
	if g.change != nil && g.change.adds(m.Member) { // R9: undecided, so it counts; if it joins, it leaves again
		m.removed = true
		return
	}
	if m.joiner != nil {
		m.joiner.fail(fmt.Errorf("node %d does not answer", m.Node))
	}
	if m.inSync && !m.removed {
		m.removed = true
		g.stir()
		g.wantSet()
	}
}

// call sends a request and has done called with its answer, or with nil when there will be none; not at all if it returns false: there is no connection.
// done runs in the connection's reader goroutine and may be called before call returns.
func (p *peer) call(h *wire.Header, meta, data []byte, owner wire.Holder, limit time.Duration, done func(*wire.Frame, *wire.Batch), b *wire.Batch) bool {
	p.mu.Lock()
	conn := p.conn
	if conn == nil {
		p.mu.Unlock()
		p.ensure()
		return false
	}
	p.nextID++
	h.ID = p.nextID
	p.calls[h.ID] = &call{time.Now().Add(limit), done}
	p.mu.Unlock()
	conn.Send(h, meta, data, owner)
	b.Flush(conn)
	return true
}

// Frame takes answers and acknowledgements.
func (p *peer) Frame(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	p.heard.Store(int64(time.Since(start)))
	if f.Kind != wire.KindPing|wire.KindAnswer {
		p.e.calm.disturb()
	}
	switch {
	case f.Kind == wire.KindAcks:
		credit, list, err := wire.ParseAcks(f.Meta)
		if err == nil {
			room := p.takeCredit(credit)
			err = wire.EachGroupPos(list, func(pos wire.GroupPos) {
				p.e.group(state.GroupID(pos.Group)).acked(p, f.From, pos, room, b)
			})
		}
		if err != nil {
			c.Close(fmt.Errorf("acknowledgement of node %d: %w", p.node, err))
		}
	case f.Kind == wire.KindAppend|wire.KindAnswer: // only refusals are answered
		p.e.group(state.GroupID(f.Group)).refused(p, c, f, b)
	case f.Kind&wire.KindAnswer != 0:
		p.mu.Lock()
		cl := p.calls[f.ID]
		delete(p.calls, f.ID)
		p.mu.Unlock()
		if cl != nil {
			cl.done(f, b)
		}
	}
}

// Closed fails what waits and dials again at once: a process that died refuses, a broken cable is found out.
func (p *peer) Closed(c *wire.Conn, err error) {
	p.mu.Lock()
	if p.conn == c {
		p.conn = nil
	}
	calls := p.calls
	p.calls = map[uint64]*call{}
	p.tried = time.Time{}
	p.mu.Unlock()
	var b wire.Batch
	for _, cl := range calls {
		cl.done(nil, &b)
	}
	b.End()
	p.ensure()
}

// check ends the connection to a peer that lets a call wait too long.
func (p *peer) check(now time.Time) {
	p.mu.Lock()
	conn := p.conn
	late := false
	var over []*call
	for id, cl := range p.calls {
		if !now.After(cl.deadline) {
			continue
		}
		if now.Sub(p.lastHeard()) > replicaSilenceMax {
			late = true
			break
		}
		delete(p.calls, id)
		over = append(over, cl)
	}
	p.mu.Unlock()
	var b wire.Batch
	for _, cl := range over { // it talks, but this answer did not come in time
		cl.done(nil, &b)
	}
	b.End()
	if late && conn != nil {
		p.stalled(conn)
	}
}

func (p *peer) lastHeard() time.Time { return start.Add(time.Duration(p.heard.Load())) }

// stalled gives a silent connection up.
func (p *peer) stalled(conn *wire.Conn) {
	err := fmt.Errorf("node %d owes an answer and is silent for %v", p.node, time.Since(p.lastHeard()).Round(time.Millisecond))
	p.e.wg.Go(func() {
		p.e.peerFailed(p, err)
		conn.Close(err)
	})
}

// close ends the connection for good.
func (p *peer) close() {
	p.mu.Lock()
	p.closed = true
	conn := p.conn
	p.mu.Unlock()
	if conn != nil {
		conn.Close(fmt.Errorf("node %d is not needed any more", p.node))
	}
}

// receivers is how many replicas entries go to now, those that are being brought up to date among them. mu is held.
func (g *group) receivers() (n int) {
	for _, m := range g.members {
		if m.live && m.p.current() != nil {
			n++
		}
	}
	return n
}

// pump sends m what it has not been sent. mu of the group is held.
func (g *group) pump(m *member, b *wire.Batch) {
	conn := m.p.current()
	if conn == nil {
		m.p.ensure()
		return
	}
	if !m.live {
		return
	}
	if conn != m.conn {
		if m.conn != nil && m.joiner != nil && !(g.change != nil && g.change.adds(m.Member)) {
			m.joiner.fail(fmt.Errorf("connection to node %d was lost", m.Node))
			return
		}
		m.conn, m.sent = conn, m.acked
	}
	if m.sent >= g.last {
		return
	}
	if len(g.tail) == 0 || g.tail[0].Number.LSN > m.sent+1 {
		if m.joiner != nil {
			m.joiner.fail(fmt.Errorf("node %d is behind what we still hold", m.Node))
		} else {
			g.suspect(m)
		}
		return
	}
	for _, en := range g.tail[m.sent+1-g.tail[0].Number.LSN:] {
		g.send(m, en, b)
	}
	m.sent = g.last
	b.Flush(conn)
}

// flagHole marks, in KindAppend, an empty entry in place of one whose object is still to be copied: only a replica that is being resynced may take it.
const flagHole = 1

// send queues one entry to m, unchanged (R3); a replica that still waits for a copy of the object gets an empty entry of the same number.
func (g *group) send(m *member, en *entry, b *wire.Batch) {
	h := wire.Header{Kind: wire.KindAppend, Group: uint32(g.id), Term: g.term, From: g.e.self().Inc, To: m.Inc}
	ap := wire.Append{Commit: g.commit, Once: en.once, Part: en.part}
	meta := ap.Append(g.scratch[:0])
	if m.joiner != nil && m.joiner.lacks(en) {
		hole := entry{}
		hole.Number = en.Number
		h.Flags = flagHole
		meta = hole.AppendHead(meta)
		m.conn.Send(&h, meta, nil, nil)
	} else {
		meta = en.AppendHead(meta)
		m.conn.Send(&h, meta, en.Data, en.owner)
	}
	g.scratch = meta
}

// acked notes what a replica has, and commits what that allows.
func (g *group) acked(p *peer, inc uint64, pos wire.GroupPos, room *atomic.Uint64, b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.role != serving && g.role != activating || pos.Term < g.granted {
		return
	}
	for _, m := range g.members {
		if m.p != p || m.Inc != inc || pos.LSN <= m.acked || pos.LSN > m.sent {
			continue
		}
		m.acked, m.room = pos.LSN, room
		m.owing = time.Time{}
		if g.change == nil {
			m.removed = false
		}
		g.advance(b)
		return
	}
}

// refused takes a replica's word that it did not take an entry.
func (g *group) refused(p *peer, c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.role != serving && g.role != activating {
		return
	}
	if f.Status == wire.StatusOldTerm && f.Term > g.term { // somebody else is primary: our map will say so
		g.fence = max(g.fence, f.Term)
		g.stepDown(b)
		return
	}
	for _, m := range g.members {
		if m.p != p || m.conn != c {
			continue
		}
		m.sent = m.acked // sent again by tick
		switch f.Status {
		case wire.StatusOldTerm, wire.StatusGap, wire.StatusBehind, wire.StatusBusy:
		default:
			g.e.early.say(g.e.log, "replicas refused entries", m.Node, g.id, fmt.Errorf("%v: %s", f.Status, f.Meta))
			g.suspect(m)
		}
	}
}

// watch finds replicas that owe an acknowledgement too long. mu of the group is held.
func (g *group) watch(m *member, now time.Time) {
	switch {
	case m.acked >= m.sent || !m.live:
		m.owing = time.Time{}
	case m.owing.IsZero():
		m.owing = now
	case now.Sub(m.owing) > replicaSilenceMax && now.Sub(m.p.lastHeard()) > replicaSilenceMax:
		if conn := m.p.current(); conn != nil {
			m.p.stalled(conn)
		}
		m.owing = now
	case now.Sub(m.owing) > syncSilenceMax: // it talks, but not of this group
		g.suspect(m)
		m.owing = now
	}
	if m.conn != nil && m.p.current() == nil {
		m.p.ensure()
	}
}
