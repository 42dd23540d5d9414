package place

import "container/heap"

// spread is what must hold of each group: how many nodes, and how many of one zone at most.
type spread struct {
	copies  int // replicas of a group: as asked for, or as many as there are nodes
	perZone int // 1 where there are enough zones
}

// findSpread finds the smallest number per zone that gives every group its copies.
func findSpread(zones []zone, nodes, copies int) spread {
	s := spread{copies: min(copies, nodes), perZone: 1}
	for {
		room := 0
		for _, z := range zones {
			room += min(len(z.nodes), s.perZone)
		}
		if room >= s.copies {
			return s
		}
		s.perZone++
	}
}

// quotas says how many replicas each node shall hold: one after the other goes to the node that is then the least full for its
// weight (D'Hondt), among those that are not at their bound: one replica per group and node, perZone per group and zone.
func quotas(nodes []member, zones []zone, groups int, s spread) []int {
	q := make([]int, len(nodes))
	room := make([]int, len(zones))
	for i, z := range zones {
		room[i] = groups * min(len(z.nodes), s.perZone)
	}
	queue := &seats{nodes: nodes, held: q}
	for i := range nodes {
		queue.order = append(queue.order, i)
	}
	heap.Init(queue)
	for left := groups * s.copies; left > 0 && len(queue.order) > 0; {
		n := queue.order[0]
		if q[n] >= groups || room[nodes[n].zone] == 0 {
			heap.Pop(queue)
			continue
		}
		q[n]++
		room[nodes[n].zone]--
		left--
		heap.Fix(queue, 0)
	}
	return q
}

// seats orders nodes by weight/(held+1), the greatest first.
type seats struct {
	nodes []member
	held  []int
	order []int
}

func (s *seats) Len() int      { return len(s.order) }
func (s *seats) Swap(i, j int) { s.order[i], s.order[j] = s.order[j], s.order[i] }
func (s *seats) Push(any)      { panic("nobody joins the queue") }
func (s *seats) Pop() any {
	last := len(s.order) - 1
	n := s.order[last]
	s.order = s.order[:last]
	return n
}

func (s *seats) Less(i, j int) bool {
	a, b := s.order[i], s.order[j]
	wa, wb := s.nodes[a].weight*uint64(s.held[b]+1), s.nodes[b].weight*uint64(s.held[a]+1)
	if wa != wb {
		return wa > wb
	}
	return a < b
}
