package nbd

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// The hand-off: a large write takes the Device about as long as its payload took to arrive. So where the client has more on its way, the
// reader gives such a request to the connection's submitter goroutine and reads on. While the submitter is at work, everything that is read
// goes through it, and the reader calls the Device only when it is not: so calls of Submit and Push never overlap.

// handOffMin is from what payload on a hand-off, some microseconds, is worth it.
const handOffMin = 64 << 10

// A submitter has a thread of its own where there are processors enough: else it shares one with the reader for milliseconds, whenever the kernel finds that thread's processor free
// first, and both do one thing after the other. (On two processors large writes went 1.13 times as fast.)

// threadIdle is for how long a submitter keeps its thread with nothing to do.
const threadIdle = time.Second

// takeThread says whether one more submitter may have a thread of its own: one for two processors, since each has a reader, and a client.
func (s *Server) takeThread() bool {
	for bound := int32(max(1, runtime.GOMAXPROCS(0)/2)); ; {
		n := s.threads.Load()
		if n >= bound {
			return false
		}
		if s.threads.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// submitBytes ends a submitter's batch: what it moved is not looked at again, as replies to reads are (pushBytes), and each batch costs a write of the journal.
const submitBytes = 512 << 10

// submitter is started by the first hand-off and lives as long as its connection.
type submitter struct {
	c    *Conn
	wake chan struct{} // with the first of a series
	done chan struct{} // closed at its end

	mu   sync.Mutex // guards what follows
	list requestList
	busy bool // the Device's calls are the submitter's
}

// handOff gives the submitter a request whose payload was read, and says whether it did.
func (c *Conn) handOff(r *Request) bool {
	worth := r.Op == OpWrite && r.Length >= handOffMin && c.in.buffered() > 0
	s := c.submitter
	if s == nil {
		if !worth {
			return false
		}
		s = &submitter{c: c, wake: make(chan struct{}, 1), done: make(chan struct{})}
		c.submitter = s
		go s.run()
	}
	if worth && c.preparer != nil {
		c.preparer.Prepare(r)
	}
	s.mu.Lock()
	if !s.busy && !worth {
		s.mu.Unlock()
		return false
	}
	first := !s.busy
	s.busy = true
	s.list.push(r)
	s.mu.Unlock()
	c.pushing = false // the submitter pushes what the reader gathered, too
	if first {
		s.wake <- struct{}{}
	}
	return true
}

func (s *submitter) run() {
	defer close(s.done)
	idle := time.NewTimer(threadIdle)
	defer idle.Stop()
	own := false
	leave := func() {
		if own {
			runtime.UnlockOSThread()
			s.c.srv.threads.Add(-1)
			own = false
		}
	}
	defer leave()
	for {
		select {
		case _, more := <-s.wake:
			if !more {
				return
			}
			if !own && s.c.srv.takeThread() {
				runtime.LockOSThread()
				own = true
			}
			s.series()
			idle.Reset(threadIdle)
		case <-idle.C:
			leave()
		}
	}
}

// series submits until nothing is left.
func (s *submitter) series() {
	c := s.c
	gathered, pushing := int64(0), true
	held, from := false, time.Now() // by the Device, for so long that what waits behind may be stale (late.go)
	for {
		s.mu.Lock()
		r := s.list.pop()
		if r == nil && !pushing {
			s.busy = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		switch {
		case r == nil:
			gathered = submitBytes
		case c.broken.Load():
			r.Queue(c.deathCause()) // it must not begin: the client may have sent it again elsewhere
			continue
		case c.left.Load():
			r.Queue(context.Canceled)
			continue
		case held && r.Op.changes() && c.tr.left():
			c.left.Store(true)
			r.Queue(context.Canceled)
			continue
		default:
			gathered += r.cost
			pushing = true
			c.dev.Submit(r)
		}
		if gathered >= submitBytes {
			c.dev.Push()
			c.sendQueued()
			gathered, pushing = 0, false
		}
		now := time.Now()
		held = held || now.Sub(from) > lateAfter
		from = now
	}
}

// end stops the submitter, which has nothing left to do.
func (s *submitter) end() {
	close(s.wake)
	<-s.done
}
