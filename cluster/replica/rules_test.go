package replica

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// rules is a cluster of one group with a disk of one object written with 1, and its primary.
type rules struct {
	*cluster
	tc      *testClient
	primary *testNode
	ends    []func()
}

// stop ends what the test has under way.
func (r *rules) stop() {
	for _, f := range r.ends {
		f()
	}
	r.ends = nil
}

func withRules(t *testing.T, f func(t *testing.T, r *rules)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 22}})
		r := &rules{cluster: c, tc: c.client("x", "d")}
		if _, s := r.tc.do(t.Context(), wire.KindWrite, 0, 0, 0, 4096, bytes.Repeat([]byte{1}, 4096)); s != wire.StatusOK {
			t.Fatal(s)
		}
		for _, n := range c.nodes {
			if n.id == c.a.cur().Groups[0].Primary.Node {
				r.primary = n
			}
		}
		defer r.stop()
		f(t, r)
	})
}

// read asks the primary once, whatever the answer.
func (r *rules) once(kind wire.Kind, data []byte) wire.Status {
	_, s, err := r.tc.once(context.Background(), kind, 0, 0, 0, 4096, data)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func TestInvariant4NoLeaseNoService(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		r.primary.lease.Store(false)
		if s := r.once(wire.KindRead, nil); s == wire.StatusOK {
			t.Error("a read was answered without a lease")
		}
		if s := r.once(wire.KindWrite, make([]byte, 4096)); s == wire.StatusOK {
			t.Error("a write was answered without a lease")
		}
		if s := r.once(wire.KindFlush, nil); s == wire.StatusOK {
			t.Error("a flush was answered without a lease")
		}
		r.primary.lease.Store(true)
		if s := r.once(wire.KindRead, nil); s != wire.StatusOK {
			t.Errorf("with the lease again: %v", s)
		}
	})
}

// A frame that was under way on a client's older connection changes nothing once a newer one was let in.
func TestR15LateWriteOnAnOlderConnection(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		old := r.tc.conns[r.primary.id]
		epoch := r.tc.epoch
		delete(r.tc.conns, r.primary.id) // it stays open
		if s := r.once(wire.KindWrite, bytes.Repeat([]byte{2}, 4096)); s != wire.StatusOK {
			t.Fatal(s)
		}
		if r.tc.epoch <= epoch {
			t.Fatal("the client did not connect anew")
		}
		m := r.a.cur()
		d := m.VDI(m.Session(r.tc.sess.ID).Vid)
		late := wire.IO{Key: uint64(objstore.MakeKey(d.Root, 0)), Gen: d.Gen, Vid: d.Vid, SessGen: r.tc.sess.Gen, Len: 4096, CRCs: sums(bytes.Repeat([]byte{1}, 4096))}
		h, _, _, err := old.Do(t.Context(), wire.Header{Kind: wire.KindWrite, Group: uint32(m.Groups[0].ID), Term: m.Groups[0].Term, From: epoch}, late.Append(nil), bytes.Repeat([]byte{1}, 4096))
		if err == nil && h.Status != wire.StatusOldConn {
			t.Errorf("the late write was answered %v", h.Status)
		}
		out, s := r.tc.do(t.Context(), wire.KindRead, 0, 0, 0, 4096, nil)
		if s != wire.StatusOK || out[0] != 2 {
			t.Errorf("a late write landed on a later one: %d", out[0])
		}
	})
}

func sums(data []byte) []byte {
	var b []byte
	for ; len(data) > 0; data = data[4096:] {
		c := objstore.Checksum(data[:4096])
		b = append(b, byte(c), byte(c>>8), byte(c>>16), byte(c>>24))
	}
	return b
}

// A session that was fenced is refused for good, its flushes too (R14).
func TestR14FencedSession(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		gen := r.tc.sess.Gen
		r.a.must(&state.Command{Unlock: &state.Unlock{Name: "d"}})
		other := r.client("y", "d")
		if _, s := other.do(t.Context(), wire.KindWrite, 0, 0, 0, 4096, bytes.Repeat([]byte{9}, 4096)); s != wire.StatusOK {
			t.Fatal(s)
		}
		other.sess.Gen = gen // the old holder's request
		m := r.a.cur()
		d := m.VDI(m.Session(other.sess.ID).Vid)
		c, epoch, err := other.conn(t.Context(), m, r.primary.id)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []wire.Kind{wire.KindWrite, wire.KindRead, wire.KindFlush} {
			io := wire.IO{Key: uint64(objstore.MakeKey(d.Root, 0)), Gen: d.Gen, Vid: d.Vid, SessGen: gen, Len: 4096}
			var data []byte
			if kind == wire.KindWrite {
				data = make([]byte, 4096)
				io.CRCs = sums(data)
			}
			h, _, _, err := c.Do(t.Context(), wire.Header{Kind: kind, Group: uint32(m.Groups[0].ID), Term: m.Groups[0].Term, From: epoch}, io.Append(nil), data)
			if err != nil || h.Status != wire.StatusFenced {
				t.Errorf("%v of a fenced session: %v %v", kind, h.Status, err)
			}
		}
	})
}

// A message under a term older than the replica knows, from another primary than the present one, changes nothing (invariant 6, R5).
func TestInvariant6OldTermChangesNothing(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		var replica *testNode
		for _, n := range r.nodes {
			if n != r.primary {
				replica = n
			}
		}
		g := r.a.cur().Groups[0]
		r.primary.kill()
		r.primary.exited()
		r.wait("another primary", 5*time.Second, func() bool {
			_, s := r.tc.do(t.Context(), wire.KindRead, 0, 0, 0, 4096, nil)
			return s == wire.StatusOK
		})
		c, err := wire.DialCaller(r.net.Host("late"), replica.host+":7000", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		before := replica.store.Group(objstore.GroupID(g.ID)).Last()
		for _, kind := range []wire.Kind{wire.KindAppend, wire.KindActivate, wire.KindSync, wire.KindSyncStart, wire.KindCopyDrop, wire.KindSyncEnd} {
			en := objstore.Entry{Number: objstore.Number{Term: g.Term, LSN: before.LSN + 1}}
			ap := wire.Append{}
			meta := en.AppendHead(ap.Append(nil))
			if kind != wire.KindAppend {
				meta = make([]byte, 16)
			}
			h, _, _, err := c.Do(t.Context(), wire.Header{Kind: kind, Group: uint32(g.ID), Term: g.Term, From: g.Primary.Inc, To: replica.inc}, meta, nil)
			if err == nil && h.Status == wire.StatusOK {
				t.Errorf("%v under an old term was obeyed", kind)
			}
		}
		if now := replica.store.Group(objstore.GroupID(g.ID)).Last(); now.Term == g.Term && now != before {
			t.Errorf("an old term moved the replica from %v to %v", before, now)
		}
	})
}

// While fewer than min-copies have what is committed, writes wait and reads go on; when one returns, writes go on.
func TestR10BelowMinCopiesWritesWait(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		var others []*testNode
		for _, n := range r.nodes {
			if n != r.primary {
				others = append(others, n)
			}
		}
		for _, n := range others {
			n.kill()
			n.exited()
		}
		time.Sleep(3 * time.Second)
		if s := r.once(wire.KindRead, nil); s != wire.StatusOK {
			t.Errorf("a read below min-copies: %v", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, s := r.tc.do(ctx, wire.KindWrite, 0, 0, 0, 4096, make([]byte, 4096)); s == wire.StatusOK {
			t.Error("a write was acknowledged with one copy of at least two")
		}
		others[1].start()
		ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, s := r.tc.do(ctx, wire.KindWrite, 0, 0, 0, 4096, bytes.Repeat([]byte{5}, 4096)); s != wire.StatusOK {
			t.Errorf("a write when one is back: %v", s)
		}
		others[0].start()
		r.whole(20 * time.Second)
		r.equal()
	})
}

// TestR9DecidedMeansTakenIntoUse: who proposed a change of a set may take it for decided only when the group goes by the new set. In between neither the proposal
// nor the set would have its commits wait for who joins.
func TestR9DecidedMeansTakenIntoUse(t *testing.T) {
	c := newCluster(t, 2, 2, 4)
	c.whole(10 * time.Second)
	e := c.nodes[0].e
	list := c.a.cur().Groups
	g := e.group(list[len(list)-1].ID)
	g.mu.Lock() // it takes no map into use
	m := *c.a.cur()
	m.Index += 1000 // nothing newer comes from the authority
	m.Groups = slices.Clone(m.Groups)
	changed := *m.Groups[len(list)-1]
	m.Groups[len(list)-1] = &changed
	mapped, waited := make(chan struct{}), make(chan error, 1)
	go func() { e.MapChanged(&m); close(mapped) }()
	for e.agreed().Index < m.Index {
		runtime.Gosched()
	}
	go func() { waited <- e.waitApplied(t.Context(), m.Index) }()
	for range 10000 {
		runtime.Gosched()
	}
	if len(waited) > 0 {
		t.Error("a map is in use, before its groups know it")
	}
	g.mu.Unlock()
	<-mapped
	if err := <-waited; err != nil {
		t.Error(err)
	}
}
