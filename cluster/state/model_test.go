package state

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is a cluster reduced to what matters for the sets: processes that run or do not, and per group how much of the acknowledged
// writes each of them has. It makes random commands, sensible and not, and asserts that nothing flushed is ever lost, whatever the order.
type world struct {
	m     *Map
	inc   uint64
	nodes []*process
	log   map[GroupID]*history
	names []string
}

// process is a node's directory and what runs on it.
type process struct {
	uuid    string
	incs    []uint64 // its history, oldest first
	running bool     // with the newest incarnation
	has     map[GroupID]int
}

func (p *process) newest() uint64 {
	if len(p.incs) == 0 {
		return 0
	}
	return p.incs[len(p.incs)-1]
}

// history is what a group's clients were told.
type history struct {
	acked, flushed int
	given          bool // an administrator forced it: all bets are off
}

func newWorld() *world {
	return &world{m: New(), log: map[GroupID]*history{}, names: []string{"a", "b", "two words", "ü"}}
}

func (w *world) apply(t *rapid.T, c Command) Result {
	c.Time = time.Unix(int64(1e9+w.m.Index), 0)
	if rapid.IntRange(0, 3).Draw(t, "named") == 0 {
		c.ID = fmt.Sprint(rapid.IntRange(0, 1000).Draw(t, "id"))
	}
	old := w.m
	_, repeated := old.Recent.find(c.ID)
	next, res := apply(t, old, &c)
	w.m = next
	if !repeated {
		w.follow(t, old, &c)
	}
	return res
}

// follow does in the model what replicas would do on seeing the new Map.
func (w *world) follow(t *rapid.T, old *Map, c *Command) {
	if old.Cluster != w.m.Cluster {
		w.log = map[GroupID]*history{}
		for _, p := range w.nodes {
			p.has = map[GroupID]int{}
		}
	}
	for _, g := range w.m.Groups {
		h := w.log[g.ID]
		if h == nil {
			h = &history{}
			w.log[g.ID] = h
		}
		was := old.Group(g.ID)
		if was == nil || old.Cluster != w.m.Cluster || was.Term == g.Term {
			continue
		}
		if c.Force != nil {
			h.given = true
		}
		if c.Sync != nil {
			for _, b := range g.InSync {
				if !slices.Contains(was.InSync, b) { // R11: it was brought up to date before
					w.nodes[b.Node].has[g.ID] = h.acked
				}
			}
		}
		if g.Resumes != was.Resumes { // R7: the longest prefix wins
			longest := 0
			for _, b := range g.InSync {
				longest = max(longest, w.nodes[b.Node].has[g.ID])
			}
			if longest < h.flushed && !h.given {
				t.Fatalf("group %x resumed with %v, which have %d writes; %d were flushed", uint32(g.ID), g.InSync, longest, h.flushed)
			}
			h.acked, h.flushed, h.given = longest, min(h.flushed, longest), false
			for _, b := range g.InSync {
				w.nodes[b.Node].has[g.ID] = longest
			}
		}
		if c.Force != nil {
			h.given = false
		}
	}
	w.check(t)
}

// check: invariant 1; whoever is in sync and has not restarted has every acknowledged write.
func (w *world) check(t *rapid.T) {
	for _, g := range w.m.Groups {
		h := w.log[g.ID]
		for _, b := range g.InSync {
			if w.nodes[b.Node].newest() == b.Inc && w.nodes[b.Node].has[g.ID] < h.acked && !h.given {
				t.Fatalf("group %x: member %v has %d of %d acknowledged writes", uint32(g.ID), b, w.nodes[b.Node].has[g.ID], h.acked)
			}
		}
	}
}

// leased draws what the leader knows: some of the members that are intact, now and then somebody who is not.
func (w *world) leased(t *rapid.T) []Member {
	list := []Member{}
	how := rapid.IntRange(0, 5).Draw(t, "leases")
	for _, n := range w.m.Nodes {
		b := Member{n.ID, n.Inc}
		switch {
		case !w.m.Intact(b) && how != 5, how == 0, how < 3 && rapid.Bool().Draw(t, "no lease"):
			continue
		}
		list = append(list, b)
	}
	return list
}

func (w *world) register(t *rapid.T) {
	i := rapid.IntRange(0, min(5, len(w.nodes))).Draw(t, "who")
	if i == len(w.nodes) {
		w.nodes = append(w.nodes, &process{uuid: fmt.Sprint("node", i), has: map[GroupID]int{}})
	}
	p := w.nodes[i]
	w.inc++
	r := &Register{UUID: p.uuid, Addr: p.uuid, Inc: w.inc, Boot: fmt.Sprint(rapid.IntRange(0, 1).Draw(t, "boot")), Leased: w.leased(t)}
	r.VNodes = rapid.SampledFrom([]int{64, 64, 64, 128, 0}).Draw(t, "vnodes")
	r.Zone = rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "zone")
	if len(p.incs) > 0 {
		r.PrevInc = p.incs[len(p.incs)-1]
		r.History = p.incs
		r.Cluster = w.m.Cluster
	}
	// The new process is there whether it gets registered or not; what was not flushed may be gone.
	p.incs = append(p.incs, w.inc)
	p.running = true
	for g, h := range w.log {
		if p.has[g] > h.flushed {
			p.has[g] = rapid.IntRange(h.flushed, p.has[g]).Draw(t, "survived")
		}
	}
	if w.apply(t, Command{Register: r}).Code == Wrong && w.m.NodeByUUID(p.uuid) == nil {
		p.incs = nil // registered when the cluster was another: emptied
	}
	if w.m.NodeByUUID(p.uuid) == nil { // refused: it never was
		w.nodes = w.nodes[:len(w.nodes)-1]
	}
}

// someGroups draws groups at their terms, or nearly.
func (w *world) someGroups(t *rapid.T) []GroupTerm {
	var list []GroupTerm
	for _, g := range w.m.Groups {
		if rapid.IntRange(0, 3).Draw(t, "skip") > 0 {
			list = append(list, GroupTerm{g.ID, g.Term - uint64(rapid.IntRange(0, 9).Draw(t, "late")/9)})
		}
	}
	return list
}

func (w *world) members(t *rapid.T, from []Member) []Member {
	var list []Member
	for _, b := range from {
		if rapid.Bool().Draw(t, "member") {
			list = append(list, b)
		}
	}
	return list
}

func (w *world) all() []Member {
	var list []Member
	for _, n := range w.m.Nodes {
		list = append(list, Member{n.ID, n.Inc})
	}
	return list
}

func (w *world) syncChange(t *rapid.T) {
	g := rapid.SampledFrom(w.m.Groups).Draw(t, "group")
	c := &SyncChange{By: g.Primary, Leased: w.leased(t)}
	for _, gt := range w.someGroups(t) {
		h := w.m.Group(gt.Group)
		ch := SetChange{Group: gt.Group, Term: gt.Term, To: NoNode}
		if rapid.Bool().Draw(t, "add") {
			ch.Add = w.members(t, w.all())
		}
		if rapid.Bool().Draw(t, "remove") {
			ch.Remove = w.members(t, h.InSync)
		}
		if rapid.IntRange(0, 2).Draw(t, "hand over") == 0 {
			ch.To = rapid.SampledFrom(w.all()).Draw(t, "to").Node
		}
		c.Changes = append(c.Changes, ch)
	}
	w.apply(t, Command{Sync: c})
}

// write acknowledges a write in a group whose primary has not ended, if every member in sync runs and takes it.
func (w *world) write(t *rapid.T, flush bool) {
	for _, g := range w.m.Groups {
		if !w.m.Intact(g.Primary) || slices.ContainsFunc(g.InSync, func(b Member) bool {
			p := w.nodes[b.Node]
			return !p.running || p.newest() != b.Inc
		}) || rapid.IntRange(0, 3).Draw(t, "idle") == 0 {
			continue
		}
		h := w.log[g.ID]
		h.acked++
		for _, b := range g.InSync {
			w.nodes[b.Node].has[g.ID] = h.acked
		}
		if flush {
			h.flushed = h.acked
		}
	}
}

// TestR2R5R6R9R10 runs random histories of nodes and groups. The rules are asserted in apply, what follows from them in world.
func TestR2R5R6R9R10(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		for range 3 {
			w.register(t)
		}
		formatted := func(t *rapid.T) {
			if !w.m.Formatted() {
				t.Skip()
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"register": w.register,
			"format": func(t *rapid.T) {
				if w.m.Formatted() && rapid.IntRange(0, 20).Draw(t, "again") > 0 {
					t.Skip()
				}
				copies := rapid.IntRange(1, 3).Draw(t, "copies")
				w.apply(t, Command{Format: &Format{Cluster: fmt.Sprint("c", w.m.Index), Copies: copies, PGs: 4, Force: w.m.Formatted()}})
			},
			"die": func(t *rapid.T) {
				p := rapid.SampledFrom(w.nodes).Draw(t, "who")
				p.running = false
			},
			"ended": func(t *rapid.T) {
				w.apply(t, Command{Ended: &Ended{Members: w.members(t, w.all()), Leased: w.leased(t)}})
			},
			"inService": func(t *rapid.T) {
				w.apply(t, Command{InService: &InService{Members: w.members(t, w.all()), Leased: w.leased(t)}})
			},
			"sync": func(t *rapid.T) { formatted(t); w.syncChange(t) },
			"resume": func(t *rapid.T) {
				w.apply(t, Command{Resume: &Resume{Groups: w.someGroups(t), Leased: w.leased(t)}})
			},
			"resume due": func(t *rapid.T) {
				formatted(t)
				leased := w.leased(t)
				due := w.m.ResumeDue(leased, func(*Group) bool { return true })
				if len(due) == 0 {
					t.Skip()
				}
				res := w.apply(t, Command{Resume: &Resume{Groups: due, Leased: leased}})
				for _, d := range due {
					if g := w.m.Group(d.Group); res.Index == w.m.Index && g.Primary.Node == NoNode {
						t.Fatalf("group %x was due and did not resume: %v", uint32(d.Group), res.Error)
					}
				}
			},
			"force": func(t *rapid.T) {
				if rapid.IntRange(0, 5).Draw(t, "rare") > 0 {
					t.Skip()
				}
				w.apply(t, Command{Force: &Force{Groups: w.someGroups(t), Leased: w.leased(t)}})
			},
			"recovered": func(t *rapid.T) {
				formatted(t)
				g := rapid.SampledFrom(w.m.Groups).Draw(t, "group")
				w.apply(t, Command{Recovered: &Recovered{By: g.Primary, Groups: []GroupRecovered{{g.ID, g.Term, 7}}}})
				if is := w.m.Group(g.ID); is.RecoveredAt > is.Resumes || g.RecoveredAt == g.Resumes && is.Recovered != g.Recovered {
					t.Fatalf("R17: what was recovered was reported before: %+v", is)
				}
			},
			"nodeOut": func(t *rapid.T) {
				w.apply(t, Command{NodeOut: &NodeOut{
					Node: NodeID(rapid.IntRange(0, len(w.nodes)).Draw(t, "node")), Out: rapid.Bool().Draw(t, "out"),
					Drain: rapid.Bool().Draw(t, "drain"), Remove: rapid.IntRange(0, 4).Draw(t, "remove") == 0,
				}})
			},
			"shutdown": func(t *rapid.T) { w.apply(t, Command{Shutdown: &Shutdown{rapid.Bool().Draw(t, "down")}}) },
			"addPool": func(t *rapid.T) {
				if len(w.m.Pools) > 2 {
					t.Skip()
				}
				w.apply(t, Command{AddPool: &AddPool{Copies: rapid.IntRange(0, 4).Draw(t, "copies"), PGs: 2}})
			},
			"write": func(t *rapid.T) { w.write(t, false) },
			"flush": func(t *rapid.T) { w.write(t, true) },
		})
	})
}
