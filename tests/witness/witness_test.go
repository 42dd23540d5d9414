package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBlockSaysWhatItIs(t *testing.T) {
	b := blockBytes(3, 17, 9)
	if v, err := blockVersion(3, 17, b); v != 9 || err != nil {
		t.Fatalf("version %d, %v; want 9", v, err)
	}
	if v, err := blockVersion(3, 17, make([]byte, recordSize)); v != 0 || err != nil {
		t.Fatalf("zeros: version %d, %v; want 0", v, err)
	}
	if _, err := blockVersion(3, 18, b); err == nil {
		t.Error("another block's bytes were taken")
	}
	for _, at := range []int{0, 9, 17, 25, 40, recordSize - 1} {
		torn := bytes.Clone(b)
		torn[at] ^= 1
		if v, err := blockVersion(3, 17, torn); err == nil {
			t.Errorf("a flipped bit at %d was taken for version %d", at, v)
		}
	}
}

func TestLedgerJudges(t *testing.T) {
	l := newLedger(1, 8)
	for range 3 {
		l.ack(5, l.issue(5))
	}
	l.endFlush(l.beginFlush()) // 3 is flushed
	l.ack(5, l.issue(5))       // 4 is acknowledged
	l.issue(5)                 // 5 is sent
	for _, c := range []struct {
		strict  bool
		version uint32
		ok      bool
	}{{false, 2, false}, {false, 3, true}, {false, 5, true}, {false, 6, false}, {true, 3, false}, {true, 4, true}, {true, 5, true}} {
		l.expect(c.strict)
		if err := l.judge(5, c.version); (err == nil) != c.ok {
			t.Errorf("strict %v, version %d: %v", c.strict, c.version, err)
		}
	}
	l.expect(false)
	if l.judge(5, 5) != nil || l.judge(5, 4) == nil {
		t.Error("a read that goes back in time was taken")
	}
}

func TestFlushCoversOnlyWhatWasAcknowledgedBefore(t *testing.T) {
	l := newLedger(1, 8)
	l.ack(1, l.issue(1))
	covered := l.beginFlush()
	l.ack(1, l.issue(1))
	l.endFlush(covered)
	if l.flushed[1] != 1 {
		t.Fatalf("flushed %d, want 1", l.flushed[1])
	}
}

// What was acknowledged by a server that lost its power is nothing that a later flush covers, nor one that was sent before and is answered by the next server.
func TestLostServerFlushesNothing(t *testing.T) {
	l := newLedger(1, 8)
	l.ack(1, l.issue(1))
	before := l.beginFlush()
	l.ack(2, l.issue(2))
	l.lose()
	l.endFlush(before)
	l.endFlush(l.beginFlush())
	if l.flushed[1] != 0 || l.flushed[2] != 0 {
		t.Fatalf("flushed: %v", l.flushed)
	}
	for block := range uint64(3) {
		if err := l.judge(block, 0); err != nil {
			t.Fatal(err)
		}
	}
	l.ack(2, l.issue(2))
	l.endFlush(l.beginFlush())
	if l.flushed[2] != 2 {
		t.Fatalf("flushed: %v", l.flushed)
	}
}

func TestLedgerIsKept(t *testing.T) {
	l := newLedger(7, 100)
	l.ack(3, l.issue(3))
	l.endFlush(l.beginFlush())
	l.ack(99, l.issue(99))
	l.issue(99)
	name := filepath.Join(t.TempDir(), "ledger")
	if err := l.save(name); err != nil {
		t.Fatal(err)
	}
	got, err := loadLedger(name)
	if err != nil {
		t.Fatal(err)
	}
	if got.seed != 7 || len(got.issued) != 100 || got.flushed[3] != 1 || got.issued[99] != 2 || got.acked[99] != 1 || got.flushed[99] != 0 {
		t.Fatalf("read back otherwise: %+v", got)
	}
}

func TestOrderSeesAHoleInTime(t *testing.T) {
	name := filepath.Join(t.TempDir(), "order")
	// block 1 version 1 answered at 20; block 2 version 1 sent at 30
	if err := os.WriteFile(name, []byte("1 1 10 20\n2 1 30 40\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		picture map[uint64]uint32
		ok      bool
	}{{map[uint64]uint32{1: 1, 2: 1}, true}, {map[uint64]uint32{1: 1}, true}, {map[uint64]uint32{}, true}, {map[uint64]uint32{2: 1}, false}} {
		if err := checkOrder(name, c.picture); (err == nil) != c.ok {
			t.Errorf("%v: %v", c.picture, err)
		}
	}
}

func FuzzLoadLedger(f *testing.F) {
	f.Add([]byte("witness-ledger 1 1 8\n5 3 2 1\n"))
	f.Add([]byte("witness-ledger 1 1 99999999999\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "l")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = loadLedger(name)
	})
}

func FuzzHandshake(f *testing.F) {
	hello := binary.BigEndian.AppendUint64(nil, magicGreeting)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	f.Add(append(hello, 0, 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			buf := make([]byte, 4096)
			go func() {
				for {
					if _, err := there.Read(buf); err != nil {
						return
					}
				}
			}()
			_, _ = there.Write(data)
		}()
		n := &nbdConn{c: here, pending: map[uint64]*call{}}
		_ = n.handshake(here, "x")
		here.Close()
	})
}

func TestLostConnectionEndsItsCalls(t *testing.T) {
	here, there := net.Pipe()
	n := &nbdConn{c: here, pending: map[uint64]*call{}}
	go n.receive(here)
	go func() {
		_, _ = there.Read(make([]byte, 28))
		there.Close()
	}()
	if err := n.flush(); !errors.Is(err, errLost) {
		t.Fatalf("got %v", err)
	}
	if err := n.flush(); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Fatalf("a call on a lost connection: %v", err)
	}
}

// TestStandstill: what the machine stood still is taken off once, and only as far as a request was under way then; a late beat that is no standstill is not.
func TestStandstill(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	m := &metronome{last: start}
	for _, ms := range []int{10, 20, 220, 230, 1230, 1240} { // 200 ms late: busy; a second: still
		m.hit(at(ms))
	}
	for _, c := range []struct{ from, to, want int }{
		{0, 230, 0}, {0, 1240, 1000}, {230, 1230, 1000}, {730, 1240, 500}, {0, 1000, 770}, {1235, 1240, 0}, {1240, 1440, 0},
		{1240, 3240, 2000}, // no beat since: it has just woken up
		{0, 3240, 3000},
	} {
		if got := m.still(at(c.from), at(c.to)); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("from %d to %d: %v, want %d ms", c.from, c.to, got, c.want)
		}
	}
}
