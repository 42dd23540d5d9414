package place

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// check asserts what must hold of every assignment: distinct nodes, as many as there can be, zones as distinct as they can be.
func check(t rapid.TB, sets [][]uint32, nodes []Node[uint32], copies int) {
	t.Helper()
	zone := map[uint32]string{}
	size := map[string]int{}
	for _, n := range nodes {
		if n.Weight == 0 {
			continue
		}
		z := n.Zone
		if z == "" {
			z = fmt.Sprint("node ", n.ID)
		}
		zone[n.ID] = z
		size[z]++
	}
	want := min(copies, len(zone))
	perZone := 1
	for room := 0; room < want; perZone++ {
		room = 0
		for _, s := range size {
			room += min(s, perZone)
		}
		if room >= want {
			break
		}
	}
	for g, set := range sets {
		if len(set) != want {
			t.Fatalf("group %d has %d nodes, not %d", g, len(set), want)
		}
		in := map[string]int{}
		for i, n := range set {
			if zone[n] == "" || slices.Contains(set[:i], n) {
				t.Fatalf("group %d: %v names an unknown node, or one twice", g, set)
			}
			if in[zone[n]]++; in[zone[n]] > perZone {
				t.Fatalf("group %d: %v has %d nodes in zone %s, allowed %d", g, set, in[zone[n]], zone[n], perZone)
			}
		}
	}
}

// fair are the exact shares: in proportion to weight, nobody more than one replica of each group, no zone more than one.
// (Only for as many zones as copies, or more.)
func fair(nodes []Node[uint32], groups, copies int) map[uint32]float64 {
	share := map[uint32]float64{}
	full := map[string]bool{} // zones at their bound
	zones := map[string][]Node[uint32]{}
	for _, n := range nodes {
		z := n.Zone
		if z == "" {
			z = fmt.Sprint("node ", n.ID)
		}
		zones[z] = append(zones[z], n)
	}
	weigh := func(z string) (w float64) {
		for _, n := range zones[z] {
			w += float64(n.Weight)
		}
		return w
	}
	for {
		left, total := float64(groups*copies), 0.0
		for z := range zones {
			if full[z] {
				left -= float64(groups)
			} else {
				total += weigh(z)
			}
		}
		more := false
		for z := range zones {
			if !full[z] && left*weigh(z)/total > float64(groups)+1e-9 {
				full[z], more = true, true
			}
		}
		if more {
			continue
		}
		for z, list := range zones {
			for _, n := range list {
				if full[z] {
					share[n.ID] = float64(groups) * float64(n.Weight) / weigh(z)
				} else {
					share[n.ID] = left * float64(n.Weight) / total
				}
			}
		}
		return share
	}
}

func fullest(sets [][]uint32, nodes []Node[uint32], copies int) (replicas, primaries float64) {
	held, led := map[uint32]int{}, map[uint32]int{}
	for _, set := range sets {
		led[set[0]]++
		for _, n := range set {
			held[n]++
		}
	}
	for id, f := range fair(nodes, len(sets), copies) {
		replicas = max(replicas, float64(held[id])/f)
		primaries = max(primaries, float64(led[id])/(f/float64(copies)))
	}
	return replicas, primaries
}

// moved counts the replicas of now that were not there before.
func moved(before, now [][]uint32) int {
	n := 0
	for g := range now {
		for _, id := range now[g] {
			if !slices.Contains(before[g], id) {
				n++
			}
		}
	}
	return n
}

func zonesOf(nodes []Node[uint32]) int {
	zones := map[string]bool{}
	for _, n := range nodes {
		if n.Zone == "" {
			return len(nodes)
		}
		zones[n.Zone] = true
	}
	return len(zones)
}

type shape struct {
	name string
	node func(i int, r *rand.Rand) Node[uint32]
}

var shapes = []shape{
	{"equal", func(i int, r *rand.Rand) Node[uint32] { return Node[uint32]{Weight: 64} }},
	{"5 zones", func(i int, r *rand.Rand) Node[uint32] { return Node[uint32]{Weight: 64, Zone: fmt.Sprint("z", i%5)} }},
	{"3 zones", func(i int, r *rand.Rand) Node[uint32] { return Node[uint32]{Weight: 64, Zone: fmt.Sprint("z", i%3)} }},
	{"weights", func(i int, r *rand.Rand) Node[uint32] { return Node[uint32]{Weight: uint64(32 + r.Intn(97))} }},
	{"weights, 7 zones", func(i int, r *rand.Rand) Node[uint32] {
		return Node[uint32]{Weight: uint64(32 + r.Intn(97)), Zone: fmt.Sprint("z", i%7)}
	}},
	{"uneven zones", func(i int, r *rand.Rand) Node[uint32] {
		return Node[uint32]{Weight: uint64(32 + r.Intn(97)), Zone: fmt.Sprint("z", min(i%9, 5))}
	}},
	{"racks", func(i int, r *rand.Rand) Node[uint32] {
		return Node[uint32]{Weight: uint64(64 << (i % 2)), Zone: fmt.Sprint("z", i/3)}
	}},
}

// TestPlacementTable grows clusters node by node from 3 to 300, asserts at each size what DESIGN.md promises, and prints a table of some of them: the fullest node by
// its fair share, and what the newest node made move by its fair share. With equal weights that share is 1/n of all data; so n+1 nodes move at most 1.1/(n+1).
func TestPlacementTable(t *testing.T) {
	const groups, copies = 2048, 3
	rows := []int{3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50, 100, 200, 300}
	table := make([]string, len(rows))
	head := "  n"
	for _, s := range shapes {
		head += fmt.Sprintf(" | %-19s", s.name)
		r := rand.New(rand.NewSource(1))
		var nodes []Node[uint32]
		sets := make([][]uint32, groups)
		worst, most := 0.0, 0.0
		for n := 1; n <= 300; n++ {
			node := s.node(n-1, r)
			node.ID = uint32(n - 1)
			nodes = append(nodes, node)
			if n < 3 || testing.Short() && n > 30 && !slices.Contains(rows, n) && !slices.Contains(rows, n+1) {
				continue
			}
			next := Assign(sets, nodes, copies)
			check(t, next, nodes, copies)
			move := float64(moved(sets, next))
			grew := sets[0] != nil && zonesOf(nodes[:n-1]) >= copies
			sets = next
			cell := "too few zones"
			if zonesOf(nodes) >= copies { // else the shares that fair computes cannot be had
				full, _ := fullest(sets, nodes, copies)
				cell, worst = fmt.Sprintf("%.3f", full), max(worst, full)
				if full > 1.05 {
					t.Errorf("%s, %d nodes: the fullest has %.3f of its fair share", s.name, n, full)
				}
				if grew {
					part := move / fair(nodes, groups, copies)[node.ID]
					cell, most = cell+fmt.Sprintf(" moved %.3f", part), max(most, part)
					if part > 1.1 {
						t.Errorf("%s, %d nodes: the newest moved %.3f of its fair share", s.name, n, part)
					}
				}
			}
			if i := slices.Index(rows, n); i >= 0 {
				table[i] += fmt.Sprintf(" | %-19s", cell)
				removeOne(t, s.name, sets, nodes, r.Intn(n))
			}
		}
		t.Logf("%s: at most %.3f of a fair share on a node, at most %.3f of one moved to add a node", s.name, worst, most)
	}
	t.Log(head)
	for i, row := range table {
		t.Logf("%3d%s", rows[i], row)
	}
}

// removeOne takes a node out. Without zones and with equal weights only what was there moves. Otherwise shares can change against each other (a zone that is now
// needed in every group), and balance counts more.
func removeOne(t *testing.T, name string, sets [][]uint32, nodes []Node[uint32], gone int) {
	const copies = 3
	rest := slices.Delete(slices.Clone(nodes), gone, gone+1)
	less := Assign(sets, rest, copies)
	check(t, less, rest, copies)
	if zonesOf(rest) < copies {
		return
	}
	held := 0
	for _, set := range sets {
		if slices.Contains(set, uint32(gone)) {
			held++
		}
	}
	slack := 1.25
	if name == "equal" {
		slack = 1.01
	}
	if n := moved(sets, less); float64(n) > float64(held)*slack+5 {
		t.Errorf("%s, %d nodes: without node %d, which held %d, %d moved", name, len(nodes), gone, held, n)
	}
}

func TestFresh(t *testing.T) {
	for _, s := range shapes {
		for _, n := range []int{3, 5, 9, 30, 100, 300} {
			r := rand.New(rand.NewSource(1))
			var nodes []Node[uint32]
			for i := range n {
				node := s.node(i, r)
				node.ID = uint32(i)
				nodes = append(nodes, node)
			}
			began := time.Now()
			sets := Assign(make([][]uint32, 2048), nodes, 3)
			took := time.Since(began)
			check(t, sets, nodes, 3)
			replicas, primaries := fullest(sets, nodes, 3)
			if zonesOf(nodes) < 3 {
				continue
			}
			t.Logf("%-17s %3d nodes: fullest %.3f, primaries %.3f; %v", s.name, n, replicas, primaries, took.Round(time.Millisecond))
			if replicas > 1.05 {
				t.Errorf("%s %d: fullest %.3f", s.name, n, replicas)
			}
			if again := Assign(sets, nodes, 3); moved(sets, again) != 0 || !slices.EqualFunc(sets, again, slices.Equal) {
				t.Errorf("%s %d: it is not at rest", s.name, n)
			}
		}
	}
}

// TestAny: whatever comes in, groups are whole, zones distinct, and nothing moves the second time.
func TestAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		copies := rapid.IntRange(1, 5).Draw(t, "copies")
		groups := 1 << rapid.IntRange(0, 7).Draw(t, "groups")
		sets := make([][]uint32, groups)
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			var nodes []Node[uint32]
			for id := range rapid.IntRange(1, 15).Draw(t, "nodes") {
				if rapid.IntRange(0, 4).Draw(t, "absent") == 0 {
					continue
				}
				n := Node[uint32]{ID: uint32(id), Weight: rapid.SampledFrom([]uint64{0, 1, 64, 64, 100, 1 << 60}).Draw(t, "weight")}
				n.Zone = rapid.SampledFrom([]string{"", "", "a", "b", "c"}).Draw(t, "zone")
				nodes = append(nodes, n)
			}
			before := fmt.Sprint(sets)
			next := Assign(sets, nodes, copies)
			if fmt.Sprint(sets) != before {
				t.Fatalf("the assignment before was changed")
			}
			check(t, next, nodes, copies)
			if again := Assign(next, nodes, copies); moved(next, again) > groups/20 {
				t.Errorf("moved %d of %d groups' replicas again", moved(next, again), groups)
			}
			sets = next
		}
	})
}

// TestForEver: clusters of all versions agree on where groups belong, because they compute it.
func TestForEver(t *testing.T) {
	nodes := []Node[uint32]{{0, 64, "a"}, {1, 64, "a"}, {2, 128, "b"}, {3, 32, "c"}, {4, 64, "d"}, {7, 64, ""}}
	h := uint64(0)
	sets := make([][]uint32, 256)
	for n := 3; n <= len(nodes); n++ {
		sets = Assign(sets, nodes[:n], 3)
		for _, set := range sets {
			for _, id := range set {
				h = mix(h ^ uint64(id))
			}
		}
	}
	if h != golden {
		t.Errorf("groups would move: %#x, was %#x", h, uint64(golden))
	}
}

const golden = 0x6d9a5f2af3eed886

func BenchmarkAssign(b *testing.B) {
	var nodes []Node[uint32]
	for i := range 301 {
		nodes = append(nodes, Node[uint32]{ID: uint32(i), Weight: uint64(32 + i%97), Zone: fmt.Sprint(i % 20)})
	}
	sets := Assign(make([][]uint32, 2048), nodes[:300], 3)
	b.Run("fresh", func(b *testing.B) {
		for range b.N {
			Assign(make([][]uint32, 2048), nodes, 3)
		}
	})
	b.Run("join", func(b *testing.B) {
		for range b.N {
			Assign(sets, nodes, 3)
		}
	})
	b.Run("leave", func(b *testing.B) {
		for range b.N {
			Assign(sets, nodes[:299], 3)
		}
	})
}

// TestSpread: after growing node by node, no two nodes share many more groups than others do, so that all survivors help
// to rebuild what a dead one held.
func TestSpread(t *testing.T) {
	var nodes []Node[uint32]
	sets := make([][]uint32, 2048)
	for i := range 20 {
		nodes = append(nodes, Node[uint32]{ID: uint32(i), Weight: 64})
		if i >= 2 {
			sets = Assign(sets, nodes, 3)
		}
	}
	pairs := map[[2]uint32]int{}
	for _, set := range sets {
		for _, a := range set {
			for _, b := range set {
				pairs[[2]uint32{a, b}]++
			}
		}
	}
	mean := 2048 * 3 / (20 * 19 / 2)
	for p, n := range pairs {
		if p[0] < p[1] && n > 2*mean {
			t.Errorf("nodes %d and %d share %d groups, the mean is %d", p[0], p[1], n, mean)
		}
	}
}
