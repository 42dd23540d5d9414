package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connected pair of sockets, one end of which the server has.
func pair(t testing.TB, s *Server) *net.UnixConn {
	ours, theirs := socketpair(t)
	s.ServeConn(theirs)
	return ours
}

func socketpair(t testing.TB) (ours, theirs *net.UnixConn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0].(*net.UnixConn), ends[1].(*net.UnixConn)
}

// converse sends a stream and its end, and reads whatever comes until the server closes. It fails if it never does.
func converse(t testing.TB, s *Server, stream []byte) []byte {
	c := pair(t, s)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	go func() {
		c.Write(stream) // fails where the server has closed
		c.CloseWrite()
	}()
	var out bytes.Buffer
	if _, err := io.Copy(&out, c); isTimeout(err) {
		t.Fatalf("the server hangs after %q", stream)
	}
	return out.Bytes()
}

// fuzzRig is a server that anything may be sent to, and a neighbour who has work of its own there meanwhile.
type fuzzRig struct {
	*Server
	neighbour *wire
	tls       *tls.Config // of a client
}

const (
	neighbourName = "the neighbour's own disk, whose name nobody guesses"
	fuzzBudget    = 128 << 20
)

func newFuzzRig(t testing.TB) *fuzzRig {
	a := newAuthority(t)
	b := NewMemBackend()
	b.Add(ExportInfo{Name: "", Size: 1 << 20, Contexts: []string{"qemu:dirty-bitmap:a"}})
	b.Add(ExportInfo{Name: "b", Size: 100<<10 + 3, Description: "odd", MinBlock: 512})
	b.Add(ExportInfo{Name: neighbourName, Size: 1 << 20})
	r := &fuzzRig{tls: a.client()}
	s, err := NewServer(Config{MaxBytes: fuzzBudget, TLSMode: TLSAllowed, TLS: &tls.Config{Certificates: []tls.Certificate{a.issue("server", "localhost")}}}, frugal{b, r})
	if err != nil {
		t.Fatal(err)
	}
	s.relief.calm = 0
	r.Server = s
	t.Cleanup(func() { s.Close() })
	r.neighbour = &wire{t, pair(t, s)}
	r.neighbour.greet(fixed)
	r.neighbour.wants(r.neighbour.option(optGo, infoData(neighbourName)), repAck)
	r.neighbour.send(request(cmdWrite, 0, 1, 4096, 4096), pattern(4096, 1))
	if code := r.neighbour.simple(1); code != 0 {
		t.Fatal("write:", code)
	}
	return r
}

// frugal is a backend whose devices look at the budget with every request.
type frugal struct {
	*MemBackend
	r *fuzzRig
}

func (f frugal) Open(ctx context.Context, name string) (Device, ExportInfo, error) {
	d, info, err := f.MemBackend.Open(ctx, name)
	return &frugalDevice{Device: d, r: f.r}, info, err
}

// frugalDevice has flushes waited for.
type frugalDevice struct {
	Device
	r       *fuzzRig
	flushes []*Request
}

func (d *frugalDevice) Submit(r *Request) {
	if held := d.r.Stats().BytesHeld; held > fuzzBudget+smallCost {
		panic(fmt.Sprintf("%d bytes are held", held))
	}
	if r.Op == OpFlush {
		d.flushes = append(d.flushes, r)
		return
	}
	d.Device.Submit(r)
}

func (d *frugalDevice) Push() {
	if wait := d.PushLeaving(); wait != nil {
		wait()
	}
}

func (d *frugalDevice) PushLeaving() func() {
	d.Device.Push()
	list := d.flushes
	d.flushes = nil
	if len(list) == 0 {
		return nil
	}
	return func() {
		if rand.IntN(100) == 0 {
			time.Sleep(2 * reliefInterval) // the disk
		}
		answerAll(list)
	}
}

// unharmed shows that nothing is left behind, that the neighbour noticed nothing, and that newcomers are served.
func (r *fuzzRig) unharmed(t testing.TB) {
	t.Helper()
	n := &wire{t, r.neighbour.nc}
	n.nc.SetDeadline(time.Now().Add(10 * time.Second))
	n.send(request(cmdRead, 0, 2, 4096, 4096))
	if code := n.simple(2); code != 0 || !bytes.Equal(n.recv(4096), pattern(4096, 1)) {
		t.Fatalf("the neighbour's disk changed, or error %d", code)
	}
	out := converse(t, r.Server, be(fixed, option(optGo, infoData("")), request(cmdFlush, 0, 1, 0, 0), request(cmdDisc, 0, 2, 0, 0)))
	if !bytes.HasSuffix(out, be(magicSimpleReply, uint32(0), uint64(1))) {
		t.Fatalf("another client got % x", out)
	}
	within(t, "the connections to end", func() bool { st := r.Stats(); return st.Sessions == 1 && st.HalfOpen == 0 && st.BytesHeld == 0 })
}

// conversations are valid ones that together use everything; each is without the client's flags.
func conversations() [][]byte {
	handshake := be(option(optList, nil), option(optInfo, infoData("", infoName, infoDescription, infoBlockSize)), option(777, []byte("?")),
		option(optListMetaContext, metaData("")))
	simple := be(request(cmdWrite, cmdFlagFUA, 1, 3, 5), "hello", request(cmdRead, 0, 2, 0, 600), request(cmdFlush, 0, 3, 0, 0),
		request(cmdTrim, 0, 4, 0, 4096), request(cmdWriteZeroes, cmdFlagNoHole|cmdFlagFastZero, 5, 4096, 4096), request(cmdCache, 0, 6, 0, 512))
	structured := be(simple, request(cmdRead, cmdFlagDF, 7, 0, 8192), request(cmdBlockStatus, 0, 8, 0, 1<<20), request(cmdBlockStatus, cmdFlagReqOne, 9, 512, 512))
	extended := be(extRequest(cmdWrite, cmdFlagPayloadLen, 1, 3, 5), "hello", extRequest(cmdRead, 0, 2, 0, 600), extRequest(cmdBlockStatus, 0, 3, 0, 1<<20),
		extRequest(cmdBlockStatus, cmdFlagPayloadLen, 4, 0, 12), uint64(4096), uint32(1), extRequest(cmdTrim, 0, 5, 0, 1<<20), extRequest(cmdFlush, 0, 6, 0, 0))
	meta := option(optSetMetaContext, metaData("", BaseAllocation, "qemu:dirty-bitmap:a"))
	return [][]byte{
		be(handshake, option(optExportName, nil), simple, request(cmdDisc, 0, 9, 0, 0)),
		be(handshake, option(optGo, infoData("b", infoBlockSize)), simple, request(cmdDisc, 0, 9, 0, 0)),
		be(option(optStructuredReply, nil), meta, option(optGo, infoData("")), structured, request(cmdDisc, 0, 9, 0, 0)),
		be(option(optExtendedHeaders, nil), meta, option(optGo, infoData("")), extended, extRequest(cmdDisc, 0, 9, 0, 0)),
		be(option(optStartTLS, nil), option(optAbort, nil)),
	}
}

// FuzzConversation sends anything at all.
func FuzzConversation(f *testing.F) {
	for _, c := range conversations() {
		f.Add(be(fixed, c))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	s := newFuzzRig(f)
	f.Fuzz(func(t *testing.T, stream []byte) {
		converse(t, s.Server, stream)
		s.unharmed(t)
	})
}

// FuzzTransmission sends anything as requests, in each mode.
func FuzzTransmission(f *testing.F) {
	for _, c := range conversations() {
		for mode := range byte(3) {
			f.Add(mode, c[len(c)/2:])
		}
	}
	f.Add(byte(0), be(request(cmdWrite, 0, 1, 0, 100), "short"))
	f.Add(byte(0), be(request(cmdRead, 0, 1, 0, 64<<20)))
	s := newFuzzRig(f)
	f.Fuzz(func(t *testing.T, mode byte, stream []byte) {
		begin := be(fixed)
		switch replyMode(mode % 3) {
		case structuredReplies:
			begin = be(begin, option(optStructuredReply, nil), option(optSetMetaContext, metaData("", BaseAllocation)))
		case extendedReplies:
			begin = be(begin, option(optExtendedHeaders, nil), option(optSetMetaContext, metaData("", BaseAllocation)))
		}
		converse(t, s.Server, be(begin, option(optGo, infoData("")), stream))
		s.unharmed(t)
	})
}

// FuzzOptionData goes through the two parsers of option data, which must refuse what they would not write.
func FuzzOptionData(f *testing.F) {
	f.Add(infoData("name", 1, 2, 3))
	f.Add(metaData("name", "base:allocation", "x:"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if q, ok := parseInfo(data); ok && (len(q.name) > stringMax || len(q.name)+6 > len(data)) {
			t.Errorf("%q is a name of %q", data, q.name)
		}
		if q, ok := parseMeta(data); ok && !bytes.Equal(metaData(q.name, q.queries...), data) {
			t.Errorf("%q parses as %q", data, q)
		}
	})
}

var everyChange = flag.Bool("every-change", false, "TestEveryByteChanged: all 255 changes of each byte, and not only three")

// TestEveryByteChanged sends valid conversations with each single byte changed, and cut after each byte.
func TestEveryByteChanged(t *testing.T) {
	s := newFuzzRig(t)
	step := 1
	if testing.Short() || raceEnabled {
		step = 7
	}
	changes := []byte{0x01, 0x80, 0xff}
	if *everyChange {
		changes = nil
		for x := 1; x < 256; x++ {
			changes = append(changes, byte(x))
		}
	}
	count := 0
	for _, c := range conversations() {
		c = be(fixed, c)
		for i := 0; i < len(c); i += step {
			for _, x := range changes {
				mutant := bytes.Clone(c)
				mutant[i] ^= x
				converse(t, s.Server, mutant)
			}
			converse(t, s.Server, c[:i])
			count += len(changes) + 1
		}
		s.unharmed(t)
	}
	t.Logf("%d conversations", count)
}

// TestEveryEndWithinTLS cuts a conversation under TLS after each byte, without a goodbye of TLS.
func TestEveryEndWithinTLS(t *testing.T) {
	s := newFuzzRig(t)
	step := 3
	if testing.Short() || raceEnabled {
		step = 31
	}
	c := conversations()[2]
	for i := 0; i < len(c); i += step {
		raw := pair(t, s.Server)
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		w := &wire{t, raw}
		w.greet(fixed)
		if err := w.upgrade(s.tls); err != nil {
			t.Fatal(err)
		}
		w.send(c[:i])
		raw.CloseWrite()
		if _, err := io.Copy(io.Discard, raw); isTimeout(err) {
			t.Fatalf("the server hangs after %d bytes within TLS", i)
		}
		raw.Close()
	}
	s.unharmed(t)
}
