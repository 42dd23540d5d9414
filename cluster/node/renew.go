package node

import (
	"context"
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/lease"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	renewTimeout = 600 * time.Millisecond
	// While the lease is not fresh: first lease, new leader, an answer lost.
	renewEager = 40 * time.Millisecond
)

// renew asks for the lease a few times a second, and echoes the leader's stamps (package lease).
func (n *Node) renew() {
	t := time.NewTimer(0)
	defer t.Stop()
	var lastLeader string
	var stuck, again bool
	for {
		if n.holder.Valid() {
			n.heard.Store(int64(n.cfg.Clock()))
		}
		uuid, changed := n.cons.Leader()
		if uuid != lastLeader {
			lastLeader = uuid
			n.holder.Applied()
		}
		d := n.stuck()
		if d > 0 && !stuck && !again {
			// If the whole machine stood still, what is late runs in this very moment: nobody is told that a disk hangs before a second look.
			again = true
			t.Reset(renewEager)
			select {
			case <-t.C:
				continue
			case <-n.ctx.Done():
				return
			}
		}
		again = false
		if d > 0 != stuck {
			if stuck = d > 0; stuck {
				n.log.Error("a disk hangs: this node asks for no lease, so that others take over", "for", d.Round(time.Millisecond))
			} else {
				n.log.Info("the disk answers again: this node asks for its lease")
			}
		}
		fresh := func() bool { return n.holder.Left() >= lease.Length-3*lease.Period }
		// A voter speaks before it is registered, too: to be registered it may have to wait until its former self's lease has run out, and while most voters do, others'
		// leases would run out as well.
		if uuid != "" && !stuck {
			if n.askOnce(uuid, changed) && (!fresh() || n.votes()) {
				n.askOnce(uuid, changed) // an echo: this voter's word, and perhaps the grant
			}
		}
		wait := lease.Period
		if !fresh() {
			wait = renewEager
		}
		t.Reset(wait)
		select {
		case <-t.C:
		case <-changed:
		case <-n.ctx.Done():
			return
		}
	}
}

// votes says whether this node is one of raft's voters.
func (n *Node) votes() bool { return slices.Contains(n.cons.Voters(), n.UUID()) }

// word makes a renewal of a node that is not registered a voter's word, which asks for nothing, and says whether it has one. It has none where its directory does not know
// the incarnation in the map: it is an older image of what somebody else went on with (R5), or this map is behind, and the leader's is compared as well.
func (n *Node) word(r *wire.Renew) bool {
	me := n.Map().NodeByUUID(n.UUID())
	if me == nil || !n.knows(me.Inc) || !n.votes() || n.leaving.Load() || n.Err() != nil {
		return false
	}
	r.Node, r.Inc, r.Asked = uint32(me.ID), 0, int64(me.Inc)
	return true
}

// askOnce sends one renewal, if there is one to send. It says whether the answer carried a stamp that is worth an echo.
func (n *Node) askOnce(leader string, changed <-chan struct{}) (echo bool) {
	r := n.holder.Ask()
	registered := r.Node != uint32(state.NoNode)
	if !registered && !n.word(&r) {
		return false
	}
	r.Term, r.Applied = n.cons.Term(), n.cons.AppliedIndex() // after Ask: the stamp was seen before the term was read (R12 b)
	var g wire.Grant
	var status wire.Status
	if leader == n.UUID() {
		g, status = n.leader.Keeper().Renew(&r)
	} else {
		var err error
		if g, status, err = n.askLeader(leader, &r, changed); err != nil {
			return false
		}
	}
	switch {
	case status == wire.StatusOK, status == wire.StatusWrongInc && !registered:
		return n.holder.Granted(&g) && g.Granted != r.Asked
	case status == wire.StatusWrongInc, status == wire.StatusGone:
		n.wakeLive()
	}
	return false
}

func (n *Node) askLeader(leader string, r *wire.Renew, changed <-chan struct{}) (g wire.Grant, s wire.Status, err error) {
	addr := n.cons.Addr(leader)
	ctx, cancel := context.WithTimeout(n.ctx, renewTimeout)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	h, meta, err := n.renews.Do(ctx, addr, wire.Header{Kind: wire.KindRenew}, r.Append(nil))
	if err != nil {
		if ctx.Err() != nil {
			n.renews.Drop(addr) // a connection that hangs: the next renewal takes a new one
		}
		return g, s, err
	}
	if h.Status == wire.StatusOK || h.Status == wire.StatusWrongInc {
		err = g.Parse(meta)
	}
	return g, h.Status, err
}
