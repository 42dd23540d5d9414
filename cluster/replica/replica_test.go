package replica

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

func TestWriteReadThreeCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 8)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		ctx := t.Context()
		for i := range 20 {
			data := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			if _, s := tc.do(ctx, wire.KindWrite, 0, uint32(i), 8192, 4096, data); s != wire.StatusOK {
				t.Fatalf("write %d: %v", i, s)
			}
		}
		if _, s := tc.do(ctx, wire.KindWrite, wire.FlagFUA, 3, 8200, 100, bytes.Repeat([]byte{0xee}, 100)); s != wire.StatusOK {
			t.Fatalf("write within a block: %v", s)
		}
		for i := range 20 {
			out, s := tc.do(ctx, wire.KindRead, 0, uint32(i), 8192, 4096, nil)
			want := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			if i == 3 {
				copy(want[8:], bytes.Repeat([]byte{0xee}, 100))
			}
			if s != wire.StatusOK || !bytes.Equal(out, want) {
				t.Fatalf("read %d: %v", i, s)
			}
			if _, s := tc.do(ctx, wire.KindFlush, 0, uint32(i), 0, 0, nil); s != wire.StatusOK {
				t.Fatalf("flush %d: %v", i, s)
			}
		}
		c.equal()
	})
}

func TestKilledNodeComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 8)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		put := func(from, to int, v byte) {
			for i := from; i < to; i++ {
				if _, s := tc.do(ctx, wire.KindWrite, 0, uint32(i), 0, 8192, bytes.Repeat([]byte{v}, 8192)); s != wire.StatusOK {
					t.Fatalf("write %d: %v", i, s)
				}
			}
		}
		put(0, 30, 1)
		for k := range 3 {
			n := c.nodes[k]
			n.kill()
			n.exited()
			put(10, 20, byte(2+k))
			n.start()
			c.whole(20 * time.Second)
			c.equal()
		}
		for i := range 30 {
			v := byte(1)
			if i >= 10 && i < 20 {
				v = 4
			}
			if out, s := tc.do(ctx, wire.KindRead, 0, uint32(i), 0, 8192, nil); s != wire.StatusOK || !bytes.Equal(out, bytes.Repeat([]byte{v}, 8192)) {
				t.Fatalf("read %d: %v", i, s)
			}
		}
	})
}

// A rotten block is never returned; it is fetched from another replica and written again on all (invariant 8, STORE.md rule 12).
func TestInvariant8RottenBlockIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		want := bytes.Repeat([]byte{7}, 128<<10)
		if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, 0, 0, 128<<10, want); s != wire.StatusOK {
			t.Fatal(s)
		}
		g := c.a.cur().Groups[0]
		var primary *testNode
		for _, n := range c.nodes {
			if n.id == g.Primary.Node {
				primary = n
			}
		}
		if err := primary.store.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		rot(t, primary)
		got, s := tc.do(t.Context(), wire.KindRead, 0, 0, 0, 128<<10, nil)
		if s != wire.StatusOK || !bytes.Equal(got, want) {
			t.Fatalf("read of a rotten block: %v", s)
		}
		if primary.e.Stats.Repaired.Load() == 0 {
			t.Fatal("nothing was repaired: was anything rotten?")
		}
		c.wait("repair to be committed", time.Second, func() bool { return c.allCommitted() })
		c.equal()
	})
}

// rot flips a bit in the middle of the only object's file.
func rot(t *testing.T, n *testNode) {
	dirs, err := n.fs.ReadDir("/d/obj")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("obj: %v %v", dirs, err)
	}
	for _, dir := range dirs {
		names, _ := n.fs.ReadDir("/d/obj/" + dir)
		for _, name := range names {
			f, err := n.fs.Open("/d/obj/" + dir + "/" + name)
			if err != nil {
				continue
			}
			size, _ := f.Size()
			var b [1]byte
			f.ReadAt(b[:], size-5000)
			b[0] ^= 0x10
			f.WriteAt(b[:], size-5000)
			f.Close()
		}
	}
}

func (c *cluster) allCommitted() bool {
	for _, n := range c.nodes {
		ok := true
		n.e.eachGroup(func(g *group) {
			g.mu.Lock()
			ok = ok && (g.role != serving || g.commit == g.last)
			g.mu.Unlock()
		})
		if !ok {
			return false
		}
	}
	return true
}

// A snapshot is one point in time: what was acknowledged before is in it, what is written afterwards is not; its content never changes (invariant 9).
func TestInvariant9SnapshotUnderWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 8)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		put := func(i int, v byte) {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 4096, bytes.Repeat([]byte{v}, 4096)); s != wire.StatusOK {
				t.Fatalf("write %d: %v", i, s)
			}
		}
		for i := range 16 {
			put(i, 1)
		}
		res := c.a.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "d", Tag: "s"}})
		go func() {
			for i := range 16 {
				put(i, 2)
			}
		}()
		c.wait("the snapshot", 5*time.Second, func() bool { d := c.a.cur().VDI(res.Vid); return d != nil && d.State == state.Frozen })
		c.wait("the writes behind it", 5*time.Second, func() bool {
			out, s := tc.do(t.Context(), wire.KindRead, 0, 15, 0, 4096, nil)
			return s == wire.StatusOK && out[0] == 2
		})
		snap, err := c.a.cur().Lookup("d", "s")
		if err != nil {
			t.Fatal(err)
		}
		m := c.a.cur()
		for i := range 16 {
			g := m.Group(m.GroupFor(snap, uint32(i)))
			for _, n := range c.nodes {
				dst := make([]byte, 4096)
				if err := n.e.group(g.ID).st.Read(objstore.MakeKey(objstore.Vid(snap.Root), uint32(i)), n.e.cur.Load().chain(snap.Vid), 0, 1, dst, nil, false); err != nil {
					t.Fatal(err)
				}
				if dst[0] != 1 {
					t.Fatalf("object %d of the snapshot on node %d: %d", i, n.id, dst[0])
				}
			}
		}
		c.equal()
	})
}
