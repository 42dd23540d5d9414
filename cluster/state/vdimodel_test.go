package state

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// disks is a cluster reduced to its directory and, per group, the tables of blocks that stores would hold. A write goes to the
// working vid's table, a read to the nearest table along the chain. Collectors follow CollectPlan, each group at its own pace. Whatever
// happens, every living VDI reads what it should (invariant 10), and nothing is left of the dead (R24).
type disks struct {
	m      *Map
	tables map[cell]int   // what stores hold
	want   map[life][]int // what each VDI must read, by block
	stamp  int
	leased []Member
	inc    uint64
}

// life is a vid in one of its lives.
type life struct {
	vid uint32
	gen uint64
}

type cell struct {
	life
	block int
}

const blocks = 8 // block b belongs to group b % 4

func newDisks(t rapid.TB) *disks {
	d := &disks{m: New(), tables: map[cell]int{}, want: map[life][]int{}}
	for i := range 3 {
		d.inc++
		d.apply(t, Command{Register: &Register{UUID: fmt.Sprint(i), VNodes: 64, Inc: d.inc}})
		d.leased = append(d.leased, Member{NodeID(i), d.inc})
	}
	d.apply(t, Command{InService: &InService{Members: d.leased, Leased: d.leased}})
	d.apply(t, Command{Format: &Format{Cluster: "c", Copies: 3, PGs: 4}})
	return d
}

// apply follows the command in the model. What a reader of a VDI must see never depends on what the collector did.
func (d *disks) apply(t rapid.TB, c Command) Result {
	old := d.m
	next, res := apply(t, old, &c)
	d.m = next
	for _, v := range next.VDIs {
		l := life{v.Vid, v.Gen}
		if v.State != Deleted && d.want[l] == nil {
			if p := next.VDI(v.Parent); p != nil {
				d.want[l] = slices.Clone(d.want[life{p.Vid, p.Gen}])
			} else {
				d.want[l] = make([]int, blocks)
			}
		}
	}
	for l := range d.want {
		if v := next.VDI(l.vid); v == nil || v.Gen != l.gen || v.State == Deleted {
			delete(d.want, l)
		}
	}
	d.check(t)
	return res
}

func (d *disks) check(t rapid.TB) {
	for l, want := range d.want {
		got := make([]int, blocks)
		for b := range blocks {
			for _, c := range d.m.Chain(l.vid) {
				if x, ok := d.tables[cell{life{c.Vid, c.Gen}, b}]; ok {
					got[b] = x
					break
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("invariant 10: %06x reads %v, not %v", l.vid, got, want)
		}
	}
	for c := range d.tables {
		if v := d.m.VDI(c.vid); v == nil || v.Gen != c.gen {
			t.Fatalf("R24: block %d of %06x, which is gone, is still stored", c.block, c.vid)
		}
	}
}

// collect lets one group do what its plan for one deleted VDI says, and perhaps report it.
func (d *disks) collect(t *rapid.T) {
	dead := d.m.Deleted()
	if len(dead) == 0 {
		t.Skip()
	}
	v := rapid.SampledFrom(dead).Draw(t, "vid")
	var did []GroupID
	for g := range 4 {
		if rapid.IntRange(0, 3).Draw(t, "idle") == 0 {
			continue
		}
		id := NewGroupID(v.Pool, g)
		plan := d.m.CollectPlan(v.Vid, id)
		if plan.Do != PlanDrop && plan.Do != PlanMerge {
			continue
		}
		for b := g; b < blocks; b += 4 {
			x, ok := d.tables[cell{life{v.Vid, v.Gen}, b}]
			delete(d.tables, cell{life{v.Vid, v.Gen}, b})
			if !ok || plan.Do == PlanDrop {
				continue
			}
			heir := cell{life{plan.Into, plan.IntoGen}, b}
			if _, has := d.tables[heir]; !has {
				d.tables[heir] = x
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "crash") > 0 {
			did = append(did, id)
		}
	}
	if len(did) == 0 {
		d.check(t)
		return
	}
	if res := d.apply(t, Command{Collected: &Collected{Vid: v.Vid, Gen: v.Gen, Groups: did}}); res.Code != OK {
		t.Fatalf("%s", res.Error)
	}
}

func (d *disks) write(t *rapid.T) {
	var open []*VDI
	for _, v := range d.m.VDIs {
		if v.State == Working {
			open = append(open, v)
		}
	}
	if len(open) == 0 {
		t.Skip()
	}
	v := rapid.SampledFrom(open).Draw(t, "to")
	for range rapid.IntRange(1, 4).Draw(t, "count") {
		b := rapid.IntRange(0, blocks-1).Draw(t, "block")
		d.stamp++
		d.tables[cell{life{v.Vid, v.Gen}, b}] = d.stamp
		d.want[life{v.Vid, v.Gen}][b] = d.stamp
	}
	d.check(t)
}

// drain deletes everything and collects it: the directory must end empty.
func (d *disks) drain(t *rapid.T) {
	for _, v := range slices.Clone(d.m.VDIs) {
		if v.State == Deleted {
			continue
		}
		snap := ""
		if v.State == Frozen {
			snap = fmt.Sprint(v.SnapID)
		}
		if res := d.apply(t, Command{DeleteVDI: &DeleteVDI{Name: v.Name, Snap: snap, Force: true}}); res.Code != OK {
			t.Fatalf("delete %s:%s: %s", v.Name, snap, res.Error)
		}
	}
	for round := 0; len(d.m.VDIs) > 0; round++ {
		v := d.m.VDIs[round%len(d.m.VDIs)]
		if round > 1000 {
			t.Fatalf("%06x is never collected", v.Vid)
		}
		var did []GroupID
		for g := range 4 {
			id := NewGroupID(v.Pool, g)
			if d.m.CollectPlan(v.Vid, id).Do == PlanDrop {
				maps.DeleteFunc(d.tables, func(c cell, _ int) bool { return c.vid == v.Vid && c.block%4 == g })
			} else if d.m.CollectPlan(v.Vid, id).Do != PlanNone {
				t.Fatalf("%06x: everything is deleted, but the plan is %v", v.Vid, d.m.CollectPlan(v.Vid, id))
			}
			did = append(did, id)
		}
		d.apply(t, Command{Collected: &Collected{Vid: v.Vid, Gen: v.Gen, Groups: did}})
	}
}

// TestR14R22R24 runs random histories of VDIs, snapshots, clones, sessions and collectors.
func TestR14R22R24(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDisks(t)
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		snap := rapid.SampledFrom([]string{"1", "2", "3", "x", "y"})
		freeze := func(t *rapid.T, v *VDI) Result {
			f := &FreezeVDI{Vid: v.Vid, Closing: v.Closing}
			for _, g := range d.m.PoolGroups(v.Pool) {
				f.Terms = append(f.Terms, g.Term-uint64(rapid.IntRange(0, 20).Draw(t, "late")/20))
			}
			return d.apply(t, Command{FreezeVDI: f})
		}
		closing := func(t *rapid.T) *VDI {
			for _, v := range d.m.VDIs {
				if v.State == Closing {
					return v
				}
			}
			t.Skip()
			return nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				d.apply(t, Command{CreateVDI: &CreateVDI{Name: name.Draw(t, "name"), Size: 1 << 20, Shared: rapid.Bool().Draw(t, "shared")}})
			},
			"snapshot": func(t *rapid.T) {
				n := name.Draw(t, "name")
				if d.apply(t, Command{CloseVDI: &CloseVDI{Name: n, Tag: rapid.SampledFrom([]string{"", "", "x", "y"}).Draw(t, "tag")}}).Code == OK {
					freeze(t, d.m.Working(n))
				}
			},
			"close":  func(t *rapid.T) { d.apply(t, Command{CloseVDI: &CloseVDI{Name: name.Draw(t, "name"), Tag: "x"}}) },
			"freeze": func(t *rapid.T) { freeze(t, closing(t)) },
			"abort": func(t *rapid.T) {
				v := closing(t)
				d.apply(t, Command{AbortClose: &AbortClose{Vid: v.Vid, Closing: v.Closing - uint64(rapid.IntRange(0, 1).Draw(t, "wrong"))}})
			},
			"clone": func(t *rapid.T) {
				d.apply(t, Command{CloneVDI: &CloneVDI{Name: name.Draw(t, "name"), Snap: snap.Draw(t, "snap"), New: name.Draw(t, "new")}})
			},
			"rollback": func(t *rapid.T) {
				c := &Rollback{Name: name.Draw(t, "name"), Snap: snap.Draw(t, "snap")}
				was, to := d.m.Working(c.Name), (*VDI)(nil)
				if v, err := d.m.Lookup(c.Name, c.Snap); err == nil {
					to = v
				}
				open := was != nil && len(d.m.SessionsOf(was.Vid)) > 0
				if d.apply(t, Command{Rollback: c}).Code != OK {
					return
				}
				now := d.m.Working(c.Name)
				switch {
				case open:
					t.Fatalf("%s was rolled back under its client", c.Name)
				case now.Identity() == was.Identity() || now.Shared != was.Shared || now.Size != to.Size:
					t.Fatalf("%s was %+v and is %+v", c.Name, was, now)
				case !slices.Equal(d.want[life{now.Vid, now.Gen}], d.want[life{to.Vid, to.Gen}]):
					t.Fatalf("%s does not read as its snapshot %s", c.Name, c.Snap)
				}
			},
			"resize": func(t *rapid.T) {
				d.apply(t, Command{ResizeVDI: &ResizeVDI{Name: name.Draw(t, "name"), Size: rapid.Uint64().Draw(t, "size")}})
			},
			"delete": func(t *rapid.T) {
				c := &DeleteVDI{Name: name.Draw(t, "name"), Force: rapid.Bool().Draw(t, "force")}
				if rapid.Bool().Draw(t, "a snapshot") {
					c.Snap = snap.Draw(t, "snap")
				}
				d.apply(t, Command{DeleteVDI: c})
			},
			"open": func(t *rapid.T) {
				c := &OpenSess{Name: name.Draw(t, "name"), Client: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "client"), Holder: Member{Node: NoNode}}
				if rapid.Bool().Draw(t, "by a node") {
					c.Holder = rapid.SampledFrom(d.leased).Draw(t, "holder")
				}
				d.apply(t, Command{OpenSess: c})
			},
			"done": func(t *rapid.T) {
				d.apply(t, Command{CloseSess: &CloseSess{ID: rapid.Uint64Range(0, d.m.NextSess).Draw(t, "session")}})
			},
			"unlock": func(t *rapid.T) { d.apply(t, Command{Unlock: &Unlock{Name: name.Draw(t, "name")}}) },
			"restart": func(t *rapid.T) {
				i := rapid.IntRange(0, 2).Draw(t, "node")
				d.inc++
				prev := d.leased[i]
				d.leased[i] = Member{NodeID(i), d.inc}
				d.apply(t, Command{Register: &Register{UUID: fmt.Sprint(i), VNodes: 64, Inc: d.inc, PrevInc: prev.Inc, Leased: d.leased}})
				d.apply(t, Command{InService: &InService{Members: d.leased, Leased: d.leased}})
			},
			"write":   d.write,
			"write 2": d.write,
			"collect": d.collect,
			"clean":   d.collect,
		})
		d.drain(t)
	})
}
