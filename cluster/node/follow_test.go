package node

import (
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// mapNaming is an agreed map in which node 0 is that incarnation.
func mapNaming(index, inc uint64) *state.Map {
	m := *state.New()
	m.Index, m.Nodes = index, []*state.Node{{ID: 0, Inc: inc, Up: true}}
	return &m
}

// glued is as much of a node as stands between raft, the engine and the lease.
func glued(t *testing.T, now *time.Duration) *Node {
	n := &Node{}
	n.holder = n.newHolder(func() time.Duration { return *now })
	n.engine = replica.New(replica.Config{Self: n.Self, Map: state.New, Leased: n.holder.Valid,
		Store: func(state.GroupID) *objstore.Store { return nil }})
	t.Cleanup(n.engine.Close)
	return n
}

func (n *Node) be(inc uint64) {
	m := state.Member{Node: 0, Inc: inc}
	n.member.Store(&m)
	n.holder.Begin(m)
}

func TestR12LeaseWaitsForTheMapThatTheEngineUses(t *testing.T) {
	now := time.Hour
	n := glued(t, &now)
	n.be(7)
	n.use(mapNaming(4, 7))
	now = time.Hour + time.Millisecond
	if n.holder.Granted(&wire.Grant{Granted: int64(now), Index: 5}); n.Leased() {
		t.Fatal("a lease for index 5 while the engine judges by 4")
	}
	n.holder.Applied()
	if n.Leased() {
		t.Fatal("still")
	}
	n.use(mapNaming(6, 7))
	if !n.Leased() || n.engine.Index() != 6 {
		t.Fatalf("leased %t, the engine is at %d", n.Leased(), n.engine.Index())
	}
}

// The engine takes each map once, so it must not see one that names our next incarnation while we are the last one yet.
func TestR5EngineMeetsANewIncarnationUnderItsName(t *testing.T) {
	now := time.Hour
	n := glued(t, &now)
	n.be(7)
	n.use(mapNaming(4, 7))
	n.use(mapNaming(5, 8))
	if n.engine.Index() != 4 || n.inUse.Load() != 4 {
		t.Fatalf("the engine of incarnation 7 uses map %d, which names 8", n.engine.Index())
	}
	n.be(8)
	n.use(mapNaming(5, 8))
	if n.engine.Index() != 5 {
		t.Fatalf("the engine is at %d", n.engine.Index())
	}
}
