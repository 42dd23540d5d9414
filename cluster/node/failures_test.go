package node

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/lease"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// Failures by their number in FAILURES.md, on whole nodes in virtual time.

// holds says whether a node's disks hold copies of groups.
func holds(n *Node) (groups []objstore.GroupID) {
	for _, st := range n.Stores() {
		groups = append(groups, st.Groups()...)
	}
	return groups
}

// set changes a setting.
func (w *world) set(h, key, value string) {
	w.propose(h, &state.Command{Set: &state.Set{Key: key, Value: value}})
}

// fewest is the smallest number of copies in sync that a group has.
func (w *world) fewest() int {
	n := 1 << 30
	for _, g := range w.newest().Groups {
		n = min(n, len(g.InSync))
	}
	return n
}

// A node comes back when the others have long given it up, agreed on thousands of things, and thrown away the log that it would need. It begins anew: nothing
// that it held counts for anything before it was brought up to date, and what is no longer its to hold is dropped.
func TestFailure07NodeReturnsAfterManyEpochs(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 5)
		defer w.end()
		w.formatted(3)
		w.set("n1", "rebuild-after", "5s")
		late := w.others(w.leader())[0]
		was := w.nodes[late].Self()
		logAt := w.newest().Index
		had := len(holds(w.nodes[late]))
		w.crash(late)
		w.until(60*time.Second, "its groups are given to others", func() bool { return w.whole(0) })
		for i := range 6 { // epochs go by
			h := w.others(late)[i%4]
			w.crash(h)
			w.until(20*time.Second, "it is missed", func() bool { return w.served() })
			w.run(h)
			w.until(20*time.Second, "it is back", func() bool { return w.allServe(w.others(late)...) && healthy(w.newest(), 3) })
		}
		from := w.others(late)[0]
		for i := range 6500 {
			w.propose(from, &state.Command{Set: &state.Set{Key: "scrub-speed", Value: fmt.Sprint(1000000 + i)}})
		}
		w.until(10*time.Minute, "the log it needs is gone everywhere", func() bool {
			for _, h := range w.others(late) {
				if first, _ := w.raft[h].Store.FirstIndex(); first <= logAt {
					return false
				}
			}
			return true
		})
		epochs := w.newest().Epoch
		w.run(late)
		for range 400 {
			for _, g := range w.newest().Groups {
				if slices.Contains(g.InSync, was) || g.Primary == was {
					t.Fatalf("group %d counts on what the node held when it left: %+v", g.ID, g)
				}
			}
			w.pass(5 * time.Millisecond)
		}
		w.until(30*time.Second, "it serves again", func() bool { return w.allServe(w.hosts...) && w.whole(0) })
		w.until(5*time.Second, "all agree", w.agree)
		self := w.nodes[late].Self()
		held := 0
		for _, g := range w.newest().Groups {
			if slices.Contains(g.InSync, self) {
				held++
			}
		}
		w.until(10*time.Second, "it holds what it shall hold and nothing else", func() bool { return len(holds(w.nodes[late])) == held })
		if got := w.newest().Epoch; got != epochs+1 {
			t.Errorf("epoch %d became %d when one node returned", epochs, got)
		}
		t.Logf("had %d groups, now %d; raft's log begins at %d, the node left at %d", had, held, must(w.raft[from].Store.FirstIndex()), logAt)
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A node's disk is lost and replaced by an empty one. What starts there is a new node: it has no old vote, no old place in a set. The old one is missed until it
// is given up or removed.
func TestFailure09EmptyDirectory(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		w.set("n1", "rebuild-after", "5s")
		h := w.others(w.leader())[0]
		old := w.nodes[h].Self()
		uuid := w.nodes[h].UUID()
		w.crash(h)
		if err := os.RemoveAll(filepath.Join(w.dir, h)); err != nil {
			t.Fatal(err)
		}
		w.raft[h] = consensus.NewMemory()
		w.until(10*time.Second, "it is missed", func() bool { return !w.newest().InService(old) })
		w.run(h)
		w.until(20*time.Second, "it serves as a new node", func() bool { return w.allServe(w.hosts...) })
		if self := w.nodes[h].Self(); self.Node == old.Node || w.nodes[h].UUID() == uuid {
			t.Fatalf("an empty directory came back as %+v, which it was", self)
		}
		w.until(20*time.Second, "the groups have three copies again", func() bool { return w.fewest() == 3 })
		for _, g := range w.newest().Groups {
			if slices.ContainsFunc(g.InSync, func(b state.Member) bool { return b.Node == old.Node }) {
				t.Fatalf("group %d: %+v still names the node that is lost", g.ID, g.InSync)
			}
		}
		// Said to be lost for good, it loses its vote too.
		w.propose(w.leader(), &state.Command{NodeOut: &state.NodeOut{Node: old.Node, Remove: true}})
		w.until(10*time.Second, "three vote, the lost one does not", func() bool {
			v := w.nodes[w.leader()].Voters()
			return len(v) == 3 && !slices.Contains(v, uuid)
		})
	})
}

// The network for data is gone while gossip goes on saying that all is well: that helps nobody. The node is replaced as if it were dead.
func TestFailure16GossipGoesOnDataDoesNot(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 4)
		defer w.end()
		w.formatted(3)
		h := w.others(w.leader())[0]
		w.isolate(h)
		if got := len(w.nodes[w.leader()].Met()); got != 4 {
			t.Fatalf("gossip knows %d nodes", got)
		}
		d := w.until(5*time.Second, "its groups go on without it", func() bool { return w.served() && !w.newest().InService(w.nodes[h].Self()) })
		t.Logf("replaced after %s", d)
	})
}

// And the reverse: gossip says that everybody is dead, or knows nobody. Data, leases and raft go on: nothing changes.
func TestFailure48GossipIsWrong(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 4)
		defer w.end()
		w.formatted(3)
		w.pass(3 * time.Second)
		before := w.newest()
		w.hub.mu.Lock()
		met := w.hub.met
		w.hub.met = nil
		w.hub.mu.Unlock()
		for _, n := range w.nodes {
			n.wakeLive()
		}
		for range 4000 {
			w.pass(5 * time.Millisecond)
			if !w.allServe(w.hosts...) || !w.served() {
				t.Fatal("somebody does not serve because gossip is wrong")
			}
		}
		if m := w.newest(); m.Epoch != before.Epoch || m.Index != before.Index {
			t.Errorf("epoch %d and index %d became %d and %d", before.Epoch, before.Index, m.Epoch, m.Index)
		}
		w.hub.mu.Lock()
		w.hub.met = met
		w.hub.mu.Unlock()
	})
}

// Ten nodes join at once; three are removed at once; one is drained, and taken back in the middle. Nothing that is moved ever has fewer copies than before.
func TestFailure43JoinStormRemovalDrainTakenBack(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.formatted(3)
		noFewer := func(d time.Duration, what string, ok func() bool) {
			t.Helper()
			w.until(d, what, func() bool {
				if n := w.fewest(); n < 3 {
					t.Fatalf("%s: a group has %d copies in sync", what, n)
				}
				return ok()
			})
		}
		for i := range 10 {
			h := fmt.Sprintf("n%d", 4+i)
			w.hosts, w.raft[h] = append(w.hosts, h), consensus.NewMemory()
			w.run(h)
		}
		noFewer(60*time.Second, "ten join at once", func() bool { return w.allServe(w.hosts...) && len(w.newest().Nodes) == 13 && w.whole(0) })

		id := func(h string) state.NodeID { return w.nodes[h].Self().Node }
		out := func(h string, drain bool) {
			w.propose("n1", &state.Command{NodeOut: &state.NodeOut{Node: id(h), Out: drain, Drain: drain}})
		}
		empty := func(h string) bool {
			return !slices.ContainsFunc(w.newest().Groups, func(g *state.Group) bool {
				return slices.ContainsFunc(g.InSync, func(b state.Member) bool { return b.Node == id(h) })
			})
		}
		three := []string{"n4", "n5", "n6"}
		for _, h := range three {
			out(h, true)
		}
		noFewer(60*time.Second, "three are drained at once", func() bool { return empty("n4") && empty("n5") && empty("n6") && w.whole(0) })
		var ids []state.NodeID
		for _, h := range three {
			ids = append(ids, id(h))
			w.crash(h)
		}
		w.hosts = slices.DeleteFunc(w.hosts, func(h string) bool { return slices.Contains(three, h) })
		w.until(10*time.Second, "they have ended", func() bool {
			return !slices.ContainsFunc(ids, func(i state.NodeID) bool { return w.newest().Node(i).Up })
		})
		for _, i := range ids {
			w.propose("n1", &state.Command{NodeOut: &state.NodeOut{Node: i, Remove: true}})
		}
		noFewer(10*time.Second, "they are removed", func() bool { return w.whole(0) })

		target := func(h string) (n int) {
			for _, g := range w.newest().Groups {
				if slices.Contains(g.Target, id(h)) {
					n++
				}
			}
			return n
		}
		had := target("n7")
		out("n7", true)
		w.pass(3 * time.Millisecond)
		out("n7", false) // in the middle
		noFewer(60*time.Second, "the drain is taken back", func() bool { return w.whole(0) && target("n7") > 0 })
		if got := target("n7"); got < had-1 || got > had+1 {
			t.Errorf("it shall hold %d groups, it was %d before the drain", got, had)
		}
		w.until(5*time.Second, "all agree", w.agree)
	})
}

// Nodes die and are removed one after the other: with each, votes go to those who are there, so that three of what were seven still decide. And a change of voters under way
// when the network parts is carried out or given up, not half done.
func TestFailure45DeadVotersAreReplaced(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 7)
		defer w.end()
		w.formatted(3)
		w.set("n1", "rebuild-after", "3s")
		w.until(10*time.Second, "five vote", func() bool { return len(w.nodes["n1"].Voters()) == 5 })
		for len(w.hosts) > 3 {
			gone := w.hosts[rand.IntN(len(w.hosts))]
			self, uuid := w.nodes[gone].Self(), w.nodes[gone].UUID()
			w.crash(gone)
			w.hosts = w.others(gone)
			w.until(30*time.Second, "it is given up and the groups are whole", func() bool { return !w.newest().InService(self) && w.whole(0) })
			w.propose(w.hosts[0], &state.Command{NodeOut: &state.NodeOut{Node: self.Node, Remove: true}})
			if len(w.hosts) == 5 { // the change of voters meets a partition
				cut := w.hosts[rand.IntN(len(w.hosts))]
				w.isolate(cut)
				w.pass(5 * time.Second)
				w.net.HealAll()
			}
			w.until(30*time.Second, "the living vote, and only they", func() bool {
				h := w.leader()
				if h == "" {
					return false
				}
				v := w.nodes[h].Voters()
				return !slices.Contains(v, uuid) && len(v) == min(5, len(w.hosts)|1) || len(v) == 3 && len(w.hosts) == 4 && !slices.Contains(v, uuid)
			})
			w.until(30*time.Second, "all serve", func() bool { return w.allServe(w.hosts...) && w.served() && w.whole(0) })
		}
		w.until(5*time.Second, "all agree", w.agree)
	})
}

// A whole zone fails, then one node more. With a copy in each of three zones and min-copies 2 the first costs a copy of everything and stops nothing; the second stops
// the writes of the groups that it held, and only those; reads go on.
func TestFailure46ZoneThenOneMore(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorldOf(t, 6, func(h string, cfg *Config) {
			cfg.Zone = map[string]string{"n1": "a", "n2": "a", "n3": "b", "n4": "b", "n5": "c", "n6": "c"}[h]
		})
		defer w.end()
		w.formatted(3)
		for _, g := range w.newest().Groups {
			zones := map[string]bool{}
			for _, b := range g.InSync {
				zones[w.newest().Node(b.Node).Zone] = true
			}
			if len(zones) != 3 {
				t.Fatalf("group %d lies in zones %v", g.ID, zones)
			}
		}
		w.until(10*time.Second, "five vote, in three zones", func() bool { return len(w.nodes["n1"].Voters()) == 5 })
		w.crash("n1")
		w.crash("n2")
		w.until(10*time.Second, "all groups go on with two copies", func() bool { return w.served() && w.fewest() == 2 && !w.newest().Node(w.nodes["n3"].Self().Node).Out })
		m := w.newest()
		for _, g := range m.Groups {
			if !w.writable(g) {
				t.Fatalf("writes to group %d wait: %+v", g.ID, g)
			}
		}
		// Votes of nodes that are away for a minute go to others, as far as there are any.
		w.pass(70 * time.Second)
		gone := w.nodes["n3"].Self()
		w.crash("n3")
		w.until(10*time.Second, "its groups are read, by the last copies", func() bool { return w.served() && !w.newest().InService(gone) })
		paused := 0
		for _, g := range w.newest().Groups {
			had := slices.Contains(m.Group(g.ID).InSync, gone)
			if had == w.writable(g) {
				t.Errorf("group %d, held by the dead node: %v, writable: %v (%+v)", g.ID, had, w.writable(g), g)
			}
			if had {
				paused++
			}
		}
		t.Logf("writes to %d of %d groups wait", paused, len(m.Groups))
		w.run("n3")
		w.until(10*time.Second, "it returns and nothing waits", func() bool {
			return !slices.ContainsFunc(w.newest().Groups, func(g *state.Group) bool { return !w.writable(g) })
		})
		w.run("n1")
		w.run("n2")
		w.until(20*time.Second, "everything is whole", func() bool { return w.allServe(w.hosts...) && w.whole(0) })
	})
}

// writable says that enough members of a group are in service for a write.
func (w *world) writable(g *state.Group) bool {
	m := w.newest()
	n := 0
	for _, b := range g.InSync {
		if !m.InService(b) {
			return false // every named member must take a write
		}
		n++
	}
	return g.Primary.Node != state.NoNode && n >= m.Pools[g.ID.Pool()].MinCopies
}

// Two nodes alone: when one is gone the other has no majority. It stops within a lease (nobody can tell a dead peer from a cut cable), and goes on when the peer is back.
func TestTwoNodesWait(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		w.formatted(2)
		for _, h := range []string{w.leader(), w.others(w.leader())[0]} {
			left := w.nodes[w.others(h)[0]]
			w.crash(h)
			d := w.until(lease.Length+100*time.Millisecond, "the one that is left serves nothing", func() bool { return !left.Leased() })
			t.Logf("stopped after %s", d)
			for range 1000 {
				w.pass(10 * time.Millisecond)
				if left.Leased() {
					t.Fatal("it serves, alone")
				}
			}
			w.run(h)
			d = w.until(15*time.Second, "both serve", func() bool { return w.allServe(w.hosts...) && w.served() && healthy(w.newest(), 2) })
			t.Logf("both serve %s after its return", d)
		}
	})
}

// Two disks in two zones, and a third node in a third zone that stores nothing but votes: either disk node may die, and the other goes on, for writes too; so does the pair without the third.
func TestTwoDisksAndAVoter(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorldOf(t, 3, func(h string, cfg *Config) {
			cfg.Zone = "room " + h
			if h == "n3" {
				cfg.VNodes = 0
			}
		})
		defer w.end()
		w.formatted(2)
		for _, h := range []string{"n1", "n2", "n3", w.leader()} {
			gone := w.nodes[h].Self()
			w.crash(h)
			w.until(5*time.Second, "the others go on", func() bool { return w.served() && !w.newest().InService(gone) })
			for _, g := range w.newest().Groups {
				if !w.writable(g) {
					t.Fatalf("without %s writes to group %d wait: %+v", h, g.ID, g)
				}
			}
			w.run(h)
			w.until(15*time.Second, "it is back", func() bool { return w.allServe(w.hosts...) && w.whole2() })
		}
		if got := holds(w.nodes["n3"]); len(got) != 0 {
			t.Errorf("the third node stores %d groups", len(got))
		}
	})
}

// whole2 says that every group has two copies.
func (w *world) whole2() bool { return healthy(w.newest(), 2) }

// What a cluster without a raft leader does. Leases are granted by the leader, so: while one is elected (a second) nobody's lease lapses and nothing is noticed; if there is none for
// longer, because no majority of voters answers, all service ends with the leases, within their length.
func TestServiceWithoutALeader(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 5)
		defer w.end()
		w.formatted(3)
		for range 5 {
			w.pass(time.Duration(rand.IntN(500)) * time.Millisecond)
			h := w.leader()
			w.crash(h)
			led := time.Duration(-1)
			for start := time.Now(); time.Since(start) < 4*time.Second; w.pass(5 * time.Millisecond) {
				now := time.Since(start)
				if led < 0 && w.leader() != "" {
					led = now
				}
				for _, o := range w.others(h) {
					switch {
					case w.nodes[o].Leased():
					case now < lease.Length-3*lease.Period-50*time.Millisecond:
						t.Fatalf("%s after the leader's death %s has lost its lease", now, o)
					case led >= 0 && now-led > 200*time.Millisecond:
						t.Fatalf("%s has no lease %s after another leader's election, %s after the leader's death", o, now-led, now)
					default: // votes were split: rare, and then service pauses for as long as that takes
						t.Logf("%s after the leader's death there is no other yet", now)
					}
				}
			}
			w.run(h)
			w.until(20*time.Second, "it is back", func() bool { return w.allServe(w.hosts...) && healthy(w.newest(), 3) })
		}
		voters := w.nodes["n1"].Voters()
		for _, h := range w.hosts { // no two voters reach each other
			if slices.Contains(voters, w.nodes[h].UUID()) {
				w.isolate(h)
			}
		}
		start := time.Now()
		w.until(lease.Length+50*time.Millisecond, "nobody serves", func() bool {
			return !slices.ContainsFunc(w.hosts, func(h string) bool { return w.nodes[h].Leased() })
		})
		d := time.Since(start)
		if d < lease.Length-3*lease.Period-50*time.Millisecond {
			t.Errorf("service ended after %s", d)
		}
		t.Logf("service ended %s after the voters lost each other", d)
		w.net.HealAll()
		w.until(15*time.Second, "all serve again", func() bool { return w.allServe(w.hosts...) && w.served() })
	})
}

// The network of one node comes and goes every five seconds for ten minutes. Each time costs two epochs at most, its going and its coming; nothing is given to others, and when it stays it is well.
func TestFailure19Flapping(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 4)
		defer w.end()
		w.formatted(3)
		h := w.others(w.leader())[0]
		id := w.nodes[h].Self().Node
		target := func() (list []state.GroupID) {
			for _, g := range w.newest().Groups {
				if slices.Contains(g.Target, id) {
					list = append(list, g.ID)
				}
			}
			return list
		}
		before, had := w.newest(), target()
		const flaps = 60
		for range flaps {
			w.isolate(h)
			w.pass(5 * time.Second)
			w.net.HealAll()
			w.pass(5 * time.Second)
		}
		w.until(20*time.Second, "all is well", func() bool { return w.allServe(w.hosts...) && healthy(w.newest(), 3) })
		m := w.newest()
		if n := m.Epoch - before.Epoch; n > 2*flaps {
			t.Errorf("%d epochs for %d flaps", n, flaps)
		}
		if !slices.Equal(had, target()) {
			t.Error("groups were given to others")
		}
		t.Logf("%d epochs, %d entries of the log for %d flaps", m.Epoch-before.Epoch, m.Index-before.Index, flaps)
	})
}
