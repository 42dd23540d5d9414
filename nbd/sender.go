package nbd

import (
	"fmt"
	"time"
)

// The sender: whoever answers a request while nobody sends becomes the sender, and takes along what others queue meanwhile. It
// writes without waiting; when the socket is full, the connection's writer goroutine goes on from there.

// A batch is bounded so that budget comes back while a long queue is being sent.
const (
	batchBufs  = 1024
	batchBytes = 1 << 20
)

// output is the batch that is being sent.
type output struct {
	reqs requestList
	bufs [][]byte // what is left to send
	mem  [][]byte // the memory of bufs
}

// answer encodes and queues a reply. It returns whether the caller has to send.
func (c *Conn) answer(r *Request, err error) bool {
	if r.state != requestSubmitted {
		panic("nbd: a request was answered twice")
	}
	r.state = requestAnswered
	r.encode(c.terms.mode, c.terms.minBlock, err)
	switch {
	case c.givenUp(err):
		c.die(errGivenUp)
	case r.code != codeOK:
		c.srv.logFailure(c, r, err)
	}
	c.mu.Lock()
	c.queue.push(r)
	c.answered++
	if c.dead != nil && !c.writing {
		c.dropQueue()
	}
	c.wakeLocked()
	send := !c.batching && !c.writing
	c.mu.Unlock()
	return send
}

// Flush sends all queued replies without waiting; what the socket does not take, the writer goroutine sends later.
func (c *Conn) Flush() { c.sendQueued() }

func (c *Conn) sendQueued() {
	c.mu.Lock()
	if c.writing || c.batching || c.queue.first == nil {
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.mu.Unlock()
	if c.turn.Load()%2 == 1 && c.tr.arrived() {
		c.sentMore.Store(true)
	}
	c.send(false)
}

// send sends batches until the queue is empty, as the one that set writing. Without wait it gives up where the socket is
// full, and has the writer goroutine go on.
func (c *Conn) send(wait bool) {
	for {
		if len(c.out.bufs) == 0 && !c.nextBatch() {
			return
		}
		var n int
		var err error
		if wait {
			n, err = c.tr.write(c.out.bufs)
		} else if n, err = c.tr.tryWrite(c.out.bufs); err == errAgain {
			c.handOver()
			return
		}
		if err != nil {
			c.die(fmt.Errorf("sending a reply: %w", err))
			c.out.bufs = c.out.bufs[:0]
			continue // nextBatch cleans up
		}
		c.out.sent(n)
		if wait {
			c.writeUntil(time.Now().Add(c.srv.cfg.StallTimeout)) // there was progress
		}
	}
}

// nextBatch frees the batch that was sent and takes the next one. It returns false, and ends the sending, if there is none.
func (c *Conn) nextBatch() bool {
	freed, count, stats := c.finishBatch()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveBack(freed)
	c.inFlight -= count
	c.stats.add(stats)
	if c.dead != nil {
		c.dropQueue()
	}
	if c.queue.first == nil {
		clear(c.out.mem) // no reply's memory hangs on an idle connection
		c.writing, c.blocked = false, false
		c.wakeLocked()
		return false
	}
	if freed > 0 {
		c.wakeLocked()
	}
	c.out.take(&c.queue)
	return true
}

// finishBatch frees the requests whose replies are on their way, or lost.
func (c *Conn) finishBatch() (freed int64, count int, stats ConnStats) {
	if c.out.reqs.first == nil {
		return
	}
	observe := c.srv.cfg.Observe
	var now time.Time
	if observe != nil {
		now = time.Now()
	}
	for r := c.out.reqs.pop(); r != nil; r = c.out.reqs.pop() {
		freed += r.cost
		count++
		stats.count(r)
		if observe != nil {
			observe(r.Op, r.Length, now.Sub(r.start), r.code)
		}
		r.free()
	}
	return
}

func (s *ConnStats) count(r *Request) {
	s.Requests++
	switch {
	case r.code != codeOK:
		s.Errors++
	case r.Op == OpRead:
		s.Reads++
		s.BytesRead += r.Length
	case r.Op == OpWrite:
		s.Writes++
		s.BytesWritten += r.Length
	}
}

func (s *ConnStats) add(o ConnStats) {
	s.Requests += o.Requests
	s.Errors += o.Errors
	s.Reads += o.Reads
	s.Writes += o.Writes
	s.BytesRead += o.BytesRead
	s.BytesWritten += o.BytesWritten
}

// take fills an empty batch from the queue.
func (o *output) take(q *requestList) {
	o.bufs = o.mem[:0]
	size := 0
	for q.first != nil && len(o.bufs)+2*holesMax+2 <= batchBufs && size < batchBytes {
		r := q.pop()
		o.reqs.push(r)
		size += len(r.head) + len(r.Data)
		o.add(r)
	}
	o.mem = o.bufs
}

// add appends the pieces of one reply. Headers that follow each other are still pieces of their own: they lie in their requests.
func (o *output) add(r *Request) {
	if len(r.frags) == 0 {
		o.bufs = append(o.bufs, r.head)
		if r.data && len(r.Data) > 0 {
			o.bufs = append(o.bufs, r.Data)
		}
		return
	}
	head := r.head
	for _, f := range r.frags {
		o.bufs = append(o.bufs, head[:f.head])
		head = head[f.head:]
		if f.dataLen > 0 {
			o.bufs = append(o.bufs, r.Data[f.dataOff:f.dataOff+f.dataLen])
		}
	}
}

// sent drops the first n bytes.
func (o *output) sent(n int) {
	for n > 0 {
		if n < len(o.bufs[0]) {
			o.bufs[0] = o.bufs[0][n:]
			return
		}
		n -= len(o.bufs[0])
		o.bufs = o.bufs[1:]
	}
}

// handOver passes the role of the sender to the writer goroutine, which is started when it is first needed and lives as long as
// the connection.
func (c *Conn) handOver() {
	c.mu.Lock()
	if c.writer == nil {
		c.writer = make(chan struct{}, 1)
		go c.write(c.writer)
	}
	c.blocked = true
	w := c.writer
	c.mu.Unlock()
	w <- struct{}{} // never waits: there is one sender, and it is us
}

func (c *Conn) write(turns <-chan struct{}) {
	for range turns {
		c.writeUntil(time.Now().Add(c.srv.cfg.StallTimeout))
		c.send(true)
		c.writeUntil(time.Time{})
	}
}

// writeUntil sets the date by which the client must have taken something, unless the connection is dead already.
func (c *Conn) writeUntil(at time.Time) {
	_ = c.tr.setWriteDeadline(at)
	if c.broken.Load() {
		_ = c.tr.setWriteDeadline(past) // die's own deadline may have come before ours
	}
}
