package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// twoDisks is a formatted node with one directory, and another that is empty.
func twoDisks(t *testing.T) (cfg Config, n *Node, first, second string) {
	dir := t.TempDir()
	cfg = config(t, dir, 1)
	first, second = cfg.Dirs[0], filepath.Join(dir, "second")
	if err := os.Mkdir(second, 0o700); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, cfg)
	format(t, n, 1)
	eventually(t, 5*time.Second, "it serves", allServe(n))
	return cfg, n, first, second
}

func info(n *Node, dir string) *DiskInfo {
	for _, d := range n.Disks() {
		if d.Dir == dir {
			return &d
		}
	}
	return nil
}

// fillGroups puts an entry into every group, so that each has something on its disk.
func fillGroups(t *testing.T, n *Node) {
	t.Helper()
	eventually(t, 20*time.Second, "every group has a primary's own entry", func() bool {
		sum := 0
		for _, st := range n.Stores() {
			sum += len(st.Groups())
		}
		return sum == len(n.Map().Groups)
	})
}

func TestRule21DiskIsAddedAndRemovedOnARunningNode(t *testing.T) {
	cfg, n, first, second := twoDisks(t)
	fillGroups(t, n)
	if _, err := n.AddDisk(t.Context(), first); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the node's own directory: %v", err)
	}
	if _, err := n.AddDisk(t.Context(), second+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if err := n.RemoveDisk(first); !errors.Is(err, ErrLastDisk) || !errors.Is(err, syscall.EBUSY) {
		t.Errorf("the only disk: %v", err)
	}
	uuid, err := n.AddDisk(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if got := n.Map().Node(n.Self().Node).Disks; len(got) != 2 || got[1].UUID != uuid {
		t.Errorf("agreed disks: %v", got)
	}
	eventually(t, 20*time.Second, "it has its share", func() bool { return info(n, second).State == DiskInUse })
	a, b := info(n, first).Groups, info(n, second).Groups
	t.Logf("%d groups on the first, %d on the second", a, b)
	if a+b != 64 || a < 16 || b < 16 { // both directories are on one file system, so of one size
		t.Errorf("%d groups on the first, %d on the second", a, b)
	}
	// Named or not, it is there after a restart.
	stop(t, n)
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if d := info(n, second); d == nil || d.Groups != b {
		t.Fatalf("after a restart: %+v", n.Disks())
	}
	// The node's own directory stops being a disk; the node stays where it is.
	if err := n.RemoveDisk(first); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the first is let go", func() bool { return info(n, first) == nil })
	if d := info(n, second); d.Groups != 64 {
		t.Errorf("%d groups on the second", d.Groups)
	}
	eventually(t, 5*time.Second, "the cluster knows", func() bool { return len(n.Map().Node(n.Self().Node).Disks) == 1 })
	eventually(t, 5*time.Second, "it serves", func() bool { return healthy(n.Map(), 1) && n.Leased() })
	if err := n.RemoveDisk(second); !errors.Is(err, ErrLastDisk) {
		t.Errorf("the only disk: %v", err)
	}
	stop(t, n)
	cfg.Dirs = append(cfg.Dirs, second)
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if got := n.Disks(); len(got) != 1 || got[0].Dir != second || got[0].Groups != 64 {
		t.Errorf("a disk that was removed came back: %+v", got)
	}
	if _, err := n.AddDisk(t.Context(), first); err != nil { // emptied, it may come back
		t.Error(err)
	}
	eventually(t, 20*time.Second, "it has its share", func() bool { return info(n, first).State == DiskInUse && info(n, first).Groups > 0 })
}

// Wherever a node stops while a disk is being removed, the next start goes on with it.
func TestRule21RemovalGoesOnAfterACrash(t *testing.T) {
	cfg, n, _, second := twoDisks(t)
	fillGroups(t, n)
	if _, err := n.AddDisk(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "it has its share", func() bool { return info(n, second).State == DiskInUse })
	if err := n.RemoveDisk(second); err != nil {
		t.Fatal(err)
	}
	n.Crash()
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	eventually(t, 20*time.Second, "it is let go", func() bool { return info(n, second) == nil })
	stop(t, n)

	// Between the directory's end and the record's.
	self, err := openDir(cfg.Dirs[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	gone := self.get().Gone
	if len(gone) != 1 {
		t.Fatalf("gone: %v", gone)
	}
	if err := self.change(func(id *identity) {
		id.Gone = nil
		id.Disks = append(id.Disks, knownDisk{UUID: gone[0], Dir: second, State: DiskRemoving})
	}); err != nil {
		t.Fatal(err)
	}
	self.close()
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if got := n.dir.get(); len(got.Disks) != 1 || len(got.Gone) != 1 {
		t.Errorf("remembered: %+v", got)
	}
}

// Two copies of a group on two disks are what a move leaves that was cut short: one counts.
func TestRule21SecondCopyIsDiscarded(t *testing.T) {
	dir := t.TempDir()
	var list []*objstore.Store
	for i, d := range []string{"a", "b", "c"} {
		cfg := smallStore
		cfg.Dir = filepath.Join(dir, d)
		if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := objstore.Create(cfg, objstore.Identity{Cluster: "c", Disk: d}); err != nil {
			t.Fatal(err)
		}
		st, err := objstore.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		for lsn := range uint64(3 + i) {
			for id := range objstore.GroupID(2) {
				if err := st.Group(id).Stage(&objstore.Entry{Number: objstore.Number{Term: 1, LSN: lsn + 1}, Kind: objstore.KindNoop}); err != nil {
					t.Fatal(err)
				}
			}
		}
		list = append(list, st)
	}
	if err := list[2].Group(1).SetSyncing(); err != nil { // a copy that is not whole
		t.Fatal(err)
	}
	log := config(t, dir, 1).Logger
	if err := settle(list, log); err != nil {
		t.Fatal(err)
	}
	got := ""
	for i, st := range list {
		for _, id := range st.Groups() {
			got += strings.Repeat(" ", 1) + string(rune('a'+i)) + string(rune('0'+id))
		}
	}
	if got != " b1 c0" {
		t.Errorf("left:%s, want b1 (the longest that is whole) and c0 (the longest)", got)
	}
}

// Groups are given to disks by size, and a new disk takes groups only, it moves none between the others.
func TestRule21HomesFollowSize(t *testing.T) {
	sizes := map[string]float64{"d1": 1, "d2": 1, "d3": 2}
	count := map[string]int{}
	pick := func(id state.GroupID, disks ...string) (best string) {
		score := 0.0
		for _, d := range disks {
			if s := scoreOf(d, id, sizes[d]); s > score {
				best, score = d, s
			}
		}
		return best
	}
	for id := range state.GroupID(4096) {
		was, now := pick(id, "d1", "d2"), pick(id, "d1", "d2", "d3")
		if now != was && now != "d3" {
			t.Fatalf("group %d went from %s to %s", id, was, now)
		}
		count[now]++
	}
	if count["d3"] < 1900 || count["d3"] > 2200 || count["d1"] < 900 || count["d1"] > 1150 {
		t.Errorf("%v, want 1024, 1024, 2048", count)
	}
}

// failDisk writes into a stopped node's record that its second disk failed.
func failDisk(t *testing.T, cfg Config) {
	t.Helper()
	self, err := openDir(cfg.Dirs[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer self.close()
	if err := self.change(func(id *identity) { id.Disks[1].State, id.Disks[1].Why = DiskFailed, "input/output error" }); err != nil {
		t.Fatal(err)
	}
}

// lostGroups are those that raft says nobody has a copy of.
func lostGroups(n *Node) (list []state.GroupTerm) {
	for _, g := range n.Map().Groups {
		if g.Lost() {
			list = append(list, state.GroupTerm{Group: g.ID, Term: g.Term})
		}
	}
	return list
}

// force is `cluster recover force`.
func force(t *testing.T, n *Node, groups []state.GroupTerm) {
	t.Helper()
	res, err := n.Propose(t.Context(), &state.Command{ID: consensus.NewID(), Time: time.Now(), Force: &state.Force{Groups: groups}})
	if err == nil {
		err = res.Err()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A disk that failed stays so over restarts, until it is removed; the node goes on with its others. What only it had is neither served empty nor forgotten with it: its
// groups wait, and it cannot be removed, until an administrator gives them up.
func TestFailureDiskStaysFailed(t *testing.T) {
	cfg, n, _, second := twoDisks(t)
	fillGroups(t, n)
	if _, err := n.AddDisk(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "it has its share", func() bool { return info(n, second).State == DiskInUse })
	only := len(diskGroups(n, second))
	stop(t, n)
	failDisk(t, cfg)
	failed := func() {
		t.Helper()
		n = startNode(t, cfg)
		eventually(t, 10*time.Second, "it serves", allServe(n))
		if d := info(n, second); d == nil || d.State != DiskFailed || d.Why != "input/output error" || d.Store != nil {
			t.Errorf("after a restart: %+v", d)
		}
		if !n.stores.lostDisk() || len(n.Stores()) != 1 {
			t.Error("it was opened")
		}
		eventually(t, 20*time.Second, "its groups are known to be lost", func() bool { return len(lostGroups(n)) == only })
		if err := n.RemoveDisk(second); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), fmt.Sprintf("%d groups have their only copy", only)) {
			t.Errorf("remove the only copy of %d groups: %v", only, err)
		}
	}
	failed()
	stop(t, n)
	failed()
	force(t, n, lostGroups(n))
	fillGroups(t, n) // empty, but served
	if left := len(lostGroups(n)); left != 0 {
		t.Errorf("%d groups are lost after they were given up", left)
	}
	if err := n.RemoveDisk(second); err != nil {
		t.Fatal(err)
	}
	if _, err := n.AddDisk(context.Background(), second); err == nil || !strings.Contains(err.Error(), "empty the directory") {
		t.Errorf("a failed disk came back with what it held: %v", err)
	}
	stop(t, n)
	n = startNode(t, cfg) // what was given up stays given up
	eventually(t, 10*time.Second, "it serves", allServe(n))
	fillGroups(t, n)
}

// Where both replicas of a group went with disks, and nobody was there to see it, the group is lost and not empty. Where one node still has it, nothing is.
func TestFailureBothCopiesWentWithDisks(t *testing.T) {
	dir := t.TempDir()
	var nodes [2]*Node
	var cfgs [2]Config
	for i := range nodes {
		cfgs[i] = config(t, dir, i+1, "127.0.0.1")
		cfgs[i].Dirs = append(cfgs[i].Dirs, filepath.Join(dir, fmt.Sprint("second", i)))
		nodes[i] = startNode(t, cfgs[i])
	}
	eventually(t, 5*time.Second, "they meet", func() bool { return len(nodes[0].Met()) == 2 })
	format(t, nodes[0], 2)
	eventually(t, 20*time.Second, "all is in sync", func() bool { return allServe(nodes[:]...)() && healthy(nodes[0].Map(), 2) })
	both := 0
	eventually(t, 20*time.Second, "every group has something", func() bool {
		both = 0
		second := map[objstore.GroupID]bool{}
		for _, id := range diskGroups(nodes[0], cfgs[0].Dirs[1]) {
			second[id] = true
		}
		for _, id := range diskGroups(nodes[1], cfgs[1].Dirs[1]) {
			if second[id] {
				both++
			}
		}
		return len(holds(nodes[0])) == 64 && len(holds(nodes[1])) == 64 && allServe(nodes[:]...)() && healthy(nodes[0].Map(), 2) // still
	})
	for i := range nodes {
		nodes[i].Crash()
		failDisk(t, cfgs[i])
	}
	for i := range nodes {
		nodes[i] = startNode(t, cfgs[i])
	}
	eventually(t, 20*time.Second, "they serve", allServe(nodes[:]...))
	eventually(t, 20*time.Second, "what both lost is known", func() bool { return len(lostGroups(nodes[0])) == both })
	eventually(t, 20*time.Second, "the others are in sync", func() bool {
		in := 0
		for _, g := range nodes[0].Map().Groups {
			if !g.Lost() && len(g.InSync) == 2 && nodes[0].Map().InService(g.Primary) {
				in++
			}
		}
		return in == 64-both
	})
	for i, n := range nodes {
		if err := n.RemoveDisk(cfgs[i].Dirs[1]); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "only copy") {
			t.Errorf("node %d: %v", i, err)
		}
	}
	force(t, nodes[0], lostGroups(nodes[0]))
	eventually(t, 20*time.Second, "all is in sync", func() bool { return healthy(nodes[0].Map(), 2) && len(lostGroups(nodes[0])) == 0 })
	for i, n := range nodes {
		eventually(t, 20*time.Second, "the disk can go", func() bool { return n.RemoveDisk(cfgs[i].Dirs[1]) == nil })
	}
}
