package replica

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// role is what this node is for a group; doc.go draws what may follow what.
type role uint8

const (
	idle role = iota
	secondary
	activating
	serving
)

func (r role) String() string {
	return [...]string{"idle", "secondary", "activating", "serving"}[r]
}

// group is one placement group on this node.
type group struct {
	e     *Engine
	id    state.GroupID
	store *objstore.Store
	st    *objstore.Group

	mu      sync.Mutex // guards what follows
	stirred bool       // something may wait: it is in Engine.stirred
	agree   *state.Group
	role    role
	move    *move  // to another of our disks
	lost    bool   // our copy went with a disk, and nobody has brought this one up to date since: it must not be served (lost.go)
	anew    uint64 // the force by which we went on with another disk
	fence   uint64 // the highest term known: messages of a lower one change nothing (invariant 6)

	// The log: entries are numbered without gaps (R1). Committed means: on every in-sync replica.
	last      uint64   // staged here
	journaled uint64   // in our journal's file
	commit    uint64   // known to be committed
	told      uint64   // the commit point the replicas were last told
	isLazy    bool     // in Engine.lazy
	tail      []*entry // commit+1 … last, oldest first

	// As a secondary: who the tail came from.
	ackTo    *wire.Conn
	ackTerm  uint64
	ackFrom  uint64     // incarnation of the primary
	syncConn *wire.Conn // the resync of us runs on it: nothing of it is taken from another
	syncing  bool       // we are being resynced; see copyin.go
	ending   bool       // the mark of that is being taken off
	copy     *incoming  // the object that is being copied to us

	// As a primary.
	term     uint64 // the one we number and send under
	granted  uint64
	members  []*member
	change   *change         // proposed and undecided (R9)
	handTo   state.NodeID    // give the role to this member as soon as nothing is under way
	parked   []*wire.Request // wait for the group to serve, for a snapshot, for a copy
	reads    []parkedRead    // wait for an uncommitted write (R16)
	waiters  []commitWaiter
	flushes  flushState
	scratch  []byte               // for encoding what is sent
	durable  uint64               // on every in-sync replica, surviving a power cut
	copying  map[objstore.Key]int // objects being copied or compared, by how many at once: writes to them are parked
	takeover *takeover
	noHand   time.Time // no hand-over before: the last one was refused
	leaseOut bool      // answers wait for our lease
	without  bool      // taken over without a member whose disk has failed, which the set still names: it may not be left to it (R10)

	once once // changes of shared VDIs, to be done once: a primary's and a secondary's
}

// member is another node as its primary sees it.
type member struct {
	state.Member
	p       *peer
	room    *atomic.Uint64 // what its disk can still take; nil: not heard of
	asked   time.Time      // when it was last asked for that
	inSync  bool
	ready   bool // a joiner that is durable and complete: flushes wait for it (R11)
	live    bool // its position is known: entries are sent to it
	acked   uint64
	sent    uint64     // last entry queued to conn
	conn    *wire.Conn // the connection the stream runs on
	owing   time.Time  // since when it has not acknowledged what was sent; zero: owes nothing
	joiner  *joiner    // not nil: being resynced
	removed bool       // its removal is wanted
}

// entry is one numbered operation between its number and its commit.
type entry struct {
	objstore.Entry
	owner wire.Holder   // of Data
	once  wire.Once     // of the request it is of
	part  wire.Part     // which of its entries
	req   *wire.Request // whom to answer when it is committed; nil: nobody
	gauge *gauge        // measures how long it takes to its commit; nil: it is not measured
	began time.Duration // when it was numbered, since start
}

var entryPool = sync.Pool{New: func() any { return new(entry) }}

func getEntry() *entry { return entryPool.Get().(*entry) }

// free gives the entry and its data back.
func (en *entry) free() {
	if en.owner != nil {
		en.owner.Release()
	}
	if en.gauge != nil {
		en.gauge.drop(en.began)
	}
	crcs := en.CRCs[:0]
	*en = entry{}
	en.CRCs = crcs
	entryPool.Put(en)
}

// touches says whether the entry changes one of these blocks.
func (en *entry) touches(key objstore.Key, first, count int) bool {
	if en.Key != key || en.Kind == objstore.KindNoop {
		return false
	}
	if en.Count == 0 { // a merge or a delete: the whole object
		return true
	}
	return int(en.First) < first+count && first < int(en.First)+int(en.Count)
}

func newGroup(e *Engine, id state.GroupID) *group {
	return &group{e: e, id: id, handTo: state.NoNode}
}

// open gives the group its place on disk. mu is held.
func (g *group) open() bool {
	if g.st == nil {
		if g.store = g.e.cfg.Store(g.id); g.store == nil {
			return false
		}
		g.st = g.store.Group(objstore.GroupID(g.id))
		g.last = g.st.Last().LSN
		g.journaled = g.last
		g.syncing = g.st.Syncing()
		g.lost = g.lost || (g.last == 0 || g.syncing) && g.e.cfg.LostDisk != nil && g.e.cfg.LostDisk()
	}
	return true
}

// update takes a newer agreed state of the group and is the one place where the role follows from it.
func (g *group) update(sg *state.Group, b *wire.Batch) {
	self := g.e.self()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stir()
	g.agree = sg
	switch {
	case sg.Term < g.fence: // somebody told us of a later term than our map holds yet
		g.stepDown(b)
		g.open()
	case sg.Primary == self && self.Inc != 0:
		g.fence = sg.Term
		g.startAnew()
		if !g.open() {
			return
		}
		switch {
		case g.role == serving && g.granted == sg.Granted:
			g.goOn(b)
		case g.role == activating && g.term == sg.Term:
			g.takeover.step(g, b)
		default:
			g.stepDown(b)
			g.activate(b)
		}
	case (isTarget(sg.Target, self.Node) || namesNode(sg.InSync, self.Node) || namesNode(sg.Back, self.Node) || sg.Primary.Node == state.NoNode) && !(broken("R21") && !isMember(sg.InSync, self)):
		// An older incarnation of ours in the set may be all that is left of the group: while one stands there, nothing is given up.
		g.fence = sg.Term
		g.stepDown(b)
		g.role = secondary
		if isMember(sg.InSync, self) {
			g.startAnew()
		}
	default:
		g.fence = sg.Term
		g.stepDown(b)
		g.role = idle
		g.giveUp(sg)
	}
}

func isMember(list []state.Member, m state.Member) bool {
	for _, x := range list {
		if x == m {
			return true
		}
	}
	return false
}

func namesNode(list []state.Member, id state.NodeID) bool {
	for _, x := range list {
		if x.Node == id {
			return true
		}
	}
	return false
}

func isTarget(list []state.NodeID, id state.NodeID) bool {
	for _, x := range list {
		if x == id {
			return true
		}
	}
	return false
}

// stepDown ends whatever a primary had under way. Numbered entries stay in the tail: the next primary decides about them, and
// their requests are sent again by their clients. mu is held.
func (g *group) stepDown(b *wire.Batch) {
	if g.role != serving && g.role != activating {
		return
	}
	g.role = secondary
	for _, m := range g.members {
		m.stop()
	}
	g.members, g.change, g.takeover, g.handTo = nil, nil, nil, state.NoNode
	for _, en := range g.tail {
		if en.req != nil {
			g.refuse(en.req, wire.StatusNotPrimary, b)
			en.req = nil
		}
	}
	for _, r := range g.parked {
		g.refuse(r, wire.StatusNotPrimary, b)
	}
	for _, pr := range g.reads {
		g.refuse(pr.r, wire.StatusNotPrimary, b)
	}
	g.parked, g.reads = nil, nil
	g.copying = nil
	g.flushes.abandon(g, b)
	g.wakeWaiters(true)
}

// giveUp drops our copy of a group that others keep now (R21): we are neither in sync nor a target at this very term. mu is held, so a later
// resync of us finds the copy gone as a whole.
func (g *group) giveUp(sg *state.Group) {
	if g.st == nil {
		if store := g.e.cfg.Store(g.id); store == nil || !store.Holds(objstore.GroupID(g.id)) {
			return
		}
	}
	if !g.open() {
		return
	}
	g.e.log.Info("give up a copy", "group", g.id, "term", sg.Term)
	g.drop()
}

// drop deletes our copy. mu is held.
func (g *group) drop() {
	g.dropTail()
	g.dropCopy()
	if err := g.store.DropGroup(objstore.GroupID(g.id)); err != nil {
		g.e.log.Error("drop a copy", "group", g.id, "error", err)
	}
	g.forget()
}

// dropTail forgets entries that somebody else answers for now. mu is held.
func (g *group) dropTail() {
	for _, en := range g.tail {
		en.free()
	}
	g.tail = g.tail[:0]
}

// goOn continues as primary under a new term of the same grant: the set changed. mu is held.
func (g *group) goOn(b *wire.Batch) {
	g.term = g.agree.Term
	if broken("R3") {
		for _, en := range g.tail {
			en.Number.Term = g.term
		}
	}
	if g.change != nil && g.change.term < g.term {
		g.change = nil
	}
	g.setMembers()
	for _, m := range g.members {
		g.pump(m, b)
	}
	g.advance(b)
	g.flushes.setChanged(g, b)
	g.rerun(b)
	g.wantSet()
}

// setMembers makes the list of replicas follow the agreed set; joiners stay. mu is held.
func (g *group) setMembers() {
	self, agreed := g.e.self(), g.e.agreed()
	var list []*member
	g.without = false
	for _, m := range g.agree.InSync {
		if m == self || !agreed.Intact(m) {
			continue
		}
		x := g.member(m)
		if x == nil && g.role == serving { // it was taken over without it
			g.without = true
			continue
		}
		if x == nil {
			x = &member{Member: m, p: g.e.peer(m.Node)}
		}
		if x.joiner != nil { // has become a member
			x.joiner.end()
			x.joiner = nil
		}
		x.inSync, x.ready, x.removed = true, false, false
		list = append(list, x)
	}
	for _, x := range g.members {
		if isMember(g.agree.InSync, x.Member) {
			continue
		}
		if x.joiner != nil && !x.inSync && (isTarget(g.agree.Target, x.Node) || g.change != nil && g.change.adds(x.Member)) {
			list = append(list, x)
			continue
		}
		x.stop()
	}
	g.members = list
}

func (g *group) member(m state.Member) *member {
	for _, x := range g.members {
		if x.Member == m {
			return x
		}
	}
	return nil
}

// stop ends a member's stream.
func (m *member) stop() {
	if m.joiner != nil {
		m.joiner.end()
		m.joiner = nil
	}
}

// dropEnded forgets members whose incarnation ended but who stay named in the set because it would fall below min-copies (R10): they never answer again, and
// what they had beyond us nobody was told of. mu is held.
func (g *group) dropEnded() {
	agreed := g.e.agreed()
	for i := 0; i < len(g.members); {
		if m := g.members[i]; m.inSync && !agreed.Intact(m.Member) {
			m.stop()
			g.members = append(g.members[:i:i], g.members[i+1:]...)
			continue
		} else if m.joiner != nil && !agreed.Intact(m.Member) && (g.change == nil || !g.change.adds(m.Member)) {
			m.joiner.fail(errEnded) // its next incarnation is to be brought up to date
		}
		i++
	}
}

var errEnded = errors.New("its incarnation has ended")

// low says that fewer than min-copies have what is committed, or that the set still names one that has not (R10): reads go on, writes and flushes wait.
func (g *group) low() bool {
	if g.without {
		return true
	}
	n := 1
	for _, m := range g.members {
		if m.inSync {
			n++
		}
	}
	return n < g.minCopies()
}

// stalled says that a member that does not answer is still in the set.
func (g *group) stalled() bool {
	for _, m := range g.members {
		if m.inSync && m.removed {
			return true
		}
	}
	return false
}

// required says whether commits wait for m: it is in the set, or its joining is proposed and undecided (R9).
func (g *group) required(m *member) bool {
	if broken("R9") {
		return m.inSync && !(g.change != nil && isMember(g.change.Remove, m.Member))
	}
	if broken("R10") {
		return m.inSync && !m.removed
	}
	return m.inSync || g.change != nil && g.change.adds(m.Member)
}

// minCopies is the pool's.
func (g *group) minCopies() int {
	if p := g.e.agreed().Pool(uint16(g.id >> 16)); p != nil {
		return p.MinCopies
	}
	return 1
}

// atRest says that nothing waits and nobody owes anything.
func (g *group) atRest() bool {
	return len(g.tail) == 0 && len(g.parked) == 0 && len(g.reads) == 0 && g.flushes.round == nil && g.change == nil && g.handTo == state.NoNode && !g.leaseOut
}

// stirred has the groups that the next tick looks at. There are thousands of others, in no cache.
type stirred struct {
	mu   sync.Mutex
	list []*group
}

// stir has the ticks look at the group until it is at rest. mu is held.
func (g *group) stir() {
	if g.stirred {
		return
	}
	g.stirred = true
	s := &g.e.stirred
	s.mu.Lock()
	s.list = append(s.list, g)
	s.mu.Unlock()
}

// take empties the list. Who looks at one of it says so by having stirred be false.
func (s *stirred) take() []*group {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.list
	s.list = nil
	return list
}

// tick looks after what waits: of the groups that were stirred, or seldom of all.
func (g *group) tick(now time.Time, seldom bool, b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if seldom {
		g.once.forgetEnded(g.e.agreed())
	} else {
		g.stirred = false
	}
	if g.role == secondary && seldom {
		g.tellFailed(b)
	}
	if g.role == idle || g.role == secondary || g.role == serving && g.atRest() && !g.stalled() {
		if g.role != serving || !seldom {
			return
		}
	} else {
		g.stir()
	}
	switch g.role {
	case serving:
		g.dropEnded()
		if broken("R10") {
			g.advance(b)
		}
		if g.leaseOut || len(g.parked) > 0 || len(g.reads) > 0 {
			g.advance(b)
			g.rerun(b)
		}
		if g.flushes.round != nil {
			g.flushes.setChanged(g, b)
		}
		for _, m := range g.members {
			g.pump(m, b)
			g.watch(m, now)
		}
		if g.change == nil {
			g.wantSet()
		}
	case activating:
		g.takeover.tick(g, now, b)
	}
}

// otherMember picks who takes a group over when we resign it: the first in-sync member in order of preference, and only where our disk has failed one that did not answer us
// lately: it is in service, and does better. mu is held.
func (g *group) otherMember(m *state.Map) state.NodeID {
	best, rank := state.NoNode, 1<<30
	for _, x := range g.members {
		if !x.inSync || !m.InService(x.Member) {
			continue
		}
		r := len(g.agree.Target)
		for i, t := range g.agree.Target {
			if t == x.Node {
				r = i
			}
		}
		if x.removed {
			if g.store == nil || g.store.Err() == nil {
				continue
			}
			r += len(g.members) + len(g.agree.Target)
		}
		if r < rank {
			best, rank = x.Node, r
		}
	}
	return best
}
