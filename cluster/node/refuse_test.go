package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// refusedAtStart wants Start to fail with one line that says what was wrong.
func refusedAtStart(t *testing.T, cfg Config, says string) {
	t.Helper()
	n, err := Start(cfg)
	if err == nil {
		stop(t, n)
		t.Fatalf("started, though %s", says)
	}
	if !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
		t.Errorf("refused with %q, want one line with %q", err, says)
	}
}

// refusedLater wants a started node to give up with such a line.
func refusedLater(t *testing.T, n *Node, says string) {
	t.Helper()
	eventually(t, 15*time.Second, "it gives up, since "+says, func() bool {
		select {
		case <-n.Done():
			return true
		default:
			return false
		}
	})
	if err := n.Err(); !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
		t.Errorf("gave up with %q, want one line with %q", err, says)
	}
	stop(t, n)
}

func single(t *testing.T, dir string, i int) *Node {
	n := startNode(t, config(t, dir, i))
	format(t, n, 1)
	eventually(t, 5*time.Second, "it serves", allServe(n))
	return n
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	n := single(t, dir, 1)
	cfg := config(t, dir, 1)
	cfg.Listen = "127.0.0.2:17000"
	refusedAtStart(t, cfg, "in use by another daemon")
	refusedAtStart(t, config(t, t.TempDir(), 1), "address already in use")

	// A directory of another cluster.
	other := single(t, dir, 2)
	stop(t, other)
	lost := startNode(t, config(t, dir, 2, "127.0.0.1")) // alone in its cluster, it goes on alone; that it was told to join another is logged
	eventually(t, 5*time.Second, "it serves its own", allServe(lost))
	stop(t, lost)

	// A store of another cluster under a blank node.
	if err := os.Remove(filepath.Join(dir, "2", epochDir, identityName)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "2", epochDir, "raft")); err != nil {
		t.Fatal(err)
	}
	refusedAtStart(t, config(t, dir, 2, "127.0.0.1"), "belongs to cluster")
	// A directory without its raft log.
	if err := os.RemoveAll(filepath.Join(dir, "2")); err != nil {
		t.Fatal(err)
	}
	other = single(t, dir, 2)
	eventually(t, 10*time.Second, "it is noted", func() bool { return other.dir.get().Formatted })
	stop(t, other)
	if err := os.RemoveAll(filepath.Join(dir, "2", epochDir, "raft")); err != nil {
		t.Fatal(err)
	}
	refusedAtStart(t, config(t, dir, 2), "lost raft's log")
	eventually(t, 5*time.Second, "the refusals disturbed no node", allServe(n))
}

func TestWrongClusterIsRefused(t *testing.T) {
	dir := t.TempDir()
	single(t, dir, 1)
	nodes := []*Node{startNode(t, config(t, dir, 2)), startNode(t, config(t, dir, 3, "127.0.0.2"))}
	eventually(t, 5*time.Second, "they meet", func() bool { return len(nodes[0].Met()) == 2 })
	format(t, nodes[0], 2)
	eventually(t, 5*time.Second, "they serve", allServe(nodes...))
	stop(t, nodes[0])
	stop(t, nodes[1])
	// Alone of its cluster, and told to join another.
	refusedLater(t, startNode(t, config(t, dir, 3, "127.0.0.1")), "belongs to cluster")
}

func TestR5OlderCopyIsRefused(t *testing.T) {
	dir := t.TempDir()
	nodes := []*Node{startNode(t, config(t, dir, 1)), startNode(t, config(t, dir, 2, "127.0.0.1"))}
	eventually(t, 5*time.Second, "they meet", func() bool { return len(nodes[0].Met()) == 2 })
	third := startNode(t, config(t, dir, 3, "127.0.0.1"))
	eventually(t, 5*time.Second, "they meet", func() bool { return len(nodes[0].Met()) == 3 })
	format(t, nodes[0], 2)
	eventually(t, 5*time.Second, "they serve", allServe(nodes[0], nodes[1], third))
	stop(t, third)
	copied := t.TempDir()
	if err := os.CopyFS(filepath.Join(copied, "3"), os.DirFS(filepath.Join(dir, "3"))); err != nil {
		t.Fatal(err)
	}
	third = startNode(t, config(t, dir, 3, "127.0.0.1"))
	eventually(t, 10*time.Second, "it serves", allServe(third))
	stop(t, third)
	refusedLater(t, startNode(t, config(t, copied, 3, "127.0.0.1")), "not node")
}

func TestSecondDaemonOnACopiedDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	nodes := threeNodes(t, dir)
	eventually(t, 5*time.Second, "they meet", func() bool { return len(nodes[0].Met()) == 3 })
	format(t, nodes[0], 2)
	eventually(t, 5*time.Second, "they serve", allServe(nodes...))
	stop(t, nodes[2])
	copied := t.TempDir()
	if err := os.CopyFS(filepath.Join(copied, "4"), os.DirFS(filepath.Join(dir, "3"))); err != nil {
		t.Fatal(err)
	}
	nodes[2] = startNode(t, config(t, dir, 3, "127.0.0.1"))
	eventually(t, 10*time.Second, "it serves", allServe(nodes...))
	was := nodes[2].Self()
	refusedLater(t, startNode(t, config(t, copied, 4, "127.0.0.1")), "copy")
	eventually(t, 5*time.Second, "they still serve", allServe(nodes...))
	if nodes[2].Self() != was || nodes[2].Err() != nil {
		t.Errorf("the true node was disturbed: %+v, %v", nodes[2].Self(), nodes[2].Err())
	}
}

// A node that comes back without one of its disks must not pass for one that lost nothing.
func TestR5MissingDiskIsRefused(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, 1)
	second, elsewhere := filepath.Join(dir, "second"), filepath.Join(dir, "elsewhere")
	cfg.Dirs = append(cfg.Dirs, second)
	n := startNode(t, cfg)
	format(t, n, 1)
	eventually(t, 5*time.Second, "it serves", allServe(n))
	stop(t, n)

	if err := os.Rename(second, elsewhere); err != nil {
		t.Fatal(err)
	}
	refusedAtStart(t, cfg, "last seen in "+second) // no directory
	if err := os.Mkdir(second, 0o700); err != nil {
		t.Fatal(err)
	}
	refusedAtStart(t, cfg, "last seen in "+second) // where it should be mounted
	if names, _ := os.ReadDir(second); len(names) != 0 {
		t.Errorf("something was written where no disk is mounted: %v", names)
	}
	refusedAtStart(t, config(t, dir, 1), "last seen in "+second) // left out
	gateway := config(t, dir, 1)
	gateway.VNodes = 0
	refusedAtStart(t, gateway, "last seen in "+second)

	// Found in another place, beside a new disk: that is all of it.
	cfg.Dirs = append(cfg.Dirs, elsewhere)
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if got := len(n.dir.get().Disks); got != 3 {
		t.Errorf("%d disks are remembered", got)
	}
	stop(t, n)
	// A gateway keeps what it has until it is moved.
	cfg.VNodes = 0
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if got := len(n.Stores()); got != 3 {
		t.Errorf("%d stores are open", got)
	}
	stop(t, n)
	// One that is not named any more is looked for where it was last.
	cfg.Dirs = cfg.Dirs[:2]
	n = startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves", allServe(n))
	if got := len(n.Stores()); got != 3 {
		t.Errorf("%d stores are open", got)
	}
	stop(t, n)
	away := filepath.Join(dir, "away")
	if err := os.Rename(elsewhere, away); err != nil {
		t.Fatal(err)
	}
	refusedAtStart(t, cfg, "last seen in "+elsewhere)
	if err := os.Rename(away, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "copy"), os.DirFS(second)); err != nil {
		t.Fatal(err)
	}
	cfg.Dirs = append(cfg.Dirs, elsewhere, filepath.Join(dir, "copy"))
	refusedAtStart(t, cfg, "the same disk")
}
