package replica

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// A disk that dies under a primary costs no client an error, whatever it was just doing for whom: every call to it fails from the k-th on, while everything is read (cold,
// after a restart) and some of it written.
func TestFailure25ADiskThatDiesCostsNoReaderAnError(t *testing.T) {
	const objects = 6
	for _, writes := range []bool{false, true} {
		for k := int64(0); k < 50; k += 1 + k/5 {
			t.Run(fmt.Sprintf("writes %v, call %d", writes, k), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { dyingDisk(t, objects, writes, k) })
			})
		}
	}
}

func dyingDisk(t *testing.T, objects uint32, writes bool, k int64) {
	c := newCluster(t, 3, 3, 4)
	c.whole(5 * time.Second)
	c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: uint64(objects) << 22}})
	tc := c.client("x", "d")
	content := func(i uint32) []byte { return bytes.Repeat([]byte{byte(i + 1)}, 4*objstore.BlockSize) }
	for i := range objects {
		if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, i, 0, 4*objstore.BlockSize, content(i)); s != wire.StatusOK {
			t.Fatal(s)
		}
	}
	c.cold(c.nodes...)
	var n *testNode
	for _, x := range c.nodes {
		if x.id == c.a.cur().Groups[0].Primary.Node {
			n = x
		}
	}
	var calls atomic.Int64
	die := func(op, name string) error {
		if op != "statfs" && calls.Add(1) > k {
			return syscall.EIO
		}
		return nil
	}
	n.hook.Store(&die)
	for i := range 2 * objects {
		i %= objects
		if out, s := tc.do(t.Context(), wire.KindRead, 0, i, 0, 4*objstore.BlockSize, nil); s != wire.StatusOK || !bytes.Equal(out, content(i)) {
			t.Errorf("read of object %d: %v", i, s)
		}
		if writes {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, i, 0, 4*objstore.BlockSize, content(i)); s != wire.StatusOK {
				t.Errorf("write of object %d: %v", i, s)
			}
		}
	}
}

// cold restarts nodes so that they keep hardly any file open and hardly any table in memory.
func (c *cluster) cold(nodes ...*testNode) {
	for _, n := range nodes {
		if err := n.store.Checkpoint(); err != nil {
			c.t.Fatal(err)
		}
		n.kill()
		n.exited()
		n.files, n.tables = 1, 1
		n.start()
		c.whole(20 * time.Second)
	}
}

// lookAt has a cold node look at one object: after that it has no tables of another in memory.
func lookAt(t *testing.T, n *testNode, key objstore.Key) {
	if u, err := n.e.group(0).st.Unit(key); err != nil || u == nil {
		t.Fatalf("%v %v", u, err)
	}
}

// A block that was written anew while the replicas were asked for a good copy of what it was: they have what is newer, and that is no loss.
func TestRule12WrittenWhileCopiesAreAskedFor(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 1, 0, objstore.BlockSize, want[:objstore.BlockSize]); s != wire.StatusOK {
			t.Fatal(s)
		}
		c.cold(others...)
		g := primary.e.group(c.a.cur().Groups[0].ID)
		root := objstore.Vid(c.a.cur().VDIs[0].Root)
		key := objstore.MakeKey(root, 0)
		release, held := make(chan struct{}), make(chan struct{})
		g.mu.Lock()
		asked := g.inSyncMembers()[0].Node
		g.mu.Unlock()
		for _, n := range others {
			if n.id != asked { // only when the first one's copy was no good
				continue
			}
			lookAt(t, n, objstore.MakeKey(root, 1))
			var first atomic.Bool
			hold := func(op, name string) error { // who asks for the copy has to wait, not who writes
				if op == "size" && strings.Contains(name, key.String()) && !first.Swap(true) {
					held <- struct{}{}
					<-release
				}
				return nil
			}
			n.hook.Store(&hold)
		}
		healed := make(chan error, 1)
		go func() {
			healed <- g.heal(&objstore.BlockError{Group: objstore.GroupID(g.id), Key: key, Vid: objstore.Vid(c.a.cur().VDIs[0].Vid), Block: 3, Err: objstore.ErrChecksum})
		}()
		<-held
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 3*objstore.BlockSize, objstore.BlockSize, make([]byte, objstore.BlockSize)); s != wire.StatusOK {
			t.Fatal(s)
		}
		close(release)
		if err := <-healed; err != nil {
			t.Errorf("%v, though all copies are good", err)
		}
	})
}

// With disks that have no room for a repair, what is rotten is read from a good copy all the same.
func TestFailure24RottenBlockOnAFullDiskIsRead(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		rot(t, primary)
		for _, n := range c.nodes {
			n.fs.SetCapacity(n.fs.Used()+1<<20, 0)
		}
		for off := uint32(len(want)); ; off += uint32(len(want)) {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, off, uint32(len(want)), want); s == wire.StatusNoSpace {
				break
			} else if s != wire.StatusOK {
				t.Fatal(s)
			}
		}
		for _, off := range []uint32{0, 512} {
			n := uint32(len(want)) - 2*off
			if out, s := tc.do(t.Context(), wire.KindRead, 0, 0, off, n, nil); s != wire.StatusOK || !bytes.Equal(out, want[off:off+n]) {
				t.Errorf("read at %d: %v", off, s)
			}
		}
		if n := primary.e.Stats.Repaired.Load(); n != 0 {
			t.Errorf("%d blocks were repaired: the disks were not full", n)
		}
	})
}

// A replica that cannot say whether its copy is good has not said that it is not.
func TestFailure24SilentReplicaIsNoBadCopy(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 1, 0, objstore.BlockSize, want[:objstore.BlockSize]); s != wire.StatusOK {
			t.Fatal(s)
		}
		var failing atomic.Bool
		failing.Store(true)
		noMemory := func(op, name string) error {
			if failing.Load() && op == "size" && strings.Contains(name, "/obj/") {
				return syscall.ENOMEM
			}
			return nil
		}
		c.cold(others...)
		for _, n := range others {
			lookAt(t, n, objstore.MakeKey(objstore.Vid(c.a.cur().VDIs[0].Root), 1))
			n.hook.Store(&noMemory)
		}
		rot(t, primary)
		time.AfterFunc(time.Second, func() { failing.Store(false) })
		if out, s := tc.do(t.Context(), wire.KindRead, 0, 0, 0, uint32(len(want)), nil); s != wire.StatusOK || !bytes.Equal(out, want) {
			t.Errorf("read: %v", s)
		}
	})
}
