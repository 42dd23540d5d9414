package lease

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/planted"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Holder is a node's own lease.
type Holder struct {
	clock   Clock
	applied func() uint64 // map index applied here

	until atomic.Int64 // valid before this, on clock; 0: none

	mu        sync.Mutex // guards what follows
	member    state.Member
	since     time.Duration // askings before this belong to an earlier incarnation
	next      wire.Grant    // granted, but its index is not applied yet
	stampTerm uint64
	stamp     int64
}

// NewHolder makes a Holder without a lease.
func NewHolder(clock Clock, applied func() uint64) *Holder {
	return &Holder{clock: clock, applied: applied, member: state.Member{Node: state.NoNode}}
}

// Valid says whether the lease holds now. It takes no lock.
func (h *Holder) Valid() bool {
	until := h.until.Load()
	return until != 0 && int64(h.clock()) < until
}

// Begin makes m the member that asks from now on, without a lease.
func (h *Holder) Begin(m state.Member) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until.Store(0)
	h.member, h.since, h.next = m, h.clock(), wire.Grant{}
}

// Drop gives the lease up and asks for none until Begin.
func (h *Holder) Drop() { h.Begin(state.Member{Node: state.NoNode}) }

// Member is who asks.
func (h *Holder) Member() state.Member {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.member
}

// Ask makes the next asking. The caller fills in Term afterwards, in this order (R12 b), and Applied.
func (h *Holder) Ask() wire.Renew {
	h.mu.Lock()
	defer h.mu.Unlock()
	return wire.Renew{Node: uint32(h.member.Node), Inc: h.member.Inc, Asked: int64(h.clock()), StampTerm: h.stampTerm, Stamp: h.stamp}
}

// Granted takes the leader's answer. It says whether the stamp is new, so that an echo of it would tell the leader something.
func (h *Holder) Granted(g *wire.Grant) (newStamp bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g.Term > h.stampTerm || g.Term == h.stampTerm && g.Stamp > h.stamp {
		h.stampTerm, h.stamp, newStamp = g.Term, g.Stamp, true
	}
	now := h.clock()
	if g.Granted == 0 || g.Granted > int64(now) || g.Granted <= int64(h.since) || h.member.Node == state.NoNode {
		return newStamp
	}
	if g.Granted > h.next.Granted {
		h.next = *g
	}
	h.take()
	return newStamp
}

// Applied is to be called after the map moved on: a grant may have waited for that.
func (h *Holder) Applied() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.take()
}

// take makes the newest grant the lease, once its index is applied. Until then an older one stays what it is. mu is held.
func (h *Holder) take() {
	if h.next.Granted == 0 || h.applied() < h.next.Index {
		return
	}
	if planted.Broken("R13") {
		h.next.Granted = int64(h.clock())
	}
	if until := h.next.Granted + int64(Length); until > h.until.Load() {
		h.until.Store(until)
	}
	h.next = wire.Grant{}
}

// Left is how long the lease still runs; 0: there is none.
func (h *Holder) Left() time.Duration {
	return max(0, time.Duration(h.until.Load())-h.clock())
}
