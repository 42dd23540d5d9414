package nbd

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// cutDisk is a disk that gives up what was not begun when its connection's context ended.
type cutDisk struct {
	*MemDisk
	ctx  context.Context
	mine func(r *Request) bool // takes it over
	push func()
}

func (d *cutDisk) Submit(r *Request) {
	if d.ctx.Err() != nil {
		r.Queue(d.ctx.Err())
		return
	}
	if d.mine != nil && d.mine(r) {
		return
	}
	d.MemDisk.Submit(r)
}

func (d *cutDisk) Push() {
	if d.push != nil {
		d.push()
	}
}

// TestStaleWriteAfterAWaitForBudget: a connection has as many writes under way as it may have (the cluster stands still), so the next one lies in its socket. Its client gives it up
// (closes it), sends all again by another connection, is answered, and writes something newer. Then the cluster answers what the first connection had under way.
func TestStaleWriteAfterAWaitForBudget(t *testing.T) {
	const size = 4096
	mem := NewMemDisk(1 << 20)
	var first atomic.Bool
	var held []*Request
	var mu sync.Mutex
	b := &fakeBackend{info: allCan(1 << 20)}
	b.device = func() Device {
		d := &cutDisk{MemDisk: mem, ctx: b.lastContext()}
		if !first.Swap(true) {
			d.mine = func(r *Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if len(held) == 4 {
					return false
				}
				held = append(held, r)
				return true
			}
		}
		return d
	}
	r := newRig(t, b, func(c *Config) { c.MaxRequests = 4 })
	old := byTCP(t, r)
	for i := range uint64(5) { // the fifth has to wait
		old.send(request(cmdWrite, 0, i, i*size, size), bytes.Repeat([]byte{1}, size))
	}
	within(t, "four writes", func() bool { mu.Lock(); defer mu.Unlock(); return len(held) == 4 })
	old.nc.Close() // as the kernel does with a socket that it calls dead

	w := r.ready(t, "x", simpleReplies)
	write := func(v byte) {
		w.send(request(cmdWrite, 0, 9, 4*size, size), bytes.Repeat([]byte{v}, size))
		if code := w.simple(9); code != 0 {
			t.Fatal(code)
		}
	}
	write(1) // again
	write(2) // newer
	mu.Lock()
	c := held[0].Conn()
	for _, r := range held { // as vdi does what came in one batch
		r.Queue(nil)
	}
	c.Flush()
	mu.Unlock()
	within(t, "the old connection to end", func() bool { return r.srv.Stats().Sessions == 1 })
	w.send(request(cmdRead, 0, 10, 4*size, size))
	w.simple(10)
	if got := w.recv(size)[0]; got != 2 {
		t.Errorf("the block holds %d, though 2 was written last and acknowledged: it went back in time", got)
	}
}

// TestStaleWriteAfterASlowPush: the same, where the reader is within Push (a disk that hangs), and small writes came meanwhile.
func TestStaleWriteAfterASlowPush(t *testing.T) {
	const size = 4096
	mem := NewMemDisk(1 << 20)
	var first atomic.Bool
	inside, goOn := make(chan struct{}, 8), make(chan struct{})
	b := &fakeBackend{info: allCan(1 << 20)}
	b.device = func() Device {
		d := &cutDisk{MemDisk: mem, ctx: b.lastContext()}
		if !first.Swap(true) {
			d.push = func() { inside <- struct{}{}; <-goOn }
		}
		return d
	}
	r := newRig(t, b)
	old := byTCP(t, r)
	old.send(request(cmdWrite, 0, 0, 0, size), make([]byte, size))
	<-inside
	old.send(request(cmdWrite, 0, 1, 4*size, size), bytes.Repeat([]byte{1}, size))
	old.nc.Close()
	w := r.ready(t, "x", simpleReplies)
	write := func(v byte) {
		w.send(request(cmdWrite, 0, 9, 4*size, size), bytes.Repeat([]byte{v}, size))
		if code := w.simple(9); code != 0 {
			t.Fatal(code)
		}
	}
	write(1)
	write(2)
	for start := time.Now(); time.Since(start) < 2*lateAfter; {
	}
	close(goOn)
	within(t, "the old connection to end", func() bool { return r.srv.Stats().Sessions == 1 })
	w.send(request(cmdRead, 0, 10, 4*size, size))
	w.simple(10)
	if got := w.recv(size)[0]; got != 2 {
		t.Errorf("the block holds %d, though 2 was written last and acknowledged: it went back in time", got)
	}
}

// byTCP is a client by TCP, as the kernel's is on another machine: its end is a FIN behind what it sent.
func byTCP(t *testing.T, r *rig) *wire {
	nc, err := net.Dial("tcp", r.tcp)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(wireTimeout))
	t.Cleanup(func() { nc.Close() })
	w := &wire{t, nc}
	w.greet(fixed)
	w.wants(w.option(optGo, infoData("x")), repAck)
	return w
}
