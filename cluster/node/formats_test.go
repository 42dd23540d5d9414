package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// edit replaces text in a file of a stopped node.
func edit(t *testing.T, name, from, to string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), from) {
		t.Fatalf("%s holds no %q: %.80q", name, from, b)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(b), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A directory that a newer program has written, or one of an older layout, is refused at once, with the numbers, and nothing in it is changed; so an upgrade that is taken back
// harms nothing. (Commands and maps: package state's test of the same number.)
func TestFailure50NewerDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	stop(t, single(t, dir, 1))
	cfg := config(t, dir, 1)
	identity := filepath.Join(cfg.Dirs[0], epochDir, identityName)
	edit(t, identity, `"format": 1`, `"format": 2`)
	refusedAtStart(t, cfg, "format 2, this program knows 1")
	edit(t, identity, `"format": 2`, `"format": 1`)
	store, err := filepath.Glob(filepath.Join(cfg.Dirs[0], "*"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, name := range store {
		b, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(b), "sheepdog 2 ") {
			continue
		}
		found = true
		for _, other := range []string{"1", "3"} {
			edit(t, name, "sheepdog 2 ", "sheepdog "+other+" ")
			refusedAtStart(t, cfg, "format "+other+", this program knows 2")
			edit(t, name, "sheepdog "+other+" ", "sheepdog 2 ")
		}
	}
	if !found {
		t.Errorf("no file of the store says its format: %v", store)
	}
	n := startNode(t, cfg)
	eventually(t, 10*time.Second, "it serves again", allServe(n))
}

// A disk was put into the wrong machine: of another cluster, or of another node of this one.
func TestFailure40ForeignDiskIsRefused(t *testing.T) {
	dir := t.TempDir()
	nodes := []*Node{startNode(t, config(t, dir, 1)), startNode(t, config(t, dir, 2, "127.0.0.1"))}
	eventually(t, 5*time.Second, "they meet", func() bool { return len(nodes[0].Met()) == 2 })
	format(t, nodes[0], 2)
	eventually(t, 5*time.Second, "they serve", allServe(nodes...))
	other := single(t, dir, 3)
	stop(t, other)
	stop(t, nodes[1])
	stop(t, nodes[0])
	cfg := config(t, dir, 1)
	cfg.Dirs = append(cfg.Dirs, filepath.Join(dir, "2"))
	refusedAtStart(t, cfg, "belongs to node")
	cfg.Dirs[1] = filepath.Join(dir, "3")
	refusedAtStart(t, cfg, "belongs to cluster")
	// Each with its own again: nothing was harmed.
	nodes[0], nodes[1] = startNode(t, config(t, dir, 1)), startNode(t, config(t, dir, 2, "127.0.0.1"))
	eventually(t, 15*time.Second, "they serve", allServe(nodes[0], nodes[1]))
}
