package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// secondDisk gives a node another disk, on a file system of its own.
func (n *testNode) secondDisk(t *testing.T) (*objstore.Store, *simfs.FS) {
	fs := simfs.New(uint64(n.id) + 100)
	if err := fs.Mkdir("/e"); err != nil {
		t.Fatal(err)
	}
	cfg := n.config()
	cfg.Dir, cfg.FS = "/e", fs
	if err := objstore.Create(cfg, objstore.Identity{Cluster: "test", Disk: n.uuid + "-second"}); err != nil {
		t.Fatal(err)
	}
	s, err := objstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.other = s
	return s, fs
}

// move moves a group between a node's disks, however long it takes.
func (n *testNode) move(t *testing.T, id state.GroupID, to *objstore.Store) {
	t.Helper()
	for {
		err := n.e.Move(t.Context(), id, to, func() { n.homes.Store(id, to) })
		if err == nil {
			return
		}
		if !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// While one writes, every node's groups move to its second disk and back; no write fails, no set shrinks, and all replicas are equal.
func TestRule21GroupsMoveBetweenDisksUnderWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 4)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		const objects = 24
		var model [objects][16]byte // what block each holds
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, 2))
			for v := byte(1); ctx.Err() == nil; v++ {
				o, b, n := rnd.IntN(objects), rnd.IntN(14), 1+rnd.IntN(2)
				data := bytes.Repeat([]byte{v}, n*4096)
				kind := wire.KindWrite
				if rnd.IntN(8) == 0 {
					kind, data = wire.KindTrim, nil
				}
				_, s := tc.do(t.Context(), kind, 0, uint32(o), uint32(b)*4096, uint32(n)*4096, data)
				if s != wire.StatusOK {
					t.Errorf("%v: %v", kind, s)
					return
				}
				for i := range n {
					model[o][b+i] = v
					if kind == wire.KindTrim {
						model[o][b+i] = 0
					}
				}
				if rnd.IntN(16) == 0 {
					if _, s := tc.do(t.Context(), wire.KindFlush, 0, uint32(o), 0, 0, nil); s != wire.StatusOK {
						t.Errorf("flush: %v", s)
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
		time.Sleep(time.Second)
		terms := map[state.GroupID]uint64{}
		for _, g := range c.a.cur().Groups {
			terms[g.ID] = g.Term
		}
		for _, n := range c.nodes {
			other, _ := n.secondDisk(t)
			for round := range 3 {
				to := other
				if round == 1 {
					to = n.store
				}
				for _, g := range c.a.cur().Groups {
					n.move(t, g.ID, to)
				}
			}
			if left := n.store.Groups(); len(left) != 0 {
				t.Errorf("node %d: groups %v are left on the first disk", n.id, left)
			}
			if got := len(n.e.GroupsOn(other)); got != 4 {
				t.Errorf("node %d: %d groups on the second disk", n.id, got)
			}
		}
		for _, g := range c.a.cur().Groups {
			if g.Term != terms[g.ID] {
				t.Errorf("group %d: its set changed: term %d, was %d", g.ID, g.Term, terms[g.ID])
			}
		}
		cancel()
		wg.Wait()
		for o := range objects {
			out, s := tc.do(t.Context(), wire.KindRead, 0, uint32(o), 0, 16*4096, nil)
			if s != wire.StatusOK {
				t.Fatal(s)
			}
			for b := range 16 {
				if want := bytes.Repeat([]byte{model[o][b]}, 4096); !bytes.Equal(out[b*4096:][:4096], want) {
					t.Fatalf("object %d block %d: %x, want %x", o, b, out[b*4096], want[0])
				}
			}
		}
		c.equal()
	})
}

// A disk that fails costs its own groups only: they go to the node's other disk, from the other replicas, and nobody notices but them.
func TestFailureDiskCostsOnlyItsGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 8)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		put := func(v byte) {
			for i := range 40 {
				if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 8192, bytes.Repeat([]byte{v}, 8192)); s != wire.StatusOK {
					t.Fatalf("write %d: %v", i, s)
				}
			}
		}
		put(1)
		n := c.nodes[1]
		other, fs := n.secondDisk(t)
		onSecond := map[state.GroupID]bool{}
		for _, g := range c.a.cur().Groups {
			if g.ID%2 == 1 {
				n.move(t, g.ID, other)
				onSecond[g.ID] = true
			}
		}
		put(2)
		terms := map[state.GroupID]uint64{}
		for _, g := range c.a.cur().Groups {
			terms[g.ID] = g.Term
		}
		fs.Cut() // every call fails from here on
		n.homes.Clear()
		for _, g := range c.a.cur().Groups { // what the node does: the groups of a healthy disk stay there
			if !onSecond[g.ID] {
				n.homes.Store(g.ID, n.store)
			}
		}
		put(3)
		c.wait("the second disk's groups have left it", 30*time.Second, func() bool {
			return len(n.e.GroupsOn(other)) == len(other.Groups()) && n.e.NamedOn(other) == 0 || n.onFirst(c)
		})
		c.whole(30 * time.Second)
		for _, g := range c.a.cur().Groups {
			if !onSecond[g.ID] && g.Term != terms[g.ID] {
				t.Errorf("group %d on the healthy disk: term %d, was %d", g.ID, g.Term, terms[g.ID])
			}
			if onSecond[g.ID] && g.Term == terms[g.ID] {
				t.Errorf("group %d: its set never changed", g.ID)
			}
		}
		if !n.onFirst(c) {
			t.Error("not all groups are on the healthy disk")
		}
		put(4)
		c.equal()
	})
}

// onFirst says that the node holds every group on its first disk.
func (n *testNode) onFirst(c *cluster) bool {
	return len(n.e.GroupsOn(n.store)) == len(c.a.cur().Groups)
}

// A copy that was lost with its disk is not served by a node that is alone: whoever else has the group is waited for.
func TestInvariant3LostCopyIsNotServedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 2, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 22}})
		tc := c.client("x", "d")
		if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, 0, 0, 4096, bytes.Repeat([]byte{7}, 4096)); s != wire.StatusOK {
			t.Fatal(s)
		}
		for _, n := range c.nodes { // everybody restarts, one without what it had
			n.kill()
			n.exited()
		}
		a, b := c.nodes[0], c.nodes[1]
		a.fs = simfs.New(77)
		if err := a.fs.Mkdir("/d"); err != nil {
			t.Fatal(err)
		}
		if err := objstore.Create(a.config(), objstore.Identity{Cluster: "test", Disk: "fresh"}); err != nil {
			t.Fatal(err)
		}
		a.lostDisk = true
		a.start()
		g := c.a.cur().Groups[0]
		c.a.apply(&state.Command{Resume: &state.Resume{Groups: []state.GroupTerm{{Group: g.ID, Term: g.Term}}}})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if out, s := tc.do(ctx, wire.KindRead, 0, 0, 0, 4096, nil); s == wire.StatusOK {
			t.Fatalf("it was read as %x while only a node that lost it was up: %s", out[0], fmt.Sprint(c.a.cur().Groups[0]))
		}
		b.start()
	})
}

// A flush that began on the disk that a group is just leaving is answered also when that disk fails: the other has it all.
func TestFailure25FlushWhileItsDiskFailsBehindAMove(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		other, _ := primary.secondDisk(t)
		id := c.a.cur().Groups[0].ID
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 0, uint32(len(want)), want); s != wire.StatusOK {
			t.Fatal(s)
		}
		begun, fail := make(chan struct{}), make(chan struct{})
		var first atomic.Bool
		hold := func(op, name string) error {
			if op != "sync" && op != "syncfs" {
				return nil
			}
			if !first.Swap(true) {
				close(begun)
			}
			<-fail
			return syscall.EIO
		}
		primary.hook.Store(&hold)
		flushed := make(chan wire.Status, 1)
		go func() {
			_, s := tc.do(t.Context(), wire.KindFlush, 0, 0, 0, 0, nil)
			flushed <- s
		}()
		<-begun
		moved := make(chan error, 1)
		go func() {
			moved <- primary.e.Move(t.Context(), id, other, func() { primary.homes.Store(id, other) })
		}()
		g := primaryOf(c, primary)
		c.wait("the group goes on there", 10*time.Second, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.store == other })
		close(fail)
		<-moved
		select {
		case s := <-flushed:
			if s != wire.StatusOK {
				t.Error(s)
			}
		case <-time.After(30 * time.Second):
			t.Error("the flush is not answered")
		}
		if primary.store.Err() == nil || other.Err() != nil {
			t.Errorf("%v %v", primary.store.Err(), other.Err())
		}
	})
}

// What of a replica's disk cannot be read when its groups leave it is good on the other all the same, and soon: nobody reads it there, and no scrub runs.
func TestFailure24BadBlocksAreHealedAsTheirGroupMoves(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprint("while entries are held up: ", sealed), func(t *testing.T) {
			scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
				n := others[0]
				other, _ := n.secondDisk(t)
				other.SetScrubRate(0)
				g := primaryOf(c, n)
				var busy, failed atomic.Bool
				fails := func(op, name string) error {
					if op != "read" || !strings.Contains(name, "/obj/") {
						return nil
					}
					g.mu.Lock()
					late := g.move != nil && g.move.paused
					g.mu.Unlock()
					if !sealed || late {
						failed.Store(true)
						return syscall.EIO
					}
					if !busy.Swap(true) { // so that there is something left to copy
						if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 512, 512, make([]byte, 512)); s != wire.StatusOK {
							t.Error(s)
						}
						if err := n.store.Checkpoint(); err != nil {
							t.Error(err)
						}
					}
					return nil
				}
				n.hook.Store(&fails)
				n.move(t, c.a.cur().Groups[0].ID, other)
				n.hook.Store(nil)
				if !failed.Load() {
					t.Error("nothing failed")
				}
				c.wait("no block is bad there", 10*time.Second, func() bool {
					u, err := g.st.Unit(blockOf(c, 0).Key)
					if err != nil {
						t.Fatal(err)
					}
					for _, v := range u.Versions {
						for _, bl := range v.Blocks {
							if bl.State == objstore.Bad {
								return false
							}
						}
					}
					return true
				})
				c.wait("all is committed", 10*time.Second, c.allCommitted)
				c.equal()
			})
		})
	}
}
