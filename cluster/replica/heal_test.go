package replica

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// TestHealingEndsWithTheRole: a primary copies an object whose tables are lost from a replica. While it puts the last block (its disk is slow) it hands the group to another, and takes a
// write of that one's as a replica. Then the copy must not make the object what it was before.
func TestHealingEndsWithTheRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 23}})
		tc := c.client("x", "d")
		first := bytes.Repeat([]byte{1}, objstore.BlockSize)
		for i := range uint32(2) {
			if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, i, 0, objstore.BlockSize, first); s != wire.StatusOK {
				t.Fatal(s)
			}
		}
		id := c.a.cur().Groups[0].Primary.Node
		var primary *testNode
		for _, n := range c.nodes {
			if n.id == id {
				primary = n
			}
		}
		c.cold(primary)
		isPrimary := func() bool { return c.a.cur().Groups[0].Primary.Node == primary.id }
		c.wait("it is primary again", time.Minute, isPrimary)
		c.whole(20 * time.Second)
		for _, n := range c.nodes {
			n.store.SetScrubRate(0)
		}
		time.Sleep(time.Second)
		root := objstore.Vid(c.a.cur().VDIs[0].Root)
		key, vid := objstore.MakeKey(root, 0), objstore.Vid(c.a.cur().VDIs[0].Vid)
		gid := c.a.cur().Groups[0].ID
		g := primary.e.group(gid)
		lookAt(t, primary, objstore.MakeKey(root, 1))
		name := fmt.Sprintf("/d/obj/%08x/%v", uint32(gid), key)
		if err := primary.fs.Flip(name, (4096+200)*8); err != nil { // its table rots
			t.Fatal(err)
		}
		held, release := make(chan struct{}), make(chan struct{})
		var once atomic.Bool
		hold := func(op, name string) error {
			if op == "write" && strings.Contains(name, key.String()) && !once.Swap(true) {
				close(held)
				<-release
			}
			return nil
		}
		primary.hook.Store(&hold)
		healed := make(chan error, 1)
		go func() {
			healed <- g.heal(&objstore.BlockError{Group: objstore.GroupID(gid), Key: key, Vid: vid, Err: objstore.ErrDamaged})
		}()
		<-held
		go primary.e.Resign(t.Context())
		c.wait("another is primary", 20*time.Second, func() bool { return !isPrimary() })
		second := bytes.Repeat([]byte{2}, objstore.BlockSize)
		if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, 0, objstore.BlockSize, objstore.BlockSize, second); s != wire.StatusOK {
			t.Fatal(s)
		}
		close(release)
		if err := <-healed; err == nil {
			t.Error("healed by who is not the primary any more")
		}
		c.wait("it is primary again", time.Minute, isPrimary)
		c.whole(20 * time.Second)
		out, s := tc.do(t.Context(), wire.KindRead, 0, 0, objstore.BlockSize, objstore.BlockSize, nil)
		if s != wire.StatusOK || !bytes.Equal(out, second) {
			t.Errorf("the client reads: %v, and %x... instead of %x...", s, out[:4], second[:4])
		}
		c.equal()
	})
}

// TestMoveTakesNoDamagedObjectForEqual: before a group goes on on another disk, and the copy here is dropped, what was lost there is copied again.
func TestMoveTakesNoDamagedObjectForEqual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 1)
		n := c.nodes[0]
		n.tables, n.files = 1, 1
		to, fs := n.secondDisk(t)
		defer to.Close()
		n.store.SetScrubRate(0)
		to.SetScrubRate(0)
		src, dst := n.store.Group(7), to.Group(7)
		data := bytes.Repeat([]byte{1}, objstore.BlockSize)
		for _, g := range []*objstore.Group{src, dst} {
			for i := range uint32(2) {
				e := objstore.Entry{Kind: objstore.KindWrite, Key: objstore.MakeKey(1, i), Vid: 1, Gen: 1, Count: 1, Data: data, Number: objstore.Number{Term: 1, LSN: uint64(i) + 1}}
				e.SumData()
				if err := g.Stage(&e); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := to.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		key := objstore.MakeKey(1, 0)
		if _, err := dst.Unit(objstore.MakeKey(1, 1)); err != nil {
			t.Fatal(err)
		}
		if err := fs.Flip("/e/obj/00000007/"+key.String(), (4096+200)*8); err != nil {
			t.Fatal(err)
		}
		if _, err := dst.Unit(key); !errors.Is(err, objstore.ErrDamaged) { // as the scrub
			t.Fatal(err)
		}
		g := n.e.group(7)
		g.mu.Lock()
		g.st, g.store = src, n.store
		g.mu.Unlock()
		m := &mover{e: n.e, g: g, mv: &move{to: to}, src: src, dst: dst, from: n.store, bad: map[objstore.Key][]*objstore.BlockError{}}
		if same, err := m.equal(); err != nil || same {
			t.Errorf("with a damaged object there it is equal: %v, %v", same, err)
		}
		if _, err := m.pass(t.Context(), true); err != nil {
			t.Error(err)
		}
		if same, err := m.equal(); err != nil || !same {
			t.Errorf("not equal: %v", err)
		}
		g.mu.Lock()
		g.st, g.store = nil, nil
		g.mu.Unlock()
		if _, err := dst.Unit(key); err != nil {
			t.Error(err)
		}
	})
}

// TestR7DamagedObjectsAreCopiedFromWhoHasAll: all end while a write is on its way to some, and the object is lost on whoever takes over. It comes from a member that has the write too,
// not from one that has to be made equal; if there is no other, that one's has to do, on all.
func TestR7DamagedObjectsAreCopiedFromWhoHasAll(t *testing.T) {
	for _, have := range []string{"another", "nobody else"} {
		withRules(t, func(t *testing.T, r *rules) {
			for i := range 2 {
				r.settled()
				for _, n := range r.nodes {
					n.store.SetScrubRate(0)
				}
				list := r.others()
				r.write(0, 1)
				if err := r.primary.store.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				r.net.Cut(r.primary.host, list[i].host)
				if have != "another" {
					r.net.Cut(r.primary.host, list[1-i].host)
				}
				done := r.writing(0, 2)
				time.Sleep(50 * time.Millisecond)
				if answered(done, 0) {
					t.Fatal("a write was answered that one lacks")
				}
				r.stop()
				for _, n := range r.nodes {
					n.kill()
				}
				r.net.HealAll()
				for _, n := range r.nodes {
					n.exited()
				}
				key := objstore.MakeKey(objstore.Vid(r.a.cur().VDIs[0].Root), 0)
				if err := r.primary.fs.Flip(fmt.Sprintf("/d/obj/%08x/%v", uint32(r.group().ID), key), (4096+200)*8); err != nil {
					t.Fatal(err)
				}
				r.restart(r.nodes...)
				if x := r.read(0); x != 2 && (have == "another" || x != 1) {
					t.Errorf("reads %d", x)
				}
				r.whole(20 * time.Second)
				r.equal()
			}
		})
	}
}

// TestDamagedObjectAndWhoReturns: the only replica in sync has lost an object. One that was away has it still, if nothing of it was changed meanwhile, joins, and gives it back; one that has nothing
// of the group gets blocks that are bad, and is in sync; one that has what the object was before keeps that, and does not join.
func TestDamagedObjectAndWhoReturns(t *testing.T) {
	for _, has := range []string{"what it was", "nothing", "an older one"} {
		t.Run(has, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 2, 2, 1)
				c.whole(5 * time.Second)
				c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 23}})
				tc := c.client("x", "d")
				put := func(index uint32, v byte) {
					t.Helper()
					if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, index, 0, objstore.BlockSize, fill(v)); s != wire.StatusOK {
						t.Fatal(s)
					}
				}
				want := func(index uint32, status wire.Status, v byte) {
					t.Helper()
					out, s := tc.do(t.Context(), wire.KindRead, 0, index, 0, objstore.BlockSize, nil)
					if s != status || s == wire.StatusOK && out[0] != v {
						t.Errorf("object %d: %v %x", index, s, out[:min(len(out), 1)])
					}
				}
				put(0, 1)
				put(1, 1)
				gid := c.a.cur().Groups[0].ID
				a, b := c.nodes[0], c.nodes[1]
				c.cold(a)
				root := objstore.Vid(c.a.cur().VDIs[0].Root)
				key := objstore.MakeKey(root, 0)
				b.kill()
				b.exited()
				put(1, 2)
				if has == "an older one" {
					put(0, 2)
				}
				if err := a.store.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				a.store.SetScrubRate(0)
				lookAt(t, a, objstore.MakeKey(root, 1))
				name := fmt.Sprintf("/d/obj/%08x/%v", uint32(gid), key)
				for _, at := range []int64{4096 + 200, 4*4096 + 200} { // both places of its table rot
					if err := a.fs.Flip(name, at*8); err != nil {
						t.Fatal(err)
					}
				}
				want(0, wire.StatusBad, 0)
				if has == "nothing" {
					b.fs = simfs.New(99)
					b.fs.Before(b.failing)
					if err := b.fs.Mkdir("/d"); err != nil {
						t.Fatal(err)
					}
					if err := objstore.Create(b.config(), objstore.Identity{Cluster: "test", Disk: b.uuid}); err != nil {
						t.Fatal(err)
					}
				}
				b.start()
				if has == "an older one" {
					time.Sleep(10 * time.Second)
					if n := len(c.a.cur().Groups[0].InSync); n != 1 {
						t.Errorf("%d in sync: what one had of the object before is gone", n)
					}
					want(0, wire.StatusBad, 0)
					want(1, wire.StatusOK, 2)
					return
				}
				c.whole(20 * time.Second)
				status := wire.StatusOK
				if has == "nothing" {
					status = wire.StatusBad
				}
				want(0, status, 1)
				want(1, wire.StatusOK, 2)
				if has != "nothing" {
					c.equal()
				}
				a.kill()
				a.exited()
				want(0, status, 1)
				want(1, wire.StatusOK, 2)
				put(0, 3)
				want(0, wire.StatusOK, 3)
			})
		})
	}
}
