package vdi

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/memnet"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// site is a cluster of true nodes in virtual time, on simulated disks and a network in memory, that can lose its power as a whole.
type site struct {
	t     *testing.T
	dir   string
	net   *memnet.Net
	start time.Time
	seed  uint64
	disks []*simfs.FS
	raft  []*consensus.Memory
	nodes []*node.Node
	hub   gossipHub
	wrap  func(host string, n wire.Network) wire.Network // what is wrong with a host's network
	tune  func(i int, cfg *node.Config)
}

// gossipHub is gossip that always works.
type gossipHub struct {
	mu  sync.Mutex
	met map[string]gossip.Meta
}

type hubFinder struct {
	h    *gossipHub
	uuid string
}

func (f hubFinder) Met() (list []gossip.Meta) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	for _, m := range f.h.met {
		if m.UUID != f.uuid {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b gossip.Meta) int { return strings.Compare(a.Addr, b.Addr) })
	return list
}

func (f hubFinder) Addr(uuid string) string {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return f.h.met[uuid].Addr
}

func (f hubFinder) Update(m gossip.Meta) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	f.h.met[m.UUID] = m
}

func (f hubFinder) Close() {}

func newSite(t *testing.T, seed uint64) *site {
	return newSiteOf(t, seed, 3, func(_ string, n wire.Network) wire.Network { return n }, func(int, *node.Config) {})
}

func newSiteOf(t *testing.T, seed uint64, nodes int, wrap func(string, wire.Network) wire.Network, tune func(int, *node.Config)) *site {
	s := &site{t: t, dir: t.TempDir(), net: memnet.New(), start: time.Now(), seed: seed, nodes: make([]*node.Node, nodes), hub: gossipHub{met: map[string]gossip.Meta{}},
		wrap: wrap, tune: tune}
	t.Cleanup(func() {
		for i := range s.nodes {
			s.crash(i)
		}
		time.Sleep(time.Minute)
	})
	for i := range nodes {
		s.disks = append(s.disks, s.newDisk(seed*10+uint64(i), fmt.Sprint("n", i)))
		s.raft = append(s.raft, consensus.NewMemory())
		s.run(i)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.nodes[0].Format(ctx, 3, 2, 16, false); err != nil {
		t.Fatal(err)
	}
	return s
}

// newDisk is an empty one that has the node's directory, durably.
func (s *site) newDisk(seed uint64, host string) *simfs.FS {
	d := simfs.New(seed)
	at := "/"
	for _, part := range strings.Split(filepath.Join(s.dir, host), "/") {
		parent := at
		if at = filepath.Join(at, part); part == "" {
			continue
		}
		if err := d.Mkdir(at); err != nil {
			s.t.Fatal(err)
		}
		if err := d.SyncDir(parent); err != nil {
			s.t.Fatal(err)
		}
	}
	return d
}

func (s *site) log() *slog.Logger {
	if os.Getenv("TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (s *site) run(i int) {
	host := fmt.Sprint("n", i)
	cfg := node.Config{Dirs: []string{filepath.Join(s.dir, host)}, Listen: host + ":7000", VNodes: 64, Net: s.wrap(host, s.net.Host(host)), Raft: s.raft[i],
		Store:  objstore.Config{FS: s.disks[i], SegmentBytes: 256 << 10, JournalBytesMax: 4 << 20, ReserveBytes: 1 << 20, TableCacheBytes: 1 << 20},
		BootID: strings.Repeat("b", 36),
		Clock:  func() time.Duration { return time.Since(s.start) + time.Hour },
		Finder: func(self gossip.Meta, _ func()) (node.Finder, error) {
			f := hubFinder{&s.hub, self.UUID}
			f.Update(self)
			return f, nil
		},
		Logger: s.log().With("n", i)}
	s.tune(i, &cfg)
	n, err := node.Start(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.nodes[i] = n
}

func (s *site) crash(i int) {
	if s.nodes[i] == nil {
		return
	}
	s.net.Kill(fmt.Sprint("n", i))
	s.nodes[i].Crash()
	s.nodes[i] = nil
}

// powerCut takes the power of all nodes in the same instant: what their disks had not synced is gone in part. They come back one after the other.
func (s *site) powerCut() {
	for i := range s.nodes {
		s.net.Kill(fmt.Sprint("n", i))
	}
	for i, d := range s.disks {
		s.disks[i] = d.Cut()
	}
	for i := range s.nodes {
		s.crash(i)
	}
	for i := range s.nodes {
		time.Sleep(time.Duration(i) * 300 * time.Millisecond)
		s.run(i)
	}
}

// client is a program's.
func (s *site) client(name string) (*client.Client, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	net := s.wrap(name, s.net.Host(name))
	w, err := client.Watch(ctx, client.WatchConfig{Nodes: []string{"n1:7000", "n0:7000"}, Net: net, ID: name, Logger: s.log()})
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := client.New(client.Config{Maps: w, Net: net, Propose: w.Propose, ID: name, Logger: s.log()})
	if err != nil {
		s.t.Fatal(err)
	}
	var once sync.Once
	end := func() { once.Do(func() { c.Close(); w.Close() }) }
	s.t.Cleanup(end)
	return c, end
}

// TestInvariant2PowerCutOfAllNodes: the whole site loses power again and again while a disk is written. The client that lives on loses nothing it
// was told is done (R17); what was flushed is there even when the client dies too.
func TestInvariant2PowerCutOfAllNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts nodes")
	}
	seeds, err := strconv.ParseUint(os.Getenv("POWER_SEEDS"), 10, 16)
	if err != nil {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { powerCuts(t, seed) })
		})
	}
}

func powerCuts(t *testing.T, seed uint64) {
	const size = 16 << 20
	s := newSite(t, seed)
	ctx := context.Background()
	c, end := s.client("program")
	create := &state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: size}}
	if r, err := s.nodes[0].Propose(ctx, create); err != nil || r.Err() != nil {
		t.Fatal(err, r.Err())
	}
	if _, err := client.WaitFor(ctx, nodeMaps{s.nodes[0]}, func(m *state.Map) bool { return m.Working("alpha") != nil }); err != nil {
		t.Fatal(err)
	}
	for c.Map().Working("alpha") == nil {
		time.Sleep(10 * time.Millisecond)
	}
	d, err := c.Open(ctx, "alpha", "", client.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	disk := NewStream(ctx, d)
	want := make([]byte, size)
	rnd := rand.New(rand.NewPCG(seed, 7))
	for range 4 {
		stop := rnd.IntN(20000)
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Duration(stop) * time.Microsecond)
			s.powerCut()
		})
		exercise(t, disk, want, 25, rnd.Uint64())
		wg.Wait()
		compare(t, disk, want, "after a power cut")
	}
	t.Logf("%d writes were sent again, %d requests tried again", c.Stats.Resent.Load(), c.Stats.Retries.Load())
	if err := disk.Flush(); err != nil {
		t.Fatal(err)
	}
	flushed := bytes.Clone(want)
	end() // the client dies with the nodes
	s.powerCut()
	c2, _ := s.client("heir")
	var d2 *client.Disk
	for d2 == nil { // the dead client's session ends after a while
		if d2, err = c2.Open(ctx, "alpha", "", client.OpenOptions{}); err != nil {
			time.Sleep(time.Second)
		}
		if time.Since(s.start) > time.Hour {
			t.Fatal(err)
		}
	}
	compare(t, NewStream(ctx, d2), flushed, "after everything lost its power")
	if err := d2.Close(ctx); err != nil {
		t.Error(err)
	}
}
