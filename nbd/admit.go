package nbd

import (
	"io"
	"sync/atomic"
	"time"
)

// Admission: a request holds part of two budgets, its connection's and the server's, from before its payload is read until its reply
// is on its way. Where there is no room the reader waits, and so, behind it, does the client.

// admit waits until the budgets have room for a request.
func (c *Conn) admit(r *Request, cost int64) error {
	for {
		if c.tryAdmit(cost) {
			r.cost = cost
			return nil
		}
		if c.reads == nil || !c.reads.one() { // those hold budget, and nobody else makes them while the reader waits
			break
		}
	}
	if c.kept.first != nil { // they hold budget
		if err := c.caughtUp(); err != nil {
			return err
		}
	}
	c.endBatch()
	c.unstall() // it is the client who waits for us now
	ok, gone := false, false
	var look atomic.Bool
	timer := time.AfterFunc(leftEvery, func() { look.Store(true); c.wakeReader() })
	defer timer.Stop()
	defer c.srv.budget.forget(c)
	c.waitUntil(func() bool {
		if c.dead != nil {
			return true
		}
		if look.Swap(false) {
			if gone = c.tr.left(); gone {
				return true
			}
			timer.Reset(leftEvery)
		}
		if c.roomFor(cost) {
			if !c.blocked { // who does not read waits for himself alone: he wakes when his socket takes something
				c.srv.budget.await(c, c.held, cost)
			}
			ok = c.tryAdmitLocked(cost)
		}
		return ok
	})
	switch {
	case gone:
		return io.EOF // what lies in the socket must not begin, either (late.go)
	case !ok:
		return c.deathCause()
	}
	r.cost = cost
	return nil
}

func (c *Conn) tryAdmit(cost int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tryAdmitLocked(cost)
}

func (c *Conn) tryAdmitLocked(cost int64) bool {
	if !c.roomFor(cost) || !c.srv.budget.take(c.held, cost) {
		return false
	}
	c.held += cost
	c.inFlight++
	return true
}

// roomFor tells whether the connection's own bounds allow a request. One request always is. Under mu.
func (c *Conn) roomFor(cost int64) bool {
	return c.held == 0 || c.held+cost <= c.srv.cfg.MaxConnBytes && c.inFlight < c.srv.cfg.MaxRequests
}

// release undoes admit for a request that never began.
func (c *Conn) release(r *Request) {
	c.mu.Lock()
	c.giveBack(r.cost)
	c.inFlight--
	c.mu.Unlock()
	r.free()
}
