package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// rig is a server on a unix socket and a loopback port, with a memory disk or what the test brings.
type rig struct {
	t      testing.TB
	srv    *Server
	sock   string
	tcp    string
	served chan error
}

type testWriter struct{ t testing.TB }

// Write notes what the server logs. A panic that it recovers from closes the connection, as many a refusal does: only the log tells.
func (w testWriter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("panicked")) {
		w.t.Errorf("the server says: %s", b)
	}
	if testing.Verbose() {
		os.Stderr.Write(b)
	}
	return len(b), nil
}

func newRig(t testing.TB, b Backend, change ...func(*Config)) *rig {
	t.Helper()
	// The handshake's deadline is later than the clients' own, so that nothing passes for refused that was only given up.
	cfg := Config{HandshakeTimeout: 3 * wireTimeout, Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range change {
		f(&cfg)
	}
	srv, err := NewServer(cfg, b)
	if err != nil {
		t.Fatal(err)
	}
	srv.spinners.calm = 0 // readers spin wherever they may
	if w, ok := b.(*waitingBackend); ok {
		srv.relief.calm = w.calm
	}
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, srv: srv, sock: filepath.Join(dir, "s"), served: make(chan error, 2)}
	ul, err := ListenUnix(UnixSocket{Path: r.sock})
	if err != nil {
		t.Fatal(err)
	}
	tl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.tcp = tl.Addr().String()
	go func() { r.served <- srv.Serve(ul) }()
	go func() { r.served <- srv.Serve(tl) }()
	t.Cleanup(func() {
		srv.Close()
		for range 2 {
			if err := <-r.served; err != ErrServerClosed {
				t.Errorf("Serve: %v", err)
			}
		}
		within(t, "every connection to end", func() bool { s := srv.Stats(); return s.Sessions == 0 && s.HalfOpen == 0 })
		if held := srv.Stats().BytesHeld; held != 0 {
			t.Errorf("%d bytes of budget are still held", held)
		}
		os.RemoveAll(dir)
	})
	return r
}

// within waits for a condition that other goroutines bring about. It counts its looks and not the time, so that a machine that stands still is not taken for one that hangs.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 10000 {
		if ok() {
			return
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
	if !ok() {
		buf := make([]byte, 1<<20)
		t.Fatalf("waited in vain for %s\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

const testSize = 8 << 20

func memRig(t testing.TB, change ...func(*Config)) (*rig, *MemDisk) {
	b := NewMemBackend()
	d := b.Add(ExportInfo{Name: "", Description: "the default disk", Size: testSize})
	b.Add(ExportInfo{Name: "disk", Description: "a disk", Size: testSize})
	b.Add(ExportInfo{Name: "ro", Size: testSize, ReadOnly: true})
	return newRig(t, b, change...), d
}

func (r *rig) uri(name string) string { return "nbd+unix:///" + name + "?socket=" + r.sock }

// tool runs a program of a stranger.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH")) // nbdsh wants the system's python
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// wireTimeout is how long a test's client waits for anything.
const wireTimeout = 20 * time.Second

// wire is a client that sends exactly what a test tells it to.
type wire struct {
	t  testing.TB
	nc net.Conn
}

func (r *rig) dial(t testing.TB) *wire {
	t.Helper()
	nc, err := net.Dial("unix", r.sock)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(wireTimeout))
	t.Cleanup(func() { nc.Close() })
	return &wire{t, nc}
}

// pipe is a server and a client in memory, for tests in virtual time.
func pipe(t *testing.T, cfg Config, b Backend) (*Server, *wire) {
	t.Helper()
	s, err := NewServer(cfg, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, another(t, s)
}

// another is one client more of a pipe's server.
func another(t *testing.T, s *Server) *wire {
	ours, theirs := net.Pipe()
	s.ServeConn(theirs)
	t.Cleanup(func() { ours.Close() })
	return &wire{t, ours}
}

func be(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case uint16:
			b = binary.BigEndian.AppendUint16(b, v)
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case string:
			b = append(b, v...)
		case []byte:
			b = append(b, v...)
		default:
			panic("be")
		}
	}
	return b
}

func (w *wire) send(parts ...any) {
	w.t.Helper()
	if _, err := w.nc.Write(be(parts...)); err != nil {
		w.t.Fatalf("send: %v", err)
	}
}

func (w *wire) recv(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if k, err := io.ReadFull(w.nc, b); err != nil {
		w.t.Fatalf("receive: %d of %d bytes: %v", k, n, err)
	}
	return b
}

// closed expects the server to have closed the connection, and no byte before it.
func (w *wire) closed() {
	w.t.Helper()
	var b [1]byte
	if n, err := w.nc.Read(b[:]); n != 0 || err == nil || isTimeout(err) {
		w.t.Fatalf("wanted the connection closed, got %d bytes, %v", n, err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// greet reads the greeting and sends client flags.
func (w *wire) greet(flags uint32) {
	w.t.Helper()
	g := w.recv(18)
	if string(g) != "NBDMAGICIHAVEOPT\x00\x03" {
		w.t.Fatalf("greeting %q", g)
	}
	w.send(flags)
}

const fixed = clientFixedNewstyle | clientNoZeroes

func option(id uint32, data []byte) []byte {
	return be("IHAVEOPT", id, uint32(len(data)), data)
}

type optReply struct {
	kind uint32
	data []byte
}

// option sends an option and collects the replies up to the final one.
func (w *wire) option(id uint32, data []byte) []optReply {
	w.t.Helper()
	w.send(option(id, data))
	return w.replies(id)
}

func (w *wire) replies(id uint32) []optReply {
	w.t.Helper()
	var list []optReply
	for {
		h := w.recv(20)
		if binary.BigEndian.Uint64(h) != 0x3e889045565a9 || binary.BigEndian.Uint32(h[8:]) != id {
			w.t.Fatalf("option reply % x for option %d", h, id)
		}
		r := optReply{binary.BigEndian.Uint32(h[12:]), w.recv(int(binary.BigEndian.Uint32(h[16:])))}
		list = append(list, r)
		if r.kind == repAck || r.kind&(1<<31) != 0 {
			return list
		}
	}
}

// wants expects one final reply of a kind, and returns those before it.
func (w *wire) wants(list []optReply, kind uint32) []optReply {
	w.t.Helper()
	last := list[len(list)-1]
	if last.kind != kind {
		w.t.Fatalf("option reply %#x %q, wanted %#x", last.kind, last.data, kind)
	}
	return list[:len(list)-1]
}

func infoData(name string, types ...uint16) []byte {
	b := be(uint32(len(name)), name, uint16(len(types)))
	for _, t := range types {
		b = be(b, t)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := be(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		b = be(b, uint32(len(q)), q)
	}
	return b
}

// ready brings a connection to its transmission phase.
func (r *rig) ready(t testing.TB, name string, mode replyMode, queries ...string) *wire {
	t.Helper()
	w := r.dial(t)
	w.greet(fixed)
	switch mode {
	case structuredReplies:
		w.wants(w.option(optStructuredReply, nil), repAck)
	case extendedReplies:
		w.wants(w.option(optExtendedHeaders, nil), repAck)
	}
	if len(queries) > 0 {
		w.wants(w.option(optSetMetaContext, metaData(name, queries...)), repAck)
	}
	w.wants(w.option(optGo, infoData(name)), repAck)
	return w
}

func request(cmd, flags uint16, cookie, offset uint64, length uint32) []byte {
	return be(magicRequest, flags, cmd, cookie, offset, length)
}

func extRequest(cmd, flags uint16, cookie, offset, length uint64) []byte {
	return be(magicExtendedRequest, flags, cmd, cookie, offset, length)
}

// simple reads a simple reply and returns its error.
func (w *wire) simple(cookie uint64) uint32 {
	w.t.Helper()
	b := w.recv(simpleReplySize)
	if m := binary.BigEndian.Uint32(b); m != magicSimpleReply {
		w.t.Fatalf("reply magic %#x", m)
	}
	if c := binary.BigEndian.Uint64(b[8:]); c != cookie {
		w.t.Fatalf("reply for cookie %d, wanted %d", c, cookie)
	}
	return binary.BigEndian.Uint32(b[4:])
}

// ask sends a request without payload and reads a simple reply without data.
func (w *wire) ask(cmd, flags uint16, offset uint64, length uint32) uint32 {
	w.t.Helper()
	w.send(request(cmd, flags, 77, offset, length))
	return w.simple(77)
}

type chunk struct {
	flags, kind uint16
	cookie      uint64
	data        []byte
}

// chunk reads one chunk, structured or extended.
func (w *wire) chunk() chunk {
	w.t.Helper()
	b := w.recv(chunkHeaderSize)
	c := chunk{binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]), nil}
	switch m := binary.BigEndian.Uint32(b); m {
	case magicChunk:
		c.data = w.recv(int(binary.BigEndian.Uint32(b[16:])))
	case magicExtendedReply:
		b = append(b, w.recv(extendedReplySize-chunkHeaderSize)...)
		c.data = w.recv(int(binary.BigEndian.Uint64(b[24:])))
	default:
		w.t.Fatalf("chunk magic %#x", m)
	}
	return c
}

// chunks reads all chunks of one reply.
func (w *wire) chunks() []chunk {
	w.t.Helper()
	for list := []chunk(nil); ; {
		c := w.chunk()
		list = append(list, c)
		if c.flags&chunkFlagDone != 0 {
			return list
		}
	}
}

func (c chunk) code() uint32 {
	if c.kind != chunkError {
		return 0
	}
	return binary.BigEndian.Uint32(c.data)
}
