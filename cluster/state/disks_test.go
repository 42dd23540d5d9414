package state

import "testing"

// A disk belongs to one node; what a node says of its disks replaces what it said before (STORE.md rule 21).
func TestRule21DisksBelongToOneNode(t *testing.T) {
	m := New()
	reg := func(uuid string, inc uint64, disks ...Disk) Command {
		return Command{Register: &Register{UUID: uuid, Inc: inc, VNodes: 64, Disks: disks}}
	}
	m, _ = must(t, m, reg("a", 1, Disk{"d1", 10}))
	m, _ = must(t, m, reg("b", 2, Disk{"d2", 20}))
	refused(t, m, reg("c", 3, Disk{"d1", 10}), Wrong, "node 0")
	refused(t, m, reg("c", 3, Disk{"d3", 1}, Disk{"d3", 1}), Invalid, "twice")
	refused(t, m, reg("c", 3, Disk{"", 1}), Invalid, "identity")
	m, _ = must(t, m, Command{Disks: &Disks{By: Member{0, 1}, Disks: []Disk{{"d1", 10}, {"d3", 5}}}})
	if n := m.Nodes[0]; n.Disk != 15 || len(n.Disks) != 2 {
		t.Errorf("disks %v, %d bytes", n.Disks, n.Disk)
	}
	refused(t, m, Command{Disks: &Disks{By: Member{1, 2}, Disks: []Disk{{"d3", 5}}}}, Wrong, "node 0")
	refused(t, m, Command{Disks: &Disks{By: Member{1, 1}, Disks: []Disk{{"d4", 5}}}}, Stale, "over")
	m, _ = must(t, m, Command{Disks: &Disks{By: Member{0, 1}, Disks: []Disk{{"d1", 10}}}})
	must(t, m, Command{Disks: &Disks{By: Member{1, 2}, Disks: []Disk{{"d2", 20}, {"d3", 5}}}}) // let go there, taken here
}
