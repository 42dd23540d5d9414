package nbd

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// TestHandOff: large and small requests in one stream. Calls of the Device never overlap, every request is answered once, and some go through
// the submitter, which are prepared before.
func TestHandOff(t *testing.T) {
	var inside, overlaps, handed, pushed, prepared, wrong atomic.Int32
	var sum atomic.Uint64
	call := func(f func()) {
		if inside.Add(1) != 1 {
			overlaps.Add(1)
		}
		f()
		inside.Add(-1)
	}
	var waiting []*Request // guarded by the promise under test
	b := &fakeBackend{info: allCan(1 << 30)}
	content := func(r *Request) uint64 { return r.Offset<<16 | uint64(r.Data[0])<<8 | uint64(r.Data[7]) }
	b.ready = func(r *Request) {
		prepared.Add(1)
		r.Aux = content(r)
	}
	b.submit = func(r *Request) {
		call(func() {
			if r.Aux != 0 && r.Aux != content(r) {
				wrong.Add(1)
			}
			if s := r.conn.submitter; s != nil {
				s.mu.Lock()
				if s.busy {
					handed.Add(1)
				}
				s.mu.Unlock()
			}
			for _, x := range r.Data[:min(8, len(r.Data))] {
				sum.Add(uint64(x))
			}
			if r.Offset%3 == 0 {
				r.Queue(nil)
				return
			}
			waiting = append(waiting, r)
		})
	}
	b.push = func() {
		call(func() {
			pushed.Add(1)
			for _, r := range waiting {
				r.Queue(nil).Flush()
			}
			waiting = waiting[:0]
		})
	}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	const n = 3000
	var sent uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range uint64(n) {
			size := uint32(4096)
			switch rng.IntN(4) {
			case 0, 1:
				size = 128 << 10
			case 2:
				w.nc.Write(request(cmdFlush, 0, i, 0, 0))
				continue
			}
			data := make([]byte, size)
			data[0], data[7] = byte(i), byte(i>>8)
			sent += uint64(data[0]) + uint64(data[7])
			w.nc.Write(append(request(cmdWrite, 0, i, i<<12, size), data...))
		}
	})
	seen := make(map[uint64]bool)
	for range n {
		h := w.recv(simpleReplySize)
		cookie := binary.BigEndian.Uint64(h[8:])
		if binary.BigEndian.Uint32(h) != magicSimpleReply || binary.BigEndian.Uint32(h[4:]) != 0 || cookie >= n || seen[cookie] {
			t.Fatalf("reply % x", h)
		}
		seen[cookie] = true
	}
	wg.Wait()
	w.send(request(cmdDisc, 0, 1, 0, 0))
	w.closed()
	if k := overlaps.Load(); k > 0 {
		t.Errorf("%d calls of the device overlapped another", k)
	}
	if handed.Load() == 0 {
		t.Error("nothing went through the submitter")
	}
	if prepared.Load() == 0 || wrong.Load() > 0 {
		t.Errorf("%d requests were prepared, of which %d were others when they were submitted", prepared.Load(), wrong.Load())
	}
	if sum.Load() != sent {
		t.Errorf("payloads add up to %d, sent %d", sum.Load(), sent)
	}
}

// TestSubmittersThreads: of many submitters as many have a thread of their own as there should be, and none is kept by those who have left.
func TestSubmittersThreads(t *testing.T) {
	r := newRig(t, &fakeBackend{info: allCan(1 << 30)})
	bound := int32(max(1, runtime.GOMAXPROCS(0)/2))
	var most atomic.Int32
	for range 2 {
		var wg sync.WaitGroup
		for range bound + 2 {
			w := r.ready(t, "x", simpleReplies)
			wg.Go(func() {
				const n = 64
				one := append(request(cmdWrite, 0, 1, 0, 128<<10), make([]byte, 128<<10)...)
				go func() {
					for range n {
						w.nc.Write(one)
					}
				}()
				for range n {
					w.recv(simpleReplySize)
					if k := r.srv.threads.Load(); k > most.Load() {
						most.Store(k)
					}
				}
				w.send(request(cmdDisc, 0, 1, 0, 0))
				w.closed()
			})
		}
		wg.Wait()
		within(t, "the threads to be given back", func() bool { return r.srv.threads.Load() == 0 })
	}
	if k := most.Load(); k == 0 || k > bound {
		t.Errorf("%d submitters had a thread of their own, want 1 to %d", k, bound)
	}
}

// TestB4NothingHandedOffStartsAfterTheConnectionDied: large writes wait behind one that the Device is slow to take.
func TestB4NothingHandedOffStartsAfterTheConnectionDied(t *testing.T) {
	var begun atomic.Int32
	inside, goOn := make(chan struct{}, 8), make(chan struct{})
	b := &fakeBackend{info: allCan(1 << 20), submit: func(r *Request) {
		begun.Add(1)
		inside <- struct{}{}
		<-goOn
		r.Queue(nil)
	}}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	const size = 128 << 10
	const requests = 4
	w.send(request(cmdWrite, 0, 0, 0, size))
	for i := range uint64(requests - 1) { // the head of the next one comes with the last byte, so that each has more behind it
		w.send(make([]byte, size-1))
		w.send(append([]byte{0}, request(cmdWrite, 0, i+1, 0, size)...))
	}
	<-inside // the first one, handed off since the second one's head is there
	w.send(make([]byte, size))
	within(t, "all to be read", func() bool { return r.srv.Stats().BytesHeld == requests*(size+requestCost) })
	w.send(request(cmdFlush, 0, 9, 0, 0))
	within(t, "the flush", func() bool { return r.srv.Stats().BytesHeld == requests*(size+requestCost)+requestCost })
	r.srv.Sessions()[0].Kill()
	close(goOn)
	within(t, "the device to be closed", func() bool { return b.closes.Load() == 1 })
	if n := begun.Load(); n != 1 {
		t.Errorf("%d requests were started after the connection died", n-1)
	}
}

// TestB4NothingHandedOffStartsAfterTheClientLeft: a large write waits behind one that the Device takes only when its context ends. The client's end of the stream ends it.
func TestB4NothingHandedOffStartsAfterTheClientLeft(t *testing.T) {
	var begun, late atomic.Int32
	inside := make(chan struct{}, 8)
	b := &fakeBackend{info: allCan(1 << 20)}
	b.submit = func(r *Request) {
		ctx := b.lastContext()
		if begun.Add(1) == 1 {
			inside <- struct{}{}
			<-ctx.Done()
		} else if ctx.Err() == nil {
			late.Add(1)
		}
		r.Queue(ctx.Err())
	}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	const size = 128 << 10
	w.send(request(cmdWrite, 0, 0, 0, size), make([]byte, size-1))
	w.send([]byte{0}, request(cmdWrite, 0, 1, 0, size)) // so that the first one has more behind it
	<-inside
	w.send(make([]byte, size))
	w.nc.(*net.UnixConn).CloseWrite()
	within(t, "the device to be closed", func() bool { return b.closes.Load() == 1 })
	if n := late.Load(); n > 0 {
		t.Errorf("%d writes began as if the client were there", n)
	}
}
