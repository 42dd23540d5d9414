package client

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestReaderStaysOnTheSnapshot: a reader's map stands still while two snapshots are taken, of which the newer is deleted and collected.
func TestReaderStaysOnTheSnapshot(t *testing.T) {
	for _, kind := range []string{"newer collected", "own collected"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t, 3)
				f.vdi("alpha", 64<<20)
				lag := &laggingMaps{fake: f}
				c := f.clientWith(Config{Maps: lag, Net: f, Propose: f.Propose, Logger: slog.New(slog.DiscardHandler)})
				d, err := c.Open(context.Background(), "alpha", "", OpenOptions{ReadOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				lag.stand(true)
				gone := "s2"
				f.snapshot("alpha", "s1")
				if kind == "own collected" {
					gone = "s1"
				} else {
					f.snapshot("alpha", "s2")
				}
				v, _ := f.Map().Lookup("alpha", gone)
				f.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "alpha", Snap: gone}})
				var groups []state.GroupID
				for _, g := range f.Map().PoolGroups(0) {
					groups = append(groups, g.ID)
				}
				f.must(&state.Command{Collected: &state.Collected{Vid: v.Vid, Gen: v.Gen, Groups: groups}})
				lag.stand(false)
				time.Sleep(time.Second)
				f.vdi("other", 1<<20) // more maps come
				time.Sleep(time.Minute)
				if got, want := d.Vid(), f.Map().Working("alpha").Vid; got != want || d.s.deadErr() != nil {
					t.Errorf("a read-only view of the working VDI %06x reads %06x (which is %+v), dead: %v", want, got, f.Map().VDI(got), d.s.deadErr())
				}
				c.Close()
			})
		})
	}
}

// raceMaps lets something happen after a map was taken, before it is used: whoever took it was off the processor.
type raceMaps struct {
	*fake
	mu   sync.Mutex
	then func()
}

func (l *raceMaps) Map() *state.Map {
	m := l.fake.Map()
	l.mu.Lock()
	f := l.then
	l.then = nil
	l.mu.Unlock()
	if f != nil {
		f()
	}
	return m
}

// TestSnapshotWhileOpening: a snapshot is frozen between the map that says that the session is granted and the moment that the tender knows of the session. The tender has
// used that map already; no other map comes.
func TestSnapshotWhileOpening(t *testing.T) {
	for _, readonly := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t, 3)
			f.vdi("alpha", 64<<20)
			maps := &raceMaps{fake: f}
			race := func() {
				f.snapshot("alpha", "s1")
				time.Sleep(time.Second)
			}
			propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
				r, err := f.Propose(ctx, cmd)
				if cmd.OpenSess != nil {
					time.Sleep(time.Second) // the tender has seen that map
					maps.mu.Lock()
					maps.then = race
					maps.mu.Unlock()
				}
				return r, err
			}
			c := f.clientWith(Config{Maps: maps, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
			if readonly {
				maps.then = race
			}
			d, err := c.Open(context.Background(), "alpha", "", OpenOptions{ReadOnly: readonly})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := d.Vid(), f.Map().Working("alpha").Vid; got == want {
				t.Log("at first right")
			}
			time.Sleep(time.Hour)
			if got, want := d.Vid(), f.Map().Working("alpha").Vid; got != want {
				t.Errorf("readonly %v: an hour later the view of the working VDI %06x is of %06x", readonly, want, got)
			}
			if !readonly {
				done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1)})
				select {
				case err := <-done:
					t.Log("write:", err)
				case <-time.After(time.Hour):
					t.Error("a write takes an hour")
				}
			}
			c.Close()
		})
	}
}

// TestNextCircle: a map from a peer in which two snapshots name each other as what took their name over.
func TestNextCircle(t *testing.T) {
	f := newFake(t, 3)
	f.vdi("alpha", 64<<20)
	f.snapshot("alpha", "s1")
	f.snapshot("alpha", "s2")
	m := *f.m
	m.VDIs = slices.Clone(m.VDIs)
	one, _ := m.Lookup("alpha", "s1")
	two, _ := m.Lookup("alpha", "s2")
	for i, v := range m.VDIs {
		if v == two {
			c := *v
			c.Next = one.Vid
			m.VDIs[i] = &c
		}
	}
	b, err := state.EncodeMap(&m)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := state.DecodeMap(b)
	if err != nil {
		t.Skip(err)
	}
	c := f.program()
	s := c.newSession(f.Map(), one, nil, "alpha", false)
	time.Sleep(100 * time.Millisecond) // its tender has looked
	s.ident.Store(&ident{vid: one.Vid, gen: one.Gen, size: one.Size, index: 1})
	done := make(chan bool)
	go func() {
		var b wire.Batch
		s.follow(bad, &b)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		t.Error("a reader follows it for ever: the client's tender spins, everything of this client stands still")
	}
}
