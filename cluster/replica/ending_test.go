package replica

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// A member that a takeover makes equal gets the group itself, while the last sync of that is under way on its slow disk: where it stands is known only then, and its next
// entry goes behind that.
func TestR19TakeoverWhileAResyncEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 2, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 22}})
		tc := c.client("x", "d")
		put := func(ctx context.Context, v byte) wire.Status {
			_, s := tc.do(ctx, wire.KindWrite, wire.FlagFUA, 0, uint32(v)*4096, 4096, bytes.Repeat([]byte{v}, 4096))
			return s
		}
		put(t.Context(), 1)
		a, b := c.nodes[0], c.nodes[1]
		old := b.fs.Clone()
		for v := range byte(20) {
			if s := put(t.Context(), v+2); s != wire.StatusOK {
				t.Fatal(s)
			}
		}
		for _, n := range c.nodes {
			n.kill()
		}
		for _, n := range c.nodes {
			n.exited()
		}
		b.fs = old // it is far behind
		var slow atomic.Bool
		old.Before(func(op, _ string) error {
			if slow.Load() && op == "sync" {
				time.Sleep(time.Second)
			}
			return nil
		})
		a.start()
		b.start()
		slow.Store(true)
		g := func() *state.Group { return c.a.cur().Groups[0] }
		c.a.apply(&state.Command{Resume: &state.Resume{Groups: []state.GroupTerm{{Group: g().ID, Term: g().Term}}}})
		c.wait("b is all but equal", 20*time.Second, func() bool {
			x := b.e.group(g().ID)
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.ending
		})
		a.kill()
		a.exited()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if s := put(ctx, 30); s != wire.StatusOK {
			c.dump()
			t.Fatalf("write: %v", s)
		}
		for _, v := range []byte{1, 7, 21, 30} {
			if out, s := tc.do(ctx, wire.KindRead, 0, 0, uint32(v)*4096, 4096, nil); s != wire.StatusOK || out[0] != v {
				t.Errorf("block %d: %v, %.2x", v, s, out)
			}
		}
		slow.Store(false)
		a.start()
		c.whole(20 * time.Second)
		c.equal()
	})
}
