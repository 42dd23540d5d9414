package wire

import (
	"io"
	"net"
)

// reader cuts a byte stream into frames. Whatever has arrived is taken with one read. Its buffer begins small, because in a large cluster most of the thousand
// connections of a node only ever carry a few words, and doubles whenever a read fills it.
type reader struct {
	nc  net.Conn
	buf []byte
	lo  int // unparsed bytes are buf[lo:hi]
	hi  int
	max int // the buffer grows to this

	full bool // the last read left no room

	big  *Buf   // data of a frame that does not fit buf
	part Frame  // its frame
	meta []byte // its meta, when that is large
}

// fill reads at least one byte more.
func (r *reader) fill() error {
	if r.lo == r.hi {
		r.lo, r.hi = 0, 0
	} else if r.hi == len(r.buf) || r.lo > len(r.buf)/2 {
		copy(r.buf, r.buf[r.lo:r.hi])
		r.lo, r.hi = 0, r.hi-r.lo
	}
	if r.full && len(r.buf) < r.max {
		r.buf = append(make([]byte, 0, 2*len(r.buf)), r.buf...)[:2*len(r.buf)]
	}
	n, err := r.nc.Read(r.buf[r.hi:])
	r.hi += n
	r.full = r.hi == len(r.buf)
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// next returns the next whole frame; ok is false when more bytes must be read first. A frame too large for the buffer is read to
// its end here, waiting for the peer.
func (r *reader) next() (f Frame, ok bool, err error) {
	b := r.buf[r.lo:r.hi]
	if len(b) < headBytes {
		return f, false, nil
	}
	meta, data, err := headLens(b)
	if err != nil {
		return f, false, err
	}
	total := headBytes + meta + data
	if len(b) < total && total <= r.max {
		return f, false, nil
	}
	if len(b) < total {
		return r.large(meta, data)
	}
	m := b[headBytes : headBytes+meta : headBytes+meta]
	if f.Header, err = parseHead(b, m); err != nil {
		return f, false, err
	}
	f.Meta, f.Data = m, b[headBytes+meta:total:total]
	r.lo += total
	return f, true, nil
}

// large reads a frame that the buffer cannot hold into memory of its own.
func (r *reader) large(meta, data int) (f Frame, ok bool, err error) {
	var head [headBytes]byte
	r.lo += copy(head[:], r.buf[r.lo:r.hi])
	m, err := r.gather(meta)
	if err != nil {
		return f, false, err
	}
	if f.Header, err = parseHead(head[:], m); err != nil {
		return f, false, err
	}
	f.Meta = m
	f.buf = GetBuf(data)
	f.Data = f.buf.B
	n := copy(f.Data, r.buf[r.lo:r.hi])
	r.lo += n
	if _, err = io.ReadFull(r.nc, f.Data[n:]); err != nil {
		f.buf.Release()
		return f, false, err
	}
	return f, true, nil
}

// gather reads n bytes, growing as they come: a liar who announces much and sends little costs little.
func (r *reader) gather(n int) ([]byte, error) {
	const step = 1 << 20
	m := make([]byte, 0, min(n, step))
	for len(m) < n {
		if r.lo < r.hi {
			k := min(n-len(m), r.hi-r.lo)
			m = append(m, r.buf[r.lo:r.lo+k]...)
			r.lo += k
			continue
		}
		k := min(n-len(m), step)
		at := len(m)
		m = append(m, make([]byte, k)...)
		if _, err := io.ReadFull(r.nc, m[at:]); err != nil {
			return nil, err
		}
	}
	return m, nil
}
