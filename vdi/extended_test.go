package vdi

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// extended is a client with extended headers: few others speak them yet.
type extended struct {
	t  *testing.T
	nc net.Conn
}

func (x *extended) send(parts ...any) {
	x.t.Helper()
	var b []byte
	for _, p := range parts {
		if s, ok := p.(string); ok {
			b = append(b, s...)
			continue
		}
		var err error
		if b, err = binary.Append(b, binary.BigEndian, p); err != nil {
			x.t.Fatal(err)
		}
	}
	if _, err := x.nc.Write(b); err != nil {
		x.t.Fatal(err)
	}
}

func (x *extended) recv(n uint64) []byte {
	x.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(x.nc, b); err != nil {
		x.t.Fatal(err)
	}
	return b
}

// option sends one and wants its ACK; the data of what comes before that is thrown away.
func (x *extended) option(id uint32, data string) {
	x.t.Helper()
	x.send("IHAVEOPT", id, uint32(len(data)), data)
	for {
		h := x.recv(20)
		data := x.recv(uint64(binary.BigEndian.Uint32(h[16:])))
		switch kind := binary.BigEndian.Uint32(h[12:]); {
		case kind == 1:
			return
		case kind>>31 != 0:
			x.t.Fatalf("option %d: %#x %s", id, kind, data)
		}
	}
}

// ask sends a request, and returns the type and the payload of its one reply.
func (x *extended) ask(cmd uint16, offset, length uint64) (kind uint16, payload []byte) {
	x.t.Helper()
	x.send(uint32(0x21e41c71), uint16(0), cmd, uint64(7), offset, length)
	h := x.recv(32) // | magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 8 |
	if binary.BigEndian.Uint32(h) != 0x6e8a278c || binary.BigEndian.Uint16(h[4:]) != 1 || binary.BigEndian.Uint64(h[8:]) != 7 {
		x.t.Fatalf("reply % x", h)
	}
	return binary.BigEndian.Uint16(h[6:]), x.recv(binary.BigEndian.Uint64(h[24:]))
}

// openExtended brings a client to an export, whose name has four letters.
func openExtended(t *testing.T, uri, name string) *extended {
	t.Helper()
	_, path, _ := strings.Cut(uri, "socket=")
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	x := &extended{t, nc}
	x.recv(18)
	x.send(uint32(3))
	x.option(11, "")
	x.option(10, "\x00\x00\x00\x04"+name+"\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation")
	x.option(7, "\x00\x00\x00\x04"+name+"\x00\x00")
	return x
}

const (
	flush, trim, zeroes, status = 3, 4, 6, 7
	none, statusExt             = 0, 6
)

// vastSize is more than can be trimmed while a test waits.
const vastSize = 4 << 50

// abandon begins a trim that takes hours, and leaves without a goodbye.
func abandon(t *testing.T, uri string) {
	x := openExtended(t, uri, "vast")
	x.send(uint32(0x21e41c71), uint16(0), uint16(trim), uint64(6), uint64(0), uint64(vastSize))
	if kind, data := x.ask(flush, 0, 0); kind != none {
		t.Errorf("a flush beside a trim: %d %q", kind, data)
	}
	x.nc.Close()
}

// extendedHeaders sends single requests of more than 4 GiB to a disk of 1 TiB.
func extendedHeaders(t *testing.T, uri string) {
	const size = uint64(1) << 40
	x := openExtended(t, uri, "thin")
	for _, cmd := range []uint16{trim, zeroes} {
		if kind, data := x.ask(cmd, 1<<30, 20<<30); kind != none {
			t.Errorf("command %d of 20 GiB: %d %q", cmd, kind, data)
		}
	}
	// | context 4 | count 4 | (length 8 | flags 8) ... |
	said := uint64(0)
	for said < 64<<30 {
		kind, data := x.ask(status, said, size-said)
		if kind != statusExt || len(data) != 24 || binary.BigEndian.Uint64(data[16:]) != 3 {
			t.Fatalf("block status at %d: type %d % x", said, kind, data)
		}
		said += binary.BigEndian.Uint64(data[8:])
	}
	if kind, data := x.ask(zeroes, size-1<<30, 20<<30); kind != 1<<15|1 || binary.BigEndian.Uint32(data) != 28 {
		t.Errorf("zeroes over the end: %d %q", kind, data)
	}
}
