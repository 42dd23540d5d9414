package vdi

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// What may go wrong when a client's connection dies and it comes back through another gateway. Other servers lost data there: the tests bear the
// names of a list of such failures that this project keeps.

// failover is a site with one disk.
func failover(t *testing.T, shared bool, f func(t *testing.T, s *site)) {
	if testing.Short() {
		t.Skip("starts nodes")
	}
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 11)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := s.nodes[0].Propose(ctx, &state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 16 << 20, Shared: shared}})
		if err != nil || r.Err() != nil {
			t.Fatal(err, r.Err())
		}
		f(t, s)
	})
}

// reopen opens the disk as soon as it can be had, by a gateway of that name.
func (s *site) reopen(gateway string) (*Stream, *client.Client) {
	s.t.Helper()
	c, _ := s.client(gateway)
	var err error
	for range 120 {
		var d *client.Disk
		if d, err = c.Open(context.Background(), "alpha", "", client.OpenOptions{}); err == nil {
			return NewStream(context.Background(), d), c
		}
		time.Sleep(time.Second)
	}
	s.t.Fatalf("%s does not get the disk: %v", gateway, err)
	return nil, nil
}

// silence keeps what a gateway sends on its way; it arrives when all is healed.
func (s *site) silence(gateway string, nodes ...string) {
	for _, n := range nodes {
		s.net.Cut(gateway, n)
	}
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func (s *site) wants(d *Stream, off int64, want []byte, what string) {
	s.t.Helper()
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
		s.t.Fatalf("%s: %d at %d, not %d (%v)", what, got[0], off, want[0], err)
	}
}

func (s *site) put(d *Stream, off int64, data []byte) {
	s.t.Helper()
	if _, err := d.WriteAt(data, off); err != nil {
		s.t.Fatal(err)
	}
}

// TestB4StaleRetriedWrite: a client's write, trim and zeroes hang on their way through a gateway that nobody hears any more. The client sends the write again through another
// gateway, and then newer ones. The old ones arrive: they change nothing, and are not acknowledged.
func TestB4StaleRetriedWrite(t *testing.T) {
	failover(t, false, func(t *testing.T, s *site) {
		old, _ := s.reopen("old")
		s.put(old, 0, fill(1, 16<<10))
		s.silence("old", "n0", "n1", "n2")
		var stale sync.WaitGroup
		for off, kind := range []wire.Kind{wire.KindWrite, wire.KindTrim, wire.KindZero} {
			op := &client.Op{Kind: kind, Off: uint64(off) * 4096, Len: 4096}
			if kind == wire.KindWrite {
				op.Data, op.Owner = fill(2, 4096), garbage{}
			}
			stale.Go(func() {
				if err := old.do(op); err == nil {
					t.Errorf("a %v by a gateway that had lost the disk succeeded", kind)
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		fresh, _ := s.reopen("fresh")
		s.put(fresh, 0, fill(2, 16<<10)) // again
		s.put(fresh, 0, fill(3, 16<<10)) // and newer
		s.net.HealAll()
		time.Sleep(30 * time.Second)
		stale.Wait()
		s.wants(fresh, 0, fill(3, 16<<10), "after the old requests arrived")
	})
}

// TestB4RetryOfWhatWasPartlyDone: a write, and zeroes, over two objects of which one part was done and the other was not; through another gateway they are done whole.
func TestB4RetryOfWhatWasPartlyDone(t *testing.T) {
	for _, deaf := range []string{"n0", "n1", "n2"} {
		failover(t, false, func(t *testing.T, s *site) {
			old, _ := s.reopen("old")
			const at = client.ObjectSize - 64<<10
			for i := range int64(3) {
				s.put(old, at+i*client.ObjectSize, fill(1, 128<<10))
			}
			s.silence("old", deaf)
			for i := range uint64(3) {
				op := &client.Op{Kind: wire.KindWrite, Off: at + i*client.ObjectSize, Len: 128 << 10, Data: fill(2, 128<<10), Owner: garbage{}}
				if i == 2 {
					op = &client.Op{Kind: wire.KindZero, Off: op.Off, Len: op.Len}
				}
				go old.do(op)
			}
			time.Sleep(200 * time.Millisecond)
			s.net.Kill("old")
			s.silence("old", "n0", "n1", "n2")
			fresh, _ := s.reopen("fresh")
			for i := range int64(2) {
				s.put(fresh, at+i*client.ObjectSize, fill(2, 128<<10))
			}
			if err := fresh.ZeroAt(at+2*client.ObjectSize, 128<<10); err != nil {
				t.Fatal(err)
			}
			s.net.HealAll()
			time.Sleep(30 * time.Second)
			for i := range int64(2) {
				s.wants(fresh, at+i*client.ObjectSize, fill(2, 128<<10), "a write sent again")
			}
			s.wants(fresh, at+2*client.ObjectSize, fill(0, 128<<10), "zeroes sent again")
		})
	}
}

// TestB4FlushAfterFailover: what a dead gateway acknowledged and never flushed is covered by a flush through the next one.
func TestB4FlushAfterFailover(t *testing.T) {
	failover(t, false, func(t *testing.T, s *site) {
		old, _ := s.reopen("old")
		for i := range int64(4) {
			s.put(old, i*client.ObjectSize, fill(byte(i+1), 64<<10))
		}
		s.net.Kill("old")
		s.silence("old", "n0", "n1", "n2")
		fresh, _ := s.reopen("fresh")
		if err := fresh.Flush(); err != nil {
			t.Fatal(err)
		}
		s.net.Kill("fresh")
		s.silence("fresh", "n0", "n1", "n2")
		s.powerCut()
		last, _ := s.reopen("last")
		for i := range int64(4) {
			s.wants(last, i*client.ObjectSize, fill(byte(i+1), 64<<10), "flushed through another gateway, then all lost their power")
		}
	})
}

// TestB4MultiConnAcrossGateways: several connections through one gateway are promised to see each other's writes and to flush for each other. Through
// another gateway a disk is not opened at the same time, unless it is shared; then the promise holds there too.
func TestB4MultiConnAcrossGateways(t *testing.T) {
	failover(t, false, func(t *testing.T, s *site) {
		_, c := s.reopen("one")
		if info, err := NewBackend(c, BackendOptions{}).Info(context.Background(), "alpha"); err != nil || !info.MultiConn {
			t.Errorf("%+v, %v", info, err)
		}
		second, err := c.Open(context.Background(), "alpha", "", client.OpenOptions{})
		if err != nil {
			t.Fatal("a second connection through the same gateway:", err)
		}
		s.put(NewStream(context.Background(), second), 0, fill(7, 4096))
		other, _ := s.client("other")
		if d, err := other.Open(context.Background(), "alpha", "", client.OpenOptions{}); err == nil {
			t.Error("opened for writing through two gateways")
			d.Close(context.Background())
		}
	})
	failover(t, true, func(t *testing.T, s *site) {
		one, _ := s.reopen("one")
		two, _ := s.reopen("two")
		for round := range byte(8) {
			s.put(one, 0, fill(2*round+1, 8192))
			s.wants(two, 0, fill(2*round+1, 8192), "written through one gateway, read through another")
			s.put(two, 0, fill(2*round+2, 8192))
			s.wants(one, 0, fill(2*round+2, 8192), "written through the other gateway, read through the one")
		}
		s.put(one, client.ObjectSize, fill(99, 8192))
		if err := two.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, g := range []string{"one", "two"} {
			s.net.Kill(g)
			s.silence(g, "n0", "n1", "n2")
		}
		s.powerCut()
		last, _ := s.reopen("last")
		s.wants(last, client.ObjectSize, fill(99, 8192), "written through one gateway, flushed through another, then all lost their power")
	})
}
