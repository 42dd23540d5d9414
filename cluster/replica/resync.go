package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// Resync, of whatever kind (a return, a move, a member that lost its tail), is one mechanism: the replica gets the group's stream from now on; object
// versions above the last common number are compared; objects that differ are copied, block by block where checksums differ, at a moment
// when nothing of them is uncommitted (R16, R20); what the replica holds is made durable; it joins the in-sync set (R11).
// Until its object is copied, the replica gets an empty entry in place of each that changes it: the copy has it.

const (
	resyncsMax   = 512                    // groups that a primary compares at once: most missed little or nothing, and share what they wait for, which is syncs of the replica's disk
	copiersMax   = 2                      // of them, those that copy objects: writes to an object wait while the last of it follows
	scanPause    = 10 * time.Millisecond  // between two looks at all groups
	scanInterval = 200 * time.Millisecond // between two looks when nothing has happened
	movesMax     = 32                     // groups that are handed to their preferred primaries at one look
	movesBeside  = 1                      // the same while others are brought up to date, in scanInterval: it is not pressing, and each costs clients and voters something
	burst        = 50 * time.Millisecond  // what may be copied at once after a rest: so much of a second's
	resyncRetry  = 500 * time.Millisecond
	callLimit    = 20 * time.Second // of one step
)

// joiner is the state of one resync.
type joiner struct {
	ctx    context.Context
	cancel context.CancelCauseFunc

	// Guarded by the group's mu.
	listed  bool                      // pending is complete
	pending map[objstore.Key]struct{} // objects the replica has not got yet; before listed: those changed since the stream began

	total, done atomic.Int64 // objects to copy, copied
	bytes       atomic.Int64
	began       time.Time
}

func (j *joiner) fail(err error) { j.cancel(err) }
func (j *joiner) end()           { j.cancel(errJoined) }

var errJoined = errors.New("resync ended")

// lacks says whether the replica must not apply en itself. mu of the group is held.
func (j *joiner) lacks(en *entry) bool {
	if en.Kind == objstore.KindNoop || broken("R20") {
		return false
	}
	if !j.listed {
		j.pending[en.Key] = struct{}{}
		return true
	}
	_, ok := j.pending[en.Key]
	return ok
}

// resyncer starts resyncs of what this node is primary of.
type resyncer struct {
	e       *Engine
	wake    chan struct{}
	slots   chan struct{}
	copiers chan struct{}
	starved atomic.Bool // a group found no slot

	whole   *state.Map // in which no group of wholeOf lacks anything; run's
	wholeOf state.Member

	mu     sync.Mutex
	failed map[*group]time.Time // not to be tried again before
	tokens float64              // bytes that may be copied now
	filled time.Time
}

func (s *resyncer) init(e *Engine) {
	s.e, s.wake, s.slots, s.copiers = e, make(chan struct{}, 1), make(chan struct{}, resyncsMax), make(chan struct{}, copiersMax)
	s.failed, s.filled = map[*group]time.Time{}, time.Now()
}

func (s *resyncer) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *resyncer) run() {
	t := time.NewTicker(scanInterval)
	defer t.Stop()
	for {
		moves := movesMax
		select {
		case <-s.e.ctx.Done():
			return
		case <-s.wake: // hundreds of resyncs may end at once: one look does for all
			select {
			case <-s.e.ctx.Done():
				return
			case <-time.After(scanPause):
			}
			if len(s.slots) > 0 {
				moves = 0
			}
		case <-t.C:
			if len(s.slots) > 0 {
				moves = movesBeside
			}
		}
		s.scan(moves)
	}
}

// scan starts what can be started and hands at most so many groups to their preferred primaries.
func (s *resyncer) scan(moves int) {
	m := s.e.agreed()
	self := s.e.self()
	if m == s.whole && self == s.wholeOf {
		return
	}
	whole := true
	for _, sg := range m.Groups {
		if sg.Primary == self && lacking(m, sg) {
			whole = false
			s.look(s.e.group(sg.ID), m, &moves)
		}
	}
	if whole {
		s.whole, s.wholeOf = m, self
	}
}

// lacking says that a group is not as it should be: a target is out of sync, or is to be its primary instead of who is.
func lacking(m *state.Map, sg *state.Group) bool {
	for _, t := range sg.Target {
		if n := m.Node(t); n != nil && !isMember(sg.InSync, state.Member{Node: t, Inc: n.Inc}) {
			return true
		}
	}
	return len(sg.Target) > 0 && sg.Target[0] != sg.Primary.Node
}

// look starts what one group needs, as it is now.
func (s *resyncer) look(g *group, m *state.Map, moves *int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.role != serving || g.agree == nil || g.store.Err() != nil { // a disk that failed is nobody's source
		return
	}
	for _, t := range g.agree.Target {
		s.consider(g, m, t)
	}
	if *moves > 0 && g.preferOther(m) {
		*moves--
	}
}

// consider begins to bring target t up to date if it is in service, not in sync and not being brought. mu of the group is held.
func (s *resyncer) consider(g *group, m *state.Map, t state.NodeID) {
	n := m.Node(t)
	if n == nil || !n.Up || t == g.node() || g.inSyncNode(t) != nil || isMember(g.agree.InSync, state.Member{Node: t, Inc: n.Inc}) {
		return
	}
	for _, x := range g.members {
		if x.Node == t {
			return
		}
	}
	s.mu.Lock()
	until := s.failed[g]
	s.mu.Unlock()
	if time.Now().Before(until) {
		return
	}
	select {
	case s.slots <- struct{}{}:
	default:
		s.starved.Store(true)
		return
	}
	x := &member{Member: state.Member{Node: t, Inc: n.Inc}, p: s.e.peer(t)}
	j := newJoiner(s.e.ctx)
	x.joiner = j
	g.members = append(g.members, x)
	granted := g.granted
	s.e.wg.Go(func() {
		err := s.bring(g, x, j, granted, false, nil)
		<-s.slots // what is left is raft's, and many groups share one command
		if s.starved.Swap(false) {
			s.poke()
		}
		if err == nil {
			err = s.join(g, x, j, granted)
		}
		s.ended(g, x, err)
	})
}

func newJoiner(ctx context.Context) *joiner {
	j := &joiner{pending: map[objstore.Key]struct{}{}, began: time.Now()}
	j.ctx, j.cancel = context.WithCancelCause(ctx)
	return j
}

// ended cleans up after a resync.
func (s *resyncer) ended(g *group, x *member, err error) {
	if err == nil || errors.Is(err, errJoined) {
		return
	}
	s.mu.Lock()
	s.failed[g] = time.Now().Add(resyncRetry)
	s.mu.Unlock()
	if s.e.ctx.Err() == nil {
		s.e.early.say(s.e.log, "resyncs ended early and are tried again", x.Node, g.id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if x.inSync || g.change != nil && g.change.adds(x.Member) { // R9: while its joining is undecided, it counts
		return
	}
	x.stop()
	for i, m := range g.members {
		if m == x {
			g.members = append(g.members[:i:i], g.members[i+1:]...)
			break
		}
	}
}

// join sees x, which has been brought up to date, into the in-sync set: at once if somebody waits for it or it is the last one, else with others that are
// ready by the next tick. A command costs every voter two syncs of its disk, and everybody who follows the map something.
func (s *resyncer) join(g *group, x *member, j *joiner, granted uint64) error {
	g.mu.Lock()
	if g.granted != granted || g.role != serving {
		g.mu.Unlock()
		return errors.New("not the primary any more")
	}
	if len(s.slots) > 0 && !g.low() && !g.stalled() {
		s.e.proposer.gather(g)
	} else {
		g.wantSet()
	}
	g.mu.Unlock()
	<-j.ctx.Done() // setMembers ends it when x is a member; whatever fails before ends it too
	return context.Cause(j.ctx)
}

// repair makes a member of the set equal during a takeover.
func (s *resyncer) repair(g *group, x *member, pos *wire.Position) {
	t, granted := g.takeover, g.granted
	j := newJoiner(s.e.ctx)
	x.joiner = j
	s.e.wg.Go(func() {
		err := s.bring(g, x, j, granted, true, pos)
		var b wire.Batch
		g.mu.Lock()
		if x.joiner == j {
			x.joiner = nil
			j.end()
		}
		t.repaired(g, x, err, &b)
		g.mu.Unlock()
		b.End()
	})
}

// bring makes x equal to us; when it returns without error all that x holds is durable and it follows the stream.
func (s *resyncer) bring(g *group, x *member, j *joiner, granted uint64, inSet bool, pos *wire.Position) error {
	if err := s.connect(j.ctx, x); err != nil {
		return err
	}
	r := &resync{e: s.e, g: g, x: x, j: j, granted: granted, inSet: inSet, limit: s}
	if pos == nil {
		a, err := r.call(wire.KindSyncStart, 0, nil, nil, nil)
		if err != nil {
			return err
		}
		pos = new(wire.Position)
		if err := pos.Parse(a.meta); err != nil {
			return err
		}
	}
	g.mu.Lock()
	x.room = x.p.takeCredit(pos.Credit)
	g.mu.Unlock()
	if err := r.begin(pos); err != nil {
		return err
	}
	if err := r.copyAll(); err != nil {
		return err
	}
	return r.end()
}

// copyAll copies what differs, when it is its turn: a takeover's always is.
func (r *resync) copyAll() error {
	if len(r.todo) == 0 {
		return nil
	}
	if !r.inSet {
		select {
		case r.limit.copiers <- struct{}{}:
			defer func() { <-r.limit.copiers }()
		case <-r.j.ctx.Done():
			return context.Cause(r.j.ctx)
		}
	}
	for key := range r.todo {
		if err := r.copyObject(key); err != nil {
			return fmt.Errorf("copy object %v: %w", key, err)
		}
	}
	return nil
}

// connect waits for a connection to x.
func (s *resyncer) connect(ctx context.Context, x *member) error {
	for i := 0; x.p.current() == nil; i++ {
		if i > 40 {
			return fmt.Errorf("node %d cannot be reached", x.Node)
		}
		x.p.ensure()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(25 * time.Millisecond):
		}
	}
	return nil
}

// resync is one run of bring.
type resync struct {
	e       *Engine
	g       *group
	x       *member
	j       *joiner
	granted uint64
	inSet   bool
	limit   *resyncer
	st      *objstore.Group
	store   *objstore.Store
	todo    map[objstore.Key]struct{}
}

type reply struct {
	status wire.Status
	flags  uint8
	meta   []byte
	data   []byte
}

// call asks x and waits for its answer. What is retained through owner need not be copied.
func (r *resync) call(kind wire.Kind, flags uint8, meta, data []byte, owner wire.Holder) (reply, error) {
	r.g.mu.Lock()
	term := r.g.term
	ok := r.g.granted == r.granted
	r.g.mu.Unlock()
	if !ok {
		return reply{}, errors.New("not the primary any more")
	}
	return r.e.ask(r.j.ctx, r.x.p, wire.Header{Kind: kind, Flags: flags, Group: uint32(r.g.id), Term: term, From: r.e.self().Inc, To: r.x.Inc}, meta, data, owner)
}

// ask is a peer's call for a goroutine that can wait. A status other than OK is an error.
func (e *Engine) ask(ctx context.Context, p *peer, h wire.Header, meta, data []byte, owner wire.Holder) (reply, error) {
	ch := make(chan *reply, 1)
	var b wire.Batch
	ok := p.call(&h, meta, data, owner, callLimit, func(a *wire.Frame, _ *wire.Batch) {
		if a == nil {
			ch <- nil
			return
		}
		ch <- &reply{a.Status, a.Flags, append([]byte(nil), a.Meta...), append([]byte(nil), a.Data...)}
	}, &b)
	b.End()
	if !ok {
		return reply{}, fmt.Errorf("%v: no connection to node %d", h.Kind, p.node)
	}
	select {
	case a := <-ch:
		switch {
		case a == nil:
			return reply{}, fmt.Errorf("%v: connection to node %d was lost", h.Kind, p.node)
		case a.status != wire.StatusOK:
			return *a, fmt.Errorf("%v: node %d says %v %s", h.Kind, p.node, a.status, a.meta)
		}
		return *a, nil
	case <-ctx.Done():
		return reply{}, context.Cause(ctx)
	}
}

// begin starts the stream and finds out which objects differ.
func (r *resync) begin(pos *wire.Position) error {
	g := r.g
	g.mu.Lock()
	if g.granted != r.granted {
		g.mu.Unlock()
		return errors.New("not the primary any more")
	}
	r.st, r.store = g.st, g.store
	mine := g.where()
	common := uint64(0)
	if !pos.Syncing && !mine.Syncing {
		common = lastCommon(mine.Terms, mine.Last.LSN, pos.Terms, pos.Last.LSN)
	}
	r.x.conn = r.x.p.current()
	if r.x.conn == nil {
		g.mu.Unlock()
		return errors.New("no connection")
	}
	if !pos.Syncing && !pos.Lost && !mine.Syncing && pos.Last == mine.Last && common == mine.Last.LSN { // it missed nothing
		r.x.acked, r.x.sent, r.x.live, r.j.listed = g.last, g.last, true, true
		var b wire.Batch
		told := g.tellOnce(r.x, &b)
		g.mu.Unlock()
		b.End()
		return r.told(told)
	}
	base := wire.Number(mine.Last)
	h := wire.Header{Kind: wire.KindSyncStart, Flags: 1, Group: uint32(g.id), Term: g.term, From: r.e.self().Inc, To: r.x.Inc}
	ch := make(chan *reply, 1)
	var b wire.Batch
	r.x.p.call(&h, base.Append(nil), nil, nil, callLimit, func(a *wire.Frame, _ *wire.Batch) {
		if a != nil {
			ch <- &reply{status: a.Status, meta: append([]byte(nil), a.Meta...)}
		} else {
			ch <- nil
		}
	}, &b)
	r.x.acked, r.x.sent, r.x.live = g.last, g.last, true
	told := g.tellOnce(r.x, &b)
	since := g.last
	g.mu.Unlock()
	b.End()
	select {
	case a := <-ch:
		if a == nil {
			return fmt.Errorf("begin: connection to node %d was lost", r.x.Node)
		}
		if a.status != wire.StatusOK {
			return fmt.Errorf("begin: node %d says %v", r.x.Node, a.status)
		}
	case <-r.j.ctx.Done():
		return context.Cause(r.j.ctx)
	}
	if err := r.told(told); err != nil {
		return err
	}
	if broken("Rule10") {
		common = r.x.acked
	}
	theirs, err := r.listTheirs(0) // all: what we deleted while it was away has an old version there (STORE.md rule 17)
	if err != nil {
		return err
	}
	if err := r.waitCommitted(since); err != nil { // uncommitted entries of before are not in the stream, but in the objects
		return err
	}
	r.todo = map[objstore.Key]struct{}{}
	differ := map[objstore.Key]wire.Number{}
	have := map[objstore.Key]wire.Number{}
	if err := r.st.Objects(0, func(o objstore.ObjectInfo) bool {
		v := wire.Number(o.Version)
		have[o.Key] = v
		if t, ok := theirs[o.Key]; (o.Version.LSN > common || !ok || o.Damaged) && (t != v || !ok) {
			differ[o.Key] = v
		}
		return true
	}); err != nil {
		return err
	}
	for key, v := range theirs {
		if mine, ok := have[key]; !ok || v != mine && (v.LSN > common || v.LSN == 0) {
			differ[key] = v
		}
	}
	g.mu.Lock()
	for key := range differ {
		r.j.pending[key] = struct{}{}
	}
	for key := range r.j.pending {
		r.todo[key] = struct{}{}
	}
	r.j.listed = true
	g.mu.Unlock()
	r.j.total.Store(int64(len(r.todo)))
	return nil
}

// told waits until the replica knows which changes of shared VDIs are done.
func (r *resync) told(ch <-chan wire.Status) error {
	select {
	case s := <-ch:
		if s != wire.StatusOK {
			return fmt.Errorf("begin: node %d says %v", r.x.Node, s)
		}
		return nil
	case <-r.j.ctx.Done():
		return context.Cause(r.j.ctx)
	}
}

// listTheirs asks for the replica's objects that were changed after common.
func (r *resync) listTheirs(common uint64) (map[objstore.Key]wire.Number, error) {
	list := map[objstore.Key]wire.Number{}
	from := wire.Number{Term: 0, LSN: common} // Term: the key to go on after
	for {
		a, err := r.call(wire.KindUnitList, 0, from.Append(nil), nil, nil)
		if err != nil {
			return nil, err
		}
		n := 0
		err = wire.EachUnitVersion(a.meta, func(u wire.UnitVersion) {
			list[objstore.Key(u.Key)] = u.Version
			from.Term = max(from.Term, u.Key)
			n++
		})
		if err != nil {
			return nil, err
		}
		if a.flags&wire.FlagMore == 0 || n == 0 {
			return list, nil
		}
	}
}

// waitCommitted waits until the group is committed up to lsn. During a takeover everything in the tail counts: no client's entry is added.
func (r *resync) waitCommitted(lsn uint64) error {
	for {
		r.g.mu.Lock()
		// While the set is too small for anything to commit, a joiner is what it waits for: entries keep their numbers and bytes, committed or not.
		ok := r.g.commit >= lsn || r.inSet || r.g.low() || r.g.stalled() && r.g.change == nil && r.g.wanted() == nil
		live := r.g.granted == r.granted
		r.g.mu.Unlock()
		switch {
		case ok:
			return nil
		case !live:
			return errors.New("not the primary any more")
		}
		select {
		case <-r.j.ctx.Done():
			return context.Cause(r.j.ctx)
		case <-time.After(time.Millisecond):
		}
	}
}

// end has the replica make everything durable; from before that on, flushes wait for it too (R11).
func (r *resync) end() error {
	g := r.g
	g.mu.Lock()
	r.x.ready = true
	if broken("R11") {
		g.mu.Unlock()
		return nil
	}
	last := g.last
	terms := g.where().Terms
	g.mu.Unlock()
	for { // it must have the whole stream so far
		g.mu.Lock()
		ok, live := r.x.acked >= last, g.granted == r.granted
		g.mu.Unlock()
		if ok {
			break
		}
		if !live {
			return errors.New("not the primary any more")
		}
		select {
		case <-r.j.ctx.Done():
			return context.Cause(r.j.ctx)
		case <-time.After(time.Millisecond):
		}
	}
	m := wire.SyncEnd{Last: wire.Number{Term: termAt(terms, last), LSN: last}, Terms: terms}
	_, err := r.call(wire.KindSyncEnd, 0, m.Append(nil), nil, nil)
	if err != nil {
		g.mu.Lock()
		r.x.ready = false
		g.mu.Unlock()
	}
	return err
}

// take waits until n bytes more may be copied at the node's pace.
func (s *resyncer) take(ctx context.Context, n int) error {
	for {
		rate := float64(s.e.resyncSpeed())
		s.mu.Lock()
		now := time.Now()
		s.tokens = min(s.tokens+rate*now.Sub(s.filled).Seconds(), rate*burst.Seconds())
		s.filled = now
		breath := s.e.pace.breath.Load()
		ok := s.tokens > 0 && !breath
		if ok {
			s.tokens -= float64(n)
		}
		wait := time.Duration(-s.tokens / rate * float64(time.Second))
		s.mu.Unlock()
		if ok {
			s.e.pace.taken.Add(int64(n))
			return nil
		}
		if breath {
			wait = tickInterval / 2
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(max(wait, time.Millisecond)):
		}
	}
}
