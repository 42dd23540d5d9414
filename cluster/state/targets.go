package state

import (
	"slices"

	"github.com/sheepdog-go/sheepdog/cluster/place"
)

const (
	copiesMax  = 31
	pgsMax     = 1 << 16 // a group's index has 16 bits
	pgsDefault = 2048
	poolsMax   = 64
)

// stores says that groups are given to a node.
func (n *Node) stores() bool { return n.VNodes > 0 && !n.Out && !n.Draining && !n.Removed }

// retarget decides anew who shall hold which group, with as little movement as possible. Sets and primaries stay: primaries bring the new holders in and
// then let the old ones go.
func (e *edit) retarget() {
	weights := e.weights((*Node).stores)
	if len(weights) == 0 {
		return
	}
	for _, p := range e.m.Pools {
		first := e.m.starts[p.ID]
		prev := make([][]NodeID, p.PGs)
		for i := range prev {
			prev[i] = e.m.Groups[first+i].Target
		}
		for i, target := range place.Assign(prev, weights, p.Copies) {
			if !slices.Equal(target, prev[i]) {
				e.group(first + i).Target = target
			}
		}
	}
}

func (e *edit) weights(which func(*Node) bool) []place.Node[NodeID] {
	var list []place.Node[NodeID]
	for _, n := range e.m.Nodes {
		if which(n) {
			list = append(list, place.Node[NodeID]{ID: n.ID, Weight: uint64(n.VNodes), Zone: n.Zone})
		}
	}
	return list
}

// format makes the cluster.
func (e *edit) format(c *Format) *Error {
	if e.m.Formatted() && !c.Force {
		return refuse(Formatted, "the cluster is formatted already (formatting again destroys every VDI)")
	}
	if c.Cluster == "" || len(c.Cluster) > wordBytesMax || c.Cluster == e.m.Cluster {
		return refuse(Invalid, "format: a new cluster needs an identity of its own")
	}
	p, err := newPool(0, c.Copies, c.MinCopies, c.PGs)
	if err != nil {
		return err
	}
	for _, g := range e.m.Groups {
		e.m.FirstTerm = max(e.m.FirstTerm, g.Term+1)
	}
	m := e.m
	m.Cluster, m.Created = c.Cluster, e.now
	m.Pools, m.Groups, m.VDIs, m.Sessions, m.ShutDown = nil, nil, nil, nil, false
	m.starts, m.dir = []int{0}, newIndex()
	m.Epochs = nil
	e.nodesMoved = true
	return e.fillPool(p)
}

func newPool(id, copies, minCopies, pgs int) (*Pool, *Error) {
	if pgs == 0 {
		pgs = pgsDefault
	}
	if minCopies == 0 {
		minCopies = min(2, max(1, copies-1))
	}
	switch {
	case id >= poolsMax:
		return nil, refuse(Invalid, "there are %d pools, more are not possible", id)
	case copies < 1 || copies > copiesMax:
		return nil, refuse(Invalid, "Invalid copies %d: allowed are 1 to %d", copies, copiesMax)
	case minCopies < 1 || minCopies > copies:
		return nil, refuse(Invalid, "Invalid min-copies %d: allowed are 1 to %d copies", minCopies, copies)
	case pgs < 1 || pgs > pgsMax || pgs&(pgs-1) != 0:
		return nil, refuse(Invalid, "Invalid number of placement groups %d: it must be a power of two, at most %d", pgs, pgsMax)
	}
	return &Pool{ID: uint16(id), Copies: copies, MinCopies: minCopies, PGs: pgs}, nil
}

// addPool makes groups for another redundancy.
func (e *edit) addPool(c *AddPool) *Error {
	pgs := c.PGs
	if pgs == 0 {
		pgs = e.m.Pools[0].PGs
	}
	p, err := newPool(len(e.m.Pools), c.Copies, c.MinCopies, pgs)
	if err != nil {
		return err
	}
	if e.m.poolFor(p.Copies, p.MinCopies) != nil {
		return refuse(Exists, "there is a pool with %d copies and min-copies %d", p.Copies, p.MinCopies)
	}
	return e.fillPool(p)
}

// poolFor is the first pool with this redundancy; minCopies 0 takes any.
func (m *Map) poolFor(copies, minCopies int) *Pool {
	for _, p := range m.Pools {
		if p.Copies == copies && (minCopies == 0 || p.MinCopies == minCopies) {
			return p
		}
	}
	return nil
}

// fillPool adds a pool and its groups. They are empty, so whoever can hold them is in sync; nodes that are down get theirs afterwards, by resync.
// Later than at format, those that are not in service yet count as down: if one never comes, nobody would take its place.
func (e *edit) fillPool(p *Pool) *Error {
	first := p.ID == 0
	here := e.weights(func(n *Node) bool { return n.stores() && (n.Up || first && !n.Ended) })
	if len(here) < p.MinCopies {
		return refuse(Invalid, "%d copies with min-copies %d need at least %d nodes that store; there are %d", p.Copies, p.MinCopies, p.MinCopies, len(here))
	}
	m := e.m
	groups := slices.Grow(slices.Clone(m.Groups), p.PGs)
	for i, target := range place.Assign(make([][]NodeID, p.PGs), here, p.Copies) {
		g := &Group{ID: NewGroupID(p.ID, i), Term: m.FirstTerm, Granted: m.FirstTerm, Target: target}
		for _, id := range target {
			g.InSync = append(g.InSync, m.Current(id))
		}
		g.Primary = g.InSync[0]
		groups = append(groups, g)
	}
	m.Groups, e.ownGroups = groups, true
	m.Pools = append(slices.Clip(slices.Clone(m.Pools)), p)
	m.starts = append(slices.Clip(slices.Clone(m.starts)), len(groups))
	e.retarget()
	return nil
}
