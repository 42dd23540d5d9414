package nbd

import (
	"errors"
	"io"
	"net"
	"time"
)

// errAgain says that the socket takes nothing more right now.
var errAgain = errors.New("nbd: would block")

// intake is where a transport puts what it reads. Both methods run on the reading goroutine.
type intake interface {
	// space is where the next bytes go: first a, then b, which may be empty.
	space() (a, b []byte)
	// idle is called when there is nothing to read, before waiting; space is asked again after it.
	idle()
}

// transport moves bytes for one connection. One goroutine reads; one at a time writes.
type transport interface {
	// read takes what has arrived with one system call, waiting for the first byte.
	read(in intake) (int, error)
	// tryRead is read that says errAgain instead of waiting, after it has looked for a while.
	tryRead(in intake, while time.Duration) (int, error)
	// tryWrite writes what it can without waiting; errAgain if that is nothing.
	tryWrite(bufs [][]byte) (int, error)
	// write waits until at least something is written.
	write(bufs [][]byte) (int, error)
	// arrived says whether there is something to read; true where that is not known. Whoever writes may call it.
	arrived() bool
	// left says whether the peer has ended its side, though there may be more of it to read; false where that is not known. Anybody may ask.
	left() bool
	setReadDeadline(t time.Time) error
	setWriteDeadline(t time.Time) error
	close() error
}

// plainTransport works on any net.Conn, such as a TLS connection or a pipe. It cannot know whether a write would
// wait, so all writing is left to the connection's writer goroutine.
type plainTransport struct {
	nc   net.Conn
	join []byte // small pieces are joined, so that they become one TLS record
}

// joinMax is the longest piece that is worth copying rather than writing on its own, and joinSize what is joined at most.
const (
	joinMax  = 16 << 10
	joinSize = 64 << 10
)

// writeSize is what one call writes at most: a write's deadline is for all of it, and who takes little at a time is no client that takes nothing.
const writeSize = 256 << 10

func newPlainTransport(nc net.Conn) *plainTransport { return &plainTransport{nc: nc} }

func (t *plainTransport) arrived() bool { return true }

func (t *plainTransport) left() bool {
	if s, ok := t.nc.(interface{ NetConn() net.Conn }); ok { // TLS
		return peerLeft(s.NetConn())
	}
	return false
}

func (t *plainTransport) read(in intake) (int, error) {
	in.idle()
	a, _ := in.space()
	n, err := t.nc.Read(a)
	if n > 0 {
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, err
}

func (t *plainTransport) tryRead(intake, time.Duration) (int, error) { return 0, errAgain }

func (t *plainTransport) tryWrite([][]byte) (int, error) { return 0, errAgain }

func (t *plainTransport) write(bufs [][]byte) (int, error) {
	if len(bufs) > 1 && len(bufs[0]) <= joinMax {
		t.join = t.join[:0]
		for _, b := range bufs {
			if len(b) > joinMax || len(t.join)+len(b) > joinSize {
				break
			}
			t.join = append(t.join, b...)
		}
		return t.nc.Write(t.join)
	}
	return t.nc.Write(bufs[0][:min(len(bufs[0]), writeSize)])
}

func (t *plainTransport) setReadDeadline(at time.Time) error  { return t.nc.SetReadDeadline(at) }
func (t *plainTransport) setWriteDeadline(at time.Time) error { return t.nc.SetWriteDeadline(at) }
func (t *plainTransport) close() error                        { return t.nc.Close() }
