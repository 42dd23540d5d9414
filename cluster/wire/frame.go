package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// On the wire; never change a value.
const (
	frameMagic = 0x31464453 // "SDF1", little endian
	headBytes  = 56

	// MetaBytesMax bounds what a frame says besides block contents: a whole agreed map fits.
	MetaBytesMax = 64 << 20
	// DataBytesMax bounds the block contents of a frame: one object and its edges.
	DataBytesMax = 4<<20 + 8192
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C of b.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// fourZeros stand for the head's checksum while it is computed.
var fourZeros = make([]byte, 4)

// Header is the fixed part of a frame.
type Header struct {
	Kind   Kind
	Flags  uint8
	Status Status
	ID     uint64 // request id, chosen by who asks; an answer repeats it
	Group  uint32
	Term   uint64
	From   uint64 // incarnation of the node that sends, or the connection epoch of a client
	To     uint64 // incarnation the frame is meant for, 0: whoever
}

// Frame is one message as it arrived. Meta and Data are valid until the handler returns; Keep makes Data outlive it.
type Frame struct {
	Header
	Meta []byte
	Data []byte
	buf  *Buf // owns Data; nil: Data lies in the connection's read buffer
}

// Keep returns Data in a buffer of its own with one reference for the caller.
func (f *Frame) Keep() *Buf {
	if f.buf != nil {
		f.buf.Retain()
		return f.buf
	}
	b := GetBuf(len(f.Data))
	copy(b.B, f.Data)
	return b
}

// errFrame says why a byte stream is not one of frames.
var errFrame = errors.New("not a frame")

// appendHead adds the encoded header for meta and n data bytes to dst. meta itself must follow.
func appendHead(dst []byte, h *Header, meta []byte, n int) []byte {
	at := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, frameMagic)
	dst = append(dst, byte(h.Kind), h.Flags)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(h.Status))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(meta)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	dst = binary.LittleEndian.AppendUint64(dst, h.ID)
	dst = binary.LittleEndian.AppendUint32(dst, h.Group)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = binary.LittleEndian.AppendUint64(dst, h.Term)
	dst = binary.LittleEndian.AppendUint64(dst, h.From)
	dst = binary.LittleEndian.AppendUint64(dst, h.To)
	sum := crc32.Update(crc32.Checksum(dst[at:], castagnoli), castagnoli, meta)
	binary.LittleEndian.PutUint32(dst[at+28:], sum)
	return dst
}

// headLens reads the lengths of a frame from its first 16 bytes.
func headLens(b []byte) (meta, data int, err error) {
	if m := binary.LittleEndian.Uint32(b); m != frameMagic {
		return 0, 0, fmt.Errorf("%w: begins with %#08x", errFrame, m)
	}
	m, d := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if m > MetaBytesMax || d > DataBytesMax {
		return 0, 0, fmt.Errorf("%w: %d bytes of meta, %d of data", errFrame, m, d)
	}
	return int(m), int(d), nil
}

// parseHead decodes a header and checks it together with its meta.
func parseHead(b, meta []byte) (h Header, err error) {
	sum := crc32.Checksum(b[:28], castagnoli)
	sum = crc32.Update(sum, castagnoli, fourZeros)
	sum = crc32.Update(sum, castagnoli, b[32:headBytes])
	sum = crc32.Update(sum, castagnoli, meta)
	if got := binary.LittleEndian.Uint32(b[28:]); got != sum {
		return h, fmt.Errorf("%w: head checksum %08x, should be %08x", errFrame, got, sum)
	}
	return Header{
		Kind:   Kind(b[4]),
		Flags:  b[5],
		Status: Status(binary.LittleEndian.Uint16(b[6:])),
		ID:     binary.LittleEndian.Uint64(b[16:]),
		Group:  binary.LittleEndian.Uint32(b[24:]),
		Term:   binary.LittleEndian.Uint64(b[32:]),
		From:   binary.LittleEndian.Uint64(b[40:]),
		To:     binary.LittleEndian.Uint64(b[48:]),
	}, nil
}
