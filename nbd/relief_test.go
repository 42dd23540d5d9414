package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// waitingDevice has flushes and FUA wait for something, where the connection lets it.
type waitingDevice struct {
	b        *waitingBackend
	inside   atomic.Int32
	gathered []*Request
}

type waitingBackend struct {
	fakeBackend
	calm int                   // the server's
	wait func(list []*Request) // what PushLeaving leaves: waits and answers

	overlaps, left, pushed, waiting atomic.Int32
	began                           atomic.Int32 // waits; waiting may still count one that has answered
}

func newWaitingBackend() *waitingBackend {
	b := &waitingBackend{fakeBackend: fakeBackend{info: allCan(1 << 30)}}
	b.device = func() Device { return &waitingDevice{b: b} }
	return b
}

// call counts calls that should not overlap others.
func (d *waitingDevice) call() func() {
	if d.inside.Add(1) != 1 {
		d.b.overlaps.Add(1)
	}
	return func() { d.inside.Add(-1) }
}

func (d *waitingDevice) Submit(r *Request) {
	defer d.call()()
	if r.Op == OpFlush || r.FUA {
		d.gathered = append(d.gathered, r)
		return
	}
	clear(r.Data)
	r.Queue(nil)
}

func (d *waitingDevice) Push() {
	defer d.call()()
	d.b.pushed.Add(1)
	list := d.gathered
	d.gathered = nil
	if len(list) > 0 {
		go answerAll(list)
	}
}

func (d *waitingDevice) PushLeaving() func() {
	defer d.call()()
	list := d.gathered
	d.gathered = nil
	if len(list) == 0 {
		return nil
	}
	d.b.left.Add(1)
	return func() {
		d.b.waiting.Add(1)
		d.b.began.Add(1)
		d.b.wait(list)
		d.b.waiting.Add(-1)
	}
}

func (d *waitingDevice) Close() error {
	defer d.call()()
	d.b.closes.Add(1)
	return nil
}

func answerAll(list []*Request) {
	for _, r := range list {
		r.Queue(nil).Flush()
	}
}

// TestReaderWaits: a flush that is alone is waited for by the reader, one that is not is nobody's to wait for, and neither is what needs no waiting.
func TestReaderWaits(t *testing.T) {
	b := newWaitingBackend()
	b.wait = answerAll
	w := newRig(t, b).ready(t, "x", simpleReplies)
	for i := range 5 {
		if code := w.ask(cmdFlush, 0, 0, 0); code != 0 || b.left.Load() != int32(i+1) {
			t.Fatalf("flush %d: error %d, the reader was left %d to wait for", i, code, b.left.Load())
		}
	}
	w.send(request(cmdWrite, cmdFlagFUA, 7, 0, 1), "x")
	if code := w.simple(7); code != 0 || b.left.Load() != 6 {
		t.Fatalf("FUA: error %d, the reader was left %d to wait for", code, b.left.Load())
	}
	if code := w.ask(cmdRead, 0, 0, 0); code != 0 || b.pushed.Load() != 0 { // of no bytes: no Device is asked
		t.Fatalf("error %d", code)
	}
	w.send(be(request(cmdFlush, 0, 8, 0, 0), request(cmdFlush, 0, 9, 0, 0)))
	for range 2 {
		w.recv(simpleReplySize)
	}
	if b.left.Load() != 6 || b.pushed.Load() == 0 {
		t.Errorf("two at once: the reader was left %d to wait for, in all", b.left.Load())
	}
	w.send(request(cmdDisc, 0, 1, 0, 0))
	w.closed()
}

// TestReaderIsRelieved: while the reader waits for long, what the client sends meanwhile is read and answered, time after time; the one who waited answers when he is through,
// and nobody is left over.
func TestReaderIsRelieved(t *testing.T) {
	b := newWaitingBackend()
	goOn := make(chan struct{})
	b.wait = func(list []*Request) {
		<-goOn
		answerAll(list)
	}
	before := runtime.NumGoroutine()
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	for turn := range uint64(3) {
		w.send(request(cmdFlush, 0, turn, 0, 0))
		within(t, "the reader to wait", func() bool { return b.began.Load() == int32(turn)+1 })
		for i := range uint64(10) {
			w.send(request(cmdWrite, 0, 100+i, 4096*i, 4096), make([]byte, 4096), request(cmdRead, 0, 200+i, 0, 16))
			if code := w.simple(100 + i); code != 0 {
				t.Fatalf("write: error %d", code)
			}
			if code := w.simple(200 + i); code != 0 {
				t.Fatalf("read: error %d", code)
			}
			w.recv(16)
		}
		w.send(request(cmdFlush, 0, 300, 0, 0)) // beside one that is waited for: nobody waits for it
		if code := w.simple(300); code != 0 {
			t.Fatalf("second flush: error %d", code)
		}
		goOn <- struct{}{}
		if code := w.simple(turn); code != 0 {
			t.Fatalf("flush: error %d", code)
		}
	}
	if n := b.left.Load(); n != 3 {
		t.Errorf("%d flushes were left to the reader, want 3", n)
	}
	if n := b.overlaps.Load(); n > 0 {
		t.Errorf("%d calls of the device overlapped", n)
	}
	w.send(request(cmdDisc, 0, 1, 0, 0))
	w.closed()
	within(t, "the session to end", func() bool { return r.srv.Stats().Sessions == 0 })
	if n := b.closes.Load(); n != 1 {
		t.Errorf("the device was closed %d times", n)
	}
	within(t, "those who waited, and the relief, to be gone", func() bool { return runtime.NumGoroutine() <= before+2 }) // the two listeners'
}

// TestReaderDoesNotWaitBesideOthers: nobody is waited for until nothing else has come for a while, and not when another connection asks for something.
func TestReaderDoesNotWaitBesideOthers(t *testing.T) {
	b := newWaitingBackend()
	b.calm = calmFlushes
	b.wait = answerAll
	r := newRig(t, b)
	one, two := r.ready(t, "x", simpleReplies), r.ready(t, "x", simpleReplies)
	flushes := func(n int) (left int32) {
		t.Helper()
		was := b.left.Load()
		for range n {
			if code := one.ask(cmdFlush, 0, 0, 0); code != 0 {
				t.Fatalf("error %d", code)
			}
		}
		return b.left.Load() - was
	}
	for range 2 {
		if n := flushes(calmFlushes); n != 0 {
			t.Errorf("%d of the first flushes were waited for", n)
		}
		if n := flushes(5); n != 5 {
			t.Errorf("of five flushes after them %d were waited for", n)
		}
		if code := two.ask(cmdWriteZeroes, 0, 0, 4096); code != 0 {
			t.Fatalf("error %d", code)
		}
	}
	for range calmFlushes { // each other's company for ever
		if n := flushes(2); n != 0 {
			t.Fatalf("%d flushes were waited for beside another's", n)
		}
		if code := two.ask(cmdFlush, 0, 0, 0); code != 0 {
			t.Fatalf("error %d", code)
		}
	}
}

// TestReaderDoesNotWaitBehindALongAnswer: a flush behind an answer that is still being sent is nobody's to wait for: the client may ask for more as soon as it has read that.
func TestReaderDoesNotWaitBehindALongAnswer(t *testing.T) {
	b := newWaitingBackend()
	b.wait = answerAll
	w := newRig(t, b).ready(t, "x", simpleReplies)
	const long = 8 << 20 // more than a socket takes
	w.send(request(cmdRead, 0, 1, 0, long))
	w.send(request(cmdFlush, 0, 2, 0, 0))
	within(t, "the flush to be pushed", func() bool { return b.pushed.Load() > 0 })
	if n := b.left.Load(); n != 0 {
		t.Error("the flush was waited for")
	}
	if code := w.simple(1); code != 0 {
		t.Fatalf("read: error %d", code)
	}
	w.recv(long)
	if code := w.simple(2); code != 0 {
		t.Fatalf("flush: error %d", code)
	}
}

// TestServerForgetsConnections: what has ended is nobody's, also the one that was served last.
func TestServerForgetsConnections(t *testing.T) {
	b := newWaitingBackend()
	b.wait = answerAll
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	w.ask(cmdFlush, 0, 0, 0)
	if r.srv.lastRead.Load() == nil {
		t.Fatal("nobody was served")
	}
	w.send(request(cmdDisc, 0, 1, 0, 0))
	w.closed()
	within(t, "the connection to be forgotten", func() bool { return r.srv.lastRead.Load() == nil })
}

// TestReaderDoesNotWaitForThoseWhoSendMore: a client that sends something while the reader waits is not made to wait for the next flushes; after some of them the reader tries again.
func TestReaderDoesNotWaitForThoseWhoSendMore(t *testing.T) {
	b := newWaitingBackend()
	b.calm = calmFlushes
	goOn := make(chan struct{})
	var hold atomic.Bool
	b.wait = func(list []*Request) {
		if hold.Load() {
			<-goOn
		}
		answerAll(list)
	}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	r.srv.relief.mu.Lock() // nobody is relieved
	r.srv.relief.watched = map[*Conn]*reliefWatch{}
	r.srv.relief.mu.Unlock()
	for range calmFlushes {
		w.ask(cmdFlush, 0, 0, 0)
	}
	for range 2 {
		hold.Store(true)
		began := b.began.Load()
		w.send(request(cmdFlush, 0, 1, 0, 0))
		within(t, "the reader to wait", func() bool { return b.began.Load() == began+1 })
		w.send(request(cmdWriteZeroes, 0, 2, 0, 4096))
		goOn <- struct{}{}
		hold.Store(false)
		for cookie := range uint64(2) {
			if code := w.simple(1 + cookie); code != 0 {
				t.Fatalf("error %d", code)
			}
		}
		was := b.left.Load()
		for range calmFlushes {
			w.ask(cmdFlush, 0, 0, 0)
		}
		if n := b.left.Load(); n != was {
			t.Errorf("%d of the next flushes were waited for", n-was)
		}
		for range 5 {
			w.ask(cmdFlush, 0, 0, 0)
		}
		if n := b.left.Load(); n != was+5 {
			t.Errorf("of five flushes after them %d were waited for", n-was)
		}
	}
}

// TestEndWhileTheReaderWaits: however a connection ends meanwhile, it ends when its last request is answered, and once; also where what the reader waits for never comes back.
func TestEndWhileTheReaderWaits(t *testing.T) {
	for how, end := range map[string]func(r *rig, w *wire){
		"the client leaves": func(_ *rig, w *wire) { w.nc.Close() },
		"disconnect":        func(_ *rig, w *wire) { w.send(request(cmdDisc, 0, 1, 0, 0)) },
		"nonsense":          func(_ *rig, w *wire) { w.send(make([]byte, 64)) },
		"killed":            func(r *rig, _ *wire) { r.srv.Sessions()[0].Kill() },
		"shutdown": func(r *rig, _ *wire) {
			go r.srv.Shutdown(context.Background())
			within(r.t, "draining", r.srv.isDraining)
		},
		"close": func(r *rig, _ *wire) { r.srv.Close() },
	} {
		for _, hangs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, hangs %v", how, hangs), func(t *testing.T) {
				b := newWaitingBackend()
				answer, goOn := make(chan struct{}), make(chan struct{})
				b.wait = func(list []*Request) {
					<-answer
					answerAll(list)
					if hangs {
						<-goOn
					}
				}
				r := newRig(t, b)
				w := r.ready(t, "x", simpleReplies)
				w.send(request(cmdFlush, 0, 5, 0, 0))
				within(t, "the reader to wait", func() bool { return b.waiting.Load() == 1 })
				end(r, w)
				if b.closes.Load() != 0 {
					t.Error("the device was closed with a request in it")
				}
				close(answer)
				within(t, "the session to end", func() bool { return r.srv.Stats().Sessions == 0 })
				if n := b.closes.Load(); n != 1 {
					t.Errorf("the device was closed %d times", n)
				}
				close(goOn)
				within(t, "the one who waited to be gone", func() bool { return b.waiting.Load() == 0 })
			})
		}
	}
}

// TestReliefUnderLoad: random requests, some alone and some not, of which some flushes take long. Each is answered once, and calls of the Device never overlap.
func TestReliefUnderLoad(t *testing.T) {
	b := newWaitingBackend()
	var relieved atomic.Int32
	var mu sync.Mutex
	slow := rand.New(rand.NewPCG(3, 4)) // guarded by mu
	b.wait = func(list []*Request) {
		mu.Lock()
		d := time.Duration(slow.IntN(3)*slow.IntN(3)) * reliefInterval
		mu.Unlock()
		c, turn := list[0].conn, list[0].conn.turn.Load()
		time.Sleep(d) // the disk
		if c.turn.Load() != turn {
			relieved.Add(1)
		}
		answerAll(list)
	}
	r := newRig(t, b)
	var wg sync.WaitGroup
	for k := range uint64(4) {
		wg.Go(func() {
			w := r.ready(t, "x", simpleReplies)
			rng := rand.New(rand.NewPCG(1, k))
			next := uint64(0)
			for range 100 {
				var out []byte
				due := map[uint64]int{}
				for range 1 + rng.IntN(3)*rng.IntN(4) {
					next++
					switch rng.IntN(4) {
					case 0:
						out = append(out, be(request(cmdWrite, uint16(rng.IntN(2))*cmdFlagFUA, next, 0, 4096), make([]byte, 4096))...)
					case 1:
						out = append(out, be(request(cmdWrite, 0, next, 0, 128<<10), make([]byte, 128<<10))...)
					default:
						out = append(out, request(cmdFlush, 0, next, 0, 0)...)
					}
					due[next] = 1
				}
				for len(out) > 0 { // in pieces
					n := min(len(out), 1+rng.IntN(200<<10))
					w.send(out[:n])
					out = out[n:]
				}
				for range len(due) {
					h := w.recv(simpleReplySize)
					if code := binary.BigEndian.Uint32(h[4:]); code != 0 {
						t.Errorf("error %d", code)
					}
					due[binary.BigEndian.Uint64(h[8:])]--
				}
				for cookie, n := range due {
					if n != 0 {
						t.Errorf("request %d was answered %d times", cookie, 1-n)
					}
				}
			}
			w.send(request(cmdDisc, 0, 1, 0, 0))
			w.closed()
		})
	}
	wg.Wait()
	if n := b.overlaps.Load(); n > 0 {
		t.Errorf("%d calls of the device overlapped", n)
	}
	if relieved.Load() == 0 || b.left.Load() == relieved.Load() {
		t.Errorf("of %d waits %d were relieved", b.left.Load(), relieved.Load())
	}
}

// TestReliefForgets: connections whose readers do not wait any more are not looked at for ever.
func TestReliefForgets(t *testing.T) {
	b := newWaitingBackend()
	b.wait = answerAll
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	for range 2 {
		if code := w.ask(cmdFlush, 0, 0, 0); code != 0 {
			t.Fatalf("error %d", code)
		}
		within(t, "the relief to look elsewhere", func() bool {
			r.srv.relief.mu.Lock()
			defer r.srv.relief.mu.Unlock()
			return r.srv.relief.watched == nil
		})
	}
	w.nc.Close()
}
