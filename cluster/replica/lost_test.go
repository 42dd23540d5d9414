package replica

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// The disk with a group's only copy in sync fails under a node that goes on. The group is called lost and waits; force has it go on with the older copy of the node that
// was away, not with the new disk's nothing.
func TestFailureOnlyCopyInSyncFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 2, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 22}})
		tc := c.client("x", "d")
		put := func(v byte) {
			t.Helper()
			if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, 0, 0, 4096, bytes.Repeat([]byte{v}, 4096)); s != wire.StatusOK {
				t.Fatal(s)
			}
		}
		put(1)
		a, b := c.nodes[0], c.nodes[1]
		b.kill()
		b.exited()
		put(2)
		other, fs := a.secondDisk(t)
		g := func() *state.Group { return c.a.cur().Groups[0] }
		a.move(t, g().ID, other)
		put(3)
		fs.Cut() // every call fails from here on
		a.homes.Clear()
		a.lostDisk = true
		c.wait("the loss is known", 10*time.Second, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			tc.do(ctx, wire.KindWrite, wire.FlagFUA, 0, 8192, 4096, bytes.Repeat([]byte{4}, 4096)) // so that the disk is used
			return g().Lost()
		})
		b.start() // with what it had when it went
		time.Sleep(5 * time.Second)
		if !g().Lost() || len(g().InSync) != 1 {
			t.Fatalf("an older copy came back, and now: %+v", g())
		}
		if a.e.NamedOn(other)+a.e.LostGroups() == 0 {
			t.Error("nothing is missed on the disk that failed")
		}
		c.a.must(&state.Command{Force: &state.Force{Groups: []state.GroupTerm{{Group: g().ID, Term: g().Term}}}})
		c.whole(20 * time.Second)
		if g().Lost() {
			t.Errorf("after force: %+v", g())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, s := tc.do(ctx, wire.KindRead, 0, 0, 0, 4096, nil)
		if s != wire.StatusOK || out[0] != 1 {
			c.dump()
			t.Fatalf("read %.4x, %v; the older copy holds 01", out, s)
		}
		c.wait("nothing is missed on the disk that failed, and all have all", 20*time.Second, func() bool {
			return len(g().InSync) == 2 && a.e.NamedOn(other)+a.e.LostGroups() == 0
		})
		c.equal()
	})
}
