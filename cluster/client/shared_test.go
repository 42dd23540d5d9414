package client

import (
	"bytes"
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// shared runs a test with a VDI that two clients have open for writing.
func shared(t *testing.T, run func(t *testing.T, f *fake, a, b *Disk)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 64 << 20, Shared: true}})
		x, y := f.client(0), f.program()
		a, b := open(t, x, "alpha"), open(t, y, "alpha")
		flush(a) // the first covers all in any case
		flush(b)
		run(t, f, a, b)
		closeAll(t, x, a)
		closeAll(t, y, b)
	})
}

// TestInvariant2FlushCoversOtherClientsOfASharedVDI: acknowledged by one gateway, flushed through another.
func TestInvariant2FlushCoversOtherClientsOfASharedVDI(t *testing.T) {
	shared(t, func(t *testing.T, f *fake, a, b *Disk) {
		for i := range 16 {
			if err := write(a, uint64(i)*objectSize, pattern(4096, byte(i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := flush(b); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		for id, g := range f.groups {
			if len(g.log) > 0 {
				t.Errorf("group %d holds something unflushed", id)
			}
		}
	})
}

// TestInvariant7SharedWritesAreNotSentAgain: another client has written there since.
func TestInvariant7SharedWritesAreNotSentAgain(t *testing.T) {
	shared(t, func(t *testing.T, f *fake, a, b *Disk) {
		if err := write(a, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.mu.Lock()
		f.resume(id, 0)
		f.mu.Unlock()
		if err := write(b, 0, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.edit(id, func(g *state.Group) { g.Recovered, g.RecoveredAt = 0, g.Resumes })
		f.mu.Unlock()
		time.Sleep(time.Second)
		if !bytes.Equal(f.content("alpha")[:4096], pattern(4096, 2)) {
			t.Error("a later write of another client is undone")
		}
		if err := do(a, &Op{Kind: wire.KindRead, Len: 4096, Data: make([]byte, 4096)}); !errors.Is(err, syscall.EIO) {
			t.Errorf("read of what was lost: %v", err)
		}
		for _, d := range []*Disk{a, b} {
			if err := flush(d); !errors.Is(err, syscall.EIO) {
				t.Errorf("flush over what was lost: %v", err)
			}
			if err := flush(d); err != nil {
				t.Error(err)
			}
		}
		if err := write(a, 0, pattern(4096, 3)); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(read(t, a, 0, 4096), pattern(4096, 3)) {
			t.Error("not healed by writing")
		}
	})
}

// TestInvariant7SharedChangesHaveNumbers: what is sent again has the number it had, and says which older ones may still come.
func TestInvariant7SharedChangesHaveNumbers(t *testing.T) {
	shared(t, func(t *testing.T, f *fake, a, b *Disk) {
		var mu sync.Mutex
		var seen []wire.Once
		drop := true
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			mu.Lock()
			defer mu.Unlock()
			if r.Kind != wire.KindWrite {
				return serve
			}
			seen = append(seen, r.IO.Once)
			if drop {
				drop = false
				return lost
			}
			return serve
		})
		for range 2 {
			if err := write(b, 0, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if len(seen) != 3 || seen[0] != seen[1] || seen[0].Seq == 0 || seen[0].Sess == 0 || seen[2].Seq <= seen[0].Seq || seen[2].Low != seen[2].Seq {
			t.Errorf("numbers %+v", seen)
		}
	})
}

// TestInvariant7SharedChangeOfUnknownOutcomeFails: when all nodes of a group ended nobody knows whether a change was done.
func TestInvariant7SharedChangeOfUnknownOutcomeFails(t *testing.T) {
	shared(t, func(t *testing.T, f *fake, a, b *Disk) {
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindWrite {
				return silent
			}
			return serve
		})
		done := start(b, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1)})
		time.Sleep(100 * time.Millisecond)
		f.setFault(nil)
		f.powerCut(id, 0)
		if err := <-done; !errors.Is(err, syscall.EIO) {
			t.Errorf("a write that was under way: %v", err)
		}
		flush(a) // they say what others may have lost
		flush(b)
		if err := write(b, 0, pattern(4096, 2)); err != nil {
			t.Error(err)
		}
		if err := flush(b); err != nil {
			t.Error(err)
		}
	})
}
