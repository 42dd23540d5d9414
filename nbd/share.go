package nbd

import (
	"sync"
	"time"
)

// The sharing: a large read of what is in memory is nothing but copying, out of the page cache and into the socket, and takes the reader some 50 to 100 µs. Where a client
// has several under way, another processor may do the same for the next one. So the reader makes large reads one by one, when nothing else is there to be read or shareTurn others went before, and looks for
// more after each; if it took its time for the last one and there are more, the connection's second goroutine makes some of them. Each sends what it has read, while that
// is in its processor's cache, unless the other one is sending: then that one takes it along.

// shareMin is from what length on a read is made so, and shareWorth how long the last one must have taken for the second goroutine, which takes some microseconds to wake, to be of use: one that
// only asks another node, or has the disk asked, is through before.
const (
	shareMin   = 64 << 10
	shareWorth = 25 * time.Microsecond
)

// shareTurn is how many other requests are begun, at most, before a read, and shareTurns how many reads the second goroutine makes before another connection's has its chance.
const (
	shareTurn  = 16
	shareTurns = 256
)

// sharing has a connection's large reads that have not begun. It is there if the Device is a Sharer.
type sharing struct {
	c   *Conn
	dev Sharer

	worth bool          // the last read took its time; reader goroutine only
	later int           // requests that were begun since a read; reader goroutine only
	wake  chan struct{} // to the second goroutine, which is started when it is first needed and lives as long as the connection
	done  chan struct{} // closed at its end
	made  int           // by it since it was woken; its own

	mu   sync.Mutex // guards what follows
	list requestList
	busy bool // the second goroutine is at work, or about to be
}

// add takes a read that was admitted.
func (s *sharing) add(r *Request) {
	s.mu.Lock()
	s.list.push(r)
	s.mu.Unlock()
}

// passed takes that another request was begun. Every so often a read has its turn, so that none waits for all that came after it.
func (s *sharing) passed() {
	if s.later++; s.later >= shareTurn {
		s.one()
	}
}

// one has the reader make one read, and says whether there was any.
func (s *sharing) one() bool {
	s.mu.Lock()
	r := s.list.pop()
	help := s.list.first != nil && !s.busy && s.worth && s.mayHelp()
	s.busy = s.busy || help
	s.mu.Unlock()
	s.later = 0
	if r == nil {
		return false
	}
	s.c.endBatch() // else what is answered meanwhile would wait for it
	if help {
		s.help()
	}
	start := time.Now()
	s.read(r)
	s.worth = time.Since(start) >= shareWorth
	return true
}

// bound is how many second goroutines may be at work in all: one for two processors, and one less where others asked for something lately. With all processors at work nobody
// looks at the network for them, for up to 10 ms.
func (s *sharing) bound() int32 {
	n := s.c.srv.processors / 2
	if s.c.arrived.UnixNano()-s.c.srv.company.Load() < int64(companyTime) {
		n--
	}
	return n
}

// takes says whether a read is to be made so.
func (s *sharing) takes(r *Request) bool {
	return s != nil && r.Op == OpRead && r.Length >= shareMin && s.bound() > 0
}

// mayHelp asks for the second goroutine.
func (s *sharing) mayHelp() bool {
	now := &s.c.srv.sharing
	if now.Add(1) <= s.bound() {
		return true
	}
	now.Add(-1)
	return false
}

// read makes one read. Its memory is taken only now, so that what is under way stays in the processor's cache, however much the client asked for.
func (s *sharing) read(r *Request) {
	if s.c.broken.Load() {
		r.Queue(s.c.deathCause()) // it must not begin: the client may have asked elsewhere
		return
	}
	r.takeBuffer()
	s.dev.Read(r)
	s.c.sendQueued()
}

// help wakes the second goroutine. (It has no thread of its own: to wake that takes longer, and half of the gain.)
func (s *sharing) help() {
	if s.wake == nil {
		s.wake, s.done = make(chan struct{}, 1), make(chan struct{})
		go s.run()
	}
	s.wake <- struct{}{} // never waits: busy was false
}

func (s *sharing) run() {
	defer close(s.done)
	for range s.wake {
		s.made = 0
		for r := s.more(); r != nil; r = s.more() {
			s.read(r)
		}
	}
}

// more is the second goroutine's next read, nil if it is through.
func (s *sharing) more() *Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made < shareTurns {
		if r := s.list.pop(); r != nil {
			s.made++
			return r
		}
	}
	s.busy = false
	s.c.srv.sharing.Add(-1)
	return nil
}

// all makes what is left, for a reader that reads no more.
func (s *sharing) all() {
	for s.one() {
	}
}

// end stops the second goroutine, which has nothing left to do.
func (s *sharing) end() {
	if s.wake != nil {
		close(s.wake)
		<-s.done
	}
}
