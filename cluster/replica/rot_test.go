package replica

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// scrubbed is a cluster of one group and one object of 32 blocks on every disk, and who is primary.
func scrubbed(t *testing.T, f func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 22}})
		tc := c.client("x", "d")
		want := bytes.Repeat([]byte("rotten?!"), 16<<10)
		if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, 0, 0, uint32(len(want)), want); s != wire.StatusOK {
			t.Fatal(s)
		}
		var primary *testNode
		var others []*testNode
		for _, n := range c.nodes {
			if err := n.store.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			if n.id == c.a.cur().Groups[0].Primary.Node {
				primary = n
			} else {
				others = append(others, n)
			}
		}
		f(t, c, tc, primary, others, want)
	})
}

// scrub has a node's scrub read everything once more.
func (c *cluster) scrub(n *testNode) {
	rounds := n.store.Scrub().Rounds
	n.store.SetScrubRate(1 << 40)
	c.wait("a round of the scrub", time.Minute, func() bool { return n.store.Scrub().Rounds > rounds+1 })
	n.store.SetScrubRate(0)
}

// Rot in a secondary's file is found by its own scrub and repaired without anybody reading.
func TestFailure30RotOnASecondaryIsRepairedWithoutARead(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		rot(t, others[0])
		c.scrub(others[0])
		c.wait("it is repaired", 10*time.Second, func() bool { return others[0].e.Stats.RotRepaired.Load() > 0 && c.allCommitted() })
		if bad := others[0].store.Scrub().Bad; bad == 0 {
			t.Error("the scrub found nothing")
		}
		if n := primary.e.Stats.Reads.Load(); n != 0 {
			t.Errorf("%d reads by clients", n)
		}
		if left := others[0].e.Stats.RotLeft.Load(); left != 0 {
			t.Errorf("%d not repaired", left)
		}
		c.wait("the replica has it", time.Second, func() bool { return others[0].e.Stats.Repaired.Load() == 0 && primary.e.Stats.Repaired.Load() == 1 })
		time.Sleep(time.Second)
		c.equal()
		bad := others[0].store.Scrub().Bad
		c.scrub(others[0])
		if now := others[0].store.Scrub().Bad; now != bad {
			t.Errorf("the next round finds %d bad blocks more", now-bad)
		}
	})
}

// Two of three copies are rotten, whoever they are: both are repaired from the third.
func TestFailure32TwoOfThreeRottenAreRepaired(t *testing.T) {
	for _, who := range []string{"primary and secondary", "both secondaries"} {
		t.Run(who, func(t *testing.T) {
			scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
				bad := []*testNode{primary, others[0]}
				if who == "both secondaries" {
					bad = others
				}
				for _, n := range bad {
					rot(t, n)
				}
				c.scrub(bad[1])
				c.scrub(bad[0])
				c.wait("they are repaired", 10*time.Second, func() bool { return primary.e.Stats.Repaired.Load() > 0 && c.allCommitted() })
				time.Sleep(time.Second)
				c.equal()
				if out, s := tc.do(t.Context(), wire.KindRead, 0, 0, 0, uint32(len(want)), nil); s != wire.StatusOK || !bytes.Equal(out, want) {
					t.Errorf("read: %v", s)
				}
			})
		})
	}
}

// All copies of a block are rotten: that block alone is lost, and said to be; the others are read, and a write of the whole block heals it.
func TestFailure32AllCopiesRottenCostThatBlockOnly(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		for _, n := range c.nodes {
			rot(t, n)
		}
		for _, n := range c.nodes {
			c.scrub(n)
			c.wait("it is said to be lost", 10*time.Second, func() bool { return n.e.Stats.RotLeft.Load() > 0 })
		}
		lost := -1
		for b := range len(want) / objstore.BlockSize {
			out, s := tc.do(t.Context(), wire.KindRead, 0, 0, uint32(b)*objstore.BlockSize, objstore.BlockSize, nil)
			switch {
			case s == wire.StatusBad && lost < 0:
				lost = b
			case s != wire.StatusOK || !bytes.Equal(out, want[b*objstore.BlockSize:][:objstore.BlockSize]):
				t.Errorf("block %d: %v", b, s)
			}
		}
		if lost < 0 {
			t.Fatal("no block was lost: was anything rotten?")
		}
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, uint32(lost)*objstore.BlockSize, objstore.BlockSize, want[:objstore.BlockSize]); s != wire.StatusOK {
			t.Fatal(s)
		}
		if out, s := tc.do(t.Context(), wire.KindRead, 0, 0, 0, uint32(len(want)), nil); s != wire.StatusOK || !bytes.Equal(out, want) {
			t.Errorf("after it was written anew: %v", s)
		}
		c.equal()
	})
}

// What was written while a repair was under way stays (STORE.md rule 12).
func TestRule12RepairIsCompareAndSet(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		g := primary.e.group(c.a.cur().Groups[0].ID)
		key := objstore.MakeKey(objstore.Vid(c.a.cur().VDIs[0].Root), 0)
		before, err := g.st.Unit(key)
		if err != nil {
			t.Fatal(err)
		}
		newer := bytes.Repeat([]byte{9}, objstore.BlockSize)
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 3*objstore.BlockSize, objstore.BlockSize, newer); s != wire.StatusOK {
			t.Fatal(s)
		}
		bad := &objstore.BlockError{Key: key, Vid: objstore.Vid(c.a.cur().VDIs[0].Vid), Block: 3, Err: objstore.ErrChecksum}
		g.rewrite(bad, before, want[:objstore.BlockSize], g.granted)
		if out, s := tc.do(t.Context(), wire.KindRead, 0, 0, 3*objstore.BlockSize, objstore.BlockSize, nil); s != wire.StatusOK || !bytes.Equal(out, newer) {
			t.Errorf("a repair undid a write: %v", s)
		}
		c.equal()
	})
}

// Tables that differ between replicas are found without reading a block (STORE.md rule 14, invariant 11).
func TestRule14TablesAreComparedAcrossReplicas(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		c.wait("a first comparison", 2*time.Minute, func() bool { return primary.e.Stats.Compared.Load() > 0 })
		if n := primary.e.Stats.Differ.Load(); n != 0 {
			t.Fatalf("%d objects differ", n)
		}
		g := others[0].e.group(c.a.cur().Groups[0].ID)
		if err := g.st.DeleteObject(objstore.MakeKey(objstore.Vid(c.a.cur().VDIs[0].Root), 0)); err != nil {
			t.Fatal(err)
		}
		c.wait("the difference is found", 2*time.Minute, func() bool { return primary.e.Stats.Differ.Load() > 0 })
	})
}

// What a replica answers that left the set, and was not told yet, is old: it is no difference between replicas.
func TestRule14WhoLeftTheSetIsNotCompared(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		g := primary.e.group(c.a.cur().Groups[0].ID)
		g.mu.Lock()
		members, term := g.inSyncMembers(), g.term
		before := check{e: g.e, g: g, p: &CheckProgress{}, st: g.st, store: g.store, granted: g.granted}
		g.mu.Unlock()
		c.a.mu.Lock()
		c.a.nodes = []*testNode{primary, others[1]} // others[0] hears of no map any more
		c.a.mu.Unlock()
		others[0].exited()
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 0, objstore.BlockSize, make([]byte, objstore.BlockSize)); s != wire.StatusOK {
			t.Fatal(s)
		}
		key := objstore.MakeKey(objstore.Vid(c.a.cur().VDIs[0].Root), 0)
		for _, tables := range []bool{true, false} {
			chk := before
			chk.tables = tables
			if err := chk.object(t.Context(), key, members, term); err == nil || len(chk.p.Findings) > 0 {
				t.Errorf("tables %v: %v, %q", tables, err, chk.p.Findings)
			}
		}
	})
}

// A node comes back to a primary one of whose blocks rotted in the middle of a run that is read at once: all of the run reaches it, the rotten block from
// the other copy; where that rotted too, that block alone is lost (STORE.md rule 13).
func TestRule13RotInWhatAResyncReadsAtOnce(t *testing.T) {
	for _, copies := range []int{1, 2} {
		scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
			back := others[0]
			back.kill()
			back.exited()
			for i := range want {
				want[i] ^= byte(i>>12) + 1
			}
			if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, 0, 0, uint32(len(want)), want); s != wire.StatusOK {
				t.Fatal(s)
			}
			for _, n := range []*testNode{primary, others[1]}[:copies] {
				if err := n.store.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				rot(t, n)
			}
			back.start()
			c.whole(20 * time.Second)
			good := 0
			for b := range len(want) / objstore.BlockSize {
				switch out, s := tc.do(t.Context(), wire.KindRead, 0, 0, uint32(b)*objstore.BlockSize, objstore.BlockSize, nil); {
				case s == wire.StatusOK && bytes.Equal(out, want[b*objstore.BlockSize:][:objstore.BlockSize]):
					good++
				case s != wire.StatusBad:
					t.Errorf("block %d: %v", b, s)
				}
			}
			if lost := len(want)/objstore.BlockSize - good; lost != copies-1 {
				t.Errorf("%d copies rotten: %d blocks are lost", copies, lost)
			}
			if primary.e.Stats.ResyncBlocks.Load() < int64(good) {
				t.Errorf("%d blocks were copied", primary.e.Stats.ResyncBlocks.Load())
			}
			if copies == 2 { // a write of the whole block heals it
				if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 0, uint32(len(want)), want); s != wire.StatusOK {
					t.Fatal(s)
				}
			}
			c.wait("all is committed", 5*time.Second, c.allCommitted)
			c.equal()
		})
	}
}
