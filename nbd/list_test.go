package nbd

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"
	"unsafe"
)

// TestListMemory: those who ask for the list and do not take it.
func TestListMemory(t *testing.T) {
	const exports, conns = 100_000, 64
	mem := NewMemBackend()
	for i := range exports {
		mem.exports[fmt.Sprintf("disk-%06d:hourly-2026-11-28-0700", i)] = &memExport{info: ExportInfo{Name: fmt.Sprintf("disk-%06d:hourly-2026-11-28-0700", i), Size: 1 << 30}}
	}
	r := newRig(t, mem)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range conns {
		w := r.dial(t)
		w.greet(fixed)
		w.send(option(optList, nil))
	}
	within(t, "lists to be made", func() bool { return len(r.srv.lists) == listsMax })
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	got := int64(after.HeapAlloc-before.HeapAlloc) >> 20
	t.Logf("an ExportInfo has %d bytes; %d exports, %d clients in the handshake that do not read: %d MiB; budget %d bytes", unsafe.Sizeof(ExportInfo{}), exports, conns, got, r.srv.Stats().BytesHeld)
	if got > 256 {
		t.Errorf("%d MiB for %d clients of which none was let in", got, conns)
	}
	r.srv.Close()
}

// TestSilentClientsLeaveTheListToOthers: some clients, of which none was let in, ask for the list and do not read.
func TestSilentClientsLeaveTheListToOthers(t *testing.T) {
	mem := NewMemBackend()
	for i := range 100_000 {
		name := fmt.Sprintf("disk-%06d:hourly-2026-11-28-0700", i)
		mem.exports[name] = &memExport{info: ExportInfo{Name: name, Size: 1 << 30}}
	}
	r := newRig(t, mem)
	for range listsMax {
		w := r.dial(t)
		w.greet(fixed)
		w.send(option(optList, nil))
	}
	within(t, "lists to be made", func() bool { return len(r.srv.lists) == listsMax })
	w := r.dial(t)
	w.greet(fixed)
	begun := time.Now()
	w.send(option(optList, nil))
	reply := w.recv(20)
	kind := binary.BigEndian.Uint32(reply[12:])
	t.Logf("after %v: reply %#x", time.Since(begun), kind)
	if kind != repServer {
		t.Errorf("an honest client's LIST was refused: %#x", kind)
	}
	r.srv.Close()
}
