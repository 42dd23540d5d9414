package lease

import (
	"slices"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/planted"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	// asksMax bounds the askings of one node that wait for the voters' word: there is rarely more than one.
	asksMax = 8
	// The leader itself was stopped when it finds that nothing reached it for this long.
	pauseMax = 750 * time.Millisecond
	// Who was registered asks for a lease several times a second.
	comingMax = 10 * time.Second
)

// Keeper is the leader's knowledge of who has a lease.
type Keeper struct {
	clock Clock
	self  string // this node's uuid
	wake  func() // there may be news: somebody to bring into service, or to end

	mu      sync.Mutex // guards what follows; no call is made under it but clock's and raft's
	raft    Raft
	lead    uint64 // the term this node leads and has begun; 0: none
	m       *state.Map
	touched time.Duration
	grace   time.Duration // until then leases are assumed, not known
	nodes   map[state.NodeID]*held
	echoes  map[string]echo // by uuid
	coming  map[state.NodeID]coming
}

// coming is a member that was registered and is not in service yet.
type coming struct {
	member state.Member
	since  time.Duration
}

// Raft is what the Keeper needs to know of raft on this node.
type Raft interface {
	Term() uint64     // its current term
	Voters() []string // uuids of the voters in its latest configuration
}

// held is what is known of a member in service.
type held struct {
	member state.Member
	until  time.Duration // it may have a lease until then
	known  bool          // it was heard of under this leadership
	ending bool          // its end is decided, or was proposed: no more grants (R12 c)
	gone   bool          // its process is known to be gone: it has no lease, whatever until says
	index  uint64        // for grants
	asks   []ask
}

type ask struct {
	asked   int64
	arrived time.Duration
}

// echo is a voter's newest word.
type echo struct {
	stamp   time.Duration // it saw this stamp of ours while its term was still ours
	heard   time.Duration
	applied uint64
	wants   state.Member // registered, not in service: it asks for its first lease
}

// NewKeeper makes a Keeper that leads nothing.
func NewKeeper(clock Clock, self string, wake func()) *Keeper {
	return &Keeper{clock: clock, self: self, wake: wake}
}

// Begin starts a leadership: m is the map once its barrier is applied. Every member in service is taken as leased from now on, for one
// lease and a margin.
func (k *Keeper) Begin(raft Raft, term uint64, m *state.Map) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	k.raft, k.lead, k.m, k.touched = raft, term, m, now
	k.grace = now + Length + Margin
	k.nodes, k.echoes = map[state.NodeID]*held{}, map[string]echo{}
	for _, n := range m.Nodes {
		if n.Up {
			k.nodes[n.ID] = &held{member: state.Member{Node: n.ID, Inc: n.Inc}, until: k.grace, index: m.Index}
		}
	}
	k.coming = map[state.NodeID]coming{}
	k.awaited(now)
}

// awaited notes who was registered and is not in service.
func (k *Keeper) awaited(now time.Duration) {
	for _, n := range k.m.Nodes {
		member := state.Member{Node: n.ID, Inc: n.Inc}
		if n.Up || n.Ended || n.Removed || n.Inc == 0 {
			delete(k.coming, n.ID)
		} else if k.coming[n.ID].member != member {
			k.coming[n.ID] = coming{member, now}
		}
	}
}

// End ends the leadership of that term.
func (k *Keeper) End(term uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lead == term {
		k.lead, k.nodes, k.echoes, k.m = 0, nil, nil, nil
	}
}

// MapChanged follows the map: who came into service, who left it.
func (k *Keeper) MapChanged(m *state.Map) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lead == 0 || m.Index <= k.m.Index {
		return
	}
	k.follow(m)
}

func (k *Keeper) follow(m *state.Map) {
	now := k.clock()
	k.m = m
	for _, n := range m.Nodes {
		h := k.nodes[n.ID]
		if h != nil && (!n.Up || n.Inc != h.member.Inc) {
			delete(k.nodes, n.ID)
			h = nil
		}
		if h == nil && n.Up {
			// It gets its first lease with its next asking. If it never asks again it is found lapsed like any other.
			k.nodes[n.ID] = &held{member: state.Member{Node: n.ID, Inc: n.Inc}, until: now + Length + Margin, known: true, index: m.Index}
		}
	}
	k.awaited(now)
}

// touch notices that this process was stopped for a while, and gives everybody time to renew.
func (k *Keeper) touch(now time.Duration) {
	if now-k.touched > pauseMax {
		k.grace = now + Length + Margin
		for _, h := range k.nodes {
			if !h.ending {
				h.until, h.asks, h.known = max(h.until, k.grace), nil, false
			}
		}
		for id, c := range k.coming {
			k.coming[id] = coming{c.member, now}
		}
	}
	k.touched = now
}

// Renew takes an asking and answers it.
func (k *Keeper) Renew(r *wire.Renew) (wire.Grant, wire.Status) {
	k.mu.Lock()
	g, status, news := k.renew(r)
	k.mu.Unlock()
	if news {
		k.wake()
	}
	return g, status
}

func (k *Keeper) renew(r *wire.Renew) (g wire.Grant, s wire.Status, news bool) {
	term := k.lead
	if term == 0 || k.raft.Term() != term {
		return g, wire.StatusNotPrimary, false
	}
	now := k.clock()
	k.touch(now)
	g.Term, g.Stamp = term, int64(now)
	n := k.m.Node(state.NodeID(r.Node))
	if n == nil || n.Removed {
		return g, wire.StatusGone, false
	}
	if r.Inc == 0 && uint64(r.Asked) != n.Inc {
		return g, wire.StatusWrongInc, false // of an older image of that node's directory, for all that is known
	}
	news = k.hear(n.UUID, r, now)
	member := state.Member{Node: n.ID, Inc: r.Inc}
	if n.Inc != r.Inc || n.Ended {
		return g, wire.StatusWrongInc, news
	}
	h := k.nodes[n.ID]
	if h == nil {
		e := k.echoes[n.UUID]
		news = news || e.wants != member
		e.wants = member
		k.echoes[n.UUID] = e
		return g, wire.StatusOK, news
	}
	if !h.known {
		h.known, news = true, true
	}
	if h.ending {
		return g, wire.StatusOK, news
	}
	if len(h.asks) == asksMax {
		h.asks = h.asks[:asksMax-1] // the oldest will be confirmed first: keep those
	}
	h.asks = append(h.asks, ask{r.Asked, now})
	g.Granted, g.Index = k.grant(h, k.confirmed(now)), h.index
	return g, wire.StatusOK, news
}

// hear notes what a node says about itself and, if it votes, about its raft term.
func (k *Keeper) hear(uuid string, r *wire.Renew, now time.Duration) (news bool) {
	e := k.echoes[uuid]
	news = e.applied < r.Applied && e.applied < k.m.Index || e.heard == 0
	e.heard, e.applied = now, max(e.applied, r.Applied)
	if r.Inc == 0 { // it is a new process: what the former one wanted is nothing any more
		e.wants = state.Member{}
	}
	if r.Term == k.lead && r.StampTerm == k.lead {
		e.stamp = max(e.stamp, time.Duration(r.Stamp))
	}
	k.echoes[uuid] = e
	return news
}

// confirmed is the time up to which a majority of voters has been with this leader.
func (k *Keeper) confirmed(now time.Duration) time.Duration {
	if planted.Broken("R12") {
		return now
	}
	voters := k.raft.Voters()
	times := make([]time.Duration, 0, len(voters))
	for _, v := range voters {
		if v == k.self {
			times = append(times, now) // renew read the term after the asking arrived
		} else {
			times = append(times, k.echoes[v].stamp)
		}
	}
	if len(times) == 0 {
		return -1
	}
	slices.Sort(times)
	return times[(len(times)-1)/2] // a majority is at this or later
}

// grant gives h a lease for its newest asking that is confirmed, and remembers how long that may last.
func (k *Keeper) grant(h *held, confirmed time.Duration) (asked int64) {
	i := 0
	for ; i < len(h.asks) && h.asks[i].arrived <= confirmed; i++ {
		asked = h.asks[i].asked
		h.until = max(h.until, h.asks[i].arrived+Length+Margin)
	}
	h.asks = h.asks[:copy(h.asks, h.asks[i:])]
	return asked
}
