package node

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/lease"
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
func glued(t *testing.T, clock lease.Clock, home func(state.GroupID) *objstore.Store) *Node {
	n := &Node{cfg: Config{Clock: clock}, stores: new(stores)}
	n.holder = n.newHolder(clock)
	n.engine = replica.New(replica.Config{Self: n.Self, Leased: n.holder.Valid, Store: home})
	t.Cleanup(n.engine.Close)
	return n
}

func noHome(state.GroupID) *objstore.Store { return nil }

func (n *Node) be(inc uint64) {
	m := state.Member{Node: 0, Inc: inc}
	n.member.Store(&m)
	n.holder.Begin(m)
}

func TestR12LeaseWaitsForTheMapThatTheEngineUses(t *testing.T) {
	now := time.Hour
	n := glued(t, func() time.Duration { return now }, noHome)
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
	n := glued(t, lease.Boottime, noHome)
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

func TestPitfall27HungDiskIsNoticed(t *testing.T) {
	hang := make(chan struct{})
	var passed atomic.Int64
	n := glued(t, func() time.Duration { return time.Hour + time.Duration(passed.Load()) }, func(state.GroupID) *objstore.Store {
		<-hang // as a disk does, with the group in its hands
		return nil
	})
	n.be(7)
	n.use(mapNaming(4, 7))
	if d := n.stuck(); d != 0 {
		t.Fatalf("stuck for %s before anything happened", d)
	}
	m := mapNaming(5, 7)
	m.Groups = []*state.Group{{Term: 1, Primary: n.Self(), InSync: []state.Member{n.Self()}}}
	done := make(chan struct{})
	go func() { n.use(m); close(done) }()
	eventually(t, 5*time.Second, "the map is on its way", func() bool { return n.usingSince.Load() != 0 })
	passed.Store(int64(mapLateMax) + 1)
	if n.stuck() <= mapLateMax {
		t.Error("a map that does not get used is not noticed")
	}
	passed.Store(0)
	eventually(t, 10*time.Second, "the engine's silence is noticed", func() bool { return n.stuck() > ticksLateMax })
	close(hang)
	<-done
	eventually(t, 5*time.Second, "all is well again", func() bool { return n.stuck() == 0 })
}
