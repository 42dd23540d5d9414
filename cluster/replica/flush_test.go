package replica

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// A flush of many groups costs each disk one sync and a replica one message, not one for each group.
func TestFlushOfManyGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 2, 64)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		for i := range 200 {
			if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 4096, bytes.Repeat([]byte{1}, 4096)); s != wire.StatusOK {
				t.Fatalf("write %d: %v", i, s)
			}
		}
		time.Sleep(time.Second) // virtual: nothing else is on its way then
		answers := 0
		c.net.Latency(func(from, to string) time.Duration { // with the net's lock held, at each write
			if from == "h1" && to == "h0" {
				answers++
			}
			return 50 * time.Microsecond
		})
		e := c.nodes[0].e
		syncs := c.nodes[0].store.Metrics().Syncs + c.nodes[1].store.Metrics().Syncs
		var b wire.Batch
		asked, ended := 0, make(chan bool, 64)
		for _, g := range e.groupList() {
			g.mu.Lock()
			if g.role == serving && g.commit > g.durable {
				asked++
				g.flush(&wire.Request{Kind: wire.KindFlush, Group: uint32(g.id), To: flushFunc(func(ok bool) { ended <- ok })}, &b)
			}
			g.mu.Unlock()
		}
		b.End()
		for range asked {
			if !<-ended {
				t.Fatal("a flush was not done")
			}
		}
		syncs = c.nodes[0].store.Metrics().Syncs + c.nodes[1].store.Metrics().Syncs - syncs
		c.net.Latency(func(string, string) time.Duration { return 50 * time.Microsecond })
		if asked < 16 {
			t.Fatalf("only %d groups had something to flush", asked)
		}
		if answers != 1 || syncs != 2 {
			t.Fatalf("%d groups: %d messages from the replica, want 1; %d syncs of the two disks, want 2", asked, answers, syncs)
		}
	})
}
