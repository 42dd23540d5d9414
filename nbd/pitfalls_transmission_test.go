package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestPitfall29FlagsThatWereNotOffered(t *testing.T) {
	plain := &fakeBackend{info: ExportInfo{Name: "x", Size: 1 << 20, CanZero: true}}
	w := newRig(t, plain).ready(t, "x", simpleReplies)
	for _, c := range []struct{ cmd, flags uint16 }{
		{cmdWriteZeroes, cmdFlagFastZero}, {cmdRead, cmdFlagDF}, {cmdRead, cmdFlagNoHole}, {cmdRead, 0x100}, {cmdRead, 0x8000},
		{cmdFlush, cmdFlagReqOne}, {cmdWriteZeroes, cmdFlagPayloadLen}, {cmdTrim, 0}, {cmdCache, 0}, {cmdBlockStatus, 0}, {cmdBlockStatus, cmdFlagReqOne},
		{8, 0}, {99, 0}, {0xffff, 0xffff},
	} {
		length := uint32(4096)
		if c.cmd == cmdFlush {
			length = 0
		}
		if code := w.ask(c.cmd, c.flags, 0, length); code != codeEINVAL {
			t.Errorf("command %d with flags %#x: %d", c.cmd, c.flags, code)
		}
	}
	for _, cmd := range []uint16{cmdFlush, cmdWriteZeroes} { // FUA is offered, so it goes with everything
		length := uint32(0)
		if cmd == cmdWriteZeroes {
			length = 4096
		}
		if code := w.ask(cmd, cmdFlagFUA, 0, length); code != 0 {
			t.Errorf("command %d with FUA: %d", cmd, code)
		}
	}
	w.send(request(cmdRead, cmdFlagFUA, 5, 0, 10))
	if code := w.simple(5); code != 0 {
		t.Errorf("read with FUA: %d", code)
	}
	w.recv(10)
}

// parked keeps requests until the test answers them.
type parked struct {
	mu   sync.Mutex
	list []*Request
}

func (p *parked) submit(r *Request) {
	p.mu.Lock()
	p.list = append(p.list, r)
	p.mu.Unlock()
}

func (p *parked) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.list)
}

func (p *parked) take() []*Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.list
	p.list = nil
	return l
}

func TestPitfall30ClientLeavesWithRequestsInFlight(t *testing.T) {
	p := &parked{}
	b := &fakeBackend{info: allCan(1 << 20), submit: p.submit}
	r := newRig(t, b)
	w := r.ready(t, "x", structuredReplies)
	for i := range uint64(20) {
		w.send(request(cmdRead, 0, i, 0, 4096))
	}
	within(t, "the requests to arrive", func() bool { return p.count() == 20 })
	ctx := b.lastContext()
	w.nc.Close()
	within(t, "the device to hear of it", func() bool { return ctx.Err() != nil })
	if n := b.closes.Load(); n != 0 {
		t.Fatal("the device was closed with requests in flight")
	}
	for i, q := range p.take() {
		clear(q.Data)
		if i%2 == 0 {
			q.Done(nil)
		} else {
			q.Queue(nil).Flush()
		}
	}
	within(t, "the device to be closed", func() bool { return b.closes.Load() == 1 })
}

func TestB4NothingStartsAfterTheConnectionDied(t *testing.T) {
	// A request that was read but not started when its connection broke must not start later, when the client has
	// sent it again elsewhere. Here the socket breaks while the reader waits for room.
	p := &parked{}
	b := &fakeBackend{info: allCan(1 << 20), submit: p.submit}
	r := newRig(t, b, func(c *Config) { c.MaxRequests = 2 })
	w := r.ready(t, "x", simpleReplies)
	for i := range uint64(5) {
		w.send(request(cmdWrite, 0, i, 0, 16), "0123456789abcdef")
	}
	within(t, "two requests", func() bool { return p.count() == 2 })
	r.srv.Sessions()[0].Kill()
	within(t, "the context to end", func() bool { return b.lastContext().Err() != nil })
	for _, q := range p.take() {
		q.Done(nil)
	}
	within(t, "the device to be closed", func() bool { return b.closes.Load() == 1 })
	if n := p.count(); n != 0 {
		t.Errorf("%d writes were started after the connection died", n)
	}
}

// The same of requests that were read along with one that the Device is slow to take.
func TestB4NothingStartsAfterTheConnectionDiedInSubmit(t *testing.T) {
	var begun atomic.Int32
	inside, goOn := make(chan struct{}, 8), make(chan struct{})
	b := &fakeBackend{info: allCan(1 << 20), submit: func(r *Request) {
		begun.Add(1)
		inside <- struct{}{}
		<-goOn
		r.Queue(nil)
	}}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	var all []byte
	for i := range uint64(5) {
		all = append(all, be(request(cmdWrite, 0, i, 0, 16), "0123456789abcdef")...)
	}
	w.send(all)
	<-inside
	r.srv.Sessions()[0].Kill()
	close(goOn)
	within(t, "the device to be closed", func() bool { return b.closes.Load() == 1 })
	if n := begun.Load(); n != 1 {
		t.Errorf("%d writes were started after the connection died", n-1)
	}
}

func TestPitfall31BlockStatusOfFourGiB(t *testing.T) {
	const size = 16 << 30
	b := &fakeBackend{info: allCan(size), submit: func(r *Request) {
		for i := range r.Contexts() {
			r.AddExtent(i, size, StateHole)
		}
		r.Queue(nil)
	}}
	r := newRig(t, b)
	w := r.ready(t, "x", structuredReplies, BaseAllocation)
	for _, length := range []uint32{0xffffffff, 0xfffffffe, 1 << 31, 1} {
		w.send(request(cmdBlockStatus, 0, 1, 0, length))
		c := w.chunk()
		if c.kind != chunkBlockStatus || len(c.data) != 12 || binary.BigEndian.Uint32(c.data[4:]) != length {
			t.Errorf("block status of %#x: %+v", length, c)
		}
	}
	e := r.ready(t, "x", extendedReplies, BaseAllocation)
	e.send(extRequest(cmdBlockStatus, 0, 1, 0, size))
	if c := e.chunk(); c.kind != chunkBlockStatusExt || binary.BigEndian.Uint64(c.data[8:]) != size {
		t.Errorf("extended block status: %+v", c)
	}
	e.send(extRequest(cmdTrim, 0, 2, 0, size), extRequest(cmdWriteZeroes, 0, 3, 0, size), extRequest(cmdCache, 0, 4, 0, size))
	for range 3 {
		if c := e.chunk(); c.kind != chunkNone {
			t.Errorf("a request of 16 GiB: %+v", c)
		}
	}
}

func TestPitfall32RangesAreCheckedIn64Bits(t *testing.T) {
	r, _ := memRig(t)
	for _, mode := range []replyMode{simpleReplies, structuredReplies} {
		w := r.ready(t, "disk", mode)
		for _, c := range []struct {
			cmd    uint16
			offset uint64
			length uint32
			want   uint32
		}{
			{cmdRead, testSize, 1, codeEINVAL}, {cmdRead, testSize - 1, 2, codeEINVAL}, {cmdRead, 1<<64 - 512, 1024, codeEINVAL},
			{cmdRead, 1 << 63, 1, codeEINVAL}, {cmdRead, 0, 0xffffffff, codeEINVAL}, {cmdRead, 0, testSize + 1, codeEINVAL},
			{cmdTrim, 1<<64 - 1, 2, codeEINVAL}, {cmdTrim, testSize, 1, codeEINVAL}, {cmdCache, testSize, 1, codeEINVAL},
			{cmdWriteZeroes, testSize, 1, codeENOSPC}, {cmdWriteZeroes, 1<<64 - 1, 0xffffffff, codeENOSPC},
			{cmdFlush, 1, 0, codeEINVAL}, {cmdFlush, 0, 1, codeEINVAL},
		} {
			w.send(request(c.cmd, 0, 9, c.offset, c.length))
			code := uint32(0)
			if mode == simpleReplies {
				code = w.simple(9)
			} else {
				code = w.chunk().code()
			}
			if code != c.want {
				t.Errorf("command %d at %d+%d: error %d, wanted %d", c.cmd, c.offset, c.length, code, c.want)
			}
		}
		w.send(request(cmdWrite, 0, 9, testSize-2, 4), "abcd")
		if mode == simpleReplies {
			if code := w.simple(9); code != codeENOSPC {
				t.Errorf("write over the end: %d", code)
			}
		} else if c := w.chunk(); c.code() != codeENOSPC {
			t.Errorf("write over the end: %+v", c)
		}
	}
	ro := r.ready(t, "ro", simpleReplies)
	if code := ro.ask(cmdWriteZeroes, 0, 0, 4096); code != codeEPERM {
		t.Errorf("zeroes on a read-only export: %d", code)
	}
	ro.send(request(cmdWrite, 0, 9, 0, 4), "abcd")
	if code := ro.simple(9); code != codeEPERM {
		t.Errorf("write on a read-only export: %d", code)
	}
}

func TestPitfall36NoMemoryForWhateverLengthIsNamed(t *testing.T) {
	const size = 16 << 30 // so that only the length is wrong
	b := &fakeBackend{info: allCan(size), submit: func(r *Request) {
		if len(r.Data) > 64<<20 {
			t.Errorf("%v with %d bytes of memory", r.Op, len(r.Data))
		}
		r.Queue(nil)
	}}
	r := newRig(t, b)
	w := r.ready(t, "x", structuredReplies)
	for _, length := range []uint32{64<<20 + 1, 1 << 30, 0xffffffff} {
		for flags, want := range map[uint16]uint32{0: codeEINVAL, cmdFlagDF: codeEOVERFLOW} {
			w.send(request(cmdRead, flags, 1, 0, length))
			if c := w.chunk(); c.code() != want {
				t.Errorf("a read of %d bytes, flags %d: %d", length, flags, c.code())
			}
		}
		w.send(request(cmdTrim, 0, 2, 0, length), request(cmdWriteZeroes, 0, 3, 0, length), request(cmdCache, 0, 4, 0, length))
		if w.simple(2)+w.simple(3)+w.simple(4) != 0 {
			t.Errorf("%d bytes without a payload are too many", length)
		}
	}
	x := r.ready(t, "x", extendedReplies)
	for _, length := range []uint64{64<<20 + 1, 1 << 32, 1 << 34, 1 << 63, 1<<64 - 1} {
		x.send(extRequest(cmdRead, 0, 1, 0, length))
		if c := x.chunk(); c.code() != codeEINVAL {
			t.Errorf("a read of %d bytes: %d", length, c.code())
		}
	}
}

// The answer to a BLOCK_STATUS may be long, though the request moves no data: it is paid for like a payload.
func TestPitfall36LongAnswersAreCharged(t *testing.T) {
	const most, requests = 2 << 20, 100
	var submitted atomic.Int32
	b := &fakeBackend{info: allCan(1 << 30), submit: func(r *Request) {
		submitted.Add(1)
		for i := uint64(0); r.AddExtent(0, 4096, i%2); i++ {
		}
		r.Queue(nil)
	}}
	r := newRig(t, b, func(c *Config) { c.MaxConnBytes = most })
	w := r.ready(t, "x", structuredReplies, BaseAllocation)
	var all []byte
	for i := range uint64(requests) {
		all = append(all, request(cmdBlockStatus, 0, i, 0, 1<<30)...)
	}
	go w.nc.Write(all) // waits until most of them are answered
	const each = extentsMax * extentCost
	within(t, "the connection to have all that it may", func() bool { return r.srv.Stats().BytesHeld > most-each-requestCost })
	if n := submitted.Load(); n > requests/2 { // those that are charged, and those that the socket took
		t.Errorf("%d answers of a client that does not read", n)
	}
	for i := range uint64(requests) {
		if c := w.chunk(); c.cookie != i || len(c.data) != 4+8*extentsMax {
			t.Fatalf("answer %d: cookie %d, %d bytes", i, c.cookie, len(c.data))
		}
	}
}

func TestPitfall33ExtentsAreAligned(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		minBlock := uint64(1) << rng.IntN(10)
		total := minBlock * (1 + rng.Uint64N(64))
		r := &Request{Op: OpBlockStatus, Length: total, contexts: []metaContext{{}}}
		r.prepareExtents()
		truth := make([]uint64, 0, total) // flags of each byte that was said
		for n := rng.IntN(20); n > 0; n-- {
			length, flags := rng.Uint64N(3*minBlock+2), rng.Uint64N(3)
			said := min(length, total-uint64(len(truth)))
			for range said {
				truth = append(truth, flags)
			}
			if !r.AddExtent(0, length, flags) && uint64(len(truth)) < total {
				t.Fatalf("refused at %d of %d", len(truth), total)
			}
		}
		l := &r.extents[0]
		l.align(minBlock, 1<<32-1, total)
		pos := uint64(0)
		for _, e := range l.list {
			if e.len == 0 || pos%minBlock != 0 || pos+e.len > total {
				t.Fatalf("extent %d+%d of %d, blocks of %d", pos, e.len, total, minBlock)
			}
			for b := pos; b < pos+e.len && b < uint64(len(truth)); b++ {
				if truth[b] != e.flags && e.flags != 0 {
					t.Fatalf("byte %d has flags %d, told %d", b, truth[b], e.flags)
				}
			}
			pos += e.len
		}
		if pos == 0 || uint64(len(truth)) == total && pos != total {
			t.Fatalf("%d of %d covered, %d said", pos, total, len(truth))
		}
	}
}

func TestPitfall34OddTrims(t *testing.T) {
	r, d := memRig(t)
	w := r.ready(t, "", simpleReplies)
	w.send(request(cmdWrite, 0, 1, 0, 1024), bytes.Repeat([]byte{1}, 1024))
	w.simple(1)
	for _, c := range []struct{ off, n uint32 }{{0, 0}, {0, 1}, {511, 2}, {1, 65535}, {testSize, 0}, {testSize - 1, 1}, {0, testSize}} {
		for _, cmd := range []uint16{cmdTrim, cmdWriteZeroes, cmdCache} {
			if code := w.ask(cmd, 0, uint64(c.off), c.n); code != 0 {
				t.Errorf("command %d of %d at %d: %d", cmd, c.n, c.off, code)
			}
		}
	}
	w.send(request(cmdRead, 0, 1, 0, 0), request(cmdWrite, 0, 2, 0, 0))
	if w.simple(1)+w.simple(2) != 0 {
		t.Error("reads and writes of no bytes fail")
	}
	_ = d
}

func TestPitfall35OverlappingWritersLoseNothing(t *testing.T) {
	// Neighbours within one block, from many connections at once: each byte is as its only writer left it.
	r, _ := memRig(t)
	const writers, span, rounds = 8, 4096, 3
	var wg sync.WaitGroup
	for i := range writers {
		w := r.ready(t, "disk", simpleReplies)
		wg.Go(func() {
			for round := range byte(rounds) {
				var all []byte // in one piece, so that the server has one to do at every moment
				for n := range span / writers {
					all = append(all, be(request(cmdWrite, 0, 1, uint64(n*writers+i), 1), []byte{byte(i) + round*writers})...)
				}
				w.send(all)
				for range span / writers {
					w.simple(1)
				}
			}
		})
	}
	wg.Wait()
	w := r.ready(t, "disk", simpleReplies)
	w.send(request(cmdRead, 0, 1, 0, span))
	w.simple(1)
	for k, b := range w.recv(span) {
		if b != byte(k%writers)+(rounds-1)*writers {
			t.Fatalf("byte %d is %d", k, b)
		}
	}
}

func TestPitfall37And40ErrorsAreAnsweredAndTheConnectionStays(t *testing.T) {
	var fail box
	b := &fakeBackend{info: allCan(1 << 20), submit: func(r *Request) { clear(r.Data); r.Queue(fail.get()) }}
	r := newRig(t, b)
	s, x, e := r.ready(t, "x", simpleReplies), r.ready(t, "x", structuredReplies, BaseAllocation), r.ready(t, "x", extendedReplies)
	for _, c := range []struct {
		err  error
		code uint32
	}{
		{errors.New("disk on fire"), codeEIO}, {syscall.EIO, codeEIO}, {syscall.ENOSPC, codeENOSPC}, {syscall.EDQUOT, codeENOSPC},
		{syscall.EFBIG, codeENOSPC}, {syscall.EPERM, codeEPERM}, {syscall.EROFS, codeEPERM}, {fs.ErrPermission, codeEPERM}, {syscall.EINVAL, codeEINVAL},
		{syscall.ENOMEM, codeENOMEM}, {syscall.EOVERFLOW, codeEOVERFLOW}, {syscall.ESHUTDOWN, codeESHUTDOWN}, {errors.ErrUnsupported, codeEINVAL},
		{&fs.PathError{Op: "write", Path: "obj", Err: syscall.ENOSPC}, codeENOSPC}, {context.DeadlineExceeded, codeEIO}, {nil, 0},
	} {
		fail.set(c.err)
		s.send(request(cmdRead, 0, 1, 0, 512))
		if code := s.simple(1); code != c.code {
			t.Errorf("%v becomes %d", c.err, code)
		} else if code == 0 {
			s.recv(512)
		}
		x.send(request(cmdRead, 0, 1, 0, 512), request(cmdBlockStatus, 0, 2, 0, 512))
		for _, k := range append(x.chunks(), x.chunks()...) {
			if k.code() != c.code {
				t.Errorf("%v becomes chunk %+v", c.err, k)
			}
			if n := len(k.data); c.code != 0 && (n < 6 || int(binary.BigEndian.Uint16(k.data[4:])) != n-6 || !strings.Contains(string(k.data[6:]), c.err.Error())) {
				t.Errorf("%v is told as %q", c.err, k.data)
			}
		}
		e.send(extRequest(cmdFlush, 0, 1, 0, 0))
		if k := e.chunk(); k.code() != c.code {
			t.Errorf("%v becomes chunk %+v", c.err, k)
		}
	}
	fail.set(errors.ErrUnsupported)
	if code := s.ask(cmdWriteZeroes, cmdFlagFastZero, 0, 512); code != codeENOTSUP {
		t.Errorf("a fast zero that is not fast: %d", code)
	}
	if code := s.ask(cmdWriteZeroes, 0, 0, 512); code != codeEINVAL {
		t.Errorf("ENOTSUP without FAST_ZERO: %d", code)
	}
}

func TestPitfall38UnknownCommandsHaveNoPayload(t *testing.T) {
	r, _ := memRig(t)
	w := r.ready(t, "disk", simpleReplies)
	if code := w.ask(99, 0, 0, 1<<30); code != codeEINVAL {
		t.Errorf("unknown command: %d", code)
	}
	if code := w.ask(cmdFlush, 0, 0, 0); code != 0 {
		t.Errorf("flush: %d", code)
	}
	e := r.ready(t, "disk", extendedReplies)
	e.send(extRequest(99, cmdFlagPayloadLen, 1, 0, 5), "12345", extRequest(cmdRead, cmdFlagPayloadLen, 2, 0, 3), "123", extRequest(cmdFlush, 0, 3, 0, 0))
	for _, want := range []uint32{codeEINVAL, codeEINVAL, 0} {
		if c := e.chunk(); c.code() != want {
			t.Errorf("%+v, wanted %d", c, want)
		}
	}
}

func TestPitfall39OversizeWrites(t *testing.T) {
	r, _ := memRig(t)
	w := r.ready(t, "disk", simpleReplies)
	mib := make([]byte, 1<<20)
	for _, n := range []uint32{65, 128} {
		w.send(request(cmdWrite, 0, 1, 0, n<<20))
		for range n {
			w.send(mib)
		}
		if code := w.simple(1); code != codeEINVAL {
			t.Errorf("a write of %d MiB: %d", n, code)
		}
	}
	if code := w.ask(cmdRead, 0, 0, 65<<20); code != codeEINVAL {
		t.Errorf("a read of 65 MiB: %d", code)
	}
	if code := w.ask(cmdTrim, 0, 0, 0xffffffff); code != codeEINVAL { // past the end, and no reason to leave
		t.Errorf("a trim of 4 GiB: %d", code)
	}
	w.send(request(cmdWrite, 0, 1, 0, 0xffffffff))
	go func() { // beyond reason: an error, and then the end
		for {
			if _, err := w.nc.Write(mib); err != nil {
				return
			}
		}
	}()
	if code := w.simple(1); code != codeEINVAL {
		t.Errorf("a write of 4 GiB: %d", code)
	}
}

func TestLargestPayload(t *testing.T) {
	b := NewMemBackend()
	b.Add(ExportInfo{Name: "x", Size: 128 << 20})
	r := newRig(t, b)
	modes := []replyMode{simpleReplies, structuredReplies, extendedReplies}
	if raceEnabled { // which looks at every byte
		modes = modes[2:]
	}
	for _, mode := range modes {
		w := r.ready(t, "x", mode)
		data := bytes.Repeat(pattern(1<<20-1, byte(mode)), 65)[:64<<20]
		if mode == extendedReplies {
			w.send(extRequest(cmdWrite, cmdFlagPayloadLen, 1, 1, 64<<20), data, extRequest(cmdRead, 0, 2, 1, 64<<20))
			w.chunks()
		} else {
			w.send(request(cmdWrite, 0, 1, 1, 64<<20), data, request(cmdRead, 0, 2, 1, 64<<20))
			w.simple(1)
		}
		var got []byte
		if mode == simpleReplies {
			w.simple(2)
			got = w.recv(64 << 20)
		} else {
			got = w.chunks()[0].data[8:]
		}
		if !bytes.Equal(got, data) {
			t.Errorf("mode %d: 64 MiB came back different", mode)
		}
	}
}

func TestPitfall41StructuredReads(t *testing.T) {
	b := &fakeBackend{info: allCan(16 << 20), submit: func(r *Request) {
		for i := range r.Data {
			r.Data[i] = 0xee // what the pool left
		}
		n := len(r.Data)
		r.Zeroes(0, n/4)
		copy(r.Data[n/4:n/2], bytes.Repeat([]byte{1}, n))
		r.Zeroes(n/2, n/4)
		copy(r.Data[3*n/4:], bytes.Repeat([]byte{2}, n))
		r.Queue(nil)
	}}
	r := newRig(t, b)
	want := func(n int) []byte {
		p := make([]byte, n)
		copy(p[n/4:n/2], bytes.Repeat([]byte{1}, n))
		copy(p[3*n/4:], bytes.Repeat([]byte{2}, n))
		return p
	}
	for _, mode := range []replyMode{structuredReplies, extendedReplies} {
		w := r.ready(t, "x", mode)
		for _, n := range []int{4, 4096, 1 << 20} {
			for _, flags := range []uint16{0, cmdFlagDF} {
				if mode == extendedReplies {
					w.send(extRequest(cmdRead, flags, 1, 512, uint64(n)))
				} else {
					w.send(request(cmdRead, flags, 1, 512, uint32(n)))
				}
				list := w.chunks()
				if flags == cmdFlagDF && len(list) != 1 {
					t.Errorf("DF, and yet %d chunks", len(list))
				}
				if n == 1<<20 && flags == 0 && len(list) != 4 {
					t.Errorf("%d chunks for data between two holes", len(list))
				}
				if got := assemble(t, list, 512, n); !bytes.Equal(got, want(n)) {
					t.Errorf("mode %d, %d bytes, flags %d: wrong bytes", mode, n, flags)
				}
			}
		}
	}
	s := r.ready(t, "x", simpleReplies)
	s.send(request(cmdRead, 0, 1, 0, 8192))
	s.simple(1)
	if !bytes.Equal(s.recv(8192), want(8192)) {
		t.Error("a simple reply has something else where there are holes")
	}
}

// assemble puts a structured read together, and checks what a client must check.
func assemble(t *testing.T, list []chunk, offset uint64, n int) []byte {
	t.Helper()
	got, seen := make([]byte, n), make([]bool, n)
	for _, c := range list {
		if c.kind == chunkNone {
			continue
		}
		at := binary.BigEndian.Uint64(c.data) - offset
		length := len(c.data) - 8
		switch c.kind {
		case chunkOffsetData:
			copy(got[at:], c.data[8:])
		case chunkOffsetHole:
			length = int(binary.BigEndian.Uint32(c.data[8:]))
		default:
			t.Fatalf("chunk of type %d", c.kind)
		}
		if length <= 0 {
			t.Fatal("an empty chunk")
		}
		for i := at; i < at+uint64(length); i++ {
			if seen[i] {
				t.Fatal("chunks overlap")
			}
			seen[i] = true
		}
	}
	for i := range seen {
		if !seen[i] {
			t.Fatalf("byte %d is in no chunk", i)
		}
	}
	return got
}

func TestPitfall42SizesThatBreakClients(t *testing.T) {
	for _, info := range []ExportInfo{
		{Size: 1 << 63}, {Size: 1 << 20, MinBlock: 3}, {Size: 1 << 20, MinBlock: 1 << 17}, {Size: 1 << 20, PreferredBlock: 100},
		{Size: 1 << 20, PreferredBlock: 256}, {Size: 1 << 20, MaxBlock: 1024}, {Size: 1, Description: strings.Repeat("d", 5000)},
	} {
		info.Name = "x"
		w := newRig(t, &fakeBackend{info: info}).dial(t)
		w.greet(fixed)
		w.wants(w.option(optGo, infoData("x")), repErrPlatform)
	}
	info := allCan(1<<63 - 1)
	w := newRig(t, &fakeBackend{info: info}).ready(t, "x", simpleReplies)
	w.send(request(cmdRead, 0, 1, 1<<63-11, 10))
	if code := w.simple(1); code != 0 {
		t.Errorf("the last bytes of the largest export: %d", code)
	}
	w.recv(10)
	if code := w.ask(cmdRead, 0, 1<<63-10, 10); code != codeEINVAL {
		t.Errorf("one byte beyond the largest export: %d", code)
	}
}

func TestMinimumBlock(t *testing.T) {
	b := &fakeBackend{info: allCan(1<<20 + 100)}
	b.info.MinBlock = 512
	w := newRig(t, b).dial(t)
	w.greet(fixed)
	list := w.wants(w.option(optGo, infoData("x")), repAck)
	if len(list) != 2 || binary.BigEndian.Uint64(list[0].data[2:]) != 1<<20 || binary.BigEndian.Uint32(list[1].data[2:]) != 512 {
		t.Errorf("GO says %v", list)
	}
	for _, c := range []struct{ off, n, want uint32 }{{0, 512, 0}, {512, 1024, 0}, {1, 512, codeEINVAL}, {0, 511, codeEINVAL}} {
		if code := w.ask(cmdTrim, 0, uint64(c.off), c.n); code != c.want {
			t.Errorf("trim %d+%d: %d", c.off, c.n, code)
		}
	}
}

func TestPitfall43RepliesNeverMix(t *testing.T) {
	// Answers come from many goroutines, in any order, by Done and by Queue; every reply must arrive once and whole.
	work := make(chan *Request, 4096)
	t.Cleanup(func() { close(work) }) // when the rig is gone
	b := &fakeBackend{info: allCan(1 << 30), submit: func(r *Request) { work <- r }}
	r := newRig(t, b)
	for range 4 {
		go func() {
			for q := range work {
				for i := range q.Data {
					q.Data[i] = byte(q.Offset >> 9)
				}
				if q.Offset>>9%3 == 0 {
					q.Done(nil)
					continue
				}
				q.Queue(nil).Flush()
			}
		}()
	}
	var wg sync.WaitGroup
	for range 3 {
		w := r.ready(t, "x", simpleReplies)
		const n = 5000
		wg.Go(func() {
			for i := range uint64(n) {
				w.nc.Write(request(cmdRead, 0, i, i<<9, uint32(1+i%9000)))
			}
		})
		wg.Go(func() {
			seen := make(map[uint64]bool)
			for range n {
				h := w.recv(simpleReplySize)
				cookie := binary.BigEndian.Uint64(h[8:])
				if binary.BigEndian.Uint32(h) != magicSimpleReply || cookie >= n || seen[cookie] {
					t.Errorf("reply % x", h)
					return
				}
				seen[cookie] = true
				for _, b := range w.recv(int(1 + cookie%9000)) {
					if b != byte(cookie) {
						t.Errorf("a reply to request %d with bytes of another", cookie)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestPitfall44ADeadReaderHoldsUpNobody(t *testing.T) {
	b := NewMemBackend()
	b.Add(ExportInfo{Name: "x", Size: 256 << 20})
	r := newRig(t, b, func(c *Config) { c.StallTimeout = 300 * time.Millisecond; c.MaxBytes = 128 << 20 })
	var dead []*wire
	for range 20 {
		w := r.ready(t, "x", simpleReplies)
		var all []byte // sent in one piece: it may be cut off from the first answer on
		for i := range uint64(64) {
			all = append(all, request(cmdRead, 0, i, 0, 4<<20)...) // far more than fits anywhere
		}
		w.send(all)
		dead = append(dead, w)
	}
	live := r.ready(t, "x", simpleReplies)
	for range 200 {
		if code := live.ask(cmdFlush, 0, 0, 0); code != 0 {
			t.Fatalf("flush: %d", code)
		}
		live.send(request(cmdRead, 0, 1, 0, 64<<10))
		live.simple(1)
		live.recv(64 << 10)
	}
	if held := r.srv.Stats().BytesHeld; held > 128<<20+64<<20 {
		t.Errorf("dead readers hold %d bytes", held)
	}
	within(t, "the dead ones to be cut off", func() bool { return r.srv.Stats().Sessions == 1 })
	_ = dead
}

func TestAClientThatStopsInMidRequestIsCutOff(t *testing.T) {
	r, _ := memRig(t, func(c *Config) { c.StallTimeout = 100 * time.Millisecond })
	idle := r.ready(t, "disk", simpleReplies)
	for _, part := range [][]byte{request(cmdWrite, 0, 1, 0, 1<<20), request(cmdFlush, 0, 1, 0, 0)[:5], request(cmdWrite, 0, 1, testSize, 1000)} {
		w := r.ready(t, "disk", simpleReplies)
		w.send(part)
		w.closed()
	}
	time.Sleep(200 * time.Millisecond)
	if code := idle.ask(cmdFlush, 0, 0, 0); code != 0 { // between requests a client may take its time
		t.Errorf("flush: %d", code)
	}
}

// A long request may take its time, as long as it comes on.
func TestASlowClientIsNotCutOff(t *testing.T) {
	for _, c := range []struct {
		step int
		cut  bool
	}{{stallBytes, false}, {stallBytes / 8, true}} {
		synctest.Test(t, func(t *testing.T) {
			const stall, size = 2 * time.Minute, 4 << 20
			b := NewMemBackend()
			b.Add(ExportInfo{Name: "disk", Size: testSize})
			_, w := pipe(t, Config{StallTimeout: stall}, b)
			w.greet(fixed)
			w.wants(w.option(optGo, infoData("disk")), repAck)
			w.send(request(cmdWrite, 0, 1, 0, size))
			var err error
			for at := 0; at < size && err == nil; at += c.step {
				time.Sleep(stall * 3 / 4)
				_, err = w.nc.Write(make([]byte, c.step))
			}
			if (err != nil) != c.cut {
				t.Errorf("steps of %d bytes: %v", c.step, err)
			}
			if err == nil && w.simple(1) != 0 {
				t.Error("the write failed")
			}
		})
	}
}

// A client that vanished without a word is found out by the kernel.
func TestPitfall45VanishedPeersAreNoticed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	tune(nc, 1<<20, 2*time.Minute)
	rc, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) {
		for _, o := range []struct {
			what               string
			level, option, max int
		}{
			{"keepalive", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {"its seconds of idleness", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
			{"its seconds between probes", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15}, {"its probes", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4},
			{"milliseconds for unacknowledged data", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 120000}, {"no delay", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		} {
			if v, err := unix.GetsockoptInt(int(fd), o.level, o.option); err != nil || v < 1 || v > o.max {
				t.Errorf("%s: %d, %v", o.what, v, err)
			}
		}
	})
}

func TestPitfall45SessionsComeBack(t *testing.T) {
	r, _ := memRig(t, func(c *Config) { c.MaxSessions = 1 })
	for range 5 {
		w := r.ready(t, "disk", simpleReplies)
		other := r.dial(t)
		other.greet(fixed)
		other.wants(other.option(optGo, infoData("disk")), repErrPolicy)
		w.nc.Close() // a crash
		within(t, "the session to end", func() bool { return r.srv.Stats().Sessions == 0 })
		other.wants(other.option(optGo, infoData("disk")), repAck)
		r.srv.Sessions()[0].Kill() // an administrator
		other.closed()
		within(t, "the session to end", func() bool { return r.srv.Stats().Sessions == 0 })
	}
}

func TestPitfall46BadConfigurationsAreRefused(t *testing.T) {
	for _, c := range []Config{
		{TLSMode: 7}, {TLSMode: TLSRequired}, {HandshakeTimeout: -1}, {MaxHalfOpen: -1}, {MaxRequests: -5}, {MaxPayload: 1}, {MaxPayload: 48 << 20},
		{MaxBytes: 1 << 20}, {ReadBuffer: 10}, {ReadBuffer: 1 << 30},
	} {
		if _, err := NewServer(c, NewMemBackend()); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
	if _, err := NewServer(Config{}, nil); err == nil {
		t.Error("a server without a backend is accepted")
	}
}

func TestBadMagicEndsTheConnection(t *testing.T) {
	r, _ := memRig(t)
	for _, junk := range []string{"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 more of a TLS hello", strings.Repeat("\x00", 64)} {
		w := r.ready(t, "disk", simpleReplies)
		w.send(junk)
		w.closed()
		h := r.dial(t)
		h.recv(18)
		h.nc.Write([]byte(junk))
		if _, err := h.nc.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("junk in the handshake: %v", err)
		}
	}
}

func TestDiscFinishesWhatIsInFlight(t *testing.T) {
	p := &parked{}
	b := &fakeBackend{info: allCan(1 << 20), submit: p.submit}
	r := newRig(t, b)
	w := r.ready(t, "x", simpleReplies)
	w.send(request(cmdFlush, 0, 1, 0, 0), request(cmdFlush, 0, 2, 0, 0), request(cmdDisc, 0, 3, 0, 0), request(cmdFlush, 0, 4, 0, 0))
	within(t, "two requests", func() bool { return p.count() == 2 })
	if b.lastContext().Err() != nil {
		t.Error("an orderly goodbye cancelled the device's context")
	}
	for _, q := range p.take() {
		q.Done(nil)
	}
	if w.simple(1)+w.simple(2) != 0 {
		t.Error("a flush failed")
	}
	w.closed()
}

// A request that was given up, since its client had left, is not answered at all: the kernel would hand an error on, where without an answer it sends it again.
func TestWhatIsGivenUpIsNotAnswered(t *testing.T) {
	p := &parked{}
	b := &fakeBackend{info: allCan(1 << 20), submit: p.submit}
	w := newRig(t, b).ready(t, "x", simpleReplies)
	w.send(request(cmdTrim, 0, 1, 0, 4096), request(cmdTrim, 0, 2, 0, 4096))
	within(t, "the requests", func() bool { return p.count() == 2 })
	list := p.take()
	list[0].Done(fmt.Errorf("the device has a mind of its own: %w", context.Canceled)) // while the client is there it is an error
	if code := w.simple(1); code != codeEIO {
		t.Errorf("error %d", code)
	}
	w.nc.(*net.UnixConn).CloseWrite()
	within(t, "the device to hear of it", func() bool { return b.lastContext().Err() != nil })
	list[1].Done(fmt.Errorf("trim: %w", context.Canceled))
	w.closed()
}

// On true sockets a machine that stands still for a moment may keep a client from asking while the server drains. So there it either has much time, and says goodbye itself, or
// does not ask.
func TestShutdownDrains(t *testing.T) {
	a := newAuthority(t)
	for name, c := range map[string]struct {
		cfg    Config
		client *tls.Config
	}{
		"plain": {Config{}, nil},
		"TLS":   {Config{TLSMode: TLSRequired, TLS: &tls.Config{Certificates: []tls.Certificate{a.issue("server", "localhost")}}}, a.client()},
	} {
		for _, d := range []*drained{{limit: 200 * time.Millisecond}, {limit: wireTimeout / 2, late: true, goodbye: true}} {
			t.Run(fmt.Sprintf("%s, for %v", name, d.limit), func(t *testing.T) {
				d.client = c.client
				r := newRig(t, d.backend(), func(cfg *Config) { cfg.DrainTimeout, cfg.TLSMode, cfg.TLS = d.limit, c.cfg.TLSMode, c.cfg.TLS })
				d.run(t, r.srv, r.dial(t), r.dial(t))
			})
		}
		t.Run(name+", in virtual time", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &drained{limit: 200 * time.Millisecond, late: true}
				if c.client != nil {
					d.client = &tls.Config{InsecureSkipVerify: true} // the certificates are of another time
				}
				cfg := c.cfg
				cfg.DrainTimeout = d.limit
				s, idle := pipe(t, cfg, d.backend())
				d.run(t, s, idle, another(t, s))
			})
		})
	}
}

// drained is a shutdown with two clients: late says that one asks while the server drains, goodbye that they do not wait until it closes their connections.
type drained struct {
	parked
	limit         time.Duration
	client        *tls.Config
	late, goodbye bool
}

func (d *drained) backend() Backend { return &fakeBackend{info: allCan(1 << 20), submit: d.submit} }

func (d *drained) run(t *testing.T, s *Server, idle, busy *wire) {
	for _, w := range []*wire{idle, busy} {
		w.greet(fixed)
		if d.client != nil {
			if err := w.upgrade(d.client); err != nil {
				t.Fatal(err)
			}
		}
		w.wants(w.option(optGo, infoData("x")), repAck)
	}
	busy.send(request(cmdFlush, 0, 1, 0, 0))
	within(t, "the request", func() bool { return d.count() == 1 })
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	within(t, "the draining", s.isDraining)
	if d.late {
		if code := busy.ask(cmdFlush, 0, 0, 0); code != codeESHUTDOWN {
			t.Errorf("a request to a draining server: %d", code)
		}
	}
	if d.goodbye {
		busy.send(request(cmdDisc, 0, 2, 0, 0))
		idle.send(request(cmdDisc, 0, 1, 0, 0))
	}
	idle.closed()
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned with a request in flight: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	d.take()[0].Done(nil)
	if code := busy.simple(1); code != 0 {
		t.Errorf("the request in flight: %d", code)
	}
	busy.closed()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// With QuietDrain a late request is not answered; what was in flight is, and then the connection ends.
func TestQuietDrain(t *testing.T) {
	p := &parked{}
	b := &fakeBackend{info: allCan(1 << 20), submit: p.submit}
	r := newRig(t, b, func(c *Config) { c.DrainTimeout, c.QuietDrain = 200*time.Millisecond, true })
	busy := r.ready(t, "x", simpleReplies)
	busy.send(request(cmdFlush, 0, 1, 0, 0))
	within(t, "the request", func() bool { return p.count() == 1 })
	done := make(chan error, 1)
	go func() { done <- r.srv.Shutdown(context.Background()) }()
	within(t, "the draining", r.srv.isDraining)
	busy.send(request(cmdFlush, 0, 2, 0, 0))
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned with a request in flight: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	p.take()[0].Done(nil)
	if code := busy.simple(1); code != 0 {
		t.Errorf("the request in flight: %d", code)
	}
	busy.closed()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestB4NothingIsAnsweredTwice: a kernel that is answered twice, or after an error, gives the connection up.
func TestB4NothingIsAnsweredTwice(t *testing.T) {
	told := make(chan any, 1)
	b := &fakeBackend{info: allCan(1 << 20), submit: func(r *Request) {
		defer func() { told <- recover() }()
		r.Queue(nil)
		r.Queue(nil)
	}}
	w := newRig(t, b).ready(t, "x", simpleReplies)
	if code := w.ask(cmdFlush, 0, 0, 0); code != 0 {
		t.Errorf("flush: %d", code)
	}
	if <-told == nil {
		t.Error("a request may be answered twice")
	}
}

func TestResizeIsSeenByNewConnections(t *testing.T) {
	b := NewMemBackend()
	b.Add(ExportInfo{Name: "x", Size: 1 << 20})
	r := newRig(t, b)
	old := r.ready(t, "x", simpleReplies)
	b.Add(ExportInfo{Name: "x", Size: 2 << 20})
	if code := old.ask(cmdTrim, 0, 1<<20, 4096); code != codeEINVAL {
		t.Errorf("beyond what this connection was told: %d", code)
	}
	if code := r.ready(t, "x", simpleReplies).ask(cmdTrim, 0, 1<<20, 4096); code != 0 {
		t.Errorf("a new connection: %d", code)
	}
}

func TestObserve(t *testing.T) {
	type seen struct {
		op     Op
		length uint64
		code   uint32
	}
	ch := make(chan seen, 10)
	r, _ := memRig(t, func(c *Config) {
		c.Observe = func(op Op, length uint64, took time.Duration, code uint32) {
			if took <= 0 || took > time.Minute {
				t.Errorf("%v took %v", op, took)
			}
			ch <- seen{op, length, code}
		}
	})
	w := r.ready(t, "disk", simpleReplies)
	w.ask(cmdTrim, 0, 0, 4096)
	w.ask(cmdTrim, 0, testSize, 4096)
	for _, want := range []seen{{OpTrim, 4096, 0}, {OpTrim, 4096, codeEINVAL}} {
		if got := <-ch; got != want {
			t.Errorf("observed %v, wanted %v", got, want)
		}
	}
	within(t, "the counters", func() bool { s := r.srv.Sessions()[0].Stats(); return s.Requests == 2 && s.Errors == 1 })
}

func TestStatusPayload(t *testing.T) {
	b := &fakeBackend{info: allCan(1 << 40), submit: func(r *Request) {
		for i := range r.Contexts() {
			if r.Context(i) == "qemu:dirty-bitmap:a" {
				r.AddExtent(i, 1<<20, StateDirty)
				r.AddExtent(i, 1<<30, 0)
			}
		}
		r.Queue(nil)
	}}
	b.info.Contexts = []string{"qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}
	w := newRig(t, b).ready(t, "x", extendedReplies, BaseAllocation, "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b")
	w.send(extRequest(cmdBlockStatus, 0, 1, 0, 1<<40))
	if list := w.chunks(); len(list) != 3 {
		t.Errorf("%d chunks for three contexts", len(list))
	}
	w.send(extRequest(cmdBlockStatus, cmdFlagPayloadLen, 1, 0, 12), uint64(1<<40), uint32(1))
	list := w.chunks()
	if len(list) != 1 || binary.BigEndian.Uint32(list[0].data) != 1 || binary.BigEndian.Uint32(list[0].data[4:]) != 2 ||
		binary.BigEndian.Uint64(list[0].data[8:]) != 1<<20 || binary.BigEndian.Uint64(list[0].data[16:]) != StateDirty {
		t.Errorf("one context of three: %+v", list)
	}
	w.send(extRequest(cmdBlockStatus, cmdFlagPayloadLen|cmdFlagReqOne, 1, 0, 12), uint64(1<<40), uint32(1))
	if list := w.chunks(); len(list) != 1 || len(list[0].data) != 8+16 {
		t.Errorf("REQ_ONE: %+v", list)
	}
	for _, bad := range [][]byte{be(uint64(4096)), be(uint64(4096), uint32(9)), be(uint64(4096), uint32(1), uint32(1)), be(uint32(1)), make([]byte, 999)} {
		w.send(extRequest(cmdBlockStatus, cmdFlagPayloadLen, 1, 0, uint64(len(bad))), bad)
		if c := w.chunk(); c.code() != codeEINVAL {
			t.Errorf("payload % x: %+v", bad[:min(len(bad), 16)], c)
		}
	}
}

// countedConn counts calls.
type countedConn struct {
	net.Conn
	reads, writes atomic.Int32
}

func (c *countedConn) Read(b []byte) (int, error)  { c.reads.Add(1); return c.Conn.Read(b) }
func (c *countedConn) Write(b []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(b) }

// What has arrived together is taken, and answered, by a few calls, and waits without goroutines of its own.
func TestManyRequestsGoTogether(t *testing.T) {
	const n = 1000
	p := &parked{}
	s, err := NewServer(Config{}, &fakeBackend{info: allCan(1 << 20), submit: p.submit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ours, theirs := socketpair(t)
	counted := &countedConn{Conn: theirs}
	s.ServeConn(counted)
	w := &wire{t, ours}
	defer w.nc.Close()
	w.nc.SetDeadline(time.Now().Add(wireTimeout))
	w.greet(fixed)
	w.wants(w.option(optGo, infoData("x")), repAck)
	counted.reads.Store(0)
	counted.writes.Store(0)
	before := runtime.NumGoroutine()
	var all []byte
	for i := range uint64(n) {
		all = append(all, request(cmdTrim, 0, i, 0, 4096)...)
	}
	w.send(all)
	within(t, "all requests", func() bool { return p.count() == n })
	if more := runtime.NumGoroutine() - before; more > 2 {
		t.Errorf("%d goroutines more for %d requests", more, n)
	}
	var c *Conn
	for _, q := range p.take() {
		c = q.Queue(nil)
	}
	c.Flush()
	for i := range uint64(n) {
		if code := w.simple(i); code != 0 {
			t.Fatalf("request %d: %d", i, code)
		}
	}
	if r, wr := counted.reads.Load(), counted.writes.Load(); r > n/50 || wr > n/50 {
		t.Errorf("%d reads and %d writes for %d requests", r, wr, n)
	}
}

func TestNothingIsAllocatedPerRequest(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	r, _ := memRig(t)
	w := r.ready(t, "disk", simpleReplies)
	read, write := request(cmdRead, 0, 1, 0, 4096), be(request(cmdWrite, 0, 2, 8192, 4096), make([]byte, 4096))
	reply := make([]byte, simpleReplySize+4096)
	round := func() {
		w.nc.Write(write)
		w.nc.Read(reply[:simpleReplySize])
		w.nc.Write(read)
		for n := 0; n < len(reply); {
			k, _ := w.nc.Read(reply[n:])
			n += k
		}
	}
	for range 100 {
		round()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const rounds = 5000
	for range rounds {
		round()
	}
	runtime.ReadMemStats(&after)
	if n := float64(after.Mallocs-before.Mallocs) / (2 * rounds); n > 0.02 {
		t.Errorf("%.3f allocations per request", n)
	}
}
