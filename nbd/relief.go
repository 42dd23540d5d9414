package nbd

import (
	"sync"
	"time"
)

// The relief: where a client waits for one request and for nothing else, and the Device for something that takes a while (a disk's sync), the reader waits for it
// itself (Waiter), if all is calm. Nothing is left to do for it but to read, and no other thread has to be woken, and to wake this client. If it takes longer than such things do,
// another goroutine becomes the reader, and the one that waited leaves when it is through: the client may have sent more meanwhile.
//
// Calm it has to be because of how Go's scheduler waits for the network: the thread that did is in the disk's call now, and no other one takes its place for up to 10 ms. What
// came for others meanwhile would lie there until the disk is through. So it is tried only when nobody else has sent anything for a while.

// reliefInterval is how long a reader waits at least, and half of how long it waits at most, until it is relieved.
const reliefInterval = 5 * time.Millisecond

// calmFlushes is for how many flushes nothing else may have come, from another connection, or from the same client while the reader waited, until the reader waits.
const calmFlushes = 64

// reliefCalm is for how many intervals a connection is looked at whose reader does not wait any more.
const reliefCalm = 100

// relief is a server's; its goroutine lives as long as there are readers that wait from time to time.
type relief struct {
	calm int // calmFlushes, but for tests

	mu      sync.Mutex
	watched map[*Conn]*reliefWatch // nil: there is no goroutine
}

type reliefWatch struct {
	turn uint64 // Conn.turn when it was looked at last
	calm int    // how often it was the same, and even
}

// watch has the relief look at a connection whose turn is odd.
func (f *relief) watch(c *Conn) {
	if c.watched.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c.watched.Store(true)
	if f.watched == nil {
		f.watched = make(map[*Conn]*reliefWatch)
		go f.run()
	}
	f.watched[c] = &reliefWatch{}
}

// run ends by itself also after the server: who waits then is relieved all the same, so that his connection ends with its last answer.
func (f *relief) run() {
	t := time.NewTicker(reliefInterval)
	defer t.Stop()
	for range t.C {
		if !f.look() {
			return
		}
	}
}

// look relieves those who have waited for a whole interval. It returns false if there is nobody left to look at.
func (f *relief) look() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c, w := range f.watched {
		turn := c.turn.Load()
		switch {
		case turn != w.turn:
			w.turn, w.calm = turn, 0
		case turn%2 == 1:
			if c.turn.CompareAndSwap(turn, turn+1) {
				go c.serve()
			}
		case w.calm < reliefCalm:
			w.calm++
		default:
			c.watched.Store(false)
			if c.turn.Load() != turn { // it has just begun to wait, and relied on being watched
				c.watched.Store(true)
				continue
			}
			delete(f.watched, c)
		}
	}
	if len(f.watched) == 0 {
		f.watched = nil
	}
	return f.watched != nil
}

// pushLeaving is endBatch where the reader has nothing else to do: it may wait for what the Device leaves to it. It returns false if it was relieved.
func (c *Conn) pushLeaving() bool {
	c.mu.Lock()
	alone := c.taken-c.answered == 1 && !c.blocked // nor is there a long answer on its way
	c.mu.Unlock()
	if !alone || !c.pushing {
		return true // the next read ends the batch
	}
	if c.calm++; c.calm <= c.srv.relief.calm {
		return true
	}
	c.pushing = false
	wait := c.waiter.PushLeaving()
	c.endBatch()
	if wait == nil {
		return true
	}
	turn := c.turn.Add(1)
	c.srv.relief.watch(c)
	wait()
	if !c.turn.CompareAndSwap(turn, turn+1) {
		return false
	}
	if c.sentMore.Swap(false) { // who reads beside flushes on one connection would have each wait for the other
		c.calm = 0
	}
	return true
}
