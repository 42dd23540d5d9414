package wire

import (
	"net"
	"syscall"
	"time"
	"unsafe"
)

// iovMax bounds the pieces of one writev(2); Linux takes 1,024.
const iovMax = 256

// pieces is what an active writer has taken to write. Only one goroutine uses it at a time.
type pieces struct {
	segs []segment
	iov  [iovMax]syscall.Iovec
	err  error
}

// take exchanges an empty list for the queued one.
func (p *pieces) take(segs *[]segment) {
	p.segs, *segs = *segs, p.segs[:0]
	p.err = nil
}

// advance drops the first n bytes, which are written.
func (p *pieces) advance(n int) {
	i := 0
	for i < len(p.segs) && n >= len(p.segs[i].b) {
		n -= len(p.segs[i].b)
		p.segs[i].release()
		i++
	}
	p.segs = p.segs[:copy(p.segs, p.segs[i:])]
	if n > 0 {
		p.segs[0].b = p.segs[0].b[n:]
	}
}

func (p *pieces) drop() {
	for i := range p.segs {
		p.segs[i].release()
	}
	p.segs = p.segs[:0]
}

// tryWrite writes until all is written or the socket would block. It is called with the descriptor by RawConn.Write and always says done.
func (p *pieces) tryWrite(fd uintptr) bool {
	for len(p.segs) > 0 {
		n := 0
		for n < len(p.segs) && n < iovMax {
			b := p.segs[n].b
			p.iov[n].Base = unsafe.SliceData(b)
			p.iov[n].SetLen(len(b))
			n++
		}
		w, _, errno := syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&p.iov[0])), uintptr(n))
		clear(p.iov[:n])
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			p.err = errno
			return true
		}
		p.advance(int(w))
	}
	return true
}

// writeAll writes the rest, waiting for the peer. A peer that takes nothing for writeStallMax is given up.
func (p *pieces) writeAll(nc net.Conn) error {
	for len(p.segs) > 0 {
		b := p.segs[0].b
		if len(b) > 256<<10 {
			b = b[:256<<10]
		}
		nc.SetWriteDeadline(time.Now().Add(writeStallMax))
		n, err := nc.Write(b)
		p.advance(n)
		if err != nil {
			return err
		}
	}
	return nc.SetWriteDeadline(time.Time{})
}
