package node

import (
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// neverUp restarts n3 and kills it for good in the moment between its registration and its first lease.
func neverUp(t *testing.T, w *world) (h string, id state.NodeID) {
	h = w.others(w.leader())[0]
	id = w.nodes[h].Self().Node
	inc := w.nodes[h].Self().Inc
	w.crash(h)
	w.until(10*time.Second, "it is out of service", func() bool { return w.newest().Nodes[id].Ended })
	w.run(h)
	for end := time.Now().Add(20 * time.Second); ; {
		n := w.newest().Nodes[id]
		if n.Inc != inc {
			if n.Up {
				t.Fatal("too late: it is in service")
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("it does not register")
		}
		time.Sleep(100 * time.Microsecond)
	}
	return h, id
}

// TestNodeThatNeverCameIntoService: it was registered, and died before its first lease. What would be given to it then would be stuck.
func TestNodeThatNeverCameIntoService(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 4)
		defer w.end()
		w.formatted(3)
		h, id := neverUp(t, w)
		m := w.newest()
		b := m.Current(id)
		w.propose(w.leader(), &state.Command{ID: "v", CreateVDI: &state.CreateVDI{Name: "vm", Size: 1 << 20}})
		open := &state.Command{ID: "o", OpenSess: &state.OpenSess{Name: "vm", Client: "gateway of " + h, Holder: b, Owner: h}}
		if r, err := w.nodes[w.leader()].Propose(t.Context(), open); err != nil || r.Code != state.Stale {
			t.Errorf("a session under a lease that there is not: %v, %v", r.Err(), err)
		}
		w.crash(h)
		w.pass(10 * time.Second)
		// A VDI with two copies: the first of its kind.
		w.propose(w.leader(), &state.Command{ID: "c", CreateVDI: &state.CreateVDI{Name: "two", Size: 1 << 20, Copies: 2}})
		w.pass(5 * time.Minute)
		m = w.newest()
		n := m.Nodes[id]
		t.Logf("node %d 5 minutes after its death: up %v, ended %v, current %v", id, n.Up, n.Ended, n.Inc == b.Inc)
		if !n.Ended {
			t.Errorf("node %d is dead for 5 minutes, has no lease, and has not ended", id)
		}
		for _, g := range m.PoolGroups(m.Working("two").Pool) {
			if g.Primary == b {
				t.Errorf("group %x of the new pool has the dead node for its primary", uint32(g.ID))
			}
		}
	})
}
