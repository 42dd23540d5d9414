package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	readBufBytes = 256 << 10
	readBufFirst = 8 << 10
	// Data up to this size is copied behind its header: cheaper than one more piece for writev. Larger data is sent from where it lies.
	copyBytesMax = 16 << 10
	// What may wait for a peer that does not read. In-flight bounds above keep it far below; beyond, the peer is as good as gone.
	queueBytesMax = 512 << 20
	// A write that makes no progress this long ends the connection.
	writeStallMax = 10 * time.Second
)

// Handler takes what arrives on a connection, in the connection's reader goroutine: it must not wait for a peer.
type Handler interface {
	// Frame handles one frame. What it gathers in b is done when all frames that have arrived are handled.
	Frame(c *Conn, f *Frame, b *Batch)
	// Closed is called once, after the last Frame, with the reason.
	Closed(c *Conn, err error)
}

// Conn is a connection that carries frames. Send and Flush may be called from any goroutine.
type Conn struct {
	nc   net.Conn
	h    Handler
	User any // the handler's own; set before Start

	mu      sync.Mutex // guards what follows
	segs    []segment  // queued, oldest first
	queued  int        // bytes in segs
	writing bool       // somebody is writing; he takes what is queued meanwhile
	closed  bool
	err     error

	out   pieces // the active writer's
	wake  chan struct{}
	ended chan struct{}

	raw      syscall.RawConn // nil: no inline writes
	rawWrite func(fd uintptr) bool
}

// segment is a run of queued bytes. Small frames share one that this connection owns; large data stands alone and is held.
type segment struct {
	b     []byte
	owner Holder  // released when written
	chunk *[]byte // b lies in this pooled chunk
}

var chunkPool = sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}

// NewConn makes a connection of nc. Frames are handled once Start is called.
func NewConn(nc net.Conn, h Handler) *Conn {
	c := &Conn{nc: nc, h: h, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	if t, ok := nc.(*net.TCPConn); ok {
		t.SetNoDelay(true)
		if raw, err := t.SyscallConn(); err == nil {
			c.raw, c.rawWrite = raw, c.out.tryWrite
		}
	}
	return c
}

// Start begins to read and handle frames.
func (c *Conn) Start() {
	go c.writeLoop()
	go c.readLoop()
}

// RemoteAddr says who is at the other end.
func (c *Conn) RemoteAddr() string { return c.nc.RemoteAddr().String() }

// Close ends the connection; Handler.Closed follows with err. It may be called more than once.
func (c *Conn) Close(err error) {
	c.mu.Lock()
	if !c.closed {
		c.closed, c.err = true, err
		close(c.ended)
		c.nc.Close()
		if !c.writing {
			c.dropQueued()
		}
	}
	c.mu.Unlock()
}

// Ended is closed when the connection is.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// dropQueued releases what will not be written. mu is held.
func (c *Conn) dropQueued() {
	for i := range c.segs {
		c.segs[i].release()
	}
	c.segs, c.queued = c.segs[:0], 0
}

func (s *segment) release() {
	if s.owner != nil {
		s.owner.Release()
	}
	if s.chunk != nil {
		*s.chunk = (*s.chunk)[:0]
		chunkPool.Put(s.chunk)
	}
	*s = segment{}
}

// Send queues a frame. meta and small data are copied; larger data is retained through owner until it is written (owner nil: copied).
// Nothing is sent before Flush. On a closed connection the frame is dropped: Handler.Closed says so.
func (c *Conn) Send(h *Header, meta, data []byte, owner Holder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if c.queued > queueBytesMax {
		go c.Close(fmt.Errorf("%s does not read: %d bytes wait for it", c.RemoteAddr(), c.queued))
		return
	}
	inline := len(meta)
	if len(data) <= copyBytesMax || owner == nil {
		inline += len(data)
	}
	s := c.tail(headBytes + inline)
	before := len(s.b)
	s.b = appendHead(s.b, h, meta, len(data))
	s.b = append(s.b, meta...)
	if inline > len(meta) {
		s.b = append(s.b, data...)
	}
	if s.chunk != nil {
		*s.chunk = s.b
	}
	c.queued += len(s.b) - before
	if len(data) > 0 && inline == len(meta) {
		owner.Retain()
		c.segs = append(c.segs, segment{b: data, owner: owner})
		c.queued += len(data)
	}
}

// tail returns a segment of our own with room for n bytes.
func (c *Conn) tail(n int) *segment {
	if len(c.segs) > 0 {
		if s := &c.segs[len(c.segs)-1]; s.owner == nil && cap(s.b)-len(s.b) >= n {
			return s
		}
	}
	chunk := chunkPool.Get().(*[]byte)
	if cap(*chunk) < n {
		chunkPool.Put(chunk)
		c.segs = append(c.segs, segment{b: make([]byte, 0, n)})
	} else {
		c.segs = append(c.segs, segment{b: (*chunk)[:0], chunk: chunk})
	}
	return &c.segs[len(c.segs)-1]
}

// Flush sends what is queued, as far as the socket takes it without blocking; the writer goroutine sends the rest.
func (c *Conn) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.writing && !c.closed && len(c.segs) > 0 {
		c.writing = true
		c.out.take(&c.segs)
		c.queued = 0
		if c.raw == nil {
			c.wake <- struct{}{}
			return
		}
		c.mu.Unlock()
		err := c.raw.Write(c.rawWrite)
		if err == nil {
			err = c.out.err
		}
		c.mu.Lock()
		switch {
		case err != nil && !errors.Is(err, syscall.EAGAIN):
			c.finishWrite(err)
		case len(c.out.segs) > 0:
			c.wake <- struct{}{} // cap 1, and only the one who is writing sends
			return
		default:
			c.writing = false
		}
	}
}

// finishWrite ends the connection after a failed write. mu is held.
func (c *Conn) finishWrite(err error) {
	c.out.drop()
	c.writing = false
	if c.closed {
		c.dropQueued()
		return
	}
	c.mu.Unlock()
	c.Close(err)
	c.mu.Lock()
}

// writeLoop writes what an inline write left over.
func (c *Conn) writeLoop() {
	for {
		select {
		case <-c.wake:
		case <-c.ended:
			c.mu.Lock()
			if c.writing { // handed to us in the same moment
				select {
				case <-c.wake:
					c.finishWrite(c.err)
				default:
				}
			}
			c.mu.Unlock()
			return
		}
		for {
			err := c.out.writeAll(c.nc)
			c.mu.Lock()
			if err != nil {
				c.finishWrite(err)
				c.mu.Unlock()
				return
			}
			if len(c.segs) == 0 || c.closed {
				c.writing = false
				if c.closed {
					c.dropQueued()
				}
				c.mu.Unlock()
				break
			}
			c.out.take(&c.segs)
			c.queued = 0
			c.mu.Unlock()
		}
	}
}

// readLoop handles frames until the connection ends.
func (c *Conn) readLoop() {
	r := reader{nc: c.nc, buf: make([]byte, readBufFirst), max: readBufBytes}
	var b Batch
	var f Frame // one for all frames: handlers keep nothing of it
	var err error
	for err == nil {
		if err = r.fill(); err != nil {
			break
		}
		for {
			var ok bool
			if f, ok, err = r.next(); err != nil || !ok {
				break
			}
			c.h.Frame(c, &f, &b)
			if f.buf != nil {
				f.buf.Release()
			}
		}
		b.End()
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s closed the connection", c.RemoteAddr())
	}
	c.Close(err)
	c.mu.Lock()
	err = c.err
	c.mu.Unlock()
	c.h.Closed(c, err)
}
