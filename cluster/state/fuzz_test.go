package state

import (
	"bytes"
	"encoding/json"
	"testing"
)

// rich is a Map with some of everything in it.
func rich(t testing.TB) *Map {
	m, all := cluster(t, 4, 3, 4)
	m, _ = must(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1 << 30}})
	m, _ = must(t, m, Command{CreateVDI: &CreateVDI{Name: "s", Size: 1 << 20, Shared: true, Copies: 2}})
	m = frozen(t, m, "a", "x")
	m = frozen(t, m, "a", "y")
	m, _ = must(t, m, Command{CloneVDI: &CloneVDI{Name: "a", Snap: "x", New: "b"}})
	m, _ = must(t, m, Command{DeleteVDI: &DeleteVDI{Name: "a", Snap: "y"}})
	m, _ = must(t, m, Command{OpenSess: &OpenSess{Name: "s", Client: "1", Holder: all[0]}})
	m, _ = must(t, m, Command{OpenSess: &OpenSess{Name: "s", Client: "2", Holder: Member{Node: NoNode}}})
	m, _ = must(t, m, Command{CloseVDI: &CloseVDI{Name: "a", Tag: "z"}})
	m, _ = must(t, m, Command{ID: "once", Ended: &Ended{Members: all[2:3], Leased: all[:2]}})
	return m
}

// orders are commands of every kind that do something to rich, or nearly.
func orders() []Command {
	some := []Member{{0, 100}, {1, 101}, {3, 103}}
	return []Command{
		{Register: &Register{UUID: "node2", Inc: 5, PrevInc: 102, VNodes: 64, Boot: "b", Leased: some}},
		{Register: &Register{UUID: "new", Inc: 5, VNodes: 32, Zone: "z"}},
		{InService: &InService{Members: []Member{{2, 5}}, Leased: some}},
		{Sync: &SyncChange{By: some[0], Leased: some, Changes: []SetChange{{0, 1, some[2:], nil, NoNode, false}, {1, 2, nil, some[1:2], 0, false}, {2, 2, some, nil, 1, false}, {3, 2, nil, nil, NoNode, true}}}},
		{Recovered: &Recovered{By: some[0], Groups: []GroupRecovered{{0, 1, 1}}}},
		{CreateVDI: &CreateVDI{Name: "n", Size: 1, Copies: 1}},
		{FreezeVDI: &FreezeVDI{Vid: HashName("a") + 2, Closing: 20, Terms: []uint64{1, 2, 2, 2}}},
		{AbortClose: &AbortClose{Vid: HashName("a") + 2, Closing: 20}},
		{ResizeVDI: &ResizeVDI{Name: "b", Size: 1 << 40}},
		{Collected: &Collected{Vid: HashName("a") + 1, Gen: 12, Groups: []GroupID{0, 1, 2, 3}}},
		{CloseSess: &CloseSess{ID: 1}},
		{Unlock: &Unlock{Name: "s"}},
		{DeleteVDI: &DeleteVDI{Name: "s", Force: true}},
		{NodeOut: &NodeOut{Node: 1, Drain: true}},
		{Disks: &Disks{By: some[0], Disks: []Disk{{"d1", 1 << 30}, {"d2", 1 << 40}}}},
		{AddPool: &AddPool{Copies: 4}},
		{Set: &Set{"scrub-speed", "1M"}},
		{Shutdown: &Shutdown{Down: true}},
		{Ended: &Ended{Members: some}},
		{Shutdown: &Shutdown{}},
		{Resume: &Resume{Groups: []GroupTerm{{0, 3}, {1, 4}, {2, 4}, {3, 4}}, Leased: some}},
		{Force: &Force{Groups: []GroupTerm{{0, 3}, {1, 4}, {2, 4}, {3, 4}}, Leased: []Member{{2, 5}}}},
		{NodeOut: &NodeOut{Node: 2, Remove: true}},
		{Format: &Format{Cluster: "again", Copies: 2, PGs: 2, Force: true}},
	}
}

// FuzzCommand: whatever raft's log holds, Apply returns, and the Map that it returns is sound. The input is one command per line.
func FuzzCommand(f *testing.F) {
	var lines []byte
	for _, c := range orders() {
		b, err := EncodeCommand(&c)
		if err != nil {
			f.Fatal(err)
		}
		lines = append(lines, b[1:]...)
		f.Add(b[1:])
	}
	f.Add(lines)
	base := written(f, rich(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeMap(base)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			c, err := DecodeCommand(append([]byte{formatVersion}, line...))
			if err != nil {
				continue
			}
			if f := c.Format; f != nil && f.PGs > 64 || c.AddPool != nil && c.AddPool.PGs > 64 {
				continue // right, but slow
			}
			m, _ = apply(t, m, c)
		}
	})
}

// FuzzMap: a Map that DecodeMap takes is one that every command may be applied to.
func FuzzMap(f *testing.F) {
	f.Add(written(f, New()))
	f.Add(written(f, rich(f)))
	m := rich(f)
	for _, c := range orders() {
		m, _ = m.Apply(m.Index+1, &c)
		f.Add(written(f, m))
	}
	f.Add([]byte{formatVersion})
	f.Add([]byte("\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMap(b)
		if err != nil || len(m.Groups) > 256 {
			return
		}
		for _, c := range orders() {
			next, _ := m.Apply(m.Index+1, &c)
			if _, err := DecodeMap(written(t, next)); err != nil {
				line, _ := json.Marshal(c)
				t.Fatalf("after %s: %v", line, err)
			}
			m = next
		}
		for _, v := range m.VDIs {
			m.Chain(v.Vid)
			m.Lookup(v.Name, v.Tag)
			m.CollectPlan(v.Vid, NewGroupID(v.Pool, 0))
			m.Visible(v.Root)
		}
		for _, n := range m.Nodes {
			m.ResumeDue([]Member{m.Current(n.ID)}, func(*Group) bool { return true })
		}
	})
}
