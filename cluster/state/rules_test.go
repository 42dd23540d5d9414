package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cluster makes a formatted cluster of n nodes in service.
func cluster(t testing.TB, n, copies, pgs int) (*Map, []Member) {
	t.Helper()
	m := New()
	var all []Member
	for i := range n {
		all = append(all, Member{NodeID(i), uint64(100 + i)})
		m, _ = must(t, m, Command{Register: &Register{UUID: fmt.Sprint("node", i), VNodes: 64, Inc: uint64(100 + i), Boot: "b"}})
	}
	m, _ = must(t, m, Command{InService: &InService{Members: all, Leased: all}})
	m, _ = must(t, m, Command{Format: &Format{Cluster: "here", Copies: copies, PGs: pgs}})
	return m, all
}

func refused(t testing.TB, m *Map, c Command, code Code, text string) {
	t.Helper()
	_, res := apply(t, m, &c)
	if res.Code != code || !strings.Contains(res.Error, text) {
		t.Errorf("%+v: code %d, %q; expected code %d, %q", c, res.Code, res.Error, code, text)
	}
}

// restarted registers node i's next incarnation.
func restarted(t testing.TB, m *Map, i int, leased []Member) (*Map, Member) {
	t.Helper()
	n := m.Nodes[i]
	m, _ = must(t, m, Command{Register: &Register{UUID: n.UUID, VNodes: 64, Inc: n.Inc + 100, PrevInc: n.Inc, Boot: n.Boot, Cluster: m.Cluster, Leased: leased}})
	return m, Member{n.ID, n.Inc + 100}
}

// A leader's word that a node was down for too long may be applied after the node came back: it must not empty a node that serves, for nobody would ever take that
// back.
func TestNodeOutIfDown(t *testing.T) {
	m, all := cluster(t, 4, 3, 8)
	refused(t, m, Command{NodeOut: &NodeOut{Node: 3, Out: true, IfDown: true}}, Busy, "in service again")
	m, _ = must(t, m, Command{Ended: &Ended{Members: all[3:], Leased: all[:3]}})
	m, _ = must(t, m, Command{NodeOut: &NodeOut{Node: 3, Out: true, IfDown: true}})
	if !m.Nodes[3].Out {
		t.Error("node 3 was down and is not out")
	}
	m, _ = restarted(t, m, 3, all[:3])
	m, _ = must(t, m, Command{InService: &InService{Members: []Member{{3, all[3].Inc + 100}}, Leased: all[:3]}})
	if m.Nodes[3].Out {
		t.Error("node 3 came back and is still out")
	}
}

func TestGroupOfForEver(t *testing.T) {
	p := &Pool{ID: 3, PGs: 2048}
	for _, c := range []struct {
		root, index uint32
		want        GroupID
	}{{0xed202b, 0, 0x304c4}, {0xed202b, 1, 0x3072c}, {1, 0, 0x30621}, {1, 1<<32 - 1, 0x30586}, {MaxVid, 77, 0x30096}} {
		if got := GroupOf(p, c.root, c.index); got != c.want {
			t.Errorf("object %08x of %06x moved from group %#x to %#x", c.index, c.root, uint32(c.want), uint32(got))
		}
	}
	if g := GroupOf(&Pool{ID: 1, PGs: 1}, 5, 5); g != 0x10000 {
		t.Errorf("a pool of one group has group %#x", uint32(g))
	}
	held := make([]int, 2048)
	for i := range uint32(2048 * 1000) {
		held[GroupOf(p, 0xed202b, i).Index()]++
	}
	if lo, hi := slices.Min(held), slices.Max(held); lo < 850 || hi > 1150 { // five standard deviations
		t.Errorf("of 1000 objects a group, one has %d and one %d", lo, hi)
	}
}

func TestVidsAreSheepdogs(t *testing.T) {
	for name, vid := range map[string]uint32{"alpha": 0xed202b, "two": 0x7c9709, "beta": 0x4620a7, "t1": 0x6a5e16} {
		if HashName(name) != vid {
			t.Errorf("%s is %06x, Sheepdog says %06x", name, HashName(name), vid)
		}
	}
}

// TestR5: what a directory has to know to come in.
func TestR5(t *testing.T) {
	m, all := cluster(t, 3, 3, 4)
	m, res := must(t, m, Command{Register: &Register{UUID: "node1", Inc: 201, PrevInc: 101, Boot: "b", VNodes: 64, Cluster: "here"}})
	if res.Node != 1 || m.Nodes[1].Inc != 201 || m.Nodes[1].Up || m.InService(Member{1, 201}) {
		t.Errorf("%+v", m.Nodes[1])
	}
	reg := func(r Register) Command {
		r.Boot, r.VNodes = "b", 64
		return Command{Register: &r}
	}
	// An older copy of the directory, or a second daemon on a copy: it does not know 201.
	refused(t, m, reg(Register{UUID: "node1", Inc: 301, PrevInc: 101, Cluster: "here"}), Wrong, "latest")
	refused(t, m, reg(Register{UUID: "node1", Inc: 301, Cluster: "here"}), Wrong, "latest")
	// One that knows more than the map: an incarnation it could not register.
	must(t, m, reg(Register{UUID: "node1", Inc: 301, PrevInc: 250, History: []uint64{101, 201}, Cluster: "here"}))
	refused(t, m, reg(Register{UUID: "node1", Inc: 301, PrevInc: 201, Cluster: "there"}), Wrong, "cluster there")
	refused(t, m, reg(Register{UUID: "stranger", Inc: 301, Cluster: "here"}), Wrong, "does not know it")
	refused(t, m, reg(Register{UUID: "stranger"}), Invalid, "incarnation")
	refused(t, m, reg(Register{Inc: 1}), Invalid, "identity")
	refused(t, m, Command{Register: &Register{UUID: "x", Inc: 1, VNodes: -1}}, Invalid, "vnodes")
	// The same incarnation again: nothing happens.
	again, _ := must(t, m, reg(Register{UUID: "node1", Inc: 201, PrevInc: 101, Cluster: "here"}))
	if again.Epoch != m.Epoch || again.Nodes[1].Inc != 201 {
		t.Errorf("%+v", again.Nodes[1])
	}
	m, _ = must(t, m, Command{Ended: &Ended{Members: []Member{{1, 201}}, Leased: all}})
	refused(t, m, reg(Register{UUID: "node1", Inc: 201, PrevInc: 101, Cluster: "here"}), Stale, "take a new one")
	refused(t, m, Command{InService: &InService{Members: []Member{{1, 201}}}}, Stale, "ended")
	refused(t, m, Command{Ended: &Ended{Members: []Member{{1, 101}}}}, Stale, "followed by others")
	m, _ = must(t, m, Command{NodeOut: &NodeOut{Node: 1, Remove: true}})
	refused(t, m, reg(Register{UUID: "node1", Inc: 301, PrevInc: 201, Cluster: "here"}), Wrong, "removed")
}

// TestR8: a new incarnation proves its predecessor's death only on the same boot of the same machine.
func TestR8(t *testing.T) {
	m, all := cluster(t, 3, 3, 4)
	r := Register{UUID: "node0", Inc: 200, PrevInc: 100, Boot: "another", VNodes: 64, Cluster: "here", Leased: all}
	refused(t, m, Command{Register: &r}, Busy, "wait until it ends")
	r.Leased = all[1:]
	m, _ = must(t, m, Command{Register: &r})
	for _, g := range m.Groups {
		if len(g.InSync) != 2 || g.Primary.Node == 0 {
			t.Errorf("group %d: %+v", g.ID, g)
		}
	}
}

// TestR6 walks through the death and return of a whole cluster.
func TestR6(t *testing.T) {
	m, all := cluster(t, 3, 3, 4)
	m, _ = must(t, m, Command{Ended: &Ended{Members: all, Leased: nil}})
	for _, g := range m.Groups {
		if g.Primary.Node != NoNode || len(g.InSync) != 3 {
			t.Fatalf("%+v", g)
		}
	}
	never := func(*Group) bool { return false }
	always := func(*Group) bool { return true }
	m, a := restarted(t, m, 0, nil)
	if due := m.ResumeDue([]Member{a}, always); due != nil {
		t.Fatalf("R10: one of three is back, and these are due: %v", due)
	}
	refused(t, m, Command{Resume: &Resume{Groups: []GroupTerm{{0, m.Groups[0].Term}}, Leased: []Member{a}}}, TooFew, "takes 2")
	m, b := restarted(t, m, 1, []Member{a})
	if due := m.ResumeDue([]Member{a, b}, never); due != nil {
		t.Fatalf("the third may return, nobody waited for it, and these are due: %v", due)
	}
	due := m.ResumeDue([]Member{a, b}, always)
	if len(due) != 4 {
		t.Fatalf("due: %v", due)
	}
	two, _ := must(t, m, Command{Resume: &Resume{Groups: due, Leased: []Member{a, b}}})
	for _, g := range two.Groups {
		if !slices.Equal(g.InSync, []Member{a, b}) && !slices.Equal(g.InSync, []Member{b, a}) || g.Back != nil || g.Resumes != 1 {
			t.Errorf("%+v", g)
		}
	}
	three, c := restarted(t, two, 2, []Member{a, b}) // too late: it is resynced
	for _, g := range three.Groups {
		if len(g.InSync) != 2 {
			t.Errorf("%+v", g)
		}
	}
	m, c = restarted(t, m, 2, []Member{a, b}) // in time
	due = m.ResumeDue([]Member{a, b, c}, never)
	m, _ = must(t, m, Command{Resume: &Resume{Groups: due, Leased: []Member{a, b, c}}})
	for _, g := range m.Groups {
		if len(g.InSync) != 3 || !m.Intact(g.Primary) {
			t.Errorf("%+v", g)
		}
	}
	// The two that are gone for good are removed: then one is enough.
	m, _ = must(t, m, Command{Ended: &Ended{Members: []Member{a, b, c}}})
	m, a = restarted(t, m, 0, nil)
	m, _ = must(t, m, Command{NodeOut: &NodeOut{Node: 1, Remove: true}})
	if m.ResumeDue([]Member{a}, always) != nil {
		t.Errorf("node 2 may still return")
	}
	m, _ = must(t, m, Command{NodeOut: &NodeOut{Node: 2, Remove: true}})
	if due := m.ResumeDue([]Member{a}, never); len(due) != 4 {
		t.Errorf("due: %v", due)
	}
	refused(t, m, Command{NodeOut: &NodeOut{Node: 0, Remove: true}}, Busy, "only current copy")
}

// TestR6Flicker: the last member's lease ran out unseen and was renewed; nobody restarted, so nothing is lost and nothing resumes.
func TestR6Flicker(t *testing.T) {
	m, all := cluster(t, 2, 2, 4)
	m, _ = must(t, m, Command{Ended: &Ended{Members: all[:1], Leased: nil}})
	due := m.ResumeDue(all[1:], func(*Group) bool { return false })
	if len(due) == 0 {
		t.Fatal("a member that lost nothing is in service, and nothing is due")
	}
	m, _ = must(t, m, Command{Resume: &Resume{Groups: due, Leased: all[1:]}})
	for _, g := range m.Groups {
		if g.Primary != all[1] || g.Resumes != 0 {
			t.Errorf("%+v", g)
		}
	}
}

// TestR10 tries every way to shrink a set of three, with min-copies 2.
func TestR10(t *testing.T) {
	m, all := cluster(t, 3, 3, 1)
	g := m.Groups[0]
	p := g.Primary
	others := minus(all, []Member{p})
	change := func(m *Map, c SetChange) Command {
		c.Group, c.Term = 0, m.Groups[0].Term
		return Command{Sync: &SyncChange{By: p, Changes: []SetChange{c}, Leased: all}}
	}
	refused(t, m, change(m, SetChange{Remove: others, To: NoNode}), TooFew, "min-copies is 2")
	refused(t, m, change(m, SetChange{Remove: []Member{p}, To: NoNode}), Invalid, "without naming another")
	refused(t, m, change(m, SetChange{Add: []Member{{9, 9}}, To: NoNode}), Stale, "has ended")
	m, _ = must(t, m, change(m, SetChange{Remove: others[:1], To: NoNode}))
	refused(t, m, change(m, SetChange{Remove: others[1:], To: NoNode}), TooFew, "min-copies is 2")
	// The second one ends: it stays named, it may return.
	m, _ = must(t, m, Command{Ended: &Ended{Members: others[1:], Leased: []Member{p}}})
	if g := m.Groups[0]; len(g.InSync) != 2 || g.Primary != p {
		t.Fatalf("%+v", g)
	}
	refused(t, m, change(m, SetChange{Remove: others[1:], To: NoNode}), TooFew, "min-copies is 2")
	// The first, brought up to date, takes its place.
	both, _ := must(t, m, change(m, SetChange{Add: others[:1], Remove: others[1:], To: NoNode}))
	if len(both.Groups[0].InSync) != 2 {
		t.Fatalf("%+v", both.Groups[0])
	}
	// Or it restarts, and leaves, since the primary is in service (R6).
	alone, _ := restarted(t, m, int(others[1].Node), all)
	if g := alone.Groups[0]; !slices.Equal(g.InSync, []Member{p}) {
		t.Fatalf("%+v", g)
	}
	// Or its node is removed for ever.
	gone, _ := must(t, m, Command{NodeOut: &NodeOut{Node: others[1].Node, Remove: true}})
	if g := gone.Groups[0]; !slices.Equal(g.InSync, []Member{p}) {
		t.Fatalf("%+v", g)
	}
}

// TestTakeover: the dead node's groups fall on the others evenly, and each change takes a new term (R2).
func TestTakeover(t *testing.T) {
	m, all := cluster(t, 5, 3, 256)
	before := m
	m, _ = must(t, m, Command{Ended: &Ended{Members: all[:1], Leased: all[1:]}})
	led := make([]int, 5)
	for i, g := range m.Groups {
		led[g.Primary.Node]++
		if slices.Contains(g.InSync, all[0]) {
			t.Errorf("%+v", g)
		}
		if was := before.Groups[i]; slices.Contains(was.InSync, all[0]) != (g.Term == was.Term+1) || g == was != (g.Term == was.Term) {
			t.Errorf("term %d after %d", g.Term, was.Term)
		}
	}
	if led[0] != 0 || slices.Max(led)-slices.Min(led[1:]) > 4 {
		t.Errorf("groups led: %v", led)
	}
}

// TestHandOver: the role goes to the preferred primary when it is back, without anybody leaving.
func TestHandOver(t *testing.T) {
	m, all := cluster(t, 3, 3, 1)
	p := m.Groups[0].Primary
	to := minus(all, []Member{p})[0]
	c := SyncChange{By: p, Leased: all, Changes: []SetChange{{Group: 0, Term: 1, To: to.Node}}}
	m, _ = must(t, m, Command{Sync: &c})
	if g := m.Groups[0]; g.Primary != to || g.Term != 2 || g.Granted != 2 || len(g.InSync) != 3 {
		t.Errorf("%+v", g)
	}
	refused(t, m, Command{Sync: &c}, Stale, "at term 2, not 1")
	// R9: only a new term.
	m, _ = must(t, m, Command{Sync: &SyncChange{By: to, Leased: all, Changes: []SetChange{{Group: 0, Term: 2, To: to.Node}}}})
	if g := m.Groups[0]; g.Primary != to || g.Term != 3 || g.Granted != 2 {
		t.Errorf("%+v", g)
	}
	// To somebody without a lease: no.
	refused(t, m, Command{Sync: &SyncChange{By: to, Changes: []SetChange{{Group: 0, Term: 3, To: p.Node}}}}, Stale, "not in sync and in service")
}

// TestJoinDrain: targets move, sets do not; a drained node's are for the primaries to empty.
func TestJoinDrain(t *testing.T) {
	m, _ := cluster(t, 3, 3, 64)
	joined, _ := must(t, m, Command{Register: &Register{UUID: "node3", VNodes: 64, Inc: 7}})
	held := 0
	for i, g := range joined.Groups {
		if g.Term != 1 || !slices.Equal(g.InSync, m.Groups[i].InSync) {
			t.Errorf("%+v", g)
		}
		if slices.Contains(g.Target, 3) {
			held++
		}
	}
	if held != 48 {
		t.Errorf("the new node gets %d of 192 replicas", held)
	}
	drained, _ := must(t, joined, Command{NodeOut: &NodeOut{Node: 0, Drain: true}})
	for _, g := range drained.Groups {
		if slices.Contains(g.Target, 0) || len(g.Target) != 3 || len(g.InSync) != 3 {
			t.Errorf("%+v", g)
		}
	}
	refused(t, drained, Command{NodeOut: &NodeOut{Node: 0, Remove: true}}, Busy, "drain 0")
	refused(t, drained, Command{NodeOut: &NodeOut{Node: 9, Remove: true}}, Missing, "no node 9")
	back, _ := must(t, drained, Command{NodeOut: &NodeOut{Node: 0}})
	if !back.Nodes[0].stores() {
		t.Errorf("%+v", back.Nodes[0])
	}
	// Down for long, given up, and back: it stores again without anybody's word.
	m, _ = must(t, joined, Command{Ended: &Ended{Members: []Member{{0, 100}}, Leased: []Member{{1, 101}, {2, 102}}}})
	m, _ = must(t, m, Command{NodeOut: &NodeOut{Node: 0, Out: true}})
	m, b := restarted(t, m, 0, []Member{{1, 101}, {2, 102}})
	m, _ = must(t, m, Command{InService: &InService{Members: []Member{b}, Leased: []Member{b, {1, 101}, {2, 102}}}})
	if !m.Nodes[0].stores() || !m.InService(b) {
		t.Errorf("%+v", m.Nodes[0])
	}
}

// TestShutDown: those who leave on purpose all come back in sync.
func TestShutDown(t *testing.T) {
	m, all := cluster(t, 3, 3, 4)
	m, _ = must(t, m, Command{Shutdown: &Shutdown{Down: true}})
	for i := range all {
		m, _ = must(t, m, Command{Ended: &Ended{Members: all[i : i+1], Leased: all[i+1:]}})
	}
	var back []Member
	for i := range all {
		var b Member
		m, b = restarted(t, m, i, back)
		back = append(back, b)
	}
	m, _ = must(t, m, Command{InService: &InService{Members: back, Leased: back}})
	if m.ResumeDue(back, func(*Group) bool { return true }) != nil {
		t.Errorf("the cluster is shut down, and groups are to resume")
	}
	m, _ = must(t, m, Command{Shutdown: &Shutdown{Down: false}})
	m, _ = must(t, m, Command{Resume: &Resume{Groups: m.ResumeDue(back, func(*Group) bool { return false }), Leased: back}})
	for _, g := range m.Groups {
		if len(g.InSync) != 3 || !m.Intact(g.Primary) {
			t.Errorf("%+v", g)
		}
	}
}

func TestFormat(t *testing.T) {
	m := New()
	refused(t, m, Command{Format: &Format{Cluster: "c", Copies: 1}}, Invalid, "need at least 1")
	refused(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1}}, Unformatted, "Waiting for cluster to be formatted")
	m, _ = must(t, m, Command{Register: &Register{UUID: "gateway", Inc: 1}})
	m, _ = must(t, m, Command{Register: &Register{UUID: "store", Inc: 1, VNodes: 1}})
	for _, f := range []Format{{Copies: 0}, {Copies: 32}, {Copies: 2, MinCopies: 3}, {Copies: 1, PGs: 3}, {Copies: 1, PGs: 1 << 17}, {Copies: 1, PGs: -2}, {Copies: 3}} {
		f.Cluster = "c"
		refused(t, m, Command{Format: &f}, Invalid, "")
	}
	refused(t, m, Command{Format: &Format{Copies: 1}}, Invalid, "identity")
	m, _ = must(t, m, Command{Format: &Format{Cluster: "c", Copies: 2}})
	if p := m.Pools[0]; p.PGs != 2048 || p.MinCopies != 1 || len(m.Groups) != 2048 || m.Groups[7].Primary.Node != 1 {
		t.Errorf("%+v %+v", p, m.Groups[7])
	}
	refused(t, m, Command{Format: &Format{Cluster: "d", Copies: 1}}, Formatted, "already")
	refused(t, m, Command{Format: &Format{Cluster: "c", Copies: 1, Force: true}}, Invalid, "identity")
	m, _ = must(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1}})
	m, _ = must(t, m, Command{Format: &Format{Cluster: "d", Copies: 1, PGs: 8, Force: true}})
	if m.Working("a") != nil || len(m.Groups) != 8 || m.Groups[0].Term != 2 || m.Epoch != 2 {
		t.Errorf("%+v", m.Groups[0])
	}
}

func TestNames(t *testing.T) {
	m, _ := cluster(t, 1, 1, 1)
	for name, why := range map[string]string{"": "empty", "a/b": "'/'", "a:b": "':'", "a\x00": "may not", "a\n": "may not", "\xff": "UTF-8", strings.Repeat("x", 256): "longer"} {
		if _, res := m.Apply(m.Index+1, &Command{CreateVDI: &CreateVDI{Name: name, Size: 1}}); res.Code != Invalid || !strings.Contains(res.Error, why) {
			t.Errorf("%q: %d %s", name, res.Code, res.Error)
		}
	}
	for size, want := range map[uint64]uint64{1: 512, 512: 512, 513: 1024, 1 << 54: 1 << 54} {
		now, res := must(t, m, Command{CreateVDI: &CreateVDI{Name: "ä " + strings.Repeat("x", 252), Size: size}})
		if v := now.VDI(res.Vid); v.Size != want {
			t.Errorf("size %d becomes %d", size, v.Size)
		}
	}
	refused(t, m, Command{CreateVDI: &CreateVDI{Name: "a"}}, Invalid, "size 0")
	refused(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1<<54 + 1}}, Invalid, "16 PiB")
	m, _ = must(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1 << 20}})
	refused(t, m, Command{CloseVDI: &CloseVDI{Name: "a", Tag: "5"}}, Invalid, "Please specify a non-integer value")
	refused(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1}}, Exists, "VDI exists already")
	refused(t, m, Command{CloseVDI: &CloseVDI{Name: "b", Tag: "x"}}, Missing, "No VDI found")
	refused(t, m, Command{CloneVDI: &CloneVDI{Name: "a", Snap: "x", New: "b"}}, Missing, "Failed to find requested tag")
	refused(t, m, Command{CloneVDI: &CloneVDI{Name: "a", New: "b"}}, Invalid, "Only snapshot VDIs can be cloned")
	refused(t, m, Command{ResizeVDI: &ResizeVDI{Name: "a", Size: 1}}, Invalid, "Shrinking")
	refused(t, m, Command{}, Invalid, "exactly one order")
	refused(t, m, Command{Set: &Set{"a", "b"}, Shutdown: &Shutdown{}}, Invalid, "exactly one order")
}

// frozen takes a snapshot.
func frozen(t testing.TB, m *Map, name, tag string) *Map {
	t.Helper()
	m, res := must(t, m, Command{CloseVDI: &CloseVDI{Name: name, Tag: tag}})
	f := &FreezeVDI{Vid: res.Vid, Closing: res.Index}
	for _, g := range m.PoolGroups(m.VDI(res.Vid).Pool) {
		f.Terms = append(f.Terms, g.Term)
	}
	m, _ = must(t, m, Command{FreezeVDI: f})
	return m
}

// TestR22FreezeWaitsForWhatIsSentAgain: a group that resumed may have lost what clients were answered; they say when it is there again.
func TestR22FreezeWaitsForWhatIsSentAgain(t *testing.T) {
	m, all := cluster(t, 1, 1, 2)
	m, _ = must(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1 << 30}})
	gone := func() {
		t.Helper()
		m, _ = must(t, m, Command{Ended: &Ended{Members: all}})
		var res Result
		m, res = must(t, m, Command{Register: &Register{UUID: m.Nodes[0].UUID, Addr: m.Nodes[0].Addr, VNodes: 1, Cluster: m.Cluster, PrevInc: all[0].Inc, Inc: all[0].Inc + 1, Boot: "b"}})
		all = []Member{{Node: res.Node, Inc: all[0].Inc + 1}}
		m, _ = must(t, m, Command{InService: &InService{Members: all, Leased: all}})
		if due := m.ResumeDue(all, func(*Group) bool { return true }); len(due) > 0 {
			m, _ = must(t, m, Command{Resume: &Resume{Groups: due, Leased: all}})
		}
	}
	m, res := must(t, m, Command{OpenSess: &OpenSess{Name: "a", Client: "vm", Owner: "host1:10809", Holder: Member{Node: NoNode}}})
	sess := res.Sess.ID
	m = frozen(t, m, "a", "s1") // nothing was lost ever
	gone()
	m, res = must(t, m, Command{CloseVDI: &CloseVDI{Name: "a", Tag: "s2"}})
	f := &FreezeVDI{Vid: res.Vid, Closing: res.Index}
	for _, g := range m.PoolGroups(m.VDI(res.Vid).Pool) {
		f.Terms = append(f.Terms, g.Term)
	}
	refused(t, m, Command{FreezeVDI: f}, Stale, "host1:10809 has yet to send again")
	if m, _ := must(t, m, Command{CloseSess: &CloseSess{ID: sess}}); m.Working("a").State != Working { // half of it may be there, and not durable
		t.Error("a snapshot goes on though a session ended that had to send again")
	}
	refused(t, m, Command{Replayed: &Replayed{Sess: sess + 1, Index: m.Index}}, Missing, "no session")
	refused(t, m, Command{Replayed: &Replayed{Sess: sess, Index: m.Index + 1}}, Invalid, "to come")
	before := m.Groups[0].ResumedAt - 1
	m, _ = must(t, m, Command{Replayed: &Replayed{Sess: sess, Index: before}})
	refused(t, m, Command{FreezeVDI: f}, Stale, "yet to send again")
	m, _ = must(t, m, Command{Replayed: &Replayed{Sess: sess, Index: m.Index}})
	m, _ = must(t, m, Command{Replayed: &Replayed{Sess: sess, Index: before}}) // late, and takes nothing back
	must(t, m, Command{FreezeVDI: f})
	m, _ = must(t, m, Command{CloseSess: &CloseSess{ID: sess}}) // whoever is gone sends nothing again
	m, _ = must(t, m, Command{FreezeVDI: f})
	m = frozen(t, m, "a", "s3")
}

func TestSnapshots(t *testing.T) {
	m, all := cluster(t, 3, 3, 4)
	m, _ = must(t, m, Command{CreateVDI: &CreateVDI{Name: "alpha", Size: 1 << 30}})
	m, res := must(t, m, Command{OpenSess: &OpenSess{Name: "alpha", Client: "vm", Holder: all[0], Owner: "host1:10809"}})
	sess := res.Sess
	m = frozen(t, m, "alpha", "")
	m = frozen(t, m, "alpha", "s1")
	if v, err := m.Lookup("alpha", "s1"); err != nil || v.SnapID != 2 || v.Vid != 0xed202c || v.Parent != 0xed202b || v.Next != 0xed202d {
		t.Errorf("%+v %v", v, err)
	}
	v, _ := m.Lookup("alpha", "")
	if now := m.Session(sess.ID); now.Vid != v.Vid || now.Gen != v.SessGen || now.Gen != sess.Gen {
		t.Errorf("the session does not follow: %+v, %+v", now, v)
	}
	if len(m.Chain(v.Vid)) != 3 || m.Chain(v.Vid)[2].Vid != 0xed202b {
		t.Errorf("%v", m.Chain(v.Vid))
	}
	refused(t, m, Command{CloseVDI: &CloseVDI{Name: "alpha", Tag: "s1"}}, Exists, "s1")
	refused(t, m, Command{DeleteVDI: &DeleteVDI{Name: "alpha"}}, Busy, "host1:10809")
	refused(t, m, Command{OpenSess: &OpenSess{Name: "alpha", Client: "vm2", Holder: all[1]}}, Busy, "locked by host1:10809")
	// Its holder dies: the next one is let in, and fences it.
	m, _ = must(t, m, Command{Ended: &Ended{Members: all[:1], Leased: all[1:]}})
	m, res = must(t, m, Command{OpenSess: &OpenSess{Name: "alpha", Client: "vm2", Holder: all[1]}})
	if res.Sess.Gen != sess.Gen+1 || m.Session(sess.ID) != nil {
		t.Errorf("%+v", res.Sess)
	}
	m, _ = must(t, m, Command{Unlock: &Unlock{Name: "alpha"}})
	if len(m.Sessions) != 0 || m.Working("alpha").SessGen != sess.Gen+2 {
		t.Errorf("%+v", m.Working("alpha"))
	}
	// While one is taken, no other; a group that changes hands spoils it (R22).
	m, res = must(t, m, Command{CloseVDI: &CloseVDI{Name: "alpha", Tag: "s2"}})
	refused(t, m, Command{CloseVDI: &CloseVDI{Name: "alpha", Tag: "s3"}}, Busy, "another snapshot")
	refused(t, m, Command{FreezeVDI: &FreezeVDI{Vid: res.Vid, Closing: res.Index, Terms: []uint64{9, 9, 9, 9}}}, Stale, "term")
	refused(t, m, Command{FreezeVDI: &FreezeVDI{Vid: res.Vid, Closing: res.Index}}, Invalid, "0 terms")
	refused(t, m, Command{FreezeVDI: &FreezeVDI{Vid: res.Vid, Closing: res.Index - 1}}, Stale, "any more")
	m, _ = must(t, m, Command{AbortClose: &AbortClose{Vid: res.Vid, Closing: res.Index}})
	// Numbers are not given twice.
	m, _ = must(t, m, Command{DeleteVDI: &DeleteVDI{Name: "alpha", Snap: "2"}})
	m = frozen(t, m, "alpha", "s1")
	if v, err := m.Lookup("alpha", "s1"); err != nil || v.SnapID != 3 {
		t.Errorf("%+v %v", v, err)
	}
	m, res = must(t, m, Command{CloneVDI: &CloneVDI{Name: "alpha", Snap: "3", New: "beta"}})
	if v := m.VDI(res.Vid); v.Root != 0xed202b || v.Name != "beta" || v.Size != 1<<30 {
		t.Errorf("%+v", v)
	}
	m, res = must(t, m, Command{CreateVDI: &CreateVDI{Name: "two", Size: 1, Copies: 2}})
	if p := m.Pool(m.VDI(res.Vid).Pool); p.Copies != 2 || p.MinCopies != 1 || p.PGs != 4 {
		t.Errorf("%+v", p)
	}
}

// TestDeepChain: a thousand snapshots, all but the first and the last deleted, are collected from the top down.
func TestDeepChain(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, and long")
	}
	m, _ := cluster(t, 1, 1, 1)
	step := func(c Command) Result { // without the checks of apply: they would take minutes
		next, res := m.Apply(m.Index+1, &c)
		if res.Code != OK {
			t.Fatalf("%+v: %s", c, res.Error)
		}
		m = next
		return res
	}
	step(Command{CreateVDI: &CreateVDI{Name: "a", Size: 1 << 20}})
	for range 1000 {
		res := step(Command{CloseVDI: &CloseVDI{Name: "a"}})
		step(Command{FreezeVDI: &FreezeVDI{Vid: res.Vid, Closing: res.Index, Terms: []uint64{1}}})
	}
	if n := len(m.Chain(m.Working("a").Vid)); n != 1001 {
		t.Fatalf("chain of %d", n)
	}
	for i := 2; i <= 1000; i++ {
		step(Command{DeleteVDI: &DeleteVDI{Name: "a", Snap: fmt.Sprint(i)}})
	}
	for rounds := 0; ; rounds++ {
		dead := m.Deleted()
		if len(dead) == 0 {
			break
		}
		did := 0
		for _, v := range dead {
			if plan := m.CollectPlan(v.Vid, 0); plan.Do == PlanMerge && plan.Into == m.Working("a").Vid {
				step(Command{Collected: &Collected{Vid: v.Vid, Gen: v.Gen, Groups: []GroupID{0}}})
				did++
			} else if plan.Do != PlanWait {
				t.Fatalf("%06x: %+v", v.Vid, plan)
			}
		}
		if did == 0 || rounds > 1000 {
			t.Fatalf("%d deleted, and nothing to do", len(dead))
		}
	}
	if chain := m.Chain(m.Working("a").Vid); len(chain) != 2 {
		t.Errorf("%v", chain)
	}
}

// TestRecent: a proposer that asks again is told what was done the first time.
func TestRecent(t *testing.T) {
	m, _ := cluster(t, 1, 1, 1)
	c := Command{ID: "once", CreateVDI: &CreateVDI{Name: "a", Size: 512}}
	m, first := must(t, m, c)
	index := m.Index
	m, again := must(t, m, c)
	if again != first || m.Index != index+1 || len(m.VDIs) != 1 {
		t.Errorf("%+v, then %+v", first, again)
	}
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	set := func(i int, at time.Time) {
		m, _ = m.Apply(m.Index+1, &Command{ID: fmt.Sprint(i), Time: at, Set: &Set{"scrub-speed", "1M"}})
	}
	m, first = must(t, m, Command{ID: "twice", Time: start, CreateVDI: &CreateVDI{Name: "b", Size: 512}})
	for i := range 3000 { // many within a minute
		set(i, start.Add(time.Duration(i)*10*time.Millisecond))
	}
	if m, again = must(t, m, Command{ID: "twice", Time: start, CreateVDI: &CreateVDI{Name: "b", Size: 512}}); again != first || len(m.VDIs) != 2 {
		t.Errorf("forgotten after 3000 others: %+v, then %+v", first, again)
	}
	read, err := DecodeMap(written(t, m))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2*recentMax + 7 { // the same list, however it came to be, and bounded
		set(3000+i, start.Add(30*time.Second))
		read, _ = read.Apply(read.Index+1, &Command{ID: fmt.Sprint(3000 + i), Time: start.Add(30 * time.Second), Set: &Set{"scrub-speed", "1M"}})
	}
	if m.Recent.n != recentMax || !bytes.Equal(written(t, m), written(t, read)) {
		t.Errorf("%d outcomes are remembered by one, %d by the other", m.Recent.n, read.Recent.n)
	}
	set(-1, start.Add(time.Hour)) // or somebody's clock is wrong
	if m.Recent.n != recentMin {
		t.Errorf("%d outcomes are remembered after an hour", m.Recent.n)
	}
	same, res := m.Apply(m.Index, &Command{Set: &Set{"scrub-speed", "2M"}})
	if same != m || res.Code != Stale {
		t.Errorf("a place in the log was applied twice: %+v", res)
	}
}

func TestSettings(t *testing.T) {
	m := New()
	for _, c := range []struct {
		key, value string
		ok         bool
	}{
		{"rebuild-after", "90s", true}, {"rebuild-after", "0s", true}, {"rebuild-after", "default", true}, {"rebuild-after", "-1s", false},
		{"rebuild-after", "10", false}, {"resume-wait", "1h", true}, {"resume-wait", "1000000h", false}, {"recovery-speed", "100M", true},
		{"recovery-speed", "0", false}, {"recovery-floor", "512k", true}, {"recovery-floor", "1.5M", false}, {"scrub-speed", "9999999P", false},
		{"scrub-speed", "", false}, {"scrub-speed", "M", false}, {"nonsense", "1", false},
	} {
		if _, res := apply(t, m, &Command{Set: &Set{c.key, c.value}}); (res.Code == OK) != c.ok {
			t.Errorf("set %s %s: %s", c.key, c.value, res.Error)
		}
	}
	m, _ = must(t, m, Command{Set: &Set{"recovery-speed", "2G"}})
	m, _ = must(t, m, Command{Set: &Set{"resume-wait", "1m30s"}})
	if m.Settings.RecoverySpeed != 2<<30 || m.Settings.ResumeWait != 90*time.Second {
		t.Errorf("%+v", m.Settings)
	}
}

// TestKinds: refusals are errors of the standard kinds.
func TestKinds(t *testing.T) {
	for c, kind := range map[Code]error{
		Stale: ErrStale, Exists: fs.ErrExist, Missing: fs.ErrNotExist, Invalid: fs.ErrInvalid, Unformatted: ErrUnformatted,
		Formatted: ErrFormatted, Busy: syscall.EBUSY, Wrong: ErrWrong, TooFew: ErrTooFew,
	} {
		res := Result{Code: c, Error: "words"}
		if err := res.Err(); !errors.Is(err, kind) || err.Error() != "words" {
			t.Errorf("code %d: %v", c, err)
		}
	}
	if (&Result{}).Err() != nil || Code(200).Err() == nil {
		t.Error("OK is an error, or nonsense is not")
	}
	if _, err := New().Lookup("a", ""); !errors.Is(err, fs.ErrNotExist) || err.Error() != "No VDI found" {
		t.Error(err)
	}
}

// TestCollectByGroup: a group that merged an heir away goes on with what is beneath it, whatever the other groups do.
func TestCollectByGroup(t *testing.T) {
	m, _ := cluster(t, 1, 1, 2)
	m, _ = must(t, m, Command{CreateVDI: &CreateVDI{Name: "a", Size: 1 << 20}})
	m = frozen(t, frozen(t, m, "a", "x"), "a", "y")
	x, _ := m.Lookup("a", "x")
	y, _ := m.Lookup("a", "y")
	top := m.Working("a")
	m, _ = must(t, m, Command{CloneVDI: &CloneVDI{Name: "a", Snap: "x", New: "b"}})
	m, _ = must(t, m, Command{DeleteVDI: &DeleteVDI{Name: "a", Snap: "x"}})
	m, _ = must(t, m, Command{DeleteVDI: &DeleteVDI{Name: "a", Snap: "y"}})
	expect := func(v *VDI, g GroupID, want Plan) {
		t.Helper()
		if got := m.CollectPlan(v.Vid, g); got != want {
			t.Errorf("%s in group %d: %+v, not %+v", v.Tag, g, got, want)
		}
	}
	expect(x, 0, Plan{Do: PlanKeep})
	refused(t, m, Command{Collected: &Collected{Vid: x.Vid, Gen: x.Gen, Groups: []GroupID{0}}}, Invalid, "still read it")
	refused(t, m, Command{Collected: &Collected{Vid: x.Vid, Gen: x.Gen + 1, Groups: []GroupID{0}}}, Stale, "generation")
	refused(t, m, Command{Collected: &Collected{Vid: y.Vid, Gen: y.Gen, Groups: []GroupID{2}}}, Invalid, "nothing in group 2")
	m, _ = must(t, m, Command{DeleteVDI: &DeleteVDI{Name: "b"}})
	expect(x, 0, Plan{Do: PlanWait})
	expect(y, 0, Plan{Do: PlanMerge, Into: top.Vid, IntoGen: top.Gen})
	m, _ = must(t, m, Command{Collected: &Collected{Vid: y.Vid, Gen: y.Gen, Groups: []GroupID{0}}})
	expect(y, 0, Plan{Do: PlanNone})
	expect(x, 0, Plan{Do: PlanMerge, Into: top.Vid, IntoGen: top.Gen})
	expect(x, 1, Plan{Do: PlanWait})
	if got := m.Visible(x.Root); len(got) != 3 {
		t.Errorf("visible: %x", got)
	}
	m, _ = must(t, m, Command{Collected: &Collected{Vid: x.Vid, Gen: x.Gen, Groups: []GroupID{0}}})
	m, _ = must(t, m, Command{Collected: &Collected{Vid: y.Vid, Gen: y.Gen, Groups: []GroupID{1}}})
	m, _ = must(t, m, Command{Collected: &Collected{Vid: x.Vid, Gen: x.Gen, Groups: []GroupID{1}}})
	if chain := m.Chain(top.Vid); len(chain) != 1 || m.VDI(x.Vid) != nil {
		t.Errorf("%v", chain)
	}
	// The family lives on under the root's vid, so nobody else gets it.
	if m, res := must(t, m, Command{CreateVDI: &CreateVDI{Name: "a2", Size: 1}}); m.VDI(res.Vid).Root == x.Root {
		t.Errorf("%06x", res.Vid)
	}
}
