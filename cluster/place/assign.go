package place

import (
	"cmp"
	"slices"
)

// weightMax keeps weight times replicas within 64 bits.
const weightMax = 1 << 40

// Node is a node that may hold groups.
type Node[ID ~uint32] struct {
	ID     ID
	Weight uint64 // 0: it holds nothing
	Zone   string // "": a zone of its own
}

// Assign gives each group its nodes, the preferred primary first. prev is the assignment so far, one entry per group (nil or empty for new ones), and only says
// how many groups there are and what to keep. Neither prev nor nodes is changed; entries that stay the same may be shared with prev.
func Assign[ID ~uint32](prev [][]ID, nodes []Node[ID], copies int) [][]ID {
	p := newPlan(nodes, copies, len(prev))
	if len(p.nodes) == 0 || p.spread.copies < 1 {
		return make([][]ID, len(prev))
	}
	at := make(map[ID]int, len(nodes))
	for i, n := range p.nodes {
		at[ID(n.id)] = i
	}
	for g, list := range prev {
		for _, id := range list {
			if n, ok := at[id]; ok && p.fits(g, n, -1) && len(p.sets[g]) < p.spread.copies {
				p.add(g, n)
			}
		}
	}
	p.kept = make([][]int, len(p.sets))
	for g, set := range p.sets {
		p.kept[g] = slices.Clone(set)
	}
	p.fill()
	p.lead()
	out := make([][]ID, len(prev))
	for g, set := range p.sets {
		list := make([]ID, len(set))
		for i, n := range set {
			list[i] = ID(p.nodes[n].id)
		}
		if out[g] = list; slices.Equal(list, prev[g]) {
			out[g] = prev[g]
		}
	}
	return out
}

// plan is an assignment being made. Nodes and zones are numbered from 0.
type plan struct {
	nodes  []member
	zones  []zone
	spread spread
	sets   [][]int // by group: its nodes
	kept   [][]int // by group: the nodes it had before, as far as they may stay
	quota  []int   // by node: replicas it shall hold
	load   []int   // by node: replicas it holds
	salt   uint64  // draws differ from one set of nodes to the next: if always the same groups moved first, the others would stay together for ever
}

type member struct {
	id     uint32
	weight uint64
	zone   int
}

type zone struct{ nodes []int }

func newPlan[ID ~uint32](nodes []Node[ID], copies, groups int) *plan {
	p := &plan{sets: make([][]int, groups)}
	sorted := slices.Clone(nodes)
	slices.SortStableFunc(sorted, func(a, b Node[ID]) int { return cmp.Compare(a.ID, b.ID) })
	zones := make(map[string]int)
	for i, n := range sorted {
		if n.Weight == 0 || i > 0 && n.ID == sorted[i-1].ID {
			continue
		}
		z, ok := zones[n.Zone]
		if !ok || n.Zone == "" {
			z = len(p.zones)
			zones[n.Zone] = z
			p.zones = append(p.zones, zone{})
		}
		p.zones[z].nodes = append(p.zones[z].nodes, len(p.nodes))
		p.nodes = append(p.nodes, member{id: uint32(n.ID), weight: min(n.Weight, weightMax), zone: z})
		p.salt = mix(p.salt ^ uint64(n.ID)<<40 ^ min(n.Weight, weightMax))
	}
	p.spread = findSpread(p.zones, len(p.nodes), copies)
	p.quota = quotas(p.nodes, p.zones, groups, p.spread)
	p.load = make([]int, len(p.nodes))
	for g := range p.sets {
		p.sets[g] = make([]int, 0, max(0, p.spread.copies))
	}
	return p
}

// fits says whether a group may have node n, once it has lost leaver (-1: nobody).
func (p *plan) fits(g, n, leaver int) bool {
	same := 0
	for _, x := range p.sets[g] {
		if x == n {
			return false
		}
		if x != leaver && p.nodes[x].zone == p.nodes[n].zone {
			same++
		}
	}
	return same < p.spread.perZone
}

func (p *plan) add(g, n int) {
	p.sets[g] = append(p.sets[g], n)
	p.load[n]++
}

// replace puts n where leaver was.
func (p *plan) replace(g, leaver, n int) {
	p.sets[g][slices.Index(p.sets[g], leaver)] = n
	p.load[leaver]--
	p.load[n]++
}
