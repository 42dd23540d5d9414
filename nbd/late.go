package nbd

import (
	"context"
	"errors"
	"io"
	"time"
)

// A client that takes its connection for dead (the kernel does after its I/O timeout, when a cluster stands still) ends it, sends again by another what was not answered, and writes
// something newer there. What it sent by this one may lie here unread all the time, the end of the stream behind it. When the reader goes on, none of that may be written: it would
// come after what is newer. So where the reader was held up for long, changes are kept until it has read all that there is: then it is known whether the client has left.

// lateAfter is for how long the reader may be held up before what it reads may be stale: shorter than any client's patience.
const lateAfter = 100 * time.Millisecond

// keep keeps a change that came late.
func (c *Conn) keep(r *Request) bool {
	if !c.late && time.Since(c.arrived) <= lateAfter {
		return false
	}
	if _, blind := c.tr.(*plainTransport); blind { // nobody knows when all is read: the socket beneath is asked
		if !c.tr.left() {
			return false
		}
	}
	c.late = true
	c.kept.push(r)
	return true
}

// caughtUp gives the Device what was kept, unless the client has left: that is what the reader does before it waits, for more from the client or for budget.
func (c *Conn) caughtUp() error {
	if c.kept.first == nil {
		c.late = false
		return nil
	}
	c.late = false
	for c.kept.first != nil {
		if c.tr.left() { // also while it is being done
			return io.EOF
		}
		c.giveKept()
	}
	c.endBatch()
	return nil
}

func (c *Conn) giveKept() {
	r := c.kept.pop()
	c.batch()
	c.give(r)
}

// endKept ends what is kept at the end of the stream: a client that said so waits for it, or at least wants it done.
func (c *Conn) endKept(err error) {
	if errors.Is(err, errDisconnect) || errors.Is(err, errDraining) {
		for c.kept.first != nil {
			c.giveKept()
		}
		return
	}
	if c.kept.first != nil {
		c.left.Store(true)
	}
	for r := c.kept.pop(); r != nil; r = c.kept.pop() {
		r.Queue(context.Canceled)
	}
}
