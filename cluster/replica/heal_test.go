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
