package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is one client's connection in its transmission phase.
//
//	handshake ─► serving ─► finishing ─► closed
//	                │            ▲
//	                └► draining ─┘   (Shutdown: requests get ESHUTDOWN)
//
// serving ends by DISC, end of file, an error of the socket, or Kill. finishing starts no request any more; it waits until
// every request was answered by the Device, and, where the socket still works, until every reply was sent.
type Conn struct {
	srv    *Server
	log    *slog.Logger
	peer   Peer
	name   string // export
	asked  string // the name that the client used for it
	opened time.Time

	nc       net.Conn
	tr       transport
	dev      Device
	preparer Preparer // dev, if it is one
	waiter   Waiter   // dev, if it is one
	terms    terms
	cancel   context.CancelFunc // ends the Device's context

	turn    atomic.Uint64 // odd while the reader waits for the Device: who makes it even by compare-and-swap is the reader
	watched atomic.Bool   // the relief looks at turn

	sentMore atomic.Bool // the client sent something while the reader waited

	in         input  // reader goroutine only
	taken      uint64 // requests taken from the client so far; reader goroutine only
	inBatch    bool   // a request was taken since the last endBatch
	batchBytes int64  // what they move
	pushing    bool   // something was submitted since the last Push
	durably    bool   // a flush or FUA was
	calm       int    // how many of those since something else came
	spin       spinner
	submitter  *submitter
	reads      *sharing // nil: the Device is no Sharer
	stalled    bool     // a deadline runs for the rest of a request
	sinceStall int      // bytes that came since it was set
	arrived    time.Time
	late       bool        // the reader was held up, and what it reads may have lain there
	kept       requestList // changes that came late, until it is known whether the client is there

	drainedOnce bool // reader goroutine only: Shutdown's wake-up was seen
	blockStatus bool // the Device understands OpBlockStatus

	draining atomic.Bool
	broken   atomic.Bool // dead is set
	left     atomic.Bool // the client ended its side without a DISC

	wake chan struct{} // to the reader, when it waits for answers or for budget

	mu       sync.Mutex // guards what follows
	queue    requestList
	answered uint64
	held     int64 // bytes of budget
	buried   bool  // they are counted as those of the dead (dead.go)
	inFlight int   // requests that hold them
	batching bool  // the reader is submitting, and will send what is queued when it is through
	writing  bool  // somebody sends; whoever queues meanwhile may leave
	blocked  bool  // and that is the writer goroutine, because the socket was full
	waiting  bool  // the reader wants a wake
	dead     error // the socket is of no use any more
	stats    ConnStats

	out    output        // belongs to whoever set writing
	writer chan struct{} // hands out and writing over to the writer goroutine; nil until first needed
}

// ConnStats counts what a connection did.
type ConnStats struct {
	Requests, Errors, Reads, Writes uint64
	BytesRead, BytesWritten         uint64
}

// requestCost is charged to the budget for each request besides its payload.
const requestCost = 512

func newConn(s *Server, nc net.Conn, peer Peer, log *slog.Logger) *Conn {
	return &Conn{srv: s, nc: nc, peer: peer, log: log, wake: make(chan struct{}, 1), opened: time.Now()}
}

// serve runs the transmission phase until it has ended, whoever ends it, or until another goroutine does that.
func (c *Conn) serve() {
	err := c.readRequests()
	if err == errRelieved {
		return
	}
	c.endKept(err)
	c.endBatch()
	if err != nil && err != io.EOF && !c.ended(err) {
		c.log.Info("nbd connection ended", "err", err)
	}
	c.finish(err)
	c.srv.leave(nil, c)
}

// errRelieved says that another goroutine is the reader now.
var errRelieved = errors.New("nbd: relieved")

// errDisconnect is a client's orderly goodbye.
var errDisconnect = errors.New("nbd: the client disconnected")

func (c *Conn) ended(err error) bool {
	return errors.Is(err, errDisconnect) || errors.Is(err, errDraining) || errors.Is(err, net.ErrClosed)
}

// finish waits for the requests in flight and closes. A client that is merely through with sending (DISC, or end of file) still gets its
// replies; when the socket broke, the Device is told through its context that nobody waits any more.
func (c *Conn) finish(err error) {
	orderly := errors.Is(err, errDisconnect) || errors.Is(err, errDraining) || errors.Is(err, io.EOF)
	var pe *protocolError
	if !orderly && !errors.As(err, &pe) {
		c.die(err)
	}
	// Reads that came before the end begin before the Device's context ends: they are answered then, if anybody is there. Writes that wait for the submitter must not: a
	// client that left may send them again elsewhere, and write something else there before these begin.
	if c.reads != nil {
		c.reads.all()
		c.reads.end()
	}
	if errors.Is(err, io.EOF) {
		c.left.Store(true)
		c.cancel() // a client that left without a DISC has died
	}
	if c.left.Load() || c.broken.Load() {
		c.bury()
	}
	c.waitUntil(func() bool { return c.answered == c.taken && !c.writing && (c.dead != nil || c.queue.first == nil) })
	c.cancel()
	if c.submitter != nil {
		c.submitter.end()
	}
	if err := c.dev.Close(); err != nil {
		c.log.Warn("nbd device did not close well", "err", err)
	}
	c.mu.Lock()
	if c.dead == nil {
		c.dead = net.ErrClosed
	}
	writer := c.writer
	c.mu.Unlock()
	if writer != nil {
		close(writer)
	}
	_ = c.tr.close()
	c.in.drop()
	c.srv.lastRead.CompareAndSwap(c, nil)
}

// die marks the socket as useless: nothing is sent any more, and requests not yet started are the Device's to give up.
func (c *Conn) die(err error) {
	c.mu.Lock()
	if c.dead == nil {
		c.dead = err
	}
	c.broken.Store(true)
	if !c.writing {
		c.dropQueue()
	}
	c.wakeLocked()
	c.mu.Unlock()
	c.cancel()
	_ = c.tr.setReadDeadline(past) // the reader, if it is not the caller
	_ = c.tr.setWriteDeadline(past)
}

func (c *Conn) deathCause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

var past = time.Unix(1, 0)

// dropQueue frees replies that nobody will read. Under mu; nobody may be writing.
func (c *Conn) dropQueue() {
	var freed int64
	for r := c.queue.pop(); r != nil; r = c.queue.pop() {
		freed += r.cost
		c.inFlight--
		r.free()
	}
	c.giveBack(freed)
}

// waitUntil sleeps until cond, which is evaluated under mu after every answer and every send.
func (c *Conn) waitUntil(cond func() bool) {
	c.mu.Lock()
	for !cond() {
		c.waiting = true
		c.mu.Unlock()
		<-c.wake
		c.mu.Lock()
	}
	c.waiting = false
	c.mu.Unlock()
}

func (c *Conn) wakeLocked() {
	if c.waiting {
		c.wakeReader()
	}
}

func (c *Conn) wakeReader() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Export is the name of the export, Peer the client.
func (c *Conn) Export() string { return c.name }
func (c *Conn) Peer() Peer     { return c.peer }

// Opened is when the client connected.
func (c *Conn) Opened() time.Time { return c.opened }

// Stats counts what the connection did so far.
func (c *Conn) Stats() ConnStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Kill cuts the connection off. Requests that the Device has are finished, but nobody hears of them.
func (c *Conn) Kill() { c.die(errKilled) }

// givenUp tells a request that the Device gave up because of the end of its context from one that failed. Should anybody read yet, he must not take that for an
// answer: without one he sends it again elsewhere.
func (c *Conn) givenUp(err error) bool {
	return errors.Is(err, context.Canceled) && (c.left.Load() || c.broken.Load())
}

var errGivenUp = errors.New("nbd: a request was given up, since its client had left")

var errKilled = errors.New("nbd: the connection was cut off by the server")

// drain makes the reader answer ESHUTDOWN for a moment and then leave.
func (c *Conn) drain() {
	c.draining.Store(true)
	_ = c.tr.setReadDeadline(past)
}

// timedOut tells a deadline from other errors.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
