package place

import "slices"

// lead puts the preferred primary first in each group. A node leads its part of what it holds (a node that zones keep from its full
// share of replicas does not get a full share of primaries either), and who leads already goes on where that is even.
func (p *plan) lead() {
	turns := p.turns()
	leads := make([]int, len(p.nodes))
	holds := make([][]int, len(p.nodes))
	for g, set := range p.sets {
		if len(set) == 0 {
			continue
		}
		leads[set[0]]++
		for _, n := range set {
			holds[n] = append(holds[n], g)
		}
	}
	for _, set := range p.sets {
		if len(set) == 0 || leads[set[0]] <= turns[set[0]] {
			continue
		}
		for i, n := range set {
			if leads[n] < turns[n] {
				leads[set[0]]--
				leads[n]++
				promote(set, i)
				break
			}
		}
	}
	for n := range p.nodes {
		for leads[n] < turns[n] && p.leadChain(n, turns, leads, holds) {
		}
	}
}

// turns says how many groups each node shall lead.
func (p *plan) turns() []int {
	nodes := make([]member, len(p.nodes))
	zones := make([]zone, len(p.nodes))
	for i := range nodes {
		nodes[i] = member{weight: uint64(p.load[i]), zone: i}
		zones[i] = zone{nodes: []int{i}}
	}
	return quotas(nodes, zones, len(p.sets), spread{copies: 1, perZone: 1})
}

// leadChain gives node from one more group to lead: of a node that leads too many, or of one that is given another in turn.
func (p *plan) leadChain(from int, turns, leads []int, holds [][]int) bool {
	links := make([]link, len(p.nodes))
	for i := range links {
		links[i] = link{-1, -1}
	}
	queue := []int{from}
	for len(queue) > 0 {
		x := queue[0]
		queue = queue[1:]
		for _, g := range holds[x] {
			y := p.sets[g][0]
			if y == from || y == x || links[y].taker >= 0 {
				continue
			}
			links[y] = link{x, g}
			if leads[y] <= turns[y] {
				queue = append(queue, y)
				continue
			}
			leads[y]--
			leads[from]++
			for ; y != from; y = links[y].taker {
				set := p.sets[links[y].group]
				promote(set, slices.Index(set, links[y].taker))
			}
			return true
		}
	}
	return false
}

// promote brings the i-th to the front and leaves the others in their order.
func promote(set []int, i int) {
	n := set[i]
	copy(set[1:i+1], set[:i])
	set[0] = n
}
