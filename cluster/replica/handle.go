package replica

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// verdict is what becomes of a request before it is looked at further.
type verdict uint8

const (
	proceed verdict = iota
	park            // it waits here: see unpark and rerun
	refuse          // with the status
)

// submit runs a request from now or later.
func (g *group) submit(r *wire.Request, b *wire.Batch) {
	g.mu.Lock()
	g.handle(r, b)
	g.mu.Unlock()
}

// handle decides about a request and does it. mu is held; the agreed map is looked at under it, so that whoever publishes a map and then
// takes mu knows that every later request sees it (R22).
func (g *group) handle(r *wire.Request, b *wire.Batch) {
	v := g.e.cur.Load()
	switch what, status := g.judge(r, v); what {
	case refuse:
		g.refuse(r, status, b)
	case park:
		if len(g.parked) >= parkedMax {
			g.refuse(r, wire.StatusBusy, b)
			return
		}
		g.parked = append(g.parked, r)
		g.stir()
	case proceed:
		switch r.Kind {
		case wire.KindRead:
			g.read(r, v, b)
		case wire.KindExtents:
			g.extents(r, v, b)
		case wire.KindWrite:
			if !g.doneBefore(r, b) {
				g.write(r, v, b)
			}
		case wire.KindZero, wire.KindTrim:
			if !g.doneBefore(r, b) {
				g.zero(r, v, b)
			}
		case wire.KindFlush:
			g.flush(r, b)
		default:
			g.refuse(r, wire.StatusInvalid, b)
		}
	}
}

// judge holds every reason not to do a request now, in the order that matters: first who we are, then who asks, then what for.
func (g *group) judge(r *wire.Request, v *view) (verdict, wire.Status) {
	writes := r.Kind == wire.KindWrite || r.Kind == wire.KindZero || r.Kind == wire.KindTrim
	switch {
	case g.role == activating && r.Term <= g.term:
		return park, 0
	case g.role != serving:
		return refuse, wire.StatusNotPrimary
	case r.Term < g.term:
		return refuse, wire.StatusOldTerm
	case r.Term > g.term || r.IO.Index > v.m.Index:
		return refuse, wire.StatusBehind
	case !g.e.cfg.Leased() && !broken("Invariant4"): // invariant 4
		return refuse, wire.StatusBehind
	case g.change != nil && g.change.To != state.NoNode: // resigned, unless raft refuses (R8)
		return park, 0
	case r.Kind == wire.KindFlush:
		return g.judgeFlush(r, v)
	case r.IO.Len == 0 || uint64(r.IO.Off)+uint64(r.IO.Len) > objstore.ObjectSize:
		r.Message = "range is not within an object"
		return refuse, wire.StatusInvalid
	}
	d := v.m.VDI(r.IO.Vid)
	key := objstore.Key(r.IO.Key)
	switch {
	case d == nil || d.Gen != r.IO.Gen: // rule 11
		return refuse, wire.StatusGone
	case uint32(key.Root()) != d.Root || state.GroupOf(v.m.Pool(d.Pool), uint32(key.Root()), key.Index()) != g.id:
		r.Message = "object is not of this VDI or group"
		return refuse, wire.StatusInvalid
	case r.IO.SessGen != 0 && (d.State == state.Frozen || d.State == state.Deleted):
		return refuse, wire.StatusReadOnly // the session follows its disk to the next vid
	case r.IO.SessGen != 0 && r.IO.SessGen != d.SessGen && !broken("R14"):
		return refuse, wire.StatusFenced // R14
	case r.IO.Once.Sess != 0 && v.m.Session(r.IO.Once.Sess) == nil:
		return refuse, wire.StatusFenced // what was done once of an ended session is forgotten
	case d.State == state.Deleted: // the collector may have moved, or freed, what it had
		return refuse, wire.StatusReadOnly
	case !writes:
		return proceed, 0
	case r.IO.SessGen == 0 || d.State == state.Frozen || d.State == state.Deleted:
		return refuse, wire.StatusReadOnly
	case d.State == state.Closing && !(r.Flags&wire.FlagAgain != 0 && v.m.Owing(d.Vid) != nil) && !broken("R22"): // R22: what was answered before it began belongs to it
		return park, 0
	case g.low(), g.stalled(), g.handTo != state.NoNode, len(g.tail) >= tailMax:
		return park, 0
	}
	if g.copying[key] > 0 || g.paused() {
		return park, 0
	}
	return proceed, 0
}

// judgeFlush: a fenced session must not be told that its writes are safe.
func (g *group) judgeFlush(r *wire.Request, v *view) (verdict, wire.Status) {
	d := v.m.VDI(r.IO.Vid)
	if r.IO.SessGen != 0 && d != nil && d.Gen == r.IO.Gen {
		switch {
		case d.State == state.Frozen:
			return refuse, wire.StatusReadOnly
		case d.State == state.Deleted || r.IO.SessGen != d.SessGen:
			return refuse, wire.StatusFenced
		}
	}
	if g.low() {
		return park, 0
	}
	return proceed, 0
}

// refuse ends a request without having done it.
func (g *group) refuse(r *wire.Request, s wire.Status, b *wire.Batch) {
	r.Status = s
	r.Done = wire.Done{Term: g.fence, Index: g.e.agreed().Index}
	b.Complete(r)
}

// unpark looks again at what waits.
func (g *group) unpark(b *wire.Batch) {
	g.mu.Lock()
	g.rerun(b)
	g.mu.Unlock()
}

// rerun handles again everything that was parked. mu is held.
func (g *group) rerun(b *wire.Batch) {
	if len(g.parked) > 0 {
		list := g.parked
		g.parked = nil
		for _, r := range list {
			g.again(r, b)
		}
	}
	g.rerunReads(b)
}

// again handles a request that waited here, unless its connection was superseded meanwhile (R15).
func (g *group) again(r *wire.Request, b *wire.Batch) {
	cr, ok := r.To.(*connRequest)
	if !ok {
		g.handle(r, b)
		return
	}
	if !cr.client.mu.TryRLock() { // a newer connection is just being let in
		g.refuse(r, wire.StatusOldConn, b)
		return
	}
	if cr.client.epoch != r.Epoch {
		g.refuse(r, wire.StatusOldConn, b)
	} else {
		g.handle(r, b)
	}
	cr.client.mu.RUnlock()
}

// clientState is a client of other processes: its newest connection is the only one served.
type clientState struct {
	seen  atomic.Int64 // when it last sent something, as time since start
	mu    sync.RWMutex // read-held while a request of it is numbered
	epoch uint64
}

// clientIdleMax is how long a client may be silent before it is forgotten. A late frame of one that was is let in by a hello only, and the session's
// generation and the group's term still stand before it.
const clientIdleMax = time.Hour

func (e *Engine) client(name string) *clientState {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.clients[name]
	if c == nil {
		c = &clientState{}
		e.clients[name] = c
		if len(e.clients)%256 == 0 {
			for n, x := range e.clients {
				if x != c && time.Since(start)-time.Duration(x.seen.Load()) > clientIdleMax {
					delete(e.clients, n)
				}
			}
		}
	}
	c.seen.Store(int64(time.Since(start)))
	return c
}

// clientConn is what a connection is known by after its hello.
type clientConn struct {
	name   string
	client *clientState
	epoch  uint64
}

// hello lets a client's connection in. It is answered when nothing of an older one can be numbered any more (R15).
func (e *Engine) hello(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var m wire.ClientHello
	if err := m.Parse(f.Meta); err != nil {
		e.refuse(c, f, wire.StatusInvalid, err, b)
		return
	}
	cs := e.client(m.Client)
	if !cs.raise(m.Epoch) {
		e.answer(c, f, wire.StatusOldConn, nil, b)
		return
	}
	c.User = &clientConn{m.Client, cs, m.Epoch}
	moved := wire.Moved{Index: e.agreed().Index}
	e.answer(c, f, wire.StatusOK, moved.Append(nil), b)
}

// raise makes epoch the newest; false if a newer one is known.
func (c *clientState) raise(epoch uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch < c.epoch && !broken("R15") {
		return false
	}
	c.epoch = epoch
	return true
}

// connRequest is a request that came by a connection.
type connRequest struct {
	wire.Request
	conn   *wire.Conn
	id     uint64
	client *clientState
	buf    *wire.Buf // Data's or Dst's
	crcs   []byte    // IO.CRCs of ours
	meta   []byte
}

var connRequests = sync.Pool{New: func() any { return new(connRequest) }}

// clientRequest takes a request frame.
func (e *Engine) clientRequest(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	cc, ok := c.User.(*clientConn)
	if !ok {
		e.answer(c, f, wire.StatusOldConn, nil, b)
		return
	}
	e.serve(c, f, f.Kind, f.Meta, cc.name, cc.client, cc.epoch, b)
}

// relay takes a request that another node passes on for a client that cannot reach us (R18).
func (e *Engine) relay(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var m wire.Relay
	if err := m.Parse(f.Meta); err != nil || m.Kind < wire.KindRead || m.Kind > wire.KindExtents {
		e.answer(c, f, wire.StatusInvalid, []byte("malformed relay"), b)
		return
	}
	sg := e.agreed().Group(state.GroupID(f.Group))
	switch {
	case sg == nil || sg.Primary != e.self():
		e.forward(c, f, sg, b)
		return
	case f.Flags&relayedOnce == 0: // the client reaches us: it means another node. Serving it here would supersede its own connection to us
		e.answer(c, f, wire.StatusNotPrimary, (&wire.Moved{Index: e.agreed().Index}).Append(nil), b)
		return
	}
	cs := e.client(m.Client)
	if !cs.raise(m.Epoch) {
		e.answer(c, f, wire.StatusOldConn, nil, b)
		return
	}
	e.serve(c, f, m.Kind, m.Meta, m.Client, cs, m.Epoch, b)
}

// forward passes a relayed request to its primary, and the answer back.
func (e *Engine) forward(c *wire.Conn, f *wire.Frame, sg *state.Group, b *wire.Batch) {
	if f.Flags&relayedOnce != 0 || sg == nil || sg.Primary.Node == state.NoNode {
		e.answer(c, f, wire.StatusNotPrimary, (&wire.Moved{Index: e.agreed().Index}).Append(nil), b)
		return
	}
	h := wire.Header{Kind: wire.KindRelay, Flags: f.Flags | relayedOnce, Group: f.Group, Term: f.Term}
	id := f.ID
	buf := f.Keep()
	ok := e.peer(sg.Primary.Node).call(&h, f.Meta, buf.B, buf, replicaSilenceMax, func(a *wire.Frame, b *wire.Batch) {
		back := wire.Header{Kind: wire.KindRelay | wire.KindAnswer, ID: id, Group: h.Group, Status: wire.StatusBehind}
		var meta, data []byte
		if a != nil {
			back.Status, back.Term, meta, data = a.Status, a.Term, a.Meta, a.Data
		}
		c.Send(&back, meta, data, nil)
		b.Flush(c)
	}, b)
	buf.Release()
	if !ok {
		e.answer(c, f, wire.StatusBehind, (&wire.Moved{}).Append(nil), b)
	}
}

// relayedOnce marks, in a relay's flags, that it was passed on: it is not passed on again.
const relayedOnce = 0x80

func (e *Engine) serve(c *wire.Conn, f *wire.Frame, kind wire.Kind, meta []byte, name string, cs *clientState, epoch uint64, b *wire.Batch) {
	r := connRequests.Get().(*connRequest)
	crcs, m := r.crcs[:0], r.meta[:0]
	*r = connRequest{conn: c, id: f.ID, client: cs, meta: m}
	r.Kind, r.Flags, r.Group, r.Term = kind, f.Flags&(wire.FlagFUA|wire.FlagAgain), f.Group, f.Term
	r.Client, r.Epoch, r.Crossed, r.To = name, epoch, true, r
	if err := r.IO.Parse(meta); err != nil {
		r.Status, r.Message = wire.StatusInvalid, err.Error()
		b.Complete(&r.Request)
		return
	}
	r.crcs = append(crcs, r.IO.CRCs...)
	r.IO.CRCs = r.crcs
	switch kind {
	case wire.KindWrite:
		r.buf = f.Keep()
		r.Data, r.Owner = r.buf.B, r.buf
	case wire.KindRead:
		if r.IO.Len > objstore.ObjectSize {
			r.Status = wire.StatusInvalid
			b.Complete(&r.Request)
			return
		}
		r.buf = wire.GetBuf(int(r.IO.Len))
		r.Dst = r.buf.B
	}
	cs.seen.Store(int64(time.Since(start)))
	cs.mu.RLock()
	if cs.epoch != epoch && !broken("R15") {
		r.Status = wire.StatusOldConn
		b.Complete(&r.Request)
	} else {
		e.group(state.GroupID(f.Group)).submit(&r.Request, b)
	}
	cs.mu.RUnlock()
}

// Answered sends the outcome to the client.
func (cr *connRequest) Answered(r *wire.Request, b *wire.Batch) {
	kind := r.Kind
	h := wire.Header{Kind: kind | wire.KindAnswer, Status: r.Status, ID: cr.id, Group: r.Group, Term: r.Done.Term}
	meta := cr.meta[:0]
	var data []byte
	switch r.Status {
	case wire.StatusOK:
		switch kind {
		case wire.KindRead:
			data = r.Dst
			meta = appendSums(meta, r.IO.Off, data)
		case wire.KindExtents:
			for i := range r.Extents {
				meta = r.Extents[i].Append(meta)
			}
		case wire.KindWrite, wire.KindZero, wire.KindTrim:
			meta = r.Done.Append(meta)
		}
	case wire.StatusInvalid, wire.StatusFailed, wire.StatusBad:
		meta = append(meta, r.Message...)
	default:
		meta = (&wire.Moved{Index: r.Done.Index}).Append(meta)
	}
	var owner wire.Holder
	if cr.buf != nil {
		owner = cr.buf
	}
	cr.conn.Send(&h, meta, data, owner)
	b.Flush(cr.conn)
	if cr.buf != nil {
		cr.buf.Release()
	}
	cr.buf, cr.meta, cr.conn, cr.client = nil, meta, nil, nil
	cr.Request = wire.Request{}
	connRequests.Put(cr)
}

// appendSums adds the checksums under which read data travels: one for each block if the range is whole blocks, else one.
func appendSums(meta []byte, off uint32, data []byte) []byte {
	if off%objstore.BlockSize != 0 || len(data)%objstore.BlockSize != 0 {
		return binary.LittleEndian.AppendUint32(meta, wire.Checksum(data))
	}
	for ; len(data) > 0; data = data[objstore.BlockSize:] {
		meta = binary.LittleEndian.AppendUint32(meta, wire.Checksum(data[:objstore.BlockSize]))
	}
	return meta
}
