package replica

import (
	"bytes"
	"context"
	"errors"
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
				synctest.Test(t, func(t *testing.T) {
					dyingDisk(t, objects, writes, k, func(op string) error { return syscall.EIO })
				})
			})
		}
	}
}

// The same where a file system turns read-only, or shuts itself down, before anything was written: a file cannot be opened any more, and that is no bad copy.
func TestFailure25AFileSystemThatEndsCostsNoReaderAnError(t *testing.T) {
	for name, fails := range map[string]func(op string) error{
		"read-only": func(op string) error {
			switch op {
			case "open", "create", "link", "write", "mkdir", "remove", "rename", "allocate", "setxattr":
				return syscall.EROFS
			}
			return nil
		},
		"shut down": func(op string) error { return syscall.EUCLEAN },
		"unplugged": func(op string) error { return syscall.ENXIO },
	} {
		for k := int64(0); k < 20; k += 1 + k/2 {
			t.Run(fmt.Sprintf("%s, call %d", name, k), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { dyingDisk(t, 4, k%2 == 1, k, fails) })
			})
		}
	}
}

func dyingDisk(t *testing.T, objects uint32, writes bool, k int64, fails func(op string) error) {
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
			return fails(op)
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

// primaryOf is the group's state on a node.
func primaryOf(c *cluster, n *testNode) *group { return n.e.group(c.a.cur().Groups[0].ID) }

// blockOf is the error that block i of the disk's only object makes.
func blockOf(c *cluster, i int) *objstore.BlockError {
	d := c.a.cur().VDIs[0]
	return &objstore.BlockError{Group: objstore.GroupID(c.a.cur().Groups[0].ID), Key: objstore.MakeKey(objstore.Vid(d.Root), 0), Vid: objstore.Vid(d.Vid), Block: i, Err: objstore.ErrChecksum}
}

// A replica that has not got a block's newest entry yet has not said that there is no good copy of it (R16).
func TestR16RepairWaitsForAnUncommittedWrite(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		for _, n := range others { // their copies are just moving to another disk: they take no entry, and are asked again
			g := primaryOf(c, n)
			g.mu.Lock()
			g.move = &move{paused: true}
			g.mu.Unlock()
		}
		done := make(chan wire.Status)
		go func() {
			_, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 0, objstore.BlockSize, make([]byte, objstore.BlockSize))
			done <- s
		}()
		g := primaryOf(c, primary)
		c.wait("it is numbered", time.Second, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.tail) > 0 })
		if err := g.heal(blockOf(c, 0)); err == nil || errors.Is(err, errNoCopy) {
			t.Errorf("%v, though nobody has it yet", err)
		}
		for _, n := range others {
			g := primaryOf(c, n)
			g.mu.Lock()
			g.move = nil
			g.mu.Unlock()
		}
		if s := <-done; s != wire.StatusOK {
			t.Error(s)
		}
	})
}

// asked is whom a request's outcome is told.
type asked chan wire.Status

func (a asked) Answered(r *wire.Request, _ *wire.Batch) { a <- r.Status }

// What was read from others while the primary's lease ran out is not answered: another may have been the primary meanwhile.
func TestInvariant4ReadAroundAFullDiskWithoutALease(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		rot(t, primary)
		m := c.a.cur()
		s := m.Session(tc.sess.ID)
		r := &wire.Request{Kind: wire.KindRead, Group: uint32(m.Groups[0].ID), Term: m.Groups[0].Term, Dst: make([]byte, len(want)), To: make(asked, 1)}
		r.IO = wire.IO{Key: uint64(blockOf(c, 0).Key), Vid: m.VDIs[0].Vid, Gen: m.VDIs[0].Gen, SessGen: s.Gen, Index: m.Index, Len: uint32(len(want))}
		v, g := primary.e.cur.Load(), primaryOf(c, primary)
		if err := g.readAround(r, v); !errors.Is(err, errRead) || !bytes.Equal(r.Dst, want) {
			t.Fatalf("%v", err)
		}
		for _, n := range c.nodes { // no room for a repair
			n.fs.SetCapacity(n.fs.Used()+1<<20, 0)
		}
		for off := uint32(len(want)); ; off += uint32(len(want)) {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, off, uint32(len(want)), want); s == wire.StatusNoSpace {
				break
			} else if s != wire.StatusOK {
				t.Fatal(s)
			}
		}
		var fetched atomic.Int64
		lapse := func(op, name string) error { // as the last block is asked for
			if op == "read" && strings.Contains(name, "/obj/") && fetched.Add(1) == 2 {
				primary.lease.Store(false)
			}
			return nil
		}
		for _, n := range others {
			n.hook.Store(&lapse)
		}
		var b wire.Batch
		primary.e.Submit(r, &b)
		b.End()
		if s := <-r.To.(asked); s == wire.StatusOK {
			t.Error("answered without a lease")
		} else if fetched.Load() < 2 {
			t.Errorf("%v, before others were asked", s)
		}
		primary.lease.Store(true)
	})
}

// A disk that fails between two parts of one request has failed; it is not full.
func TestFailure25DiskFailsWithinOneRequest(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		var reads atomic.Int64
		var dead atomic.Bool
		die := func(op, name string) error {
			if op == "read" && strings.Contains(name, "/obj/") && reads.Add(1) == 2 { // the last edge's block
				dead.Store(true)
				primary.store.SyncWait() // who flushes at the same time finds out
			}
			if dead.Load() && op != "read" && op != "statfs" {
				return syscall.EIO
			}
			return nil
		}
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, uint32(len(want)), objstore.BlockSize, want[:objstore.BlockSize]); s != wire.StatusOK { // for that to have something to do
			t.Fatal(s)
		}
		primary.hook.Store(&die)
		if _, s := tc.do(t.Context(), wire.KindZero, 0, 0, 512, 3*objstore.BlockSize, nil); s != wire.StatusOK {
			t.Error(s)
		}
		if !dead.Load() || primary.store.Err() == nil {
			t.Error("the disk works")
		}
		if out, s := tc.do(t.Context(), wire.KindRead, 0, 0, 512, 3*objstore.BlockSize, nil); s != wire.StatusOK || !bytes.Equal(out, make([]byte, 3*objstore.BlockSize)) {
			t.Errorf("read: %v", s)
		}
	})
}

// A primary whose disk fails gives the group also to a replica that it could not take out of the set and suspects of not answering: it has a copy, and we have none.
func TestFailure25SuspectTakesOverFromAFailedDisk(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		others[1].kill()
		others[1].exited()
		c.wait("the set is two", 10*time.Second, func() bool { return len(c.a.cur().Groups[0].InSync) == 2 })
		g := primaryOf(c, primary)
		c.wait("its primary serves", 10*time.Second, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.role == serving && len(g.members) == 1 })
		g.mu.Lock()
		g.suspect(g.members[0]) // min-copies is 2: it stays
		g.mu.Unlock()
		dead := func(op, name string) error { return syscall.EIO }
		primary.hook.Store(&dead)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if out, s := tc.do(ctx, wire.KindRead, 0, 0, 0, uint32(len(want)), nil); s != wire.StatusOK || !bytes.Equal(out, want) {
			t.Errorf("read: %v", s)
		}
		if c.a.cur().Groups[0].Lost() {
			t.Error("the group is called lost")
		}
		waits := func() bool { // R10: also if one copy were enough
			g := primaryOf(c, others[0])
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.without && g.low()
		}
		if !waits() {
			t.Error("writes do not wait, though the set names one whose disk has failed")
		}
		others[1].start() // writes wait for another, and go on with it
		if _, s := tc.do(ctx, wire.KindWrite, wire.FlagFUA, 0, 0, uint32(len(want)), want); s != wire.StatusOK {
			t.Errorf("write: %v", s)
		}
		if sg := c.a.cur().Groups[0]; namesNode(sg.InSync, primary.id) || len(sg.InSync) != 2 {
			t.Errorf("in sync: %v", sg.InSync)
		}
		if waits() {
			t.Error("writes wait, though the set names nobody else any more")
		}
	})
}

// Who is brought up to date by a primary with a rotten block gets a good copy of it, from another.
func TestFailure24SourceOfAResyncIsHealedFirst(t *testing.T) {
	scrubbed(t, func(t *testing.T, c *cluster, tc *testClient, primary *testNode, others []*testNode, want []byte) {
		others[1].kill()
		others[1].exited()
		late := bytes.Repeat([]byte("written!"), 8<<10)
		if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, 0, 0, uint32(len(late)), late); s != wire.StatusOK {
			t.Fatal(s)
		}
		for _, n := range []*testNode{primary, others[0]} {
			if err := n.store.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		g := primaryOf(c, primary)
		bad := func(op, name string) error {
			if op == "read" && strings.Contains(name, "/obj/") {
				return syscall.EIO
			}
			return nil
		}
		if u, err := g.st.Unit(blockOf(c, 0).Key); err != nil || u == nil {
			t.Fatal(err)
		}
		primary.hook.Store(&bad)
		others[1].start()
		c.whole(30 * time.Second)
		primary.hook.Store(nil)
		u, err := primaryOf(c, others[1]).st.Unit(blockOf(c, 0).Key)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range u.Versions {
			for _, bl := range v.Blocks {
				if bl.State == objstore.Bad {
					t.Errorf("block %d came as bad", bl.Block)
				}
			}
		}
		c.wait("all is committed", 10*time.Second, c.allCommitted)
		c.equal()
	})
}
