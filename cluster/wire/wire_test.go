package wire

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// echo answers every frame with the same meta and data.
type echo struct{ frames atomic.Int64 }

func (e *echo) Frame(c *Conn, f *Frame, b *Batch) {
	e.frames.Add(1)
	h := f.Header
	h.Kind |= KindAnswer
	buf := f.Keep()
	c.Send(&h, f.Meta, buf.B, buf)
	buf.Release()
	b.Flush(c)
}
func (e *echo) Closed(*Conn, error) {}

func serveEcho(t testing.TB) (string, *echo) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := NewMux(l)
	e := &echo{}
	fl := m.Listen(PrefaceFrames)
	go m.Serve()
	go func() {
		for {
			nc, err := fl.Accept()
			if err != nil {
				return
			}
			NewConn(nc, e).Start()
		}
	}()
	t.Cleanup(func() { m.Close() })
	return l.Addr().String(), e
}

func TestFramesOfEverySizeComeBack(t *testing.T) {
	addr, _ := serveEcho(t)
	c, err := DialCaller(TCP{}, addr, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, n := range []int{0, 1, 55, 4096, 16384, 16385, 262144, 300000, 4 << 20} {
		for _, m := range []int{0, 1, 100, 300000, 3 << 20} {
			meta, data := bytes.Repeat([]byte{byte(n)}, m), bytes.Repeat([]byte{7}, n)
			h, gm, gd, err := c.Do(ctx, Header{Kind: KindPing, Group: 9, Term: 8, From: 7, To: 6, Flags: 5, Status: 4}, meta, data)
			if err != nil {
				t.Fatalf("meta %d data %d: %v", m, n, err)
			}
			if !bytes.Equal(gm, meta) || !bytes.Equal(gd, data) {
				t.Fatalf("meta %d data %d came back changed", m, n)
			}
			if h.Group != 9 || h.Term != 8 || h.From != 7 || h.To != 6 || h.Flags != 5 || h.Status != 4 {
				t.Fatalf("header came back as %+v", h)
			}
		}
	}
}

func TestInvariant12GarbageEndsOnlyItsConnection(t *testing.T) {
	addr, _ := serveEcho(t)
	good, err := DialCaller(TCP{}, addr, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	for _, junk := range [][]byte{[]byte("GET / HTTP/1.0\r\n\r\n"), bytes.Repeat([]byte{0xff}, 4096), append([]byte("SDF1"), bytes.Repeat([]byte{0}, 200)...)} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		nc.Write(append([]byte(PrefaceFrames), junk...))
		nc.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatalf("garbage was answered")
		}
		nc.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, _, _, err := good.Do(ctx, Header{Kind: KindPing}, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func FuzzFrame(f *testing.F) {
	h := Header{Kind: KindAppend, ID: 3, Group: 4, Term: 5}
	f.Add(append(appendHead(nil, &h, []byte("meta"), 4), "metadata"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, z := net.Pipe()
		go func() { z.Write(b); z.Close() }()
		r := reader{nc: a, buf: make([]byte, 128), max: 1024}
		for r.fill() == nil {
			for {
				f, ok, err := r.next()
				if err != nil {
					a.Close()
					return
				}
				if !ok {
					break
				}
				fuzzMessages(f.Meta)
			}
		}
	})
}

// fuzzMessages gives the meta to every parser.
func fuzzMessages(b []byte) {
	new(ClientHello).Parse(b)
	new(IO).Parse(b)
	new(Done).Parse(b)
	new(Moved).Parse(b)
	new(Relay).Parse(b)
	new(Append).Parse(b)
	new(Position).Parse(b)
	new(SyncEnd).Parse(b)
	ParseAcks(b)
	EachExtent(b, func(Extent) {})
	EachGroupPos(b, func(GroupPos) {})
	EachUnitVersion(b, func(UnitVersion) {})
	EachCopyItem(b, func(CopyItem) error { return nil })
	EachOnceDone(b, func(OnceDone) {})
}

func FuzzMessages(f *testing.F) {
	f.Add((&IO{Key: 1, Len: 4096, CRCs: []byte{1, 2, 3, 4}}).Append(nil))
	f.Add((&Position{Terms: []Number{{1, 2}}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) { fuzzMessages(b) })
}

func BenchmarkRoundTrip4K(b *testing.B) {
	addr, _ := serveEcho(b)
	c, err := DialCaller(TCP{}, addr, time.Second)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := c.Do(context.Background(), Header{Kind: KindPing}, nil, data); err != nil {
			b.Fatal(err)
		}
	}
}
