package nbd

import "sync"

// The hand-off: a large write takes the Device about as long as its payload took to arrive. So where the client has more on its way, the
// reader gives such a request to the connection's submitter goroutine and reads on. While the submitter is at work, everything that is read
// goes through it, and the reader calls the Device only when it is not: so calls of Submit and Push never overlap.

// handOffMin is from what payload on a hand-off, some microseconds, is worth it.
const handOffMin = 64 << 10

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
func (c *Conn) handOff(r *Request, payload uint64) bool {
	worth := payload >= handOffMin && c.in.buffered() > 0
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
	for range s.wake {
		s.series()
	}
}

// series submits until nothing is left.
func (s *submitter) series() {
	c := s.c
	gathered, pushing := int64(0), true
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
			gathered = pushBytes
		case c.broken.Load():
			r.Queue(c.deathCause()) // it must not begin: the client may have sent it again elsewhere
			continue
		default:
			gathered += r.cost
			pushing = true
			c.dev.Submit(r)
		}
		if gathered >= pushBytes {
			c.dev.Push()
			c.sendQueued()
			gathered, pushing = 0, false
		}
	}
}

// end stops the submitter, which has nothing left to do.
func (s *submitter) end() {
	close(s.wake)
	<-s.done
}
