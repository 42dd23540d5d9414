package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
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
	holdUp()
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
	holdUp()
	close(goOn)
	within(t, "the old connection to end", func() bool { return r.srv.Stats().Sessions == 1 })
	w.send(request(cmdRead, 0, 10, 4*size, size))
	w.simple(10)
	if got := w.recv(size)[0]; got != 2 {
		t.Errorf("the block holds %d, though 2 was written last and acknowledged: it went back in time", got)
	}
}

// holdUp passes more time than a reader may be held up before what it reads may be stale.
func holdUp() {
	for start := time.Now(); time.Since(start) < 2*lateAfter; {
		runtime.Gosched()
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

// TestSoftDisconnectAfterALateReader: writes, then DISC, then the end of the client's side (libnbd does shutdown(SHUT_WR) after DISC). "The server MUST handle all outstanding requests" before it
// closes (doc/proto.md, NBD_CMD_DISC). The reader was within a slow Push meanwhile.
func TestSoftDisconnectAfterALateReader(t *testing.T) {
	const size = 4096
	for _, network := range []string{"tcp"} {
		t.Run(network, func(t *testing.T) {
			mem := NewMemDisk(1 << 20)
			inside, goOn := make(chan struct{}, 8), make(chan struct{})
			b := &fakeBackend{info: allCan(1 << 20)}
			b.device = func() Device {
				return &cutDisk{MemDisk: mem, ctx: b.lastContext(), push: func() { inside <- struct{}{}; <-goOn }}
			}
			r := newRig(t, b)
			w := byTCP(t, r)
			w.send(request(cmdWrite, 0, 0, 0, size), bytes.Repeat([]byte{7}, size))
			<-inside
			for i := range uint64(3) {
				w.send(request(cmdWrite, 0, i+1, (i+1)*size, size), bytes.Repeat([]byte{7}, size))
			}
			w.send(request(cmdDisc, 0, 99, 0, 0))
			if err := w.nc.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			holdUp()
			close(goOn)
			all, err := io.ReadAll(w.nc)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(all) / 16; n != 4 {
				t.Errorf("%d replies to 4 writes that were sent before DISC", n)
			}
		})
	}
}

// TestStaleWriteBehindAFullWindow: as TestStaleWriteAfterASlowPush, but more lies in the connection than the server's socket takes: the end of the stream is still in the client's socket.
func TestStaleWriteBehindAFullWindow(t *testing.T) {
	const size = 4096
	for _, n := range []int{100, 400, 700, 850, 1000} {
		mem := NewMemDisk(16 << 20)
		var first atomic.Bool
		inside, goOn := make(chan struct{}, 1), make(chan struct{})
		count, pushes := 0, 0
		b := &fakeBackend{info: allCan(16 << 20)}
		b.device = func() Device {
			d := &cutDisk{MemDisk: mem, ctx: b.lastContext()}
			if !first.Swap(true) {
				d.push = func() {
					if pushes++; pushes == 1 {
						inside <- struct{}{}
						<-goOn
					}
				}
				d.mine = func(r *Request) bool { count++; return false }
			}
			return d
		}
		r := newRig(t, b)
		old := byTCP(t, r)
		old.send(request(cmdWrite, 0, 0, 0, size), make([]byte, size))
		<-inside
		w := r.ready(t, "x", simpleReplies)
		var all []byte
		for i := 1; i <= n; i++ {
			all = append(all, request(cmdWrite, 0, uint64(i), uint64(i)*size, size)...)
			all = append(all, bytes.Repeat([]byte{1}, size)...)
		}
		old.nc.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		sent, err := old.nc.Write(all)
		old.nc.(*net.TCPConn).CloseWrite()
		write := func(v byte) {
			w.send(request(cmdWrite, 0, 9, 5*size, size), bytes.Repeat([]byte{v}, size))
			if code := w.simple(9); code != 0 {
				t.Fatal(code)
			}
		}
		write(1) // again
		write(2) // newer
		holdUp()
		close(goOn)
		within(t, "the old connection to end", func() bool { return r.srv.Stats().Sessions == 1 })
		w.send(request(cmdRead, 0, 10, 5*size, size))
		w.simple(10)
		got := w.recv(size)[0]
		t.Logf("%d writes of 4 KiB (%d bytes in the sockets, %v): %d were submitted after the client had left; the block holds %d", n, sent, err, count-1, got)
		if got != 2 {
			t.Errorf("the block went back in time")
		}
	}
}

// TestStaleWriteInTheSubmitter: as TestStaleWriteAfterAWaitForBudget, but the writes are large: those that wait lie in the submitter, which is within a call of the Device that hangs.
func TestStaleWriteInTheSubmitter(t *testing.T) {
	const size = 128 << 10
	mem := NewMemDisk(16 << 20)
	var first atomic.Bool
	inside, goOn := make(chan struct{}, 1), make(chan struct{})
	count := 0
	b := &fakeBackend{info: allCan(16 << 20)}
	b.device = func() Device {
		d := &cutDisk{MemDisk: mem, ctx: b.lastContext()}
		if !first.Swap(true) {
			d.mine = func(r *Request) bool {
				if count++; count == 1 {
					inside <- struct{}{}
					<-goOn // a disk that hangs
				}
				return false
			}
		}
		return d
	}
	r := newRig(t, b, func(c *Config) { c.MaxRequests = 8 })
	old := byTCP(t, r)
	var all []byte
	for i := range uint64(9) { // eight are admitted; the ninth waits in the reader
		all = append(all, request(cmdWrite, 0, i, i*size, size)...)
		all = append(all, bytes.Repeat([]byte{1}, size)...)
	}
	go func() { old.nc.Write(all); old.nc.(*net.TCPConn).CloseWrite() }()
	<-inside
	within(t, "the end of the stream to arrive", func() bool { return r.srv.Sessions()[0].tr.left() })
	holdUp()
	w := r.ready(t, "x", simpleReplies)
	write := func(v byte) {
		w.send(request(cmdWrite, 0, 9, 2*size, size), bytes.Repeat([]byte{v}, size))
		if code := w.simple(9); code != 0 {
			t.Fatal(code)
		}
	}
	write(1) // again
	write(2) // newer
	close(goOn)
	within(t, "the old connection to end", func() bool { return r.srv.Stats().Sessions == 1 })
	w.send(request(cmdRead, 0, 10, 2*size, size))
	w.simple(10)
	got := w.recv(size)[0]
	t.Logf("%d of 9 old writes were submitted; the block holds %d", count, got)
	if got != 2 {
		t.Errorf("the block went back in time")
	}
}
