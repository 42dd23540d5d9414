package node

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// diskOf reads what a disk keeps of its node's incarnations.
func diskOf(t *testing.T, dir string) []uint64 {
	t.Helper()
	b, err := objstore.ReadMeta(objstore.Config{Dir: dir}, incarnationsMeta)
	if err != nil {
		t.Fatal(err)
	}
	list, err := parseIncarnations(b)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// changeIdentity changes what a stopped node knows of itself.
func changeIdentity(t *testing.T, first string, f func(*identity)) {
	t.Helper()
	d, err := openDir(first, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := d.change(f); err != nil {
		t.Fatal(err)
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// knowsAll wants every directory to know the node's incarnation as raft has it, and the node to know that.
func knowsAll(t *testing.T, n *Node, dirs ...string) {
	t.Helper()
	inc := n.Map().Node(n.Self().Node).Inc
	for _, dir := range dirs {
		if !slices.Contains(diskOf(t, dir), inc) {
			t.Errorf("%s does not know incarnation %x", dir, inc)
		}
	}
	for _, k := range n.dir.get().Disks {
		if k.State != DiskFailed && k.Inc != inc {
			t.Errorf("disk %s: told %x, not %x", k.Dir, k.Inc, inc)
		}
	}
}

// twoNodesThreeDisks is a formatted cluster of two copies; the first node has two disks, each with something of its groups.
func twoNodesThreeDisks(t *testing.T) (nodes []*Node, cfgs []Config, second string) {
	dir := t.TempDir()
	second = filepath.Join(dir, "second")
	cfgs = []Config{config(t, dir, 1), config(t, dir, 2, "127.0.0.1")}
	cfgs[0].Dirs = append(cfgs[0].Dirs, second)
	cfgs[1].Join = []string{"127.0.0.1"}
	nodes = []*Node{startNode(t, cfgs[0]), startNode(t, cfgs[1])}
	eventually(t, 5*time.Second, "they meet", func() bool { return len(nodes[0].Met()) == 2 })
	format(t, nodes[0], 2)
	eventually(t, 20*time.Second, "all is in sync", func() bool { return allServe(nodes...)() && healthy(nodes[0].Map(), 2) })
	eventually(t, 20*time.Second, "the second disk has groups", func() bool { return len(diskGroups(nodes[0], second)) > 8 })
	return nodes, cfgs, second
}

func diskGroups(n *Node, dir string) []objstore.GroupID {
	if d := info(n, dir); d != nil && d.Store != nil {
		return d.Store.Groups()
	}
	return nil
}

// An older copy of the second disk alone comes back: it is not served, its groups come from the other node, the node goes on with its first.
func TestRule21OlderCopyOfASecondDiskIsNotServed(t *testing.T) {
	nodes, cfgs, second := twoNodesThreeDisks(t)
	knowsAll(t, nodes[0], cfgs[0].Dirs...)
	stop(t, nodes[0])
	old := filepath.Join(t.TempDir(), "old")
	copyDir(t, second, old)
	nodes[0] = startNode(t, cfgs[0])
	eventually(t, 20*time.Second, "all is in sync", func() bool { return allServe(nodes...)() && healthy(nodes[1].Map(), 2) })
	if d := info(nodes[0], second); d.State != DiskInUse || d.Store == nil {
		t.Fatalf("the disk itself: %+v", d)
	}
	knowsAll(t, nodes[0], cfgs[0].Dirs...)
	stop(t, nodes[0])
	latest := filepath.Join(t.TempDir(), "latest")
	copyDir(t, second, latest)
	copyDir(t, old, second)

	check := func() {
		t.Helper()
		eventually(t, 20*time.Second, "all is in sync", func() bool { return allServe(nodes...)() && healthy(nodes[1].Map(), 2) })
		if d := info(nodes[0], second); d == nil || d.State != DiskFailed || !strings.Contains(d.Why, "older copy") || d.Store != nil {
			t.Errorf("the older copy: %+v", d)
		}
		if len(nodes[0].Stores()) != 1 || !nodes[0].stores.lostDisk() || len(nodes[0].Map().Node(nodes[0].Self().Node).Disks) != 1 {
			t.Error("it counts as a disk")
		}
	}
	nodes[0] = startNode(t, cfgs[0])
	check()
	stop(t, nodes[0])
	copyDir(t, latest, second) // too late: the cluster went on without it
	nodes[0] = startNode(t, cfgs[0])
	check()
	knowsAll(t, nodes[0], cfgs[0].Dirs[0])

	if err := nodes[0].RemoveDisk(second); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].AddDisk(t.Context(), second); !errors.Is(err, fs.ErrExist) {
		t.Errorf("added with what it held: %v", err)
	}
	if err := os.RemoveAll(second); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(second, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].AddDisk(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	knowsAll(t, nodes[0], cfgs[0].Dirs...) // a disk that is added at run time, at once
	// A copy of a disk is not another disk.
	copied := filepath.Join(t.TempDir(), "copied")
	copyDir(t, second, copied)
	if _, err := nodes[0].AddDisk(t.Context(), copied); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "copy") {
		t.Errorf("a copy of a disk: %v", err)
	}
}

// All nodes restart together, and one with an older copy of a disk: no group resumes with what that holds (R6, R7).
func TestRule21OlderCopyIsNoCandidateWhenAllRestart(t *testing.T) {
	nodes, cfgs, second := twoNodesThreeDisks(t)
	stop(t, nodes[0])
	old := filepath.Join(t.TempDir(), "old")
	copyDir(t, second, old)
	nodes[0] = startNode(t, cfgs[0])
	eventually(t, 20*time.Second, "all is in sync", func() bool { return allServe(nodes...)() && healthy(nodes[1].Map(), 2) })
	mine := diskGroups(nodes[0], second)
	nodes[0].Crash()
	nodes[1].Crash()
	copyDir(t, old, second)
	last := map[objstore.GroupID]objstore.Number{}
	st := openStore(t, cfgs[1].Dirs[0])
	for _, id := range mine {
		last[id] = st.Group(id).Last()
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	nodes = []*Node{startNode(t, cfgs[0]), startNode(t, cfgs[1])}
	eventually(t, 40*time.Second, "all is in sync", func() bool { return allServe(nodes...)() && healthy(nodes[1].Map(), 2) })
	first := info(nodes[0], cfgs[0].Dirs[0]).Store
	for _, id := range mine {
		eventually(t, 10*time.Second, "the copies are equal", func() bool {
			return first.Group(id).Last() == nodes[1].Stores()[0].Group(id).Last()
		})
		if now, was := first.Group(id).Last(), last[id]; now.Term < was.Term || now.LSN < was.LSN {
			t.Errorf("group %d is at %+v, was at %+v", id, now, was)
		}
	}
}

// Where the older copy is the only one there is, its groups wait: they are neither served from it nor empty.
func TestRule21OnlyCopyIsNotServedFromAnOlderOne(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, 1)
	second := filepath.Join(dir, "second")
	cfg.Dirs = append(cfg.Dirs, second)
	n := startNode(t, cfg)
	format(t, n, 1)
	fillGroups(t, n)
	stop(t, n)
	old := filepath.Join(dir, "old")
	copyDir(t, second, old)
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	fillGroups(t, n)
	kept := len(diskGroups(n, cfg.Dirs[0]))
	stop(t, n)
	copyDir(t, old, second)
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "the node and its other disk go on", allServe(n))
	terms := func() (own int) { // groups of which the new incarnation's primary wrote an entry
		for _, id := range n.Stores()[0].Groups() {
			if g := n.Map().Group(state.GroupID(id)); g.Primary == n.Self() && n.Stores()[0].Group(id).Last().Term == g.Term {
				own++
			}
		}
		return own
	}
	eventually(t, 20*time.Second, "the first disk's groups are served", func() bool { return terms() == kept })
	if got := len(n.Stores()[0].Groups()); got != kept || len(n.Stores()) != 1 {
		t.Errorf("%d groups have something on the first of %d disks that are served, on the first disk were %d", got, len(n.Stores()), kept)
	}
}

// A disk that does not answer when it is told an incarnation holds up the node for as long as a disk may hang, and has failed then.
func TestRule21DiskThatHangsIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := simfs.New(1)
		cfg := smallStore
		cfg.FS, cfg.Dir, cfg.HangTimeout, cfg.Logger = sim, "/", 5*time.Second, slog.New(slog.NewTextHandler(logTo{t}, nil))
		if err := objstore.Create(cfg, objstore.Identity{Cluster: "c", Disk: "d"}); err != nil {
			t.Fatal(err)
		}
		st, err := objstore.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := setIncarnations(st, []uint64{1, 2}); err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		sim.Before(func(op, name string) error {
			if op == "sync" && strings.Contains(name, incarnationsMeta) {
				<-release
			}
			return nil
		})
		start := time.Now()
		if err := setIncarnations(st, []uint64{1, 2, 3}); !errors.Is(err, objstore.ErrDiskFailed) || time.Since(start) > cfg.HangTimeout+time.Second {
			t.Errorf("a disk that hangs: %v after %s", err, time.Since(start))
		}
		close(release)
		st.Close()
	})
}

// A crash after one disk learnt a new incarnation and before another did: nobody registered that one, so both are what they were.
func TestRule21CrashBetweenTwoDisks(t *testing.T) {
	for _, crashed := range []int{0, 1} { // the disk that had learnt it
		dir := t.TempDir()
		cfg := config(t, dir, 1)
		cfg.Dirs = append(cfg.Dirs, filepath.Join(dir, "second"))
		n := startNode(t, cfg)
		format(t, n, 1)
		eventually(t, 5*time.Second, "it serves", allServe(n))
		n.Crash()
		for range 2 { // twice in a row
			st := openStore(t, cfg.Dirs[crashed])
			history := append(diskOf(t, cfg.Dirs[crashed]), 0xdead)
			if err := setIncarnations(st, history); err != nil {
				t.Fatal(err)
			}
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}
			n = startNode(t, cfg)
			eventually(t, 10*time.Second, "it serves", allServe(n))
			for _, d := range n.Disks() {
				if d.State != DiskInUse || d.Store == nil {
					t.Errorf("after a crash: %+v", d)
				}
			}
			knowsAll(t, n, cfg.Dirs...)
			n.Crash()
		}
	}
}

// A directory of a program that told its disks nothing is taken as it is, once.
func TestRule21DirectoryWithoutIncarnations(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, 1)
	second := filepath.Join(dir, "second")
	cfg.Dirs = append(cfg.Dirs, second)
	n := startNode(t, cfg)
	format(t, n, 1)
	eventually(t, 5*time.Second, "it serves", allServe(n))
	stop(t, n)
	forget := func() {
		for _, d := range cfg.Dirs {
			if err := os.Remove(filepath.Join(d, epochDir, incarnationsMeta)); err != nil {
				t.Fatal(err)
			}
		}
	}
	forget()
	changeIdentity(t, cfg.Dirs[0], func(id *identity) {
		for i := range id.Disks {
			id.Disks[i].Inc = 0
		}
	})
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if got := len(n.Stores()); got != 2 {
		t.Fatalf("%d disks are open", got)
	}
	knowsAll(t, n, cfg.Dirs...)
	stop(t, n)
	if err := os.Remove(filepath.Join(second, epochDir, incarnationsMeta)); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if d := info(n, second); d.State != DiskFailed || d.Store != nil {
		t.Errorf("a disk that has forgotten everything: %+v", d)
	}
}

// A disk that cannot learn the incarnation that is about to be registered is a failed disk; the others go on.
func TestRule21DiskThatDoesNotTakeAnIncarnationHasFailed(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, 1)
	second := filepath.Join(dir, "second")
	cfg.Dirs = append(cfg.Dirs, second)
	n := startNode(t, cfg)
	format(t, n, 1)
	eventually(t, 5*time.Second, "it serves", allServe(n))
	if err := os.RemoveAll(filepath.Join(second, epochDir)); err != nil {
		t.Fatal(err)
	}
	inc, err := n.stores.newIncarnation()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range n.dir.get().Disks {
		if failed := k.State == DiskFailed; failed != (k.Dir == second) || !failed && k.Inc != inc {
			t.Errorf("remembered: %+v", k)
		}
	}
	eventually(t, 5*time.Second, "it is seen", n.stores.lostDisk)
	n.Crash()
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if d := info(n, second); d.State != DiskFailed || d.Store != nil {
		t.Errorf("after a restart: %+v", d)
	}
}

func TestRule21DamagedIncarnations(t *testing.T) {
	for _, bad := range []string{"x\n", "1\n\n", "10000000000000000\n", strings.Repeat("1\n", incarnationsMax+1)} {
		if list, err := parseIncarnations([]byte(bad)); !errors.Is(err, objstore.ErrFormat) {
			t.Errorf("%.20q: %v, %v", bad, list, err)
		}
	}
}

func FuzzIncarnations(f *testing.F) {
	f.Add([]byte("1\nffffffffffffffff\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseIncarnations(b)
		if err != nil {
			return
		}
		if again, err := parseIncarnations(encodeIncarnations(list)); err != nil || !slices.Equal(again, list) {
			t.Errorf("%x is read back as %x, %v", list, again, err)
		}
	})
}

func openStore(t *testing.T, dir string) *objstore.Store {
	t.Helper()
	cfg := smallStore
	cfg.Dir = dir
	st, err := objstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return st
}
