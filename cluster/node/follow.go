package node

import (
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/lease"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// follow hands newer maps to whoever needs them.
func (n *Node) follow() {
	sub := n.cons.Subscribe()
	defer sub.Cancel()
	for {
		n.use(n.cons.Map())
		n.wakeLive()
		select {
		case <-sub.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// use gives the engine a map and then the lease that waited for it: what counts is not that raft has applied an index here but that reads and writes are
// judged by it (R12 d).
//
// The engine judges a map by who this node is, and takes each map once. So it gets none that names another incarnation than this process's: between an
// incarnation's end and the outcome of the next registration it keeps the last one, and no lease goes with it.
func (n *Node) use(m *state.Map) {
	self := n.Self()
	if self.Node == state.NoNode {
		return
	}
	if me := m.Node(self.Node); me == nil || me.Inc != self.Inc {
		return
	}
	n.useMu.Lock()
	defer n.useMu.Unlock()
	n.usingSince.Store(int64(n.cfg.Clock()))
	n.engine.MapChanged(m)
	n.usingSince.Store(0)
	n.inUse.Store(max(n.inUse.Load(), m.Index))
	n.holder.Applied()
}

const (
	// Groups that are not looked at this long, or a map that takes this long to get used: a disk hangs, and holds what it is not even needed for.
	ticksLateMax = 2 * time.Second
	mapLateMax   = 3 * time.Second
)

// stuck says for how long the engine has not moved, if that is too long for a node that asks for its lease: it serves nobody, and others should.
func (n *Node) stuck() time.Duration {
	if d := n.engine.Stuck(); d > ticksLateMax {
		return d
	}
	if since := n.usingSince.Load(); since != 0 {
		if d := n.cfg.Clock() - time.Duration(since); d > mapLateMax {
			return d
		}
	}
	return n.stores.late()
}

// newHolder makes the holder of a lease that waits for the map that the engine uses.
func (n *Node) newHolder(clock lease.Clock) *lease.Holder {
	return lease.NewHolder(clock, n.inUse.Load)
}
