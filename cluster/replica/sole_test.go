package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// putHere writes one block as a client in n's own process does.
func (tc *testClient) putHere(n *testNode, index uint32, data []byte) *wire.Request {
	m := tc.c.a.cur()
	s := m.Session(tc.sess.ID)
	d := m.VDI(s.Vid)
	g := m.Group(state.GroupOf(m.Pool(d.Pool), d.Root, index))
	r := &wire.Request{Kind: wire.KindWrite, Group: uint32(g.ID), Term: g.Term, Client: tc.name, Epoch: 1, Data: data, To: make(asked, 1)}
	r.IO = wire.IO{Key: uint64(objstore.MakeKey(d.Root, index)), Vid: d.Vid, Gen: d.Gen, SessGen: s.Gen, Index: m.Index, Len: uint32(len(data))}
	r.IO.CRCs = binary.LittleEndian.AppendUint32(nil, objstore.Checksum(data))
	var b wire.Batch
	n.e.Submit(r, &b)
	b.End()
	<-r.To.(asked)
	return r
}

// TestR17SoleMeansDurableOnWhoeverJoins: a client keeps nothing of a write that it is told nobody else has. So from the moment when another node is in the
// set, that one must have it, also when it loses power at once and nobody ever flushed. While others are brought up to date, or are in the set, no write is sole.
func TestR17SoleMeansDurableOnWhoeverJoins(t *testing.T) {
	for power := range 4 { // each cut leaves something else
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 2, 2, 1)
			c.whole(5 * time.Second)
			c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
			tc := c.client("x", "d")
			primary, other := c.nodes[0], c.nodes[1]
			if c.a.cur().Groups[0].Primary.Node != primary.id {
				primary, other = other, primary
			}
			const blocks = 40
			var sole, last [blocks]uint64
			stamp := uint64(0)
			put := func() (isSole bool) {
				stamp++
				i := stamp % blocks
				r := tc.putHere(primary, uint32(i), bytes.Repeat(binary.BigEndian.AppendUint64(nil, stamp), objstore.BlockSize/8))
				if r.Status != wire.StatusOK {
					time.Sleep(5 * time.Millisecond)
					return false
				}
				if last[i] = stamp; r.Sole {
					sole[i] = stamp
				}
				return r.Sole
			}
			joined := func() bool { return len(c.a.cur().Groups[0].InSync) == 2 }
			for range 2 * blocks {
				if put() {
					t.Fatal("sole, with two in the set")
				}
			}
			other.kill()
			other.exited()
			c.wait("the set shrinks", 20*time.Second, func() bool { return !joined() })
			for n, begun := 0, time.Now(); n < 2*blocks; {
				if put() {
					n++
				} else if time.Sleep(time.Millisecond); time.Since(begun) > time.Minute { // what was begun for the other one ends first
					t.Fatalf("%d writes are sole, with one in the set", n)
				}
			}
			other.start()
			during := 0
			for begun := time.Now(); !joined(); {
				if time.Since(begun) > time.Minute {
					t.Fatal("the other node does not join")
				}
				if was := put(); !was {
					during++
				}
				time.Sleep(time.Millisecond)
			}
			for range 2 * blocks {
				if put() {
					t.Fatal("sole, with two in the set again")
				}
			}
			if during == 0 {
				t.Error("all writes were sole while the other was brought up to date")
			}
			for range power {
				put()
			}
			other.cutPower()
			primary.kill()
			other.exited()
			primary.exited()
			other.start()
			c.wait("the other is back", 10*time.Second, func() bool { return other.up.Load() && c.a.cur().Node(other.id).Up })
			g := c.a.cur().Groups[0]
			c.a.must(&state.Command{Force: &state.Force{Groups: []state.GroupTerm{{Group: g.ID, Term: g.Term}}}})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for i := range uint64(blocks) {
				out, s := tc.do(ctx, wire.KindRead, 0, uint32(i), 0, objstore.BlockSize, nil)
				if s != wire.StatusOK {
					t.Fatalf("read %d: %v", i, s)
				}
				if got := binary.BigEndian.Uint64(out); got < sole[i] || got > stamp {
					t.Errorf("block %d: write %d is there, after %d was sole", i, got, sole[i])
				}
			}
		})
	}
}
