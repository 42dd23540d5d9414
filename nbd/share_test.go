package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sharingDevice is a fakeDevice that is a Sharer.
type sharingDevice struct {
	*fakeDevice
	b *sharingBackend
}

type sharingBackend struct {
	fakeBackend
	read func(r *Request) // Read

	reading, most, reads atomic.Int32 // calls of Read: now, at once, in all
}

// newSharingBackend also sees to it that there is a processor for the second goroutine.
func newSharingBackend(t *testing.T) *sharingBackend {
	before := runtime.GOMAXPROCS(2)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	b := &sharingBackend{fakeBackend: fakeBackend{info: allCan(1 << 30)}}
	b.device = func() Device { return &sharingDevice{&fakeDevice{b: &b.fakeBackend}, b} }
	return b
}

func (d *sharingDevice) Read(r *Request) {
	if d.closed.Load() {
		panic("Read after Close")
	}
	d.b.reads.Add(1)
	for n, most := d.b.reading.Add(1), d.b.most.Load(); n > most && !d.b.most.CompareAndSwap(most, n); most = d.b.most.Load() {
	}
	d.b.read(r)
	d.b.reading.Add(-1)
}

func (d *sharingDevice) Close() error {
	if n := d.b.reading.Load(); n != 0 {
		panic("Close during a Read")
	}
	return d.fakeDevice.Close()
}

const largeRead = 128 << 10

// takeTime has a read be worth sharing the next ones.
func takeTime() {
	for start := time.Now(); time.Since(start) < 2*shareWorth; {
	}
}

// content fills a read, so that it can be told from others.
func content(r *Request) {
	for i := 0; i < len(r.Data); i += 512 {
		binary.BigEndian.PutUint64(r.Data[i:], r.Offset+uint64(i))
	}
}

// contentOf takes the answer to a large read.
func (w *wire) contentOf(offset, length uint64) {
	w.t.Helper()
	data := w.recv(int(length))
	for i := uint64(0); i < length; i += 512 {
		if x := binary.BigEndian.Uint64(data[i:]); x != offset+i {
			w.t.Fatalf("at %d: content of %d", offset+i, x)
		}
	}
}

// TestSharing: of several large reads two are made at the same time, once one was worth it.
func TestSharing(t *testing.T) {
	b := newSharingBackend(t)
	var together atomic.Bool
	second := make(chan struct{})
	b.read = func(r *Request) {
		takeTime()
		if together.Load() {
			if b.reading.Load() == 2 {
				together.Store(false)
				close(second)
			} else {
				<-second
			}
		}
		content(r)
		r.Queue(nil)
	}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	w.send(request(cmdRead, 0, 0, 0, largeRead))
	w.simple(0)
	w.contentOf(0, largeRead)
	together.Store(true)
	const n = 8
	var all []byte
	for i := range uint64(n) {
		all = append(all, request(cmdRead, 0, i, i<<20, largeRead)...)
	}
	w.send(all)
	for range n { // in any order
		cookie := binary.BigEndian.Uint64(w.recv(simpleReplySize)[8:])
		w.contentOf(cookie<<20, largeRead)
	}
	if k := b.most.Load(); k != 2 {
		t.Errorf("%d reads at once, want 2", k)
	}
	w.send(request(cmdDisc, 0, 1, 0, 0))
	w.closed()
}

// TestSharingAmongOthers: large reads, small ones, writes, trims and flushes in one stream. Calls of Submit and Push do not overlap each other, every request is answered once, with its own bytes, and
// the Device is closed when no call is in it.
func TestSharingAmongOthers(t *testing.T) {
	b := newSharingBackend(t)
	var inside, overlaps, shared atomic.Int32
	call := func() func() {
		if inside.Add(1) != 1 {
			overlaps.Add(1)
		}
		return func() { inside.Add(-1) }
	}
	b.read = func(r *Request) {
		if b.reading.Load() == 2 {
			shared.Add(1)
		}
		takeTime()
		content(r)
		if r.Offset%3 == 0 {
			r.Done(nil)
			return
		}
		go r.Done(nil) // as when a disk has to be asked
	}
	b.submit = func(r *Request) {
		defer call()()
		if r.Op == OpRead {
			content(r)
		}
		r.Queue(nil)
	}
	b.push = func() { call()() }
	r := newRig(t, b)
	for round := range uint64(4) {
		w := r.ready(t, "x", simpleReplies)
		const n = 1000
		type asked struct {
			cmd          uint16
			offset, size uint64
		}
		rng := rand.New(rand.NewPCG(round, 1))
		var list [n]asked
		for i := range list {
			a := asked{[]uint16{cmdRead, cmdRead, cmdRead, cmdWrite, cmdTrim, cmdFlush}[rng.IntN(6)], rng.Uint64N(1<<10) << 12, []uint64{4096, shareMin, largeRead, largeRead}[rng.IntN(4)]}
			if a.cmd == cmdFlush {
				a.offset, a.size = 0, 0
			}
			list[i] = a
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for i, a := range list {
				one := request(a.cmd, 0, uint64(i), a.offset, uint32(a.size))
				if a.cmd == cmdWrite {
					one = append(one, make([]byte, a.size)...)
				}
				w.nc.Write(one)
			}
			w.nc.Write(request(cmdDisc, 0, n, 0, 0)) // what is under way is still answered
		})
		seen := make(map[uint64]bool)
		for range n {
			h := w.recv(simpleReplySize)
			cookie := binary.BigEndian.Uint64(h[8:])
			if binary.BigEndian.Uint32(h) != magicSimpleReply || binary.BigEndian.Uint32(h[4:]) != 0 || cookie >= n || seen[cookie] {
				t.Fatalf("reply % x", h)
			}
			seen[cookie] = true
			if a := list[cookie]; a.cmd == cmdRead {
				w.contentOf(a.offset, a.size)
			}
		}
		wg.Wait()
		w.closed()
	}
	if k := overlaps.Load(); k > 0 {
		t.Errorf("%d calls of Submit and Push overlapped another", k)
	}
	if b.reads.Load() == 0 || shared.Load() == 0 {
		t.Errorf("%d large reads, %d of them while another was made", b.reads.Load(), shared.Load())
	}
	if k := r.srv.sharing.Load(); k != 0 {
		t.Errorf("%d second goroutines count as at work", k)
	}
}

// TestSharingWithinBudget: reads that wait for their turn hold budget. The reader, which waits for some, makes them itself.
func TestSharingWithinBudget(t *testing.T) {
	b := newSharingBackend(t)
	b.read = func(r *Request) {
		content(r)
		r.Queue(nil)
	}
	r := newRig(t, b, func(c *Config) { c.MaxConnBytes = 1 << 20 })
	w := r.ready(t, "x", simpleReplies)
	const n = 64
	var all []byte
	for i := range uint64(n) {
		all = append(all, request(cmdRead, 0, i, i<<20, 256<<10)...)
	}
	w.send(all)
	for range n {
		cookie := binary.BigEndian.Uint64(w.recv(simpleReplySize)[8:])
		w.contentOf(cookie<<20, 256<<10)
	}
}

// TestB4NoSharedReadStartsAfterTheConnectionDied: large reads wait behind one that takes its time.
func TestB4NoSharedReadStartsAfterTheConnectionDied(t *testing.T) {
	b := newSharingBackend(t)
	inside, goOn := make(chan struct{}, 8), make(chan struct{})
	b.read = func(r *Request) {
		inside <- struct{}{}
		<-goOn
		r.Queue(nil)
	}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	const n = 8
	var all []byte
	for i := range uint64(n) {
		all = append(all, request(cmdRead, 0, i, i<<20, largeRead)...)
	}
	w.send(all)
	<-inside // none was worth anything so far, so the reader is alone
	r.srv.Sessions()[0].Kill()
	close(goOn)
	within(t, "the device to be closed", func() bool { return b.closes.Load() == 1 })
	if k := b.reads.Load(); k != 1 {
		t.Errorf("%d reads were started after the connection died", k-1)
	}
}

// TestNoSharingInCompany: where somebody else asked for something lately, and processors are two, the other one is left to him.
func TestNoSharingInCompany(t *testing.T) {
	for _, c := range []struct {
		processors      int
		alone, together bool
	}{{1, false, false}, {2, true, false}, {4, true, true}} {
		b := newSharingBackend(t)
		b.read = func(r *Request) { r.Queue(nil) }
		runtime.GOMAXPROCS(c.processors)
		r := newRig(t, b)
		shared := func(w *wire) bool {
			before := b.reads.Load()
			w.send(request(cmdRead, 0, 1, 0, largeRead))
			w.simple(1)
			w.recv(largeRead)
			return b.reads.Load() > before
		}
		w, other := r.ready(t, "x", simpleReplies), r.ready(t, "x", simpleReplies)
		if got := shared(w); got != c.alone {
			t.Errorf("%d processors, alone: shared %v", c.processors, got)
		}
		shared(other)
		if got := shared(w); got != c.together {
			t.Errorf("%d processors, in company: shared %v", c.processors, got)
		}
		r.srv.company.Store(time.Now().Add(-companyTime).UnixNano())
		if got := shared(w); got != c.alone {
			t.Errorf("%d processors, alone again: shared %v", c.processors, got)
		}
	}
}

// givingUp is a Device that gives up what begins after the end of its context, as a disk does whose client has died.
type givingUp struct {
	*fakeDevice
	ctx context.Context
}

func (d *givingUp) Submit(r *Request) {
	takeTime()
	clear(r.Data)
	r.Queue(d.ctx.Err())
}

func (d *givingUp) Read(r *Request) { d.Submit(r) }

// TestReadsBeforeTheEndAreAnswered: large reads, and then the client's end of the stream, which is seen before the last of them begins.
func TestReadsBeforeTheEndAreAnswered(t *testing.T) {
	newSharingBackend(t) // for its processors
	const n = 16
	for range 10 {
		b := &fakeBackend{info: allCan(1 << 30)}
		b.device = func() Device { return &givingUp{&fakeDevice{b: b}, b.lastContext()} }
		r := newRig(t, b)
		w := r.ready(t, "x", simpleReplies)
		var all []byte
		for i := range uint64(n) {
			all = append(all, request(cmdRead, 0, i, i<<20, largeRead)...)
		}
		w.send(all)
		w.nc.(*net.UnixConn).CloseWrite()
		if got, err := io.Copy(io.Discard, w.nc); err != nil || got != n*(simpleReplySize+largeRead) {
			t.Fatalf("%d bytes of answers, want %d: %v", got, n*(simpleReplySize+largeRead), err)
		}
	}
}

// waitingSharer is a Sharer that may leave a wait to its reader.
type waitingSharer struct {
	*fakeDevice
	reads, early atomic.Int32
}

func (d *waitingSharer) Submit(r *Request) { r.Queue(nil) }
func (d *waitingSharer) Read(r *Request)   { d.reads.Add(1); r.Queue(nil) }

func (d *waitingSharer) PushLeaving() func() {
	if d.reads.Load() == 0 {
		d.early.Add(1)
	}
	return nil
}

// TestNoWaitBesideALargeRead: a flush that is answered at once, and a large read behind it. The client waits for more than what a Waiter would have the reader wait for.
func TestNoWaitBesideALargeRead(t *testing.T) {
	newSharingBackend(t)
	b := &fakeBackend{info: allCan(1 << 30)}
	d := &waitingSharer{fakeDevice: &fakeDevice{b: b}}
	b.device = func() Device { return d }
	r := newRig(t, b)
	r.srv.relief.calm = 0
	w := r.ready(t, "x", simpleReplies)
	w.send(request(cmdFlush, 0, 1, 0, 0), request(cmdRead, 0, 2, 0, largeRead))
	w.simple(1)
	w.simple(2)
	w.recv(largeRead)
	if d.early.Load() > 0 {
		t.Error("PushLeaving was called while the client waited for a read that had not begun")
	}
}

// TestLargeReadsHaveTheirTurn: of many small requests that arrive with a large read, or after it, only some go before it.
func TestLargeReadsHaveTheirTurn(t *testing.T) {
	b := newSharingBackend(t)
	b.read = func(r *Request) { r.Queue(nil) }
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	const small, large = 600, 4
	var all []byte
	for i := range uint64(large) {
		all = append(all, request(cmdRead, 0, small+i, 0, largeRead)...)
	}
	for i := range uint64(small) {
		all = append(all, request(cmdRead, 0, i, 0, 512)...)
	}
	w.send(all)
	before, found := 0, 0
	for range small + large {
		if cookie := binary.BigEndian.Uint64(w.recv(simpleReplySize)[8:]); cookie < small {
			w.recv(512)
			before++
			continue
		}
		w.recv(largeRead)
		if found++; before > found*shareTurn {
			t.Errorf("large read %d came after %d small ones", found, before)
		}
	}
}
