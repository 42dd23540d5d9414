package node

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// fleetNodes is how large TestFleet makes its cluster: 300 takes some five minutes and 4 GiB.
var fleetNodes = flag.Int("fleet", 20, "nodes of TestFleet's cluster")

// TestFleet: whole nodes, hundreds of them if asked, in one process and in virtual time, in twenty zones: all join, the cluster is formatted, more join, a tenth is killed
// at once and given up, and it heals. It states how long agreement took and how large what is agreed is.
func TestFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("many nodes")
	}
	sim(t, func(t *testing.T) {
		all := *fleetNodes
		began := time.Now()
		maps := consensus.NewSharedMaps()
		disks := map[string]*simfs.FS{} // in memory: true syncs of hundreds of nodes on one disk would be what it measures
		w := newWorldOf(t, 0, func(h string, cfg *Config) {
			i, _ := strconv.Atoi(h[1:])
			cfg.Zone = fmt.Sprintf("rack%d", i%20)
			if !testing.Verbose() || *fleetNodes > 30 {
				cfg.Logger = slog.New(slog.DiscardHandler)
			}
			cfg.VNodes = 48 + i%5*8
			cfg.Dirs = []string{"/d"}
			cfg.Store = objstore.Config{FS: disks[h], SegmentBytes: 256 << 10, JournalBytesMax: 1 << 20, ReserveBytes: 64 << 10, TableCacheBytes: 64 << 10}
		})
		defer w.end()
		start := func(n int) {
			for range n {
				h := fmt.Sprintf("n%d", len(w.hosts)+1)
				disks[h] = simfs.New(uint64(len(w.hosts)))
				w.hosts = append(w.hosts, h)
				w.raft[h] = consensus.NewMemory()
				if len(w.hosts) > 4 { // the first make every map themselves, so that agreement means something
					w.raft[h].Maps = maps
				}
				w.run(h)
			}
		}
		start(all - all/10)
		if err := w.nodes["n1"].Format(context.Background(), 3, 0, 2048, false); err != nil {
			t.Fatal(err)
		}
		w.settled("formatted", 60*time.Second, false)
		joined := time.Now()
		start(all / 10) // a storm
		w.until(60*time.Second, "they are nodes", func() bool { return len(w.newest().Nodes) == all })
		w.settled(fmt.Sprintf("%d joined at once", all/10), 120*time.Second, true)
		t.Logf("the joins moved what had to move in %s", time.Since(joined))
		m := w.newest()
		b, _ := state.EncodeMap(m)
		t.Logf("%d nodes, %d groups: the agreed map is %d bytes (that is raft's snapshot)", len(m.Nodes), len(m.Groups), len(b))

		gone := slices.Clone(w.hosts)
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(gone), func(i, j int) { gone[i], gone[j] = gone[j], gone[i] })
		gone = gone[:max(1, all/10)]
		var dead []state.Member
		for _, h := range gone {
			dead = append(dead, w.nodes[h].Self())
		}
		killed := time.Now()
		before := m.Index
		for _, h := range gone {
			w.crash(h)
		}
		rest := slices.DeleteFunc(slices.Clone(w.hosts), func(h string) bool { return slices.Contains(gone, h) })
		w.until(30*time.Second, "the dead are out of service", func() bool {
			return !slices.ContainsFunc(dead, w.newest().InService)
		})
		t.Logf("%d killed in one instant are out of service after %s", len(gone), time.Since(killed))
		lost := 0
		for _, g := range w.newest().Groups {
			if g.Primary.Node == state.NoNode {
				lost++
			}
		}
		w.propose(rest[0], &state.Command{Set: &state.Set{Key: "rebuild-after", Value: "10s"}})
		given := time.Now()
		d := w.until(10*time.Minute, "whole again", func() bool { return w.whole(lost) })
		t.Logf("given up after 10 s and whole again %s later, but for %d groups all of whose members died; %s after the killing", d, lost, time.Since(given))
		w.until(30*time.Second, "all agree", w.agree)
		entries, bytes := w.logged(before)
		t.Logf("healing took %d entries of raft's log, %d bytes", entries, bytes)
		for _, h := range gone {
			w.run(h)
		}
		w.until(2*time.Minute, "the dead return and everything is whole", func() bool { return w.allServe(w.hosts...) && w.whole(0) })
		w.until(30*time.Second, "all agree", w.agree)
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		t.Logf("%s of virtual time; %d goroutines, %d MiB in use", time.Since(began), runtime.NumGoroutine(), ms.HeapInuse>>20)
	})
}

// settled waits until every node serves under the newest map and every group is whole; where also says that groups must be where they shall be.
func (w *world) settled(what string, within time.Duration, where bool) {
	w.t.Helper()
	d := w.until(within, what, func() bool { return w.allServe(w.hosts...) && (!where && healthy(w.newest(), 3) || w.whole(0)) })
	took := w.until(within, what+": all agree", w.agree)
	entries, bytes := w.logged(0)
	w.t.Logf("%s: all %d serve after %s, and agree %s later; raft's log: %d entries, %d bytes", what, len(w.hosts), d, took, entries, bytes)
}

// whole says that all groups but so many have three copies, where they shall be.
func (w *world) whole(lost int) bool {
	bad := 0
	for _, g := range w.newest().Groups {
		ok := g.Primary.Node != state.NoNode && len(g.InSync) == 3
		for _, b := range g.InSync {
			ok = ok && slices.Contains(g.Target, b.Node)
		}
		if !ok {
			bad++
		}
	}
	return bad <= lost
}

// logged counts the commands in raft's log after index, as the leader still has it.
func (w *world) logged(after uint64) (entries, bytes int) {
	h := w.leader()
	if h == "" {
		return 0, 0
	}
	logs := w.raft[h].Store
	first, _ := logs.FirstIndex()
	last, _ := logs.LastIndex()
	for i := max(first, after+1); i <= last; i++ {
		var l raft.Log
		if logs.GetLog(i, &l) == nil && l.Type == raft.LogCommand {
			entries++
			bytes += len(l.Data)
		}
	}
	return entries, bytes
}
