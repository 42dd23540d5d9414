package client

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestR18RelayedCopiesAreFenced: whoever passes a write on gives up, while the write still waits at the primary.
func TestR18RelayedCopiesAreFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		c := f.program()
		d := open(t, c, "alpha")
		f.move(f.Map().GroupFor(f.Map().Working("alpha"), 0), 2)
		f.mu.Lock()
		f.cut["node2"] = true
		f.mu.Unlock()
		n := 0
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if n++; r.Kind == wire.KindWrite && n%2 == 1 {
				return ghost
			}
			return serve
		})
		for i := range 5 {
			if err := write(d, 0, pattern(4096, byte(i))); err != nil {
				t.Fatal(err)
			}
		}
		f.setFault(nil)
		time.Sleep(time.Minute)
		if !bytes.Equal(read(t, d, 0, 4096), pattern(4096, 4)) {
			t.Fatal("a late copy landed on top")
		}
		closeAll(t, c, d)
	})
}

func TestR18UnreachablePrimaryIsReachedThroughOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		c := f.program()
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.move(id, 2)
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.cut["node2"] = true
		f.mu.Unlock()
		f.hang(2)
		at := time.Now()
		if err := write(d, 0, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(at); d < 4*time.Second || d > 7*time.Second {
			t.Fatalf("went another way after %s", d)
		}
		at = time.Now()
		for i := range 50 {
			if err := write(d, 0, pattern(4096, byte(i))); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(read(t, d, 0, 4096), pattern(4096, byte(i))) {
				t.Fatal("read something else")
			}
		}
		if d := time.Since(at); d > time.Second {
			t.Fatalf("50 relayed writes took %s", d)
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.cut["node2"] = false
		f.mu.Unlock()
		time.Sleep(3 * time.Second)
		n := f.count(wire.KindRead)
		_ = read(t, d, 0, 4096)
		p := c.peer(2)
		p.mu.Lock()
		ready := p.state == peerReady
		p.mu.Unlock()
		if !ready || f.count(wire.KindRead) != n+1 {
			t.Fatal("the direct way is not taken again")
		}
		closeAll(t, c, d)
	})
}

// TestR15SupersededConnectionIsReplaced: what was relayed under a higher epoch arrives after the direct connection was greeted.
func TestR15SupersededConnectionIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		c := f.program()
		d := open(t, c, "alpha")
		f.move(f.Map().GroupFor(f.Map().Working("alpha"), 0), 2)
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.supersede(c.ID(), 2, c.epochs.Add(1))
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 2)})
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("still refused")
		}
		closeAll(t, c, d)
	})
}
