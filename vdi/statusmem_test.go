package vdi

import (
	"context"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/nbd"
)

// TestStatusMemory: one connection asks a thousand times for one extent of a disk of which every second block is written, while one node does not answer.
func TestStatusMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 11)
		const objects, requests = 16, 1000
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := s.nodes[0].Propose(ctx, &state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: objects * client.ObjectSize}})
		if err != nil || r.Err() != nil {
			t.Fatal(err, r.Err())
		}
		gw, _ := s.client("gw")
		time.Sleep(5 * time.Second)
		d, err := gw.Open(context.Background(), "alpha", "", client.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		st := NewStream(context.Background(), d)
		var wg sync.WaitGroup
		for o := range int64(objects) {
			wg.Go(func() {
				for at := int64(0); at < client.ObjectSize; at += 2 * client.BlockSize {
					if _, err := st.WriteAt(fill(1, client.BlockSize), o*client.ObjectSize+at); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		srv, err := nbd.NewServer(nbd.Config{}, NewBackend(gw, BackendOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		srv.ServeConn(theirs)
		x := &extended{t, ours}
		x.recv(18)
		x.send(uint32(3))
		name := "\x00\x00\x00\x05alpha"
		x.option(8, "")
		x.option(10, name+"\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation")
		x.option(7, name+"\x00\x00")
		time.Sleep(time.Second)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&before)
		s.net.Cut("gw", "n1")
		for i := range requests { // REQ_ONE
			x.send(uint32(0x25609513), uint16(1<<3), uint16(7), uint64(i), uint64(0), uint32(objects*client.ObjectSize))
		}
		time.Sleep(500 * time.Millisecond)
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		held := srv.Stats().BytesHeld
		memory := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		t.Logf("%d requests: %d KiB of budget are held, the heap grew by %d KiB", requests, held>>10, memory>>10)
		if memory > 64<<20 {
			t.Errorf("one connection holds %d MiB, and is charged %d KiB", memory>>20, held>>10)
		}
		s.net.HealAll()
		srv.Close()
		ours.Close()
		time.Sleep(time.Minute)
		d.Close(context.Background())
		gw.Close()
		_ = strings.Repeat
	})
}
