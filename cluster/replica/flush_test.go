package replica

import (
	"bytes"
	"net"
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
		for _, g := range e.groups.all() {
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

// hears gives the status of each frame that comes.
type hears chan wire.Status

func (h hears) Frame(_ *wire.Conn, f *wire.Frame, _ *wire.Batch) { h <- f.Status }
func (h hears) Closed(*wire.Conn, error)                         {}

// A group moves to another disk, and the one it was on is let go of, between the moment when a batch takes down that the group is to be durable and the moment when it asks the disk:
// the other disk is asked, at the primary and at a replica.
func TestFailure25FlushWhileItsDiskGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 2, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 0, 4096, bytes.Repeat([]byte{1}, 4096)); s != wire.StatusOK {
			t.Fatal(s)
		}
		agreed := c.a.cur().Groups[0]
		first, second := c.nodes[0], c.nodes[1]
		if agreed.Primary.Node != first.id {
			first, second = second, first
		}
		away := func(n *testNode) {
			other, _ := n.secondDisk(t)
			n.move(t, agreed.ID, other)
			n.store.Close()
		}

		ended := make(chan bool, 1)
		var b wire.Batch
		g := first.e.group(agreed.ID)
		g.mu.Lock()
		g.flush(&wire.Request{Kind: wire.KindFlush, Group: uint32(g.id), To: flushFunc(func(ok bool) { ended <- ok })}, &b)
		g.mu.Unlock()
		away(first)
		b.End()
		select {
		case ok := <-ended:
			if !ok {
				t.Fatal("the flush was not done")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the flush does not end")
		}

		x, y := net.Pipe()
		defer x.Close()
		defer y.Close()
		heard := make(hears, 1)
		wire.NewConn(y, heard).Start()
		primary := wire.NewConn(x, heard)
		primary.Start()
		to := second.e.group(agreed.ID)
		to.sync(primary, &wire.Frame{Header: wire.Header{Kind: wire.KindSync, Group: uint32(agreed.ID), Term: agreed.Term, From: agreed.Primary.Inc, To: second.inc}}, &b)
		away(second)
		b.End()
		select {
		case s := <-heard:
			if s != wire.StatusOK {
				t.Fatalf("the replica says %v", s)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the replica does not answer")
		}
	})
}

// TestCalm: a node where peers sent something lately has nobody wait for a disk who may be the one that waits for the network.
func TestCalm(t *testing.T) {
	var c calm
	count := func(n int) (calm int) {
		for range n {
			if c.flush(); c.enough() {
				calm++
			}
		}
		return calm
	}
	for range 3 {
		if n := count(calmFlushes); n != 0 {
			t.Errorf("%d of the first %d flushes were calm", n, calmFlushes)
		}
		if n := count(10); n != 10 {
			t.Errorf("%d of ten flushes after them were calm", n)
		}
		c.disturb()
		c.disturb()
	}
}
