package nbd

import (
	"sync"
	"time"
)

// Op is what a request asks for. The values are the protocol's command numbers.
type Op uint16

// The commands that reach a Device. All but the first three need an [ExportInfo] that offers them.
const (
	OpRead        = Op(cmdRead)        // fill Data
	OpWrite       = Op(cmdWrite)       // store Data
	OpFlush       = Op(cmdFlush)       // make durable what was answered before; Offset and Length are 0
	OpTrim        = Op(cmdTrim)        // the range is not needed any more: it may read as anything
	OpCache       = Op(cmdCache)       // the range will be read soon: a hint
	OpWriteZeroes = Op(cmdWriteZeroes) // the range reads as zeros
	OpBlockStatus = Op(cmdBlockStatus) // tell extents by AddExtent, then answer
)

// changes says whether the export is another after it.
func (o Op) changes() bool { return o == OpWrite || o == OpTrim || o == OpWriteZeroes }

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpCache:
		return "cache"
	case OpWriteZeroes:
		return "write-zeroes"
	case OpBlockStatus:
		return "block-status"
	}
	return "unknown"
}

// Request is one command of a client. It belongs to the Device from Submit until Done or Queue, and to nobody after.
// Requests are pooled: nothing is allocated for one on the way through.
type Request struct {
	Op     Op
	Offset uint64
	Length uint64 // bytes concerned; Offset+Length is within the export, and Length is not 0 except for OpFlush

	FUA      bool // answer only when what this request wrote is durable
	NoHole   bool // OpWriteZeroes: leave the range provisioned
	FastZero bool // OpWriteZeroes: errors.ErrUnsupported, quickly, unless this is faster than writing
	ReqOne   bool // OpBlockStatus: one extent is enough

	// Data is the payload. OpWrite: the bytes to write. OpRead: Length bytes of arbitrary content, to be filled, except
	// for what Zeroes covers. It is 4096-aligned and part of Buffer.
	Data []byte

	// Tag and Aux are the Device's own, empty at Submit but for what Prepare left there, so that it needs no map from requests to its state.
	Tag any
	Aux uint64

	conn   *Conn
	next   *Request // in a requestList
	buf    *Buffer
	cookie uint64
	flags  uint16
	cost   int64 // bytes of budget held
	start  time.Time
	state  requestState

	contexts []metaContext // OpBlockStatus: what the client asks about
	extents  []extentList  // one for each of contexts; the memory is reused
	holes    []span        // OpRead: ranges of Data that read as zeros

	head  []byte // the encoded reply, but for Data
	frags []frag // how head and Data interleave; empty: head, then Data
	code  uint32 // NBD error of the reply
	data  bool   // the reply carries Data
}

// requestState guards against a Device that answers twice, which would corrupt somebody else's request.
type requestState uint8

const (
	requestFree      requestState = iota
	requestSubmitted              // the Device's
	requestAnswered               // queued, or being sent
)

type metaContext struct {
	id   uint32
	name string
}

type span struct{ off, len int } // within Data

type frag struct{ head, dataOff, dataLen int } // the next head bytes of Request.head, then a piece of Data

var requestPool = sync.Pool{New: func() any { return &Request{head: make([]byte, 0, 64)} }}

// Conn is the connection that the request came on.
func (r *Request) Conn() *Conn { return r.conn }

// Buffer is the memory behind Data, for a Device that wants to keep it longer than the request. It is nil where
// there is no payload.
func (r *Request) Buffer() *Buffer { return r.buf }

// Done answers the request: nil for success. The reply leaves soon, with those of others that are done at the same time.
func (r *Request) Done(err error) {
	c := r.conn
	if c.answer(r, err) {
		c.sendQueued()
	}
}

// Queue answers like Done, but the reply stays until somebody calls Flush on the returned connection; the caller
// promises to do so soon. It is for whoever completes many requests in one go.
func (r *Request) Queue(err error) *Conn {
	c := r.conn
	c.answer(r, err)
	return c
}

// Zeroes says that Data[off:off+n] of an OpRead reads as zeros. The Device need not clear those bytes then, and a client
// that understands holes gets one instead of bytes. Calls come in ascending order and don't overlap.
func (r *Request) Zeroes(off, n int) {
	if n <= 0 || off < 0 || off+n > len(r.Data) {
		return
	}
	if k := len(r.holes); k > 0 && r.holes[k-1].off+r.holes[k-1].len == off {
		r.holes[k-1].len += n
		return
	}
	r.holes = append(r.holes, span{off, n})
}

func getRequest(c *Conn) *Request {
	r := requestPool.Get().(*Request)
	r.conn = c
	return r
}

// takeBuffer takes the memory for a payload.
func (r *Request) takeBuffer() {
	r.buf = NewBuffer(int(r.Length))
	r.Data = r.buf.mem[:r.Length:r.Length]
}

// headKept is how long an encoded reply may have been for its memory to be used again. Longer ones are long lists of extents: their memory is
// charged while they are under way, and not kept by requests that are charged less.
const headKept = 16 << 10

// free gives a request back to the pool.
func (r *Request) free() {
	if r.buf != nil {
		r.buf.Release()
	}
	for i := range r.extents {
		r.extents[i].reset()
	}
	if cap(r.head) > headKept {
		r.head, r.extents = nil, nil
	}
	*r = Request{
		head: r.head[:0], frags: r.frags[:0], holes: r.holes[:0], extents: r.extents[:0],
	}
	requestPool.Put(r)
}

// requestList is a queue without memory of its own.
type requestList struct{ first, last *Request }

func (l *requestList) push(r *Request) {
	r.next = nil
	if l.first == nil {
		l.first = r
	} else {
		l.last.next = r
	}
	l.last = r
}

func (l *requestList) pop() *Request {
	r := l.first
	if r != nil {
		l.first, r.next = r.next, nil
		if l.first == nil {
			l.last = nil
		}
	}
	return r
}
