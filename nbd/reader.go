package nbd

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// The reader: one goroutine for each connection, though not always the same (relief.go). It takes what has arrived with one read(2), submits each request in it,
// calls Push once, sends the replies that are there already, and reads again. Large reads it makes when nothing else has arrived (share.go).

// aheadMax is how much of what follows a large payload is read along with it; directMin is from where a payload is large.
const (
	aheadMax  = 4 << 10
	directMin = 32 << 10
)

// pushBytes ends a batch early: what it moves should still be in the processor's cache when it is sent.
const pushBytes = 256 << 10

// readRequests runs until the client leaves or the connection breaks; the error says which.
func (c *Conn) readRequests() error {
	size := requestSize
	if c.terms.mode == extendedReplies {
		size = extendedRequestSize
	}
	for {
		if c.durably && c.in.buffered() == 0 {
			if c.durably = false; !c.pushLeaving() {
				return errRelieved
			}
		}
		if err := c.fill(size); err != nil {
			return err
		}
		if c.broken.Load() {
			return c.deathCause() // what was read and not begun must not begin: the client may have sent it again elsewhere
		}
		h := parseHeader(c.in.next(size), c.terms.mode)
		c.in.within, c.in.large, c.spin.parts = true, false, 0
		if err := c.request(&h); err != nil {
			return err
		}
		c.in.within = false
		c.unstall()
	}
}

// fill reads until n bytes are buffered.
func (c *Conn) fill(n int) error {
	for c.in.buffered() < n {
		if err := c.readMore(); err != nil {
			if errors.Is(err, io.EOF) && c.in.buffered() > 0 {
				return errCutShort
			}
			return err
		}
	}
	return nil
}

// readMore ends the batch, so that what has arrived is answered, and reads; before it waits, it makes the large reads.
func (c *Conn) readMore() error {
	c.endBatch()
	n, err := 0, errAgain
	for err == errAgain && c.reads != nil && c.reads.one() {
		n, err = c.tr.tryRead(&c.in, 0)
	}
	c.late = c.late || time.Since(c.arrived) > lateAfter
	if err == errAgain {
		n, err = c.await()
	}
	if err != nil {
		return c.readFailed(err)
	}
	c.arrived = time.Now()
	if c.unattended(c.arrived) {
		go func() {}()
	}
	if last := &c.srv.lastRead; last.Load() != c {
		if last.Swap(c) != nil {
			c.srv.company.Store(c.arrived.UnixNano())
		}
		c.calm = 0
		c.spin.disturbed(c.srv.spinners.calm)
	}
	c.sinceStall += n
	k := c.in.filled(n)
	if c.in.dst != nil {
		c.in.dst = c.in.dst[k:]
	}
	return nil
}

// readFailed decides what a failed read means: nil to try again.
func (c *Conn) readFailed(err error) error {
	if !timedOut(err) {
		return err
	}
	if c.broken.Load() {
		return c.deathCause()
	}
	if !c.draining.Load() {
		return fmt.Errorf("the client stopped in the middle of a request: %w", err)
	}
	if c.drainedOnce {
		return errDraining
	}
	// The first deadline was only Shutdown waking us. What comes within a moment is still answered.
	c.drainedOnce = true
	c.readUntil(time.Now().Add(c.srv.cfg.DrainTimeout))
	return nil
}

// request handles one request whose header was read: payload, admission, validation, submission.
func (c *Conn) request(h *header) error {
	want := magicRequest
	if c.terms.mode == extendedReplies {
		want = magicExtendedRequest
	}
	if h.magic != want {
		return &protocolError{fmt.Sprintf("request magic %#x", h.magic)}
	}
	if h.cmd == cmdDisc {
		return errDisconnect
	}
	payload := h.payload(c.terms.mode)
	var contexts []metaContext
	var bad *refusal
	if h.cmd == cmdBlockStatus && payload > 0 {
		var err error
		if contexts, bad, err = c.statusPayload(h, payload); err != nil {
			return err
		}
		payload = 0
	} else if h.cmd == cmdBlockStatus {
		contexts = c.terms.contexts
	}
	if bad == nil {
		bad = c.terms.validate(h)
	}
	if bad == nil && c.draining.Load() {
		if c.srv.cfg.QuietDrain {
			return errDraining
		}
		bad = errDraining
	}
	r := getRequest(c)
	r.Op, r.Offset, r.Length, r.cookie, r.flags = Op(h.cmd), h.offset, h.length, h.cookie, h.flags
	r.start, r.contexts = c.arrived, contexts
	if bad != nil {
		return c.refuse(r, bad, payload)
	}
	return c.submit(r, payload)
}

// refuse answers a bad request, after skipping its payload: the client gets an error, and the connection stays.
func (c *Conn) refuse(r *Request, bad *refusal, payload uint64) error {
	if err := c.admit(r, requestCost); err != nil {
		r.free()
		return err
	}
	skip := 2 * uint64(c.srv.cfg.MaxPayload)
	if err := c.discard(min(payload, skip)); err != nil {
		c.release(r)
		return err
	}
	c.begin(r)
	r.Queue(bad)
	if payload > skip {
		return &protocolError{fmt.Sprintf("a payload of %d bytes", payload)}
	}
	return nil
}

// zeroesCost is charged for what a Device has under way of a request to write zeros, at most.
const zeroesCost = 16 << 20

// submit reads the payload of a good request and gives it to the Device.
func (c *Conn) submit(r *Request, payload uint64) error {
	if r.Length == 0 && r.Op != OpFlush {
		return c.nothing(r) // legal for reads and writes of no bytes, and not worth a Device's trouble
	}
	cost := int64(requestCost)
	switch r.Op {
	case OpRead, OpWrite:
		cost += bufferBytes(r.Length)
	case OpWriteZeroes:
		if r.flags&cmdFlagNoHole != 0 {
			cost += int64(min(r.Length, zeroesCost))
		}
	case OpBlockStatus:
		cost += r.statusCost()
	}
	if err := c.admit(r, cost); err != nil {
		r.free()
		return err
	}
	if c.reads.takes(r) {
		c.taken++
		r.state = requestSubmitted
		c.durably = false // the client waits for this, too
		c.reads.add(r)
		return nil
	}
	if r.Op == OpRead || r.Op == OpWrite {
		r.takeBuffer()
	}
	if err := c.payload(r.Data[:payload]); err != nil {
		c.release(r)
		return err
	}
	r.FUA = r.flags&cmdFlagFUA != 0
	r.NoHole = r.flags&cmdFlagNoHole != 0
	r.FastZero = r.flags&cmdFlagFastZero != 0
	r.ReqOne = r.flags&cmdFlagReqOne != 0
	c.begin(r)
	if r.Op == OpBlockStatus {
		r.prepareExtents()
		if !c.blockStatus {
			r.Queue(nil)
			return nil
		}
	}
	if r.Op.changes() && c.keep(r) {
		return nil
	}
	c.give(r)
	return nil
}

// give gives a request to the Device.
func (c *Conn) give(r *Request) {
	if c.handOff(r) {
		return
	}
	c.pushing = true
	c.durably = c.waiter != nil && (r.Op == OpFlush || r.FUA)
	c.batchBytes += r.cost
	c.dev.Submit(r) // it may be somebody else's from here on
	if c.batchBytes >= pushBytes {
		c.endBatch()
	}
	if c.reads != nil {
		c.reads.passed()
	}
}

func (c *Conn) nothing(r *Request) error {
	if err := c.admit(r, requestCost); err != nil {
		r.free()
		return err
	}
	c.begin(r)
	r.Queue(nil)
	return nil
}

// begin counts a request as in flight. From here on it ends only by being answered.
func (c *Conn) begin(r *Request) {
	c.taken++
	r.state = requestSubmitted
	c.batch()
}

// batch begins a batch, unless there is one: what is answered in it is sent at its end.
func (c *Conn) batch() {
	if !c.inBatch {
		c.inBatch = true
		c.mu.Lock()
		c.batching = true
		c.mu.Unlock()
	}
}

// endBatch lets the Device start what it gathered, and sends what is answered already.
func (c *Conn) endBatch() {
	if c.pushing {
		c.pushing = false
		c.dev.Push()
	}
	if !c.inBatch {
		return
	}
	c.inBatch, c.batchBytes = false, 0
	c.mu.Lock()
	c.batching = false
	c.mu.Unlock()
	c.sendQueued()
}
