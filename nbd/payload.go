package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// payload reads exactly len(dst) bytes: what is buffered is copied, the rest goes straight to its place.
func (c *Conn) payload(dst []byte) error {
	n := min(len(dst), c.in.buffered())
	if n > 0 {
		copy(dst, c.in.next(n))
		dst = dst[n:]
	}
	if len(dst) == 0 {
		return nil
	}
	c.in.dst, c.in.ahead = dst, c.in.size
	if len(dst) >= directMin {
		c.in.large = true
		c.in.ahead = min(aheadMax, c.in.size)
	}
	defer func() { c.in.dst = nil }()
	for len(c.in.dst) > 0 {
		if err := c.readMore(); err != nil {
			return withinRequest(err)
		}
	}
	return nil
}

// discard skips a payload that nobody wants.
func (c *Conn) discard(n uint64) error {
	for n > 0 {
		if c.in.buffered() == 0 {
			if err := c.fill(1); err != nil {
				return withinRequest(err)
			}
		}
		k := min(n, uint64(c.in.buffered()))
		c.in.next(int(k))
		n -= k
	}
	return nil
}

// errCutShort is the end of the stream where it should not be: the client has left all the same.
var errCutShort = fmt.Errorf("nbd: the connection ended within a request: %w", io.EOF)

func withinRequest(err error) error {
	if errors.Is(err, io.EOF) {
		return errCutShort
	}
	return err
}

// stallBytes is what must come of a long request until its date, for a later one: who sends that slowly goes on, who trickles does not.
const stallBytes = 256 << 10

// stall gives a client that stopped in the middle of a request a last date; unstall lifts it.
func (c *Conn) stall() {
	if c.stalled && c.sinceStall < stallBytes || c.draining.Load() {
		return
	}
	c.stalled, c.sinceStall = true, 0
	c.readUntil(time.Now().Add(c.srv.cfg.StallTimeout))
}

func (c *Conn) unstall() {
	if c.stalled {
		c.stalled = false
		if !c.drainedOnce { // else the date is the drain's
			c.readUntil(time.Time{})
		}
	}
}

// readUntil sets the reader's deadline, unless somebody wants it awake: that wish must not be overwritten.
func (c *Conn) readUntil(at time.Time) {
	_ = c.tr.setReadDeadline(at)
	if c.broken.Load() || c.draining.Load() && !c.drainedOnce {
		_ = c.tr.setReadDeadline(past)
	}
}

// statusPayload reads what a BLOCK_STATUS with a payload asks, and puts the effect length into the header.
//
//	| effect length 8 | context id 4 ... |
func (c *Conn) statusPayload(h *header, payload uint64) ([]metaContext, *refusal, error) {
	h.flags &^= cmdFlagPayloadLen
	if payload < 8 || payload%4 != 0 || payload > 8+4*uint64(len(c.terms.contexts)) {
		if payload > 2*uint64(c.srv.cfg.MaxPayload) {
			return nil, nil, &protocolError{fmt.Sprintf("a payload of %d bytes", payload)}
		}
		return nil, errStatusPayload, c.discard(payload)
	}
	if err := c.fill(int(payload)); err != nil {
		return nil, nil, withinRequest(err)
	}
	b := c.in.next(int(payload))
	h.length = binary.BigEndian.Uint64(b)
	var list []metaContext
	for b = b[8:]; len(b) > 0; b = b[4:] {
		id := binary.BigEndian.Uint32(b)
		if int64(id) >= int64(len(c.terms.contexts)) || containsContext(list, id) {
			return nil, errStatusPayload, nil
		}
		list = append(list, c.terms.contexts[id])
	}
	if len(list) == 0 {
		return nil, errStatusPayload, nil
	}
	return list, nil, nil
}

func containsContext(list []metaContext, id uint32) bool {
	for _, m := range list {
		if m.id == id {
			return true
		}
	}
	return false
}
