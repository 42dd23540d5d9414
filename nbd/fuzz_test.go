package nbd

import (
	"bytes"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connected pair of sockets, one end of which the server has.
func pair(t testing.TB, s *Server) *net.UnixConn {
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
	s.ServeConn(ends[1])
	return ends[0].(*net.UnixConn)
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

func fuzzServer(t testing.TB) *Server {
	b := NewMemBackend()
	b.Add(ExportInfo{Name: "", Size: 1 << 20, Contexts: []string{"qemu:dirty-bitmap:a"}})
	b.Add(ExportInfo{Name: "b", Size: 100<<10 + 3, Description: "odd", MinBlock: 512})
	s, err := NewServer(Config{MaxBytes: 128 << 20}, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// unharmed shows that nothing is left behind, and that others are still served.
func unharmed(t testing.TB, s *Server) {
	out := converse(t, s, be(fixed, option(optGo, infoData("")), request(cmdFlush, 0, 1, 0, 0), request(cmdDisc, 0, 2, 0, 0)))
	if !bytes.HasSuffix(out, be(magicSimpleReply, uint32(0), uint64(1))) {
		t.Fatalf("another client got % x", out)
	}
	within(t, "the connections to end", func() bool { st := s.Stats(); return st.Sessions+st.HalfOpen == 0 && st.BytesHeld == 0 })
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
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, stream []byte) {
		converse(t, s, stream)
		unharmed(t, s)
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
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, mode byte, stream []byte) {
		begin := be(fixed)
		switch replyMode(mode % 3) {
		case structuredReplies:
			begin = be(begin, option(optStructuredReply, nil), option(optSetMetaContext, metaData("", BaseAllocation)))
		case extendedReplies:
			begin = be(begin, option(optExtendedHeaders, nil), option(optSetMetaContext, metaData("", BaseAllocation)))
		}
		converse(t, s, be(begin, option(optGo, infoData("")), stream))
		unharmed(t, s)
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

// TestEveryByteChanged sends valid conversations with each single byte changed, and cut after each byte.
func TestEveryByteChanged(t *testing.T) {
	s := fuzzServer(t)
	step := 1
	if testing.Short() || raceEnabled {
		step = 7
	}
	for _, c := range conversations() {
		c = be(fixed, c)
		for i := 0; i < len(c); i += step {
			for _, x := range []byte{0x01, 0x80, 0xff} {
				mutant := bytes.Clone(c)
				mutant[i] ^= x
				converse(t, s, mutant)
			}
			converse(t, s, c[:i])
		}
		unharmed(t, s)
	}
}
