package client

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

func (f *fake) count(k wire.Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.served[k]
}

func TestFlushGoesToDirtyGroupsOnly(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		if err := flush(d); err != nil { // the first covers predecessors
			t.Fatal(err)
		}
		first := f.count(wire.KindFlush)
		if err := flush(d); err != nil || f.count(wire.KindFlush) != first {
			t.Fatalf("%d groups flushed for nothing, %v", f.count(wire.KindFlush)-first, err)
		}
		for range 3 {
			if err := write(d, 4096, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if n := c.Stats.Retained.Load(); n < 3*4096 {
			t.Fatalf("%d bytes retained", n)
		}
		if err := flush(d); err != nil || f.count(wire.KindFlush) != first+1 {
			t.Fatalf("%d groups flushed, %v", f.count(wire.KindFlush)-first, err)
		}
		if err := flush(d); err != nil || f.count(wire.KindFlush) != first+1 {
			t.Fatalf("%d groups flushed, %v", f.count(wire.KindFlush)-first, err)
		}
		if n := c.Stats.Retained.Load(); n != 0 {
			t.Fatalf("%d bytes retained after the flush", n)
		}
		closeAll(t, c, d)
	})
}

func TestR17FirstFlushCoversPredecessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		c := f.client(0)
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close() // as a crash: nothing is flushed, the session stays
		f.must(&state.Command{Unlock: &state.Unlock{Name: "alpha"}})
		c = f.client(1)
		d = open(t, c, "alpha")
		var fail atomic.Bool
		fail.Store(true)
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindFlush && fail.Load() {
				return bad
			}
			return serve
		})
		if err := flush(d); !errors.Is(err, syscall.EIO) {
			t.Fatalf("flush: %v", err)
		}
		first := f.count(wire.KindFlush)
		fail.Store(false)
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		if n := f.count(wire.KindFlush) - first; n < 8 { // 16 objects in 16 groups
			t.Fatalf("%d groups flushed after a first flush that failed", n)
		}
		f.mu.Lock()
		for id, g := range f.groups {
			if len(g.log) > 0 {
				t.Errorf("group %d holds something unflushed", id)
			}
		}
		f.mu.Unlock()
		closeAll(t, c, d)
	})
}

func TestConcurrentFlushesShare(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		flush(d) // the first one covers predecessors
		first := c.Stats.FlushedGroup.Load()
		var hold atomic.Bool
		hold.Store(true)
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindFlush && hold.Load() {
				return busy
			}
			return serve
		})
		write(d, 0, pattern(4096, 1))
		var list []chan error
		for range 50 {
			list = append(list, start(d, &Op{Kind: wire.KindFlush}))
		}
		time.Sleep(10 * time.Millisecond)
		hold.Store(false)
		for _, done := range list {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if n := c.Stats.FlushedGroup.Load() - first; n != 1 {
			t.Fatalf("%d flushes of groups", n)
		}
		closeAll(t, c, d)
	})
}

// TestR17LostWritesAreSentAgain cuts the power of one group's nodes after acknowledged writes, keeping each possible prefix.
func TestR17LostWritesAreSentAgain(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		want := make([]byte, 64<<10)
		for keep := range 9 {
			for i := range 8 { // overlapping, so that order counts
				p := pattern(8192, byte(keep*8+i))
				copy(want[i*4096:], p)
				if err := write(d, uint64(i)*4096, p); err != nil {
					t.Fatal(err)
				}
			}
			f.powerCut(id, keep)
			if got := read(t, d, 0, len(want)); !bytes.Equal(got, want) {
				t.Fatalf("acknowledged writes are lost after a cut that kept %d", keep)
			}
			if keep%2 == 0 {
				if err := flush(d); err != nil {
					t.Fatal(err)
				}
				f.powerCut(id, 0)
				if got := read(t, d, 0, len(want)); !bytes.Equal(got, want) {
					t.Fatal("flushed writes are lost")
				}
			}
		}
		if c.Stats.Resent.Load() == 0 {
			t.Fatal("nothing was sent again")
		}
		closeAll(t, c, d)
	})
}

func TestR17HoldsBackUntilRecoveredIsKnown(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		want := pattern(4096, 1)
		if err := write(d, 0, want); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.resume(id, 0)
		f.mu.Unlock()
		got := make([]byte, 4096)
		rd := start(d, &Op{Kind: wire.KindRead, Len: 4096, Data: got})
		fl := start(d, &Op{Kind: wire.KindFlush})
		wr := start(d, &Op{Kind: wire.KindWrite, Off: 4096, Len: 4096, Data: pattern(4096, 2)})
		time.Sleep(time.Minute)
		if len(rd)+len(fl)+len(wr) > 0 {
			t.Fatal("served before it is known what the set recovered")
		}
		f.mu.Lock()
		f.recovered(id)
		f.mu.Unlock()
		for _, ch := range []chan error{rd, fl, wr} {
			if err := <-ch; err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatal("read something else")
		}
		closeAll(t, c, d)
	})
}

// TestR17SecondResumeDuringResending: two power cuts, the second while what the first took is being sent again.
func TestR17SecondResumeDuringResending(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		want := make([]byte, 40*4096)
		for i := range 40 {
			p := pattern(4096, byte(i))
			copy(want[i*4096:], p)
			if err := write(d, uint64(i)*4096, p); err != nil {
				t.Fatal(err)
			}
		}
		var n atomic.Int32
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindWrite && n.Add(1) > 10 {
				return busy
			}
			return serve
		})
		f.powerCut(id, 5)
		time.Sleep(5 * time.Millisecond)
		f.setFault(nil)
		f.powerCut(id, 7)
		if got := read(t, d, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatal("acknowledged writes are lost")
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		closeAll(t, c, d)
	})
}

func TestR17WhatCannotBeSentAgainFailsReadsAndTheNextFlush(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		write(d, 0, pattern(4096, 1))
		write(d, 4096, pattern(4096, 2))
		var full atomic.Bool
		full.Store(true)
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindWrite && r.IO.Off == 0 && full.Load() {
				return noSpace
			}
			return serve
		})
		f.powerCut(id, 0)
		b := make([]byte, 4096)
		if err := do(d, &Op{Kind: wire.KindRead, Len: 4096, Data: b}); !errors.Is(err, syscall.EIO) {
			t.Fatalf("read of lost bytes: %v", err)
		}
		if got := read(t, d, 4096, 4096); !bytes.Equal(got, pattern(4096, 2)) {
			t.Fatal("the other block is wrong")
		}
		if err := flush(d); !errors.Is(err, syscall.EIO) {
			t.Fatalf("flush over lost bytes: %v", err)
		}
		full.Store(false)
		if err := write(d, 0, pattern(4096, 3)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 3)) {
			t.Fatal("not healed by writing")
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		closeAll(t, c, d)
	})
}

func TestFUANeedsNoRetention(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		write(d, 0, pattern(4096, 1))
		if err := do(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 2), FUA: true}); err != nil {
			t.Fatal(err)
		}
		if n := c.Stats.Retained.Load(); n != 0 {
			t.Fatalf("%d bytes retained", n)
		}
		f.powerCut(id, 0)
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 2)) {
			t.Fatal("a FUA write is lost")
		}
		closeAll(t, c, d)
	})
}

func TestRetentionIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		const bound = 1 << 20
		c := f.clientWith(Config{Maps: f, Net: f, Propose: f.Propose, RetainBytesMax: bound})
		d := open(t, c, "alpha")
		var list []chan error
		most := int64(0)
		for i := range 1024 {
			list = append(list, start(d, &Op{Kind: wire.KindWrite, Off: uint64(i%512) * 8192, Len: 8192, Data: pattern(8192, byte(i))}))
			most = max(most, c.Stats.Retained.Load())
			if len(list) == 32 {
				if err := <-list[0]; err != nil {
					t.Fatal(err)
				}
				list = list[1:]
			}
		}
		for _, done := range list {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if most < bound/2 || most > 2*bound+32*(8192+itemCost) { // what was under way comes on top
			t.Fatalf("%d bytes retained at most", most)
		}
		if c.Stats.SelfFlushes.Load() == 0 {
			t.Fatal("never flushed by itself")
		}
		closeAll(t, c, d)
	})
}

// TestR17MissedResume: the client learns of two resumes at once. What the first recovered it never hears, and meanwhile others used the numbers.
func TestR17MissedResume(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		want := make([]byte, 8*4096)
		for i := range 8 {
			p := pattern(4096, byte(i))
			copy(want[i*4096:], p)
			if err := write(d, uint64(i)*4096, p); err != nil {
				t.Fatal(err)
			}
		}
		f.mu.Lock()
		f.resume(id, 3)
		g := f.group(id)
		for range 20 { // another VDI's
			g.lsn++
			g.log = append(g.log, fakeEntry{lsn: g.lsn, key: 1 << 40, len: 512})
		}
		f.resume(id, 1000)
		f.recovered(id)
		f.mu.Unlock()
		if got := read(t, d, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatal("acknowledged writes are lost")
		}
		closeAll(t, c, d)
	})
}

// TestR17AnswerFromBeforeTheResume: a write is done, its group's nodes lose power, and then comes its acknowledgement.
func TestR17AnswerFromBeforeTheResume(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.move(id, 0) // where the gateway's own primary is
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict { return tardy })
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1)})
		time.Sleep(100 * time.Millisecond)
		f.setFault(nil)
		f.powerCut(id, 0)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("an acknowledged write is lost")
		}
		closeAll(t, c, d)
	})
}

// TestFlushCoversOnlyWhatWasAcknowledgedBefore: a write acknowledged while a flush is under way may still be lost, and is kept.
func TestFlushCoversOnlyWhatWasAcknowledgedBefore(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		write(d, 0, pattern(4096, 1))
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindFlush {
				return tardy
			}
			return serve
		})
		done := start(d, &Op{Kind: wire.KindFlush})
		if err := write(d, 4096, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		f.setFault(nil)
		f.powerCut(id, 0)
		if got := read(t, d, 4096, 4096); !bytes.Equal(got, pattern(4096, 2)) {
			t.Fatal("an acknowledged write is lost")
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		f.powerCut(id, 0)
		if got := read(t, d, 0, 8192); !bytes.Equal(got, append(pattern(4096, 1), pattern(4096, 2)...)) {
			t.Fatal("flushed writes are lost")
		}
		closeAll(t, c, d)
	})
}

// TestR17NumbersOfResentWrites: a resent write has a new number, and a second power cut is judged by that.
func TestR17NumbersOfResentWrites(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		write(d, 0, pattern(4096, 1))
		f.mu.Lock()
		f.resume(id, 0)
		f.recovered(id)
		g := f.group(id)
		for range 20 { // another VDI's, before ours come again
			g.lsn++
			g.log = append(g.log, fakeEntry{lsn: g.lsn, key: 1 << 40, len: 512})
		}
		f.mu.Unlock()
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("an acknowledged write is lost")
		}
		f.powerCut(id, 20)
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("an acknowledged write is lost at the second cut")
		}
		closeAll(t, c, d)
	})
}

// TestFUACoversOnlyWhatIsBeneath: a durable write makes lower numbers durable, not higher ones.
func TestFUACoversOnlyWhatIsBeneath(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Flags&wire.FlagFUA != 0 {
				return tardy
			}
			return serve
		})
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1), FUA: true})
		time.Sleep(time.Millisecond)
		if err := write(d, 4096, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		f.setFault(nil)
		f.powerCut(id, 0)
		if got := read(t, d, 0, 8192); !bytes.Equal(got, append(pattern(4096, 1), pattern(4096, 2)...)) {
			t.Fatal("acknowledged writes are lost")
		}
		closeAll(t, c, d)
	})
}

// TestThrottledWritesGoOnWhenOthersMadeRoom: what another session flushed makes room before the tender has looked.
func TestThrottledWritesGoOnWhenOthersMadeRoom(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		c.parkMu.Lock() // the tender gets no further
		c.Stats.Retained.Add(2 * c.cfg.RetainBytesMax)
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 2)})
		if n := c.Stats.Throttled.Load(); n != 1 {
			t.Errorf("%d writes wait", n)
		}
		c.Stats.Retained.Add(-2 * c.cfg.RetainBytesMax)
		c.parkMu.Unlock()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a write waits for ever")
		}
		closeAll(t, c, d)
	})
}

// counted is an Owner that knows how many hold it.
type counted struct{ n atomic.Int32 }

func (o *counted) Retain()  { o.n.Add(1) }
func (o *counted) Release() { o.n.Add(-1) }

// TestR17ResentPiecesHoldTheirPayload: the session dies while a primary in this process still has a write that was sent again.
func TestR17ResentPiecesHoldTheirPayload(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.move(id, 0)
		var owner counted
		if err := do(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1), Owner: &owner}); err != nil {
			t.Fatal(err)
		}
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindWrite {
				return tardy
			}
			return serve
		})
		f.powerCut(id, 0)
		time.Sleep(500 * time.Millisecond)
		if n := c.Stats.Resent.Load(); n != 1 {
			t.Fatalf("%d writes sent again", n)
		}
		var b wire.Batch
		d.s.kill(fmt.Errorf("killed: %w", syscall.EIO), &b)
		b.End()
		if n := owner.n.Load(); n < 1 {
			t.Errorf("held %d times while it is under way", n)
		}
		time.Sleep(time.Minute)
		if n := owner.n.Load(); n != 0 {
			t.Errorf("held %d times in the end", n)
		}
		closeAll(t, c, d)
	})
}

// TestR17NoFlushSucceedsInADeadSession: flushes wait for a group, one of them for the round of another, when the session is taken away. What they should have
// made durable is no longer kept, and must not count as clean.
func TestR17NoFlushSucceedsInADeadSession(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		if err := flush(d); err != nil { // the first one covers what earlier sessions wrote
			t.Fatal(err)
		}
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindFlush {
				return behind
			}
			return serve
		})
		var list []chan error
		for range 3 {
			list = append(list, start(d, &Op{Kind: wire.KindFlush}))
		}
		time.Sleep(time.Second)
		var b wire.Batch
		d.s.kill(fmt.Errorf("killed: %w", syscall.EIO), &b)
		b.End()
		for i, done := range list {
			if err := <-done; !errors.Is(err, syscall.EIO) {
				t.Errorf("flush %d of a session that was taken away: %v", i+1, err)
			}
		}
		// One that was let in just before, and comes to it just after.
		op, done := &Op{Kind: wire.KindFlush, s: d.s}, make(chan error, 1)
		op.Done = func(op *Op, _ *wire.Batch) { done <- op.Err }
		d.s.flush(op, &b)
		b.End()
		if err := <-done; !errors.Is(err, syscall.EIO) {
			t.Errorf("flush that was let in before: %v", err)
		}
		closeAll(t, c, d)
	})
}
