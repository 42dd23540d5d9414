package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestR22LostWritesComeBeforeTheSnapshot: what was answered before a snapshot began, and lost with its nodes' power, is sent again and flushed before the
// vid is frozen, while new writes wait.
func TestR22LostWritesComeBeforeTheSnapshot(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		for early := range 2 { // before the snapshot is asked for, and while it is taken
			first := byte(10 * (early + 1))
			if err := write(d, 0, pattern(4096, first)); err != nil {
				t.Fatal(err)
			}
			vid := d.Vid()
			f.mu.Lock()
			if early == 0 {
				f.resume(id, 0)
			}
			f.mu.Unlock()
			r := f.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "alpha", Tag: fmt.Sprint("t", early)}})
			f.mu.Lock()
			if early == 1 {
				f.resume(id, 0)
			}
			f.mu.Unlock()
			var terms []uint64
			for _, g := range f.Map().PoolGroups(0) {
				terms = append(terms, g.Term)
			}
			freeze := &state.Command{FreezeVDI: &state.FreezeVDI{Vid: vid, Closing: r.Index, Terms: terms}}
			done := start(d, &Op{Kind: wire.KindWrite, Off: 4096, Len: 4096, Data: pattern(4096, first+1)})
			time.Sleep(time.Second)
			if _, res := f.Map().Apply(f.Map().Index+1, freeze); res.Code != state.Stale {
				t.Fatalf("frozen without what the group lost: %v", res.Err())
			}
			f.mu.Lock()
			f.recovered(id)
			f.mu.Unlock()
			for range 500 {
				if f.Map().Owing(vid) == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if s := f.Map().Owing(vid); s != nil {
				t.Fatalf("the client does not say that it replayed: %+v", s)
			}
			f.powerCut(id, 0) // it was flushed: nothing more can be lost
			if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, first)) {
				t.Fatal("what was sent again is lost")
			}
			if len(done) > 0 {
				t.Fatal("a new write was done while the snapshot was taken")
			}
			for range 500 {
				if f.Map().Owing(vid) == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			freeze.FreezeVDI.Terms = nil
			for _, g := range f.Map().PoolGroups(0) {
				freeze.FreezeVDI.Terms = append(freeze.FreezeVDI.Terms, g.Term)
			}
			f.must(freeze)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		closeAll(t, c, d)
	})
}

// TestR22SnapshotWhileLapsed: a snapshot that was taken while nobody held the VDI lacks what a group lost; sending that again would have it come into the
// disk behind it, so it counts as lost.
func TestR22SnapshotWhileLapsed(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		vid := d.Vid()
		f.mu.Lock()
		f.resume(id, 0)
		m := f.m
		step := func(cmd *state.Command) state.Result {
			next, res := m.Apply(m.Index+1, cmd)
			if err := res.Err(); err != nil {
				t.Fatal(err)
			}
			m = next
			return res
		}
		step(&state.Command{CloseSess: &state.CloseSess{ID: m.Sessions[0].ID}})
		freeze := &state.FreezeVDI{Vid: vid, Closing: step(&state.Command{CloseVDI: &state.CloseVDI{Name: "alpha", Tag: "t"}}).Index}
		for _, g := range m.PoolGroups(0) {
			freeze.Terms = append(freeze.Terms, g.Term)
		}
		step(&state.Command{FreezeVDI: freeze})
		f.publish(m)
		f.recovered(id)
		f.mu.Unlock()
		if err := <-start(d, &Op{Kind: wire.KindRead, Len: 4096, Data: make([]byte, 4096)}); !errors.Is(err, syscall.EIO) {
			t.Errorf("a read of what a snapshot lacks: %v", err)
		}
		if err := flush(d); !errors.Is(err, syscall.EIO) {
			t.Errorf("a flush of what a snapshot lacks: %v", err)
		}
		if d.Vid() == vid || c.Stats.Renewed.Load() == 0 {
			t.Errorf("at vid %06x, renewed %d times", d.Vid(), c.Stats.Renewed.Load())
		}
		if err := write(d, 0, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		f.powerCut(id, 0) // since the snapshot: sent again
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 2)) {
			t.Error("what was written after it is lost")
		}
		f.mu.Lock()
		f.resume(id, 0)
		f.resume(id, 0) // of these only the second's index is known
		f.recovered(id)
		f.mu.Unlock()
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 2)) {
			t.Error("what was written after it is lost with two resumes at once")
		}
		closeAll(t, c, d)
	})
}

func TestR22SnapshotIsFollowed(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		vid := d.Vid()
		r := f.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "alpha", Tag: "t"}})
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 2)})
		time.Sleep(time.Second)
		if len(done) > 0 {
			t.Fatal("written while a snapshot is taken")
		}
		f.freeze(vid, r.Index)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if d.Vid() == vid {
			t.Fatal("still at the frozen vid")
		}
		s, err := c.Open(context.Background(), "alpha", "t", OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Vid() != vid || !s.ReadOnly() {
			t.Fatalf("the snapshot is %06x", s.Vid())
		}
		if err := write(s, 0, pattern(512, 1)); !errors.Is(err, syscall.EROFS) {
			t.Fatalf("a snapshot was written: %v", err)
		}
		for range 50 { // a map that comes in the moment of opening does not take the reader on to what the name means now
			c.refollow.Store(true)
			x, err := c.Open(context.Background(), "alpha", "t", OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(tick)
			if x.Vid() != vid {
				t.Fatalf("the snapshot became %06x", x.Vid())
			}
			if err := x.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		closeAll(t, c, s, d)
	})
}
