package state

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// large is a cluster of 30 nodes with 2,048 groups and 10,000 VDIs.
func large(t testing.TB) (*Map, []Member) {
	m := New()
	var all []Member
	step := func(c Command) {
		next, res := m.Apply(m.Index+1, &c)
		if err := res.Err(); err != nil {
			t.Fatal(err)
		}
		m = next
	}
	for i := range 30 {
		all = append(all, Member{NodeID(i), uint64(100 + i)})
		step(Command{Register: &Register{UUID: fmt.Sprint("node", i), VNodes: 64, Inc: uint64(100 + i), Boot: "b"}})
	}
	step(Command{InService: &InService{Members: all, Leased: all}})
	step(Command{Format: &Format{Cluster: "here", Copies: 3}})
	for i := range 10000 {
		step(Command{CreateVDI: &CreateVDI{Name: fmt.Sprint("disk", i), Size: 1 << 30}})
	}
	return m, all
}

// TestNoAllocation: what requests look up costs no allocation.
func TestNoAllocation(t *testing.T) {
	m := rich(t)
	v := m.Working("a")
	for name, f := range map[string]func(){
		"Group":     func() { m.Group(m.GroupFor(v, 7)) },
		"Node":      func() { m.Node(2) },
		"VDI":       func() { m.VDI(v.Vid) },
		"Lookup":    func() { m.Lookup("a", "x") },
		"Chain":     func() { m.Chain(v.Vid) },
		"Session":   func() { m.Session(1) },
		"InService": func() { m.InService(Member{0, 100}) },
		"Pool":      func() { m.PoolGroups(0) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	m, all := large(b)
	run := func(name string, c func(i int) Command) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			now := m
			for i := range b.N {
				cmd := c(i)
				next, res := now.Apply(now.Index+1, &cmd)
				if err := res.Err(); err != nil {
					b.Fatal(err)
				}
				if i%1000 < 999 {
					now = next
				} else {
					now = m
				}
			}
		})
	}
	run("create", func(i int) Command {
		return Command{ID: "x" + fmt.Sprint(i), CreateVDI: &CreateVDI{Name: fmt.Sprint("new", i), Size: 1 << 30}}
	})
	run("open", func(i int) Command {
		return Command{OpenSess: &OpenSess{Name: fmt.Sprint("disk", i%10000), Client: "c", Holder: all[0]}}
	})
	run("sync 70 groups", func(i int) Command {
		c := &SyncChange{Leased: all}
		for _, g := range m.Groups {
			if c.By == (Member{}) {
				c.By = g.Primary
			}
			if g.Primary == c.By {
				c.Changes = append(c.Changes, SetChange{Group: g.ID, Term: g.Term + uint64(i%1000), To: g.Primary.Node})
			}
		}
		return Command{Sync: c}
	})
	b.Run("ended", func(b *testing.B) {
		for range b.N {
			m.Apply(m.Index+1, &Command{Ended: &Ended{Members: all[:1], Leased: all[1:]}})
		}
	})
	b.Run("encode", func(b *testing.B) {
		for range b.N {
			out, _ := EncodeMap(m)
			b.SetBytes(int64(len(out)))
		}
	})
	text, _ := EncodeMap(m)
	b.Run("decode", func(b *testing.B) {
		for range b.N {
			if _, err := DecodeMap(text); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	m, _ := large(b)
	v := m.Working("disk77")
	b.Run("chain and group", func(b *testing.B) {
		for i := range b.N {
			m.Chain(v.Vid)
			m.Group(m.GroupFor(v, uint32(i)))
		}
	})
	b.Run("name", func(b *testing.B) {
		for range b.N {
			m.Lookup("disk77", "")
		}
	})
}

// Test300 grows a cluster to 300 nodes, kills a tenth of it and heals it, and says how long that takes and how large the state is.
func Test300(t *testing.T) {
	m, all := cluster(t, 3, 3, 0)
	const limit = time.Second
	var slowest time.Duration
	step := func(c Command) {
		began := time.Now()
		next, res := m.Apply(m.Index+1, &c)
		took := time.Since(began)
		for try := 0; try < 3 && took > limit; try++ { // Apply changes nothing: where only the machine stood still it is faster the next time
			began = time.Now()
			m.Apply(m.Index+1, &c)
			took = min(took, time.Since(began))
		}
		slowest = max(slowest, took)
		if err := res.Err(); err != nil {
			t.Fatal(err)
		}
		m = next
	}
	// settle lets primaries carry the targets out: everybody who shall hold a group joins it, the others leave.
	settle := func() (moved int) {
		by := map[Member][]SetChange{}
		for _, g := range m.Groups {
			c := SetChange{Group: g.ID, Term: g.Term, To: g.Target[0]}
			for _, id := range g.Target {
				if b := m.Current(id); !slices.Contains(g.InSync, b) {
					c.Add = append(c.Add, b)
					moved++
				}
			}
			for _, b := range g.InSync {
				if !slices.Contains(g.Target, b.Node) {
					c.Remove = append(c.Remove, b)
				}
			}
			if c.Add != nil || c.Remove != nil || g.Primary.Node != c.To {
				by[g.Primary] = append(by[g.Primary], c)
			}
		}
		for _, b := range all { // not by ranging over a Go map: no two runs would be alike
			if by[b] != nil {
				step(Command{Sync: &SyncChange{By: b, Changes: by[b], Leased: all}})
			}
		}
		return moved
	}
	for i := 3; i < 300; i++ {
		b := Member{NodeID(i), uint64(100 + i)}
		all = append(all, b)
		step(Command{Register: &Register{UUID: fmt.Sprint("node", i), VNodes: 64, Inc: b.Inc, Zone: fmt.Sprint("rack", i%20)}})
		step(Command{InService: &InService{Members: all[i:], Leased: all}})
		settle()
	}
	dead := slices.Clone(all[270:])
	all = all[:270]
	step(Command{Ended: &Ended{Members: dead, Leased: all}})
	lost := 0
	for _, g := range m.Groups {
		if g.Primary.Node == NoNode {
			lost++
		}
	}
	if lost > 10 { // all three members among a tenth of the nodes: one in a thousand
		t.Errorf("%d groups are lost", lost)
	}
	for _, b := range dead {
		step(Command{NodeOut: &NodeOut{Node: b.Node, Out: true}})
	}
	moved := settle()
	b := written(t, m)
	t.Logf("slowest command %v; healing moves %d of %d replicas, %d groups lost; the state is %d bytes", slowest.Round(time.Millisecond/10), moved, 3*len(m.Groups), lost, len(b))
	if slowest > limit {
		t.Errorf("a command took %v", slowest)
	}
}
