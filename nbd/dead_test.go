package nbd

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// twoDisks has one disk whose groups wait (for a node, for a person), and one that is well.
type twoDisks struct {
	mu    sync.Mutex
	stuck []*Request
	ok    *MemDisk
}

type stuckDisk struct{ b *twoDisks }

func (d stuckDisk) Submit(r *Request) {
	d.b.mu.Lock()
	d.b.stuck = append(d.b.stuck, r)
	d.b.mu.Unlock()
}
func (stuckDisk) Push()        {}
func (stuckDisk) Close() error { return nil }

func (b *twoDisks) List(context.Context) ([]ExportInfo, error) { return nil, nil }
func (b *twoDisks) Info(_ context.Context, name string) (ExportInfo, error) {
	i := allCan(64 << 20)
	i.Name = name
	return i, nil
}
func (b *twoDisks) Open(ctx context.Context, name string) (Device, ExportInfo, error) {
	i, _ := b.Info(ctx, name)
	if name == "stuck" {
		return stuckDisk{b}, i, nil
	}
	return b.ok, i, nil
}

// TestDeadConnectionsLeaveTheBudget: one client (nbd-client -persist -t, say) sends 64 writes of 128 KiB to a disk that waits, gives up, connects again and sends them again, and so on. Then
// a client of another disk, which is well, wants to write 128 KiB.
func TestDeadConnectionsLeaveTheBudget(t *testing.T) {
	const size = 128 << 10
	b := &twoDisks{ok: NewMemDisk(64 << 20)}
	r := newRig(t, b, func(c *Config) { c.MaxPayload, c.MaxBytes, c.MaxConnBytes = 32<<20, 128<<20, 8<<20 }) // an eighth of the defaults
	data := make([]byte, size)
	try := func() error {
		w := r.ready(t, "ok", simpleReplies)
		defer w.nc.Close()
		w.send(request(cmdWrite, 0, 1, 0, size), data)
		w.nc.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, err := w.nc.Read(make([]byte, simpleReplySize))
		return err
	}
	dead := 0
	for n := 1; n <= 256; n++ {
		w := r.dial(t)
		w.greet(fixed)
		list := w.option(optGo, infoData("stuck"))
		if last := list[len(list)-1]; last.kind != repAck {
			if !strings.Contains(string(last.data), "still under way") {
				t.Errorf("refused with %q", last.data)
			}
			w.nc.Close()
			dead = n
			break
		}
		go func() {
			for i := range uint64(80) { // more than it may have under way
				if _, err := w.nc.Write(append(request(cmdWrite, 0, i, i*size, size), data...)); err != nil {
					return
				}
			}
		}()
		held := func() int { b.mu.Lock(); defer b.mu.Unlock(); return len(b.stuck) }
		within(t, "the server to take what it may", func() bool { return held() >= n*63 })
		w.nc.Close() // it gives up
		within(t, "its requests to be no part of the budget", func() bool { return r.srv.Stats().BytesHeld == 0 })
		if err := try(); err != nil {
			t.Fatalf("the other disk's client waits after %d connections: %v", n, err)
		}
	}
	if dead == 0 {
		t.Error("256 clients have left their requests, and more are let in")
	}
	within(t, "the dead to be gone when their requests are", func() bool {
		b.mu.Lock()
		list := b.stuck
		b.stuck = nil
		b.mu.Unlock()
		for _, q := range list {
			q.Done(nil)
		}
		return r.srv.Stats().Sessions == 0
	})
	r.ready(t, "stuck", simpleReplies)
	if r.srv.graves.all != 0 || len(r.srv.graves.of) != 0 || r.srv.Stats().BytesHeld != 0 {
		t.Errorf("%d bytes of the dead are left, %d of the living", r.srv.graves.all, r.srv.Stats().BytesHeld)
	}
}
