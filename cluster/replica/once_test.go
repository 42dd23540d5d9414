package replica

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestInvariant7SharedChangesAreDoneOnce: a client of a shared disk does not hear its answer, another writes there, then it sends its change again: to the same
// primary, to one that was a secondary, and to ones that came into the set later.
func TestInvariant7SharedChangesAreDoneOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		c := newCluster(t, 3, 3, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 22, Shared: true}})
		x, y := c.client("x", "d"), c.client("y", "d")
		type change struct {
			kind   wire.Kind
			off, n uint32
		}
		changes := []change{{wire.KindWrite, 0, 8192}, {wire.KindWrite, 16384 + 512, 1024}, {wire.KindZero, 32768 + 512, 3 * 4096}, {wire.KindTrim, 65536, 8192}}
		again := func(seq int) {
			t.Helper()
			ch := changes[seq-1]
			x.number = wire.Once{Sess: x.sess.ID, Seq: uint64(seq), Low: 1}
			var data []byte
			if ch.kind == wire.KindWrite {
				data = bytes.Repeat([]byte{1}, int(ch.n))
			}
			if _, s := x.do(ctx, ch.kind, 0, 0, ch.off, ch.n, data); s != wire.StatusOK {
				t.Fatalf("%v: %v", ch.kind, s)
			}
		}
		for seq := range changes {
			again(seq + 1)
		}
		check := func(when string) {
			t.Helper()
			for seq := range changes {
				again(seq + 1)
			}
			out, s := y.do(ctx, wire.KindRead, 0, 0, 0, 1<<17, nil)
			if s != wire.StatusOK || !bytes.Equal(out, bytes.Repeat([]byte{3}, 1<<17)) {
				t.Errorf("%s: a change that came again landed on a later one (%v, %d)", when, s, bytes.IndexFunc(out, func(r rune) bool { return r != 3 }))
			}
		}
		y.number = wire.Once{Sess: y.sess.ID, Seq: 1, Low: 1}
		if _, s := y.do(ctx, wire.KindWrite, 0, 0, 0, 1<<17, bytes.Repeat([]byte{3}, 1<<17)); s != wire.StatusOK {
			t.Fatal(s)
		}
		check("the same primary")
		for i := range 4 { // each time another: all of them have been away, and came back with and without anything missed
			var primary *testNode
			for _, n := range c.nodes {
				if n.id == c.a.cur().Groups[0].Primary.Node {
					primary = n
				}
			}
			primary.kill()
			primary.exited()
			check(fmt.Sprint("primary ", i+2))
			if i%2 == 0 {
				x.number = wire.Once{}
				if _, s := x.do(ctx, wire.KindWrite, 0, 0, 1<<17, 4096, make([]byte, 4096)); s != wire.StatusOK {
					t.Fatal(s)
				}
			}
			primary.start()
			c.whole(20 * time.Second)
		}
		x.number = wire.Once{Sess: x.sess.ID, Seq: 9, Low: 9}
		if _, s := x.do(ctx, wire.KindWrite, 0, 0, 1<<17, 4096, make([]byte, 4096)); s != wire.StatusOK {
			t.Fatal(s)
		}
		x.number = wire.Once{Sess: x.sess.ID, Seq: 1, Low: 1}
		if _, s, err := x.once(ctx, wire.KindWrite, 0, 0, 0, 4096, make([]byte, 4096)); err != nil || s != wire.StatusOldConn {
			t.Errorf("a late copy of what was answered long ago: %v %v", s, err)
		}
		c.a.must(&state.Command{CloseSess: &state.CloseSess{ID: x.sess.ID}})
		c.wait("what is known of an ended session is forgotten", 20*time.Second, func() bool {
			for _, n := range c.nodes {
				g := n.e.group(c.a.cur().Groups[0].ID)
				g.mu.Lock()
				_, ok := g.once[x.sess.ID]
				g.mu.Unlock()
				if ok {
					return false
				}
			}
			return true
		})
		c.equal()
	})
}

// TestInvariant7PartsOfAChange: a primary died between the entries of one change; the next one does the rest, and only that.
func TestInvariant7PartsOfAChange(t *testing.T) {
	var o once
	id := wire.Once{Sess: 1, Seq: 5, Low: 5}
	if o.parts(id) != 0 {
		t.Error("parts of what never came")
	}
	o.note(id, 0, 10)
	o.note(id, 1, 11)
	if n := o.parts(id); n != 2 {
		t.Errorf("%d parts of two", n)
	}
	o.note(wire.Once{Sess: 1, Seq: 7, Low: 6}, wire.PartLast, 12)
	if n := o.parts(id); n != 0 || len(o[1].done) != 1 {
		t.Errorf("%d parts, %d changes remembered after the client had its answer", n, len(o[1].done))
	}
}
