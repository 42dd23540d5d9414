package wire

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Caller is a connection for asking one thing at a time and waiting for it: the control plane's. Safe for concurrent use.
type Caller struct {
	conn *Conn
	mu   sync.Mutex
	next uint64
	wait map[uint64]chan answer
	err  error
}

type answer struct {
	h    Header
	meta []byte
	data []byte
}

// Call opens a connection to addr for requests.
func DialCaller(n Network, addr string, timeout time.Duration) (*Caller, error) {
	c := &Caller{wait: map[uint64]chan answer{}}
	conn, err := DialFrames(n, addr, timeout, c)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	conn.Start()
	return c, nil
}

// Do sends a request and waits for its answer: the answer's header and copies of its meta and data. An answer with any status is no error here.
func (c *Caller) Do(ctx context.Context, h Header, meta, data []byte) (Header, []byte, []byte, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return Header{}, nil, nil, c.err
	}
	c.next++
	h.ID = c.next
	c.wait[h.ID] = ch
	c.mu.Unlock()
	c.conn.Send(&h, meta, data, nil)
	c.conn.Flush()
	select {
	case a, ok := <-ch:
		if !ok {
			return Header{}, nil, nil, c.err
		}
		return a.h, a.meta, a.data, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.wait, h.ID)
		c.mu.Unlock()
		return Header{}, nil, nil, fmt.Errorf("%s of %s: %w", h.Kind, c.conn.RemoteAddr(), context.Cause(ctx))
	}
}

// Frame takes an answer.
func (c *Caller) Frame(_ *Conn, f *Frame, _ *Batch) {
	c.mu.Lock()
	ch := c.wait[f.ID]
	delete(c.wait, f.ID)
	c.mu.Unlock()
	if ch != nil && f.Kind&KindAnswer != 0 {
		ch <- answer{f.Header, append([]byte(nil), f.Meta...), append([]byte(nil), f.Data...)}
	}
}

// Closed fails what waits.
func (c *Caller) Closed(_ *Conn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		if err == nil {
			c.err = fmt.Errorf("connection closed")
		}
	}
	for id, ch := range c.wait {
		close(ch)
		delete(c.wait, id)
	}
}

// Err is why the connection ended; nil while it lives.
func (c *Caller) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection.
func (c *Caller) Close() { c.conn.Close(fmt.Errorf("closed")) }
