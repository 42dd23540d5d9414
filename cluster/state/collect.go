package state

import (
	"math/bits"
	"slices"

	"github.com/sheepdog-go/sheepdog/cluster/planted"
)

// Plan says what a group's collector does about a deleted VDI.
type Plan struct {
	Do      PlanKind
	Into    uint32 // PlanMerge: the heir, and its generation
	IntoGen uint64
}

// PlanKind is the kind of a Plan.
type PlanKind uint8

const (
	// PlanNone: the VDI is not deleted, or the group has reported it collected.
	PlanNone PlanKind = iota
	// PlanDrop: nothing living stands on it; its tables go.
	PlanDrop
	// PlanMerge: one heir stands on it; entries that the heir lacks move there, then its tables go.
	PlanMerge
	// PlanKeep: several heirs share it.
	PlanKeep
	// PlanWait: its one heir is itself being merged away; the group does that first, and then this one.
	PlanWait
)

// CollectPlan says what a group has to do about a vid before it may report it collected. It differs by group: a group that has merged an heir
// away goes on with the one above it, without waiting for the other groups.
//
// A group's collector must work on one vid of a family at a time, and ask again, under the newest map it has, before each order it gives: what stands on a
// deleted VDI can only become less, so a plan may turn from PlanKeep to PlanMerge to PlanDrop, never back.
func (m *Map) CollectPlan(vid uint32, group GroupID) Plan {
	v := m.VDI(vid)
	if v == nil || v.State != Deleted || group.Pool() != v.Pool || m.collectedIn(v, group) {
		return Plan{Do: PlanNone}
	}
	heir, n := m.heirs(vid, group)
	switch {
	case n == 0:
		return Plan{Do: PlanDrop}
	case n > 1:
		return Plan{Do: PlanKeep}
	}
	h := m.VDI(heir)
	if h.State == Deleted {
		if _, n := m.heirs(heir, group); n == 1 { // it will be merged away
			return Plan{Do: PlanWait}
		}
	}
	return Plan{Do: PlanMerge, Into: h.Vid, IntoGen: h.Gen}
}

// heirs are the VDIs that stand on vid in a group's eyes and are alive, or have living ones above them: how many, and one of them. VDIs that the group has
// collected are looked through.
func (m *Map) heirs(vid uint32, group GroupID) (one uint32, n int) {
	todo := slices.Clone(m.dir.children(vid))
	for len(todo) > 0 && n < 2 {
		child := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		v := m.VDI(child)
		switch {
		case v.State != Deleted:
			one, n = child, n+1
		case m.collectedIn(v, group):
			todo = append(todo, m.dir.children(child)...)
		case m.living(child):
			one, n = child, n+1
		}
	}
	return one, n
}

// living says that something living stands on a vid.
func (m *Map) living(vid uint32) bool {
	todo := slices.Clone(m.dir.children(vid))
	for len(todo) > 0 {
		child := todo[len(todo)-1]
		if m.VDI(child).State != Deleted {
			return true
		}
		todo = append(todo[:len(todo)-1], m.dir.children(child)...)
	}
	return false
}

func (m *Map) collectedIn(v *VDI, group GroupID) bool {
	i := group.Index()
	return i/8 < len(v.Collected) && v.Collected[i/8]>>(i%8)&1 != 0
}

// Deleted are the VDIs that wait for the collector, in the order of their vids.
func (m *Map) Deleted() []*VDI {
	var list []*VDI
	for _, v := range m.VDIs {
		if v.State == Deleted {
			list = append(list, v)
		}
	}
	return list
}

// Visible are the vids of a family that something living reads through, itself included (invariant 10), ascending.
func (m *Map) Visible(root uint32) []uint32 {
	var list []uint32
	for _, v := range m.VDIs {
		if v.Root == root && (v.State != Deleted || m.living(v.Vid)) {
			list = append(list, v.Vid)
		}
	}
	return list
}

// collected notes that groups hold nothing of a deleted vid any more; when all have said so, it leaves the directory (R24).
func (e *edit) collected(c *Collected) *Error {
	v := e.m.VDI(c.Vid)
	if v == nil || v.Gen != c.Gen || v.State != Deleted {
		return refuse(Stale, "%06x of generation %d is not waiting to be collected", c.Vid, c.Gen)
	}
	pgs := e.m.Pools[v.Pool].PGs
	done := make([]byte, (pgs+7)/8)
	copy(done, v.Collected)
	for _, g := range c.Groups {
		if g.Pool() != v.Pool || g.Index() >= pgs {
			return refuse(Invalid, "collected %06x: it has nothing in group %x", c.Vid, uint32(g))
		}
		if e.m.CollectPlan(c.Vid, g).Do == PlanKeep {
			return refuse(Invalid, "collected %06x: others still read it", c.Vid)
		}
		done[g.Index()/8] |= 1 << (g.Index() % 8)
	}
	v = e.vdi(c.Vid)
	v.Collected = done
	e.putVDI(v)
	if popcount(done) == pgs || planted.Broken("R24") {
		e.forget(v)
	}
	return nil
}

// forget takes a collected VDI out of the directory; what stood on it stands on its parent now.
func (e *edit) forget(v *VDI) {
	for _, vid := range e.m.dir.children(v.Vid) {
		child := e.vdi(vid)
		child.Parent = v.Parent
		e.putVDI(child)
	}
	if p := e.m.VDI(v.Parent); p != nil && p.Next == v.Vid {
		p = e.vdi(p.Vid)
		p.Next = 0
		e.putVDI(p)
	}
	e.dropVDI(v.Vid)
}

func popcount(b []byte) int {
	n := 0
	for _, x := range b {
		n += bits.OnesCount8(x)
	}
	return n
}
