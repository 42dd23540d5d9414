package replica

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// What was deleted is freed at the speed that is set, no faster; a new speed counts at once; and clients' writes to other disks of the same groups do not wait for it.
func TestCollectorKeepsItsSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 4)
		c.whole(5 * time.Second)
		set := func(v string) { c.a.must(&state.Command{Set: &state.Set{Key: "collect-speed", Value: v}}) }
		const objects = 400
		n := c.nodes[0]
		left := func(vid uint32) (sum int) {
			for _, id := range n.store.Groups() {
				sum += int(n.store.Group(id).Used(vid).Objects)
			}
			return sum
		}
		fillUp := func(name string) uint32 {
			c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: 1 << 31}})
			tc := c.client("x", name)
			for i := range objects {
				if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 4096, bytes.Repeat([]byte{1}, 4096)); s != wire.StatusOK {
					t.Fatalf("write %d: %v", i, s)
				}
			}
			vid := c.a.cur().Working(name).Vid
			if got := left(vid); got != objects {
				t.Fatalf("%s has %d objects", name, got)
			}
			return vid
		}
		collect := func(name string, vid uint32) time.Duration {
			start := time.Now()
			c.a.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: name, Force: true}})
			c.wait(name+" is collected", 2*time.Minute, func() bool { return left(vid) == 0 })
			return time.Since(start)
		}
		set("20")
		a, b := fillUp("a"), fillUp("b")
		if d := collect("a", a); d < 19*time.Second || d > 24*time.Second { // but for what may come at once after a rest
			t.Errorf("%d objects at 20 a second took %v", objects, d)
		}
		set("200")
		if d := collect("b", b); d < 1500*time.Millisecond || d > 4*time.Second {
			t.Errorf("%d objects at 200 a second took %v", objects, d)
		}
		// While it rests between two objects, a writer of the same groups does not.
		set("2")
		e := fillUp("e")
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "w", Size: 1 << 30}})
		c.a.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "e", Force: true}})
		c.wait("it frees", 5*time.Second, func() bool { return left(e) < objects })
		tc := c.client("y", "w")
		start := time.Now()
		for i := range 50 {
			if _, s := tc.do(t.Context(), wire.KindWrite, wire.FlagFUA, uint32(i), 0, 4096, bytes.Repeat([]byte{2}, 4096)); s != wire.StatusOK {
				t.Fatal(s)
			}
		}
		if d := time.Since(start); d > 200*time.Millisecond {
			t.Errorf("50 writes beside the collector took %v", d)
		}
		// A speed that was set too low is put right without a restart.
		set("default")
		c.wait("the rest is freed", 15*time.Second, func() bool { return left(e) == 0 })
	})
}
