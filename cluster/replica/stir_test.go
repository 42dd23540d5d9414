package replica

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// stirredNow are the groups that a node's next tick looks at; those that are in the list twice, or without saying so, are a fault. No tick may be under way, which has taken the list
// and looks at one after the other.
func (n *testNode) stirredNow(t *testing.T) int {
	synctest.Wait()
	n.e.stirred.mu.Lock()
	list := append([]*group(nil), n.e.stirred.list...)
	n.e.stirred.mu.Unlock()
	seen := map[*group]bool{}
	for _, g := range list {
		g.mu.Lock()
		if seen[g] || !g.stirred {
			t.Errorf("node %d: group %d is in the list of the stirred twice, or by mistake", n.id, g.id)
		}
		seen[g] = true
		g.mu.Unlock()
	}
	return len(list)
}

// TestOnlyStirredGroupsAreLookedAt: where nothing waits no group is looked at by each tick; where something does, its group is, until that is done.
func TestOnlyStirredGroupsAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 8)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		rest := func() {
			t.Helper()
			c.wait("all groups to be at rest", time.Minute, func() bool {
				for _, n := range c.nodes {
					if n.stirredNow(t) > 0 {
						return false
					}
				}
				return true
			})
		}
		rest()
		for i := range 16 {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 4096, bytes.Repeat([]byte{1}, 4096)); s != wire.StatusOK {
				t.Fatalf("write: %v", s)
			}
			any := 0
			for _, n := range c.nodes {
				any += n.stirredNow(t)
			}
			if any == 0 {
				t.Fatal("after a write no group is looked at")
			}
		}
		rest()
		c.nodes[2].kill()
		c.nodes[2].exited()
		for i := range 16 {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 4096, bytes.Repeat([]byte{2}, 4096)); s != wire.StatusOK {
				t.Fatalf("write: %v", s)
			}
		}
		c.nodes[2].start()
		c.whole(time.Minute)
		rest()
	})
}
