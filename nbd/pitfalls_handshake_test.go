package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// Places where NBD servers broke during the handshake, by their number in the list that this project keeps of them.

// inSync shows that the server still understands the client.
func (w *wire) inSync() {
	w.t.Helper()
	w.wants(w.option(999, []byte("whatever")), repErrUnsup)
	w.wants(w.option(optInfo, infoData("disk")), repAck)
}

func TestPitfall1NameLengthOfFourGiB(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	for _, id := range []uint32{optInfo, optGo, optListMetaContext} {
		w.wants(w.option(id, be(uint32(0xffffffff), "abc")), repErrInvalid)
		w.wants(w.option(id, be(uint32(0xfffffffe))), repErrInvalid)
		w.inSync()
	}
}

func TestPitfall2NamesAndListsThatDontFit(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	long := strings.Repeat("n", 5000)
	for _, data := range [][]byte{
		infoData(long), be(uint32(4), "disk", uint16(65535)), be(uint32(4), "disk", uint16(3), uint16(0)),
		be(infoData("disk"), "trailing"), infoData("di\x00sk"), infoData("\xff\xfe"), nil, be(uint16(1)),
	} {
		w.wants(w.option(optGo, data), repErrInvalid)
		w.inSync()
	}
	types := make([]uint16, 3000)
	for i := range types {
		types[i] = uint16(i)
	}
	w.wants(w.option(optInfo, infoData("disk", types...)), repAck)
}

func TestPitfall3LongExportName(t *testing.T) {
	r, _ := memRig(t)
	for _, n := range []int{257, 4096, 4097, 60000} {
		w := r.dial(t)
		w.greet(fixed)
		w.send(option(optExportName, bytes.Repeat([]byte("n"), n)))
		w.closed()
	}
	w := r.dial(t)
	w.greet(fixed)
	w.wants(w.option(optList, bytes.Repeat([]byte("n"), 300)), repErrInvalid)
	w.inSync()

	b := NewMemBackend()
	for _, n := range []int{257, 4096} { // one that is there is served
		b.Add(ExportInfo{Name: strings.Repeat("n", n), Size: testSize})
	}
	r = newRig(t, b)
	for _, n := range []int{257, 4096} {
		name := strings.Repeat("n", n)
		w := r.dial(t)
		w.greet(fixed)
		list := w.wants(w.option(optList, nil), repAck)
		if len(list) != 2 || string(list[0].data[4:]) != strings.Repeat("n", 257) || string(list[1].data[4:]) != strings.Repeat("n", 4096) {
			t.Errorf("LIST of two long names: %d exports", len(list))
		}
		w.wants(w.option(optStructuredReply, nil), repAck)
		w.wants(w.option(optSetMetaContext, metaData(name, BaseAllocation)), repAck)
		if list := w.wants(w.option(optInfo, infoData(name, infoName)), repAck); string(list[1].data[2:]) != name {
			t.Errorf("INFO names %d bytes", len(list[1].data)-2)
		}
		w.send(option(optExportName, []byte(name)))
		w.recv(10)
		w.send(request(cmdBlockStatus, 0, 1, 0, 4096))
		if c := w.chunk(); c.kind != chunkBlockStatus {
			t.Errorf("block status: %+v", c)
		}
	}
}

func TestPitfall4And12HugeOption(t *testing.T) {
	r, _ := memRig(t)
	for _, n := range []uint32{optionMax + 1, 1 << 30, 0xffffffff} {
		w := r.dial(t)
		w.greet(fixed)
		w.send("IHAVEOPT", optGo, n)
		w.closed()
	}
	w := r.dial(t)
	w.greet(fixed)
	w.wants(w.option(optGo, make([]byte, optionMax)), repErrInvalid)
	w.inSync()
}

func TestPitfall5MalformedOptionsKeepTheirPlace(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	for _, c := range []struct {
		id   uint32
		data []byte
		want uint32
	}{
		{optGo, be(uint16(0)), repErrInvalid},
		{optInfo, be(uint32(100), "short"), repErrInvalid},
		{optInfo, be(uint32(5000), strings.Repeat("n", 5000), uint16(0)), repErrInvalid},
		{optInfo, be(infoData("disk"), "xx"), repErrInvalid},
		{optList, be("data"), repErrInvalid},
		{optStructuredReply, be("data"), repErrInvalid},
		{optExtendedHeaders, be("data"), repErrInvalid},
		{optListMetaContext, metaData("disk", strings.Repeat("q", 5000)), repErrInvalid},
		{optListMetaContext, be(uint32(4), "disk", uint32(0xffffffff)), repErrInvalid},
		{optListMetaContext, be(metaData("disk"), "x"), repErrInvalid},
		{4, nil, repErrUnsup},
		{0, nil, repErrUnsup},
		{0xffffffff, be("data"), repErrUnsup},
		{optStartTLS, be("data"), repErrInvalid},
	} {
		w.wants(w.option(c.id, c.data), c.want)
		w.inSync()
	}
}

func TestPitfall6ErrorTextIsBounded(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	for _, name := range []string{strings.Repeat("n", 4096), strings.Repeat("\u00e9", 2048), "evil\r\n\x1b[31m"} {
		list := w.option(optGo, infoData(name))
		w.wants(list, repErrUnknown)
		text := list[len(list)-1].data
		if len(text) > errorTextMax+3 || bytes.ContainsAny(text, "\r\n\x1b") {
			t.Errorf("error text of %d bytes: %q", len(text), text)
		}
		var long error = &refusal{syscall.EPERM, strings.Repeat(name, 100)} // and when the backend has no measure
		b := &fakeBackend{info: allCan(1 << 20), open: func(context.Context) error { return long }}
		x := newRig(t, b).dial(t)
		x.greet(fixed)
		list = x.option(optGo, infoData("x"))
		x.wants(list, repErrPolicy)
		text = list[len(list)-1].data
		if len(text) > errorTextMax+3 || bytes.ContainsAny(text, "\r\n\x1b") || !utf8.Valid(text) {
			t.Errorf("a backend's error of %d bytes is told in %d: %q", len(long.Error()), len(text), text)
		}
	}
}

func TestPitfall7EveryPrefixIsAnOrdinaryEnd(t *testing.T) {
	r, _ := memRig(t)
	talk := be(fixed, option(optStructuredReply, nil), option(optSetMetaContext, metaData("disk", BaseAllocation)),
		option(optGo, infoData("disk", infoName, infoBlockSize)), request(cmdWrite, 0, 1, 0, 16), "0123456789abcdef",
		request(cmdRead, 0, 2, 0, 16), request(cmdBlockStatus, 0, 3, 0, 4096), request(cmdDisc, 0, 4, 0, 0))
	for n := range len(talk) {
		w := r.dial(t)
		w.nc.Write(talk[:n])
		w.nc.Close() // a reset, since nothing was read
		w = r.dial(t)
		w.nc.Write(talk[:n])
		w.nc.(*net.UnixConn).CloseWrite() // the end, and whoever sees it reads on
		if _, err := io.Copy(io.Discard, w.nc); isTimeout(err) {
			t.Fatalf("the server hangs after %d bytes", n)
		}
	}
	r.ready(t, "disk", simpleReplies).ask(cmdFlush, 0, 0, 0)
}

func TestPitfall8HalfOpenConnectionsAreBounded(t *testing.T) {
	r, _ := memRig(t, func(c *Config) { c.MaxHalfOpen = 4; c.HandshakeTimeout = time.Minute })
	var first []*wire
	for range 4 {
		w := r.dial(t)
		w.greet(fixed)
		first = append(first, w)
	}
	w := r.ready(t, "disk", simpleReplies) // the fifth pushes out the oldest
	first[0].closed()
	first[3].inSync()
	if code := w.ask(cmdFlush, 0, 0, 0); code != 0 {
		t.Errorf("flush: %d", code)
	}
	if n := r.srv.Stats().HalfOpen; n > 4 {
		t.Errorf("%d half-open connections", n)
	}
}

func TestPitfall8And28OneDeadlineForAll(t *testing.T) {
	r, _ := memRig(t, func(c *Config) { c.HandshakeTimeout = 150 * time.Millisecond })
	if _, err := io.ReadAll(r.dial(t).nc); isTimeout(err) {
		t.Error("a client that says nothing is not cut off")
	}
	synctest.Test(t, func(t *testing.T) { // what a client does within its time it does so on the slowest machine
		const limit = 10 * time.Second
		b := NewMemBackend()
		b.Add(ExportInfo{Name: "disk", Size: testSize})
		s, silent := pipe(t, Config{HandshakeTimeout: limit, MaxOptions: 1 << 30}, b)
		slow, done := another(t, s), another(t, s)
		begin := time.Now()
		silent.recv(18)
		slow.greet(fixed)
		done.greet(fixed)
		done.wants(done.option(optGo, infoData("disk")), repAck)
		for slow.alive() { // one option after the other does not buy time
			if time.Sleep(limit / 8); time.Since(begin) > 2*limit {
				t.Fatal("a slow handshake goes on for ever")
			}
		}
		silent.closed()
		if took := time.Since(begin); took < limit || took > limit+limit/8 {
			t.Errorf("handshakes ended after %v", took)
		}
		time.Sleep(limit) // longer than the deadline, which is over with the handshake
		if code := done.ask(cmdFlush, 0, 0, 0); code != 0 {
			t.Errorf("flush after the handshake's deadline: %d", code)
		}
	})
}

func (w *wire) alive() bool {
	if _, err := w.nc.Write(option(999, nil)); err != nil {
		return false
	}
	var h [20]byte
	if _, err := io.ReadFull(w.nc, h[:]); err != nil {
		return false
	}
	_, err := io.CopyN(io.Discard, w.nc, int64(binary.BigEndian.Uint32(h[16:])))
	return err == nil
}

func TestPitfall8ShutdownWithHalfOpenOnes(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.srv.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	w.closed()
	if _, err := net.Dial("unix", r.sock); err == nil {
		t.Error("a server that is shut down accepts")
	}
	if err := r.srv.Shutdown(ctx); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
}

func TestPitfall9NumberOfOptionsIsBounded(t *testing.T) {
	r, _ := memRig(t, func(c *Config) { c.MaxOptions = 10 })
	w := r.dial(t)
	w.greet(fixed)
	for range 10 {
		w.wants(w.option(999, nil), repErrUnsup)
	}
	w.closed()
}

func TestPitfall10NothingIsOpenedBeforeGo(t *testing.T) {
	b := &fakeBackend{info: allCan(1 << 20)}
	r := newRig(t, b)
	w := r.dial(t)
	w.greet(fixed)
	w.option(optList, nil)
	w.wants(w.option(optStructuredReply, nil), repAck)
	w.wants(w.option(optInfo, infoData("x")), repAck)
	w.wants(w.option(optSetMetaContext, metaData("x", BaseAllocation)), repAck)
	if n := b.opens.Load(); n != 0 {
		t.Fatalf("opened %d times before GO", n)
	}
	w.wants(w.option(optGo, infoData("x")), repAck)
	if n := b.opens.Load(); n != 1 {
		t.Fatalf("opened %d times after GO", n)
	}
}

func TestPitfall11OptionsInOddOrders(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	w.wants(w.option(optSetMetaContext, metaData("disk", BaseAllocation)), repErrInvalid)
	w.wants(w.option(optListMetaContext, metaData("disk")), repAck)
	w.wants(w.option(optStructuredReply, nil), repAck)
	w.wants(w.option(optStructuredReply, nil), repErrInvalid)
	w.wants(w.option(optExtendedHeaders, nil), repAck)
	w.wants(w.option(optStructuredReply, nil), repErrExtHeaderReqd)
	w.wants(w.option(optExtendedHeaders, nil), repErrInvalid)
	w.wants(w.option(optSetMetaContext, metaData("", BaseAllocation)), repAck)
	w.wants(w.option(optGo, infoData("disk")), repAck) // another export: its contexts were never selected
	w.send(extRequest(cmdBlockStatus, 0, 1, 0, 4096))
	if c := w.chunk(); c.code() != codeEINVAL {
		t.Errorf("block status without a context: %+v", c)
	}
}

func TestPitfall13ClientFlags(t *testing.T) {
	r, _ := memRig(t)
	for _, flags := range []uint32{1 << 2, 1 << 31, 0xffffffff} {
		w := r.dial(t)
		w.greet(flags)
		w.closed()
	}
	w := r.dial(t)
	w.greet(0)
	w.send(option(optList, nil))
	w.closed()

	old := r.dial(t)
	old.greet(0) // neither fixed newstyle nor no-zeroes: size, flags, 124 zeros
	old.send(option(optExportName, []byte("disk")))
	b := old.recv(134)
	if binary.BigEndian.Uint64(b) != testSize || !bytes.Equal(b[10:], make([]byte, 124)) {
		t.Errorf("EXPORT_NAME: % x", b)
	}
	if code := old.ask(cmdFlush, 0, 0, 0); code != 0 {
		t.Errorf("flush: %d", code)
	}
	short := r.dial(t)
	short.greet(fixed)
	short.send(option(optExportName, []byte("disk")))
	short.recv(10)
	if code := short.ask(cmdFlush, 0, 0, 0); code != 0 {
		t.Errorf("flush: %d", code)
	}
}

func TestPitfall14InfoAndGoAgree(t *testing.T) {
	r, _ := memRig(t)
	for _, name := range []string{"", "disk", "ro"} {
		for _, mode := range []uint32{0, optStructuredReply, optExtendedHeaders} {
			w := r.dial(t)
			w.greet(fixed)
			if mode != 0 {
				w.wants(w.option(mode, nil), repAck)
			}
			q := infoData(name, infoName, infoDescription, infoBlockSize)
			info := w.wants(w.option(optInfo, q), repAck)
			golist := w.wants(w.option(optGo, q), repAck)
			if len(info) != len(golist) {
				t.Fatalf("INFO says %v, GO says %v", info, golist)
			}
			for i := range info {
				if !bytes.Equal(info[i].data, golist[i].data) {
					t.Errorf("INFO says % x, GO says % x", info[i].data, golist[i].data)
				}
			}
			if n := binary.BigEndian.Uint64(info[0].data[2:]); n != testSize {
				t.Errorf("size %d", n)
			}
		}
	}
}

func TestPitfall15ExportNameFailsByClosing(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	w.send(option(optExportName, []byte("no such export")))
	w.closed()
}

func TestPitfall16AbortIsAcknowledged(t *testing.T) {
	r, _ := memRig(t)
	for _, data := range [][]byte{nil, []byte("ignored")} {
		w := r.dial(t)
		w.greet(fixed)
		w.wants(w.option(optAbort, data), repAck)
		w.closed()
		w.nc.Close()
	}
	for network, address := range map[string]string{"unix": r.sock, "tcp": r.tcp} {
		nc, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(wireTimeout))
		w := &wire{t, nc}
		w.greet(fixed)
		w.send(option(optAbort, nil), make([]byte, 20<<10)) // more than anybody reads along
		w.nc.(interface{ CloseWrite() error }).CloseWrite()
		within(t, "the server to have closed", func() bool { return r.srv.Stats().HalfOpen == 0 })
		w.wants(w.replies(optAbort), repAck)
		if _, err := w.nc.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s, after the ACK: %v", network, err) // a reset may overtake it
		}
	}
}

// panicky has a Backend that fails for one name.
type panicky struct{ *MemBackend }

func (p panicky) Info(ctx context.Context, name string) (ExportInfo, error) {
	if name == "boom" {
		panic("boom")
	}
	return p.MemBackend.Info(ctx, name)
}

func TestPitfall17OneClientCannotTakeTheOthersDown(t *testing.T) {
	b := NewMemBackend()
	b.Add(ExportInfo{Name: "disk", Size: testSize})
	r := newRig(t, panicky{b}, func(c *Config) { c.Logger = nil }) // it would tell of the panic
	other := r.ready(t, "disk", simpleReplies)
	w := r.dial(t)
	w.greet(fixed)
	w.send(option(optGo, infoData("boom")))
	w.closed()
	if code := other.ask(cmdFlush, 0, 0, 0); code != 0 {
		t.Errorf("flush: %d", code)
	}
}

func TestPitfall18And19AccessIsDeniedByDefaultAndEverywhere(t *testing.T) {
	deny := &refusal{syscall.EPERM, "not for you"}
	var denied atomic.Bool
	r, _ := memRig(t, func(c *Config) {
		c.Authorize = func(_ Peer, export string) error {
			if export == "disk" && denied.Load() {
				return deny
			}
			return nil
		}
	})
	denied.Store(true)
	w := r.dial(t)
	w.greet(fixed)
	for _, e := range w.wants(w.option(optList, nil), repAck) {
		if bytes.Contains(e.data, []byte("disk")) && !bytes.Contains(e.data, []byte("default")) {
			t.Errorf("a denied export is listed: %q", e.data)
		}
	}
	w.wants(w.option(optStructuredReply, nil), repAck)
	for _, id := range []uint32{optInfo, optGo} {
		w.wants(w.option(id, infoData("disk")), repErrPolicy)
	}
	for _, id := range []uint32{optListMetaContext, optSetMetaContext} {
		w.wants(w.option(id, metaData("disk", BaseAllocation)), repErrPolicy)
	}
	w.send(option(optExportName, []byte("disk")))
	w.closed()
}

func TestBackendErrorsBecomeOptionErrors(t *testing.T) {
	var fail box
	b := &fakeBackend{info: allCan(1 << 20), open: func(context.Context) error { return fail.get() }}
	r := newRig(t, b, func(c *Config) { c.MaxSessions = 1 })
	w := r.dial(t)
	w.greet(fixed)
	for _, c := range []struct {
		err  error
		want uint32
	}{
		{fs.ErrNotExist, repErrUnknown},
		{&refusal{syscall.EBUSY, "vdi x is locked by node 3"}, repErrPolicy},
		{fs.ErrPermission, repErrPolicy},
		{errors.New("no leader"), repErrPlatform},
		{syscall.ESHUTDOWN, repErrShutdown},
	} {
		fail.set(c.err)
		list := w.option(optGo, infoData("x"))
		w.wants(list, c.want)
		if c.want == repErrPolicy && c.err.Error() != string(list[len(list)-1].data) {
			t.Errorf("the client is told %q instead of %q", list[len(list)-1].data, c.err)
		}
	}
	fail.set(nil)
	w.wants(w.option(optGo, infoData("x")), repAck) // after all those failures the server has room still
}

func TestOpenTimeout(t *testing.T) {
	b := &fakeBackend{info: allCan(1 << 20), open: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	r := newRig(t, b, func(c *Config) { c.OpenTimeout = 50 * time.Millisecond })
	w := r.dial(t)
	w.greet(fixed)
	w.wants(w.option(optGo, infoData("x")), repErrPlatform)
	w.wants(w.option(optInfo, infoData("x")), repAck)
}

// The clock of a client stands still while its export is opened: it hears why not, may ask again, and has no more time for that than it had.
func TestASlowOpenIsNotTheClientsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10 * time.Second
		var fail box
		fail.set(errors.New("no leader"))
		b := &fakeBackend{info: allCan(1 << 20), open: func(context.Context) error { time.Sleep(2 * limit); return fail.get() }}
		s, w := pipe(t, Config{HandshakeTimeout: limit}, b)
		w.greet(fixed)
		time.Sleep(limit / 2)
		w.wants(w.option(optGo, infoData("x")), repErrPlatform)
		w.wants(w.option(optInfo, infoData("x")), repAck)
		fail.set(nil)
		w.wants(w.option(optGo, infoData("x")), repAck)
		if code := w.ask(cmdFlush, 0, 0, 0); code != 0 {
			t.Errorf("flush: %d", code)
		}
		w.nc.Close()
		fail.set(errors.New("no leader"))
		ours, theirs := net.Pipe()
		s.ServeConn(theirs)
		late := &wire{t, ours}
		late.greet(fixed)
		time.Sleep(limit / 2)
		late.wants(late.option(optGo, infoData("x")), repErrPlatform)
		begin := time.Now()
		late.closed()
		if took := time.Since(begin); took != limit/2 {
			t.Errorf("a client whose export did not open has %v more", took)
		}
	})
}

func TestListMetaContexts(t *testing.T) {
	b := &fakeBackend{info: allCan(1 << 20)}
	b.info.Contexts = []string{"qemu:dirty-bitmap:mon", "qemu:dirty-bitmap:tue", "x-own:thing"}
	r := newRig(t, b)
	w := r.dial(t)
	w.greet(fixed)
	w.wants(w.option(optStructuredReply, nil), repAck)
	for _, c := range []struct {
		list, set string
		queries   []string
	}{
		{"base:allocation qemu:dirty-bitmap:mon qemu:dirty-bitmap:tue x-own:thing", "", nil},
		{"base:allocation", "", []string{"base:"}},
		{"base:allocation", "base:allocation", []string{"base:allocation"}},
		{"qemu:dirty-bitmap:mon qemu:dirty-bitmap:tue", "", []string{"qemu:"}},
		{"qemu:dirty-bitmap:mon qemu:dirty-bitmap:tue", "", []string{"qemu:dirty-bitmap:"}},
		{"base:allocation qemu:dirty-bitmap:tue", "base:allocation qemu:dirty-bitmap:tue", []string{"qemu:dirty-bitmap:tue", "nobody:knows", "base:allocation"}},
		{"", "", []string{"qemu", "", "base", ":", "qemu:dirty-bitmap:none"}},
	} {
		for _, id := range []uint32{optListMetaContext, optSetMetaContext} {
			var names []string
			ids := map[uint32]bool{}
			for _, e := range w.wants(w.option(id, metaData("x", c.queries...)), repAck) {
				names = append(names, string(e.data[4:]))
				ids[binary.BigEndian.Uint32(e.data)] = true
			}
			want := c.list
			if id == optSetMetaContext {
				want = c.set
				if len(ids) != len(names) {
					t.Errorf("%d contexts share %d ids", len(names), len(ids))
				}
			}
			if got := strings.Join(names, " "); got != want {
				t.Errorf("option %d of %q: %q, wanted %q", id, c.queries, got, want)
			}
		}
	}
}
