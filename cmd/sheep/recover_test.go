package main

import (
	"strings"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// What `cluster recover force` says before it does anything: how many groups, of which nodes, and which disks are hit.
func TestRecoverWarns(t *testing.T) {
	m := state.New()
	step := func(c state.Command) {
		t.Helper()
		next, res := m.Apply(m.Index+1, &c)
		if err := res.Err(); err != nil {
			t.Fatal(err)
		}
		m = next
	}
	a := state.Member{Node: 0, Inc: 7}
	step(state.Command{Register: &state.Register{UUID: "a", Addr: "10.0.0.1:7000", VNodes: 64, Inc: 7, Boot: "b"}})
	step(state.Command{InService: &state.InService{Members: []state.Member{a}, Leased: []state.Member{a}}})
	step(state.Command{Format: &state.Format{Cluster: "c", Copies: 1, PGs: 4}})
	step(state.Command{CreateVDI: &state.CreateVDI{Name: "small", Size: 4 << 20}})
	step(state.Command{CreateVDI: &state.CreateVDI{Name: "large", Size: 1 << 30}})
	if k := stuckGroups(m); len(k.groups()) != 0 || k.warning(m) != "" {
		t.Errorf("nothing is stuck: %q", k.warning(m))
	}
	small := m.GroupFor(m.Working("small"), 0)
	var lost state.GroupID // of which small has nothing
	for _, g := range m.Groups {
		if g.ID != small {
			lost = g.ID
		}
	}
	step(state.Command{Sync: &state.SyncChange{By: a, Leased: []state.Member{a}, Changes: []state.SetChange{{Group: lost, Term: m.Group(lost).Term, To: state.NoNode, NoCopy: true}}}})
	k := stuckGroups(m)
	text := k.warning(m)
	for _, want := range []string{"only copies of 1 groups were on disks of 10.0.0.1:7000 that failed", "EMPTY", "IS LOST FOR EVER", "Hit are: large (", "of its first 256 objects"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in: %s", want, text)
		}
	}
	if strings.Contains(text, "small") || len(k.groups()) != 1 {
		t.Errorf("%d groups: %s", len(k.groups()), text)
	}
}
