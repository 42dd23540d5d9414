package replica

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// A node that comes back is made the primary of its groups again little by little while objects are copied to it, which clients feel already, and of all that are left when that is done.
func TestHandingOverWaitsForCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 512)
		c.whole(20 * time.Second)
		c.a.must(&state.Command{Set: &state.Set{Key: "recovery-speed", Value: "1M"}})
		c.a.must(&state.Command{Set: &state.Set{Key: "recovery-floor", Value: "1M"}})
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		preferred := func(id state.NodeID) (n, has int) {
			for _, g := range c.a.cur().Groups {
				if g.Target[0] == id {
					n++
					if g.Primary.Node == id {
						has++
					}
				}
			}
			return n, has
		}
		away := c.nodes[2]
		all := func() bool { n, has := preferred(away.id); return n > 100 && has == n }
		c.wait("each group has its preferred primary", 20*time.Second, all)

		away.kill()
		away.exited()
		tc := c.client("x", "d")
		for i := range 100 {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 64<<10, bytes.Repeat([]byte{2}, 64<<10)); s != wire.StatusOK {
				t.Fatalf("write %d: %v", i, s)
			}
		}
		if _, has := preferred(away.id); has != 0 {
			t.Fatalf("a dead node is the primary of %d groups", has)
		}
		away.start()
		began := time.Now()
		slots := [2]chan struct{}{c.nodes[0].e.resyncer.slots, c.nodes[1].e.resyncer.slots}
		copying := func() bool { return len(slots[0])+len(slots[1]) > 0 }
		c.wait("copies are made", 5*time.Second, func() bool { return len(c.nodes[0].e.resyncer.copiers) > 0 && len(c.nodes[1].e.resyncer.copiers) > 0 })
		looks, both, index, commands, from, until := 0, true, c.a.cur().Index, 0, time.Now(), time.Now()
		for copying() {
			both = both && min(len(slots[0]), len(slots[1])) > 0 // the one that is done hands over
			_, has := preferred(away.id)
			if most := 2 * movesBeside * (int(time.Since(began)/scanInterval) + 1); both && has > most {
				t.Fatalf("%v after its return the node is the primary of %d groups, want %d at the most", time.Since(began), has, most)
			}
			if both {
				commands, until = int(c.a.cur().Index-index), time.Now()
			}
			looks++
			time.Sleep(10 * time.Millisecond)
		}
		if looks < 100 {
			t.Fatalf("copies were made within %d looks: there was nothing to see", looks)
		}
		// What became ready between two looks joins by one command of its primary's; a group at which something is due may take them along before.
		if most := 6 * (int(until.Sub(from)/scanInterval) + 1); commands > most {
			t.Fatalf("%d commands in %v of copying, want %d at the most", commands, until.Sub(from), most)
		}
		c.wait("each group has its preferred primary again", 10*time.Second, all)
		c.whole(10 * time.Second)
		c.equal()
	})
}
