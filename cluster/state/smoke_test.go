package state

import "testing"

// must applies a command and fails the test if it is refused.
func must(t testing.TB, m *Map, c Command) (*Map, Result) {
	t.Helper()
	next, res := m.Apply(m.Index+1, &c)
	if err := res.Err(); err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return next, res
}

func TestStory(t *testing.T) {
	m := New()
	var leased []Member
	for i, uuid := range []string{"a", "b", "c"} {
		var res Result
		m, res = must(t, m, Command{Register: &Register{UUID: uuid, VNodes: 64, Inc: uint64(100 + i), Boot: uuid}})
		leased = append(leased, Member{res.Node, uint64(100 + i)})
	}
	m, _ = must(t, m, Command{InService: &InService{Members: leased, Leased: leased}})
	m, _ = must(t, m, Command{Format: &Format{Cluster: "x", Copies: 3}})
	m, res := must(t, m, Command{CreateVDI: &CreateVDI{Name: "alpha", Size: 1 << 30}})
	if res.Vid != 0xed202b {
		t.Fatalf("vid %06x, Sheepdog gives ed202b", res.Vid)
	}
	m, _ = must(t, m, Command{Ended: &Ended{Members: leased[:1], Leased: leased[1:]}})
	for _, g := range m.Groups {
		if len(g.InSync) != 2 || g.Primary.Node == 0 || g.Primary.Node == NoNode {
			t.Fatalf("%+v", g)
		}
	}
	b, err := EncodeMap(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeMap(b); err != nil {
		t.Fatal(err)
	}
}
