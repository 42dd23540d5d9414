package state

import (
	"fmt"
	"slices"
)

// countMax is more than anything ever counts to, and leaves room to count on.
const countMax = 1 << 62

// derive checks a Map that came from outside and makes its indexes. After it, Apply may trust whatever it follows: every number
// in the Map leads somewhere, and chains end.
func (m *Map) derive() error {
	if m.FirstTerm == 0 || m.NextSess == 0 || max(m.FirstTerm, m.NextSess, m.Index, m.Epoch) > countMax {
		return fmt.Errorf("first term %d, next session %d, index %d, epoch %d", m.FirstTerm, m.NextSess, m.Index, m.Epoch)
	}
	for _, check := range []func() error{m.checkNodes, m.checkPools, m.checkGroups, m.checkVDIs, m.checkSessions} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (m *Map) checkNodes() error {
	if uint64(m.NextNode) != uint64(len(m.Nodes)) {
		return fmt.Errorf("%d nodes, but the next is number %d", len(m.Nodes), m.NextNode)
	}
	seen := make(map[string]bool, len(m.Nodes))
	for i, n := range m.Nodes {
		switch {
		case n == nil || int(n.ID) != i:
			return fmt.Errorf("node %d is missing", i)
		case n.UUID == "" || seen[n.UUID]:
			return fmt.Errorf("node %d has the identity %q, which is empty or another's", i, n.UUID)
		case n.VNodes < 0 || n.VNodes > vnodesMax:
			return fmt.Errorf("node %d has %d vnodes", i, n.VNodes)
		case n.Up && (n.Ended || n.Removed):
			return fmt.Errorf("node %d is in service and ended", i)
		}
		seen[n.UUID] = true
	}
	return nil
}

func (m *Map) checkPools() error {
	if m.Formatted() == (len(m.Pools) == 0) {
		return fmt.Errorf("cluster %q has %d pools", m.Cluster, len(m.Pools))
	}
	m.starts = []int{0}
	for i, p := range m.Pools {
		if p == nil || int(p.ID) != i {
			return fmt.Errorf("pool %d is missing", i)
		}
		if _, err := newPool(i, p.Copies, p.MinCopies, p.PGs); err != nil {
			return fmt.Errorf("pool %d: %w", i, err)
		}
		if p.PGs == 0 || p.MinCopies == 0 {
			return fmt.Errorf("pool %d has %d groups and min-copies %d", i, p.PGs, p.MinCopies)
		}
		m.starts = append(m.starts, m.starts[i]+p.PGs)
	}
	if n := m.starts[len(m.Pools)]; n != len(m.Groups) {
		return fmt.Errorf("%d groups, the pools have %d", len(m.Groups), n)
	}
	return nil
}

func (m *Map) checkGroups() error {
	for _, p := range m.Pools {
		for i, g := range m.PoolGroups(p.ID) {
			if g == nil || g.ID != NewGroupID(p.ID, i) {
				return fmt.Errorf("group %d of pool %d is missing", i, p.ID)
			}
			if err := m.checkGroup(g); err != nil {
				return fmt.Errorf("group %x: %w", uint32(g.ID), err)
			}
		}
	}
	return nil
}

func (m *Map) checkGroup(g *Group) error {
	if len(g.InSync) == 0 {
		return fmt.Errorf("nobody is in sync")
	}
	if g.Primary.Node != NoNode && !slices.Contains(g.InSync, g.Primary) {
		return fmt.Errorf("the primary, node %d, is not in sync", g.Primary.Node)
	}
	if g.Term == 0 || g.Term > countMax || g.Resumes > countMax || g.ResumedAt > m.Index || max(g.Granted, g.NoCopy, g.Forced) > g.Term {
		return fmt.Errorf("term %d, granted at %d", g.Term, g.Granted)
	}
	for i, b := range g.InSync {
		if m.Node(b.Node) == nil || slices.ContainsFunc(g.InSync[:i], func(a Member) bool { return a.Node == b.Node }) {
			return fmt.Errorf("member %d of the set, node %d, is unknown or there twice", i, b.Node)
		}
	}
	for i, id := range g.Target {
		if m.Node(id) == nil || slices.Contains(g.Target[:i], id) {
			return fmt.Errorf("target %d, node %d, is unknown or there twice", i, id)
		}
	}
	return nil
}

func (m *Map) checkVDIs() error {
	m.dir = newIndex()
	for i, v := range m.VDIs {
		switch {
		case v == nil || v.Vid == 0 || v.Vid > MaxVid || i > 0 && m.VDIs[i-1].Vid >= v.Vid:
			return fmt.Errorf("VDI %d is missing, or out of order", i)
		case v.State > Deleted || v.Size == 0 || v.Size > SizeMax || v.Root == 0 || v.Root > MaxVid || v.LastSnap == ^uint32(0):
			return fmt.Errorf("VDI %06x has state %d, size %d, root %x", v.Vid, v.State, v.Size, v.Root)
		case m.Pool(v.Pool) == nil || len(v.Collected) != 0 && (v.State != Deleted || len(v.Collected) != (m.Pools[v.Pool].PGs+7)/8):
			return fmt.Errorf("VDI %06x: pool %d, %d bytes of collected groups", v.Vid, v.Pool, len(v.Collected))
		}
		if v.State != Deleted {
			if err := CheckName(v.Name); err != nil {
				return fmt.Errorf("VDI %06x: %w", v.Vid, err)
			}
		}
		m.dir.vids.put(v.Vid, &node{vdi: v})
	}
	for _, v := range m.VDIs {
		if err := m.checkParent(v); err != nil {
			return fmt.Errorf("VDI %06x: %w", v.Vid, err)
		}
		if err := m.checkMeaning(v); err != nil {
			return fmt.Errorf("VDI %06x: %w", v.Vid, err)
		}
		m.dir.rename(v, true)
		m.dir.tie(v, +1)
	}
	return nil
}

// checkParent: a parent is older than what stands on it, so chains have no circles.
func (m *Map) checkParent(v *VDI) error {
	if v.Parent == 0 {
		return nil
	}
	p := m.VDI(v.Parent)
	if p == nil || p.Gen >= v.Gen || p.Pool != v.Pool || p.Root != v.Root || p.State < Frozen {
		return fmt.Errorf("%06x cannot be its parent", v.Parent)
	}
	return nil
}

// checkMeaning: a name has one working VDI, and each number and tag under it one snapshot.
func (m *Map) checkMeaning(v *VDI) error {
	n := m.dir.naming(v.Name)
	if v.State == Deleted || n == nil {
		return nil
	}
	if v.State != Frozen && n.work != 0 {
		return fmt.Errorf("%06x has the name %s too", n.work, v.Name)
	}
	if v.State == Frozen && slices.ContainsFunc(n.snaps, func(vid uint32) bool { return m.VDI(vid).SnapID == v.SnapID }) {
		return fmt.Errorf("snapshot %d of %s is there twice", v.SnapID, v.Name)
	}
	return nil
}

func (m *Map) checkSessions() error {
	for i, s := range m.Sessions {
		if s == nil || s.ID >= m.NextSess || i > 0 && m.Sessions[i-1].ID >= s.ID {
			return fmt.Errorf("session %d is missing, or out of order", i)
		}
		if s.Replayed > m.Index {
			return fmt.Errorf("session %d replayed up to map index %d, which is to come", s.ID, s.Replayed)
		}
		if v := m.VDI(s.Vid); v == nil || v.State > Closing {
			return fmt.Errorf("session %d writes %06x, which nobody may", s.ID, s.Vid)
		}
	}
	return nil
}
