package replica

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// TestReaderOfAMergedVid: somebody reads a working VDI without a session (sheep-nbd -r NAME), by a map that is some seconds old. A backup takes a snapshot and deletes it again: the
// reader's vid is the deleted one, and the collector merges it into the VDI's new one. The VDI lives all the time, nobody writes.
func TestReaderOfAMergedVid(t *testing.T) {
	for _, kind := range []string{"backup of a living VDI", "snapshot that is read is deleted"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3, 3, 4)
				c.whole(5 * time.Second)
				c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
				tc := c.client("x", "d")
				const objects = 20
				for i := range objects {
					if _, s := tc.do(t.Context(), wire.KindWrite, 0, uint32(i), 0, 4096, bytes.Repeat([]byte{1}, 4096)); s != wire.StatusOK {
						t.Fatalf("write %d: %v", i, s)
					}
				}
				if kind != "backup of a living VDI" {
					snap(t, c, "base")
					// the reader opens NAME:base
				}
				old := c.a.cur()
				v := old.Working("d")
				if kind != "backup of a living VDI" {
					v, _ = old.Lookup("d", "base")
				}
				if kind == "backup of a living VDI" {
					snap(t, c, "backup")
					c.a.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "d", Snap: "backup"}})
				} else {
					c.a.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "d", Snap: "base"}})
				}
				deleted := time.Now()
				wrong, refused, ok := 0, 0, 0
				var first time.Duration
				for time.Since(deleted) < 3*time.Second {
					for i := range uint32(objects) {
						g := old.Group(state.GroupOf(old.Pool(v.Pool), v.Root, i))
						g = c.a.cur().Group(g.ID)
						conn, epoch, err := tc.conn(t.Context(), old, g.Primary.Node)
						if err != nil {
							t.Fatal(err)
						}
						io := wire.IO{Key: uint64(objstore.MakeKey(v.Root, i)), Gen: v.Gen, Vid: v.Vid, Len: 4096, Index: old.Index}
						h, _, out, err := conn.Do(t.Context(), wire.Header{Kind: wire.KindRead, Group: uint32(g.ID), Term: g.Term, From: epoch}, io.Append(nil), nil)
						switch {
						case err != nil:
							t.Fatal(err)
						case h.Status != wire.StatusOK:
							refused++
						case len(out) < 4096 || !bytes.Equal(out[len(out)-4096:], bytes.Repeat([]byte{1}, 4096)):
							if wrong++; wrong == 1 {
								first = time.Since(deleted)
								t.Logf("%d bytes, status %v: %v", len(out), h.Status, out[max(0, len(out)-8):])
							}
						default:
							ok++
						}
					}
					time.Sleep(20 * time.Millisecond)
				}
				t.Logf("%d right, %d refused, %d answered OK with other bytes, first after %v", ok, refused, wrong, first)
				if wrong > 0 {
					t.Errorf("%d reads were answered OK with bytes that were never there", wrong)
				}
			})
		})
	}
}

func snap(t *testing.T, c *cluster, tag string) {
	t.Helper()
	res := c.a.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "d", Tag: tag}})
	c.wait("the snapshot", 5*time.Second, func() bool { d := c.a.cur().VDI(res.Vid); return d != nil && d.State == state.Frozen })
}

type h5Answer struct{ done chan *wire.Request }

func (a *h5Answer) Answered(r *wire.Request, _ *wire.Batch) { a.done <- r }

// TestColdReadAcrossAMerge: a writer's read of its own, living VDI has to wait for the disk, behind others (Engine.readers). While it waits a backup takes a snapshot and deletes it, and the
// collector merges it. Nobody writes.
func TestColdReadAcrossAMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 1)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		if _, s := tc.do(t.Context(), wire.KindWrite, 0, 0, 0, 4096, bytes.Repeat([]byte{1}, 4096)); s != wire.StatusOK {
			t.Fatal(s)
		}
		e := c.nodes[0].e
		m := c.a.cur()
		v := m.Working("d")
		g := e.group(m.Groups[0].ID)
		for range cap(e.readers) {
			e.readers <- struct{}{}
		}
		a := &h5Answer{make(chan *wire.Request, 1)}
		r := &wire.Request{Kind: wire.KindRead, Group: uint32(g.id), Term: m.Groups[0].Term, Dst: make([]byte, 4096), To: a}
		r.IO = wire.IO{Key: uint64(objstore.MakeKey(v.Root, 0)), Gen: v.Gen, Vid: v.Vid, SessGen: tc.sess.Gen, Len: 4096, Index: m.Index}
		var b wire.Batch
		g.mu.Lock()
		vw := e.cur.Load()
		if what, s := g.judge(r, vw); what != proceed {
			t.Fatal(what, s)
		}
		g.readLater(r, vw, g.last, g.granted) // as read does when the bytes are not in memory
		g.mu.Unlock()
		b.End()
		snap(t, c, "backup")
		c.a.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "d", Snap: "backup"}})
		time.Sleep(700 * time.Millisecond)
		for range cap(e.readers) {
			<-e.readers
		}
		<-time.After(time.Second)
		got := <-a.done
		t.Logf("status %v: %v", got.Status, got.Dst[:4])
		if got.Status == wire.StatusOK && !bytes.Equal(got.Dst, bytes.Repeat([]byte{1}, 4096)) {
			t.Error("a read of a living VDI, which nobody changed, was answered OK with other bytes")
		}
	})
}
