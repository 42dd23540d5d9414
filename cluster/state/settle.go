package state

import (
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/planted"
)

// settle makes a group's set and primary right after members came or went; the diagram is in doc.go. leased is who had a lease
// when the leader wrote the command (R6). It is idempotent, so it may be called for more groups than changed.
func (e *edit) settle(i int, leased []Member) {
	g := e.m.Groups[i]
	serving := e.serving(g.InSync, leased)
	if len(serving) == 0 {
		e.settleAlone(i)
		return
	}
	stay, gone := e.leavers(g)
	if !e.m.ShutDown && len(stay)-len(gone) >= e.m.Pools[g.ID.Pool()].MinCopies {
		stay = minus(stay, gone)
	}
	primary := g.Primary
	if !e.m.Intact(primary) {
		primary = Member{Node: NoNode}
		if !e.m.ShutDown {
			primary = e.choose(g, serving)
		}
	}
	if primary == g.Primary && len(stay) == len(g.InSync) && g.Back == nil && !planted.Broken("R6") {
		return
	}
	g = e.group(i)
	g.InSync, g.Back = stay, nil
	e.setPrimary(g, primary)
}

// settleAlone is settle for a group none of whose members is in service.
func (e *edit) settleAlone(i int) {
	g := e.m.Groups[i]
	var back []Member
	for _, b := range g.InSync {
		if n := e.m.Nodes[b.Node]; n.Inc != b.Inc && !n.Ended && !n.Removed {
			back = append(back, Member{b.Node, n.Inc})
		}
	}
	primary := g.Primary
	if !e.m.Intact(primary) {
		primary = Member{Node: NoNode}
	}
	if primary == g.Primary && slices.Equal(back, g.Back) {
		return
	}
	g = e.group(i)
	g.Back = back
	e.setPrimary(g, primary)
}

// settleAll settles every group that names one of nodes, or that waits for a primary.
func (e *edit) settleAll(leased []Member, touched func(NodeID) bool) {
	for i, g := range e.m.Groups {
		if g.Primary.Node == NoNode || slices.ContainsFunc(g.InSync, func(b Member) bool { return touched(b.Node) }) {
			e.settle(i, leased)
		}
	}
}

// serving are the members that are in service (R6): leased as far as the leader knew, and intact now that the command is applied.
func (e *edit) serving(set, leased []Member) []Member {
	var list []Member
	for _, b := range set {
		if e.m.Intact(b) && slices.Contains(leased, b) {
			list = append(list, b)
		}
	}
	return list
}

// leavers divides a set some of whose members are in service: superseded members leave at once (R6), ended ones if
// enough others stay (R10).
func (e *edit) leavers(g *Group) (stay, ended []Member) {
	for _, b := range g.InSync {
		n := e.m.Nodes[b.Node]
		if planted.Broken("R6") {
			b.Inc = n.Inc
		}
		if n.Inc != b.Inc || n.Removed {
			continue
		}
		stay = append(stay, b)
		if n.Ended {
			ended = append(ended, b)
		}
	}
	return stay, ended
}

// setPrimary keeps LostAt and the count of primaries true. g may be changed.
func (e *edit) setPrimary(g *Group, b Member) {
	if e.load != nil {
		if g.Primary.Node != NoNode {
			e.load[g.Primary.Node]--
		}
		if b.Node != NoNode {
			e.load[b.Node]++
		}
	}
	g.Primary = b
	switch {
	case b.Node != NoNode:
		g.LostAt = time.Time{}
	case g.LostAt.IsZero():
		g.LostAt = e.now
	}
}

// choose picks a primary among members in service: the preferred one if it is among them, else the one that leads the
// fewest groups for its weight, so that a dead node's load falls on all survivors alike.
func (e *edit) choose(g *Group, from []Member) Member {
	if e.load == nil {
		e.load = make([]int, len(e.m.Nodes))
		for _, g := range e.m.Groups {
			if g.Primary.Node != NoNode {
				e.load[g.Primary.Node]++
			}
		}
	}
	best := -1
	for i, b := range from {
		if len(g.Target) > 0 && b.Node == g.Target[0] {
			return b
		}
		if best < 0 || e.lighter(b.Node, from[best].Node) {
			best = i
		}
	}
	return from[best]
}

func (e *edit) lighter(a, b NodeID) bool {
	wa, wb := max(1, e.m.Nodes[a].VNodes), max(1, e.m.Nodes[b].VNodes)
	return (e.load[a]+1)*wb < (e.load[b]+1)*wa
}

// minus returns a new slice: a without the members of b.
func minus(a, b []Member) []Member {
	list := make([]Member, 0, len(a))
	for _, x := range a {
		if !slices.Contains(b, x) {
			list = append(list, x)
		}
	}
	return list
}
