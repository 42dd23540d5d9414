package objstore

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// dirty stages something that a sync has to write.
func dirty(t testing.TB, s *Store) {
	stage(t, s.Group(1), Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, Data: fill(1, 1)})
}

// TestSyncHere: who has a round for himself makes it himself; not where somebody else makes one already, or where the disk is slow.
func TestSyncHere(t *testing.T) {
	sim, _, s := simStore(t, nil)
	// here says whether the caller made the round, and waits for its end in any case.
	here := func() bool {
		t.Helper()
		dirty(t, s)
		done := make(chan error, 1)
		s.SyncHere(func(err error) { done <- err })
		inside := len(done) > 0
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return inside
	}
	if !here() || !here() {
		t.Error("who was alone did not sync himself")
	}

	// One is under way: who comes shares the next one, and that is not his to make.
	began, goOn := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	held.Store(true)
	sim.Before(func(op, name string) error {
		if op == "sync" && strings.Contains(name, "/journal/") && held.Swap(false) {
			close(began)
			<-goOn
		}
		return nil
	})
	dirty(t, s)
	first := make(chan error, 1)
	s.Sync(func(err error) { first <- err })
	<-began
	dirty(t, s)
	answered := make(chan error, 2)
	for range 2 {
		s.SyncHere(func(err error) { answered <- err })
	}
	select {
	case <-answered:
		t.Error("a round was answered behind one that is under way")
	default:
	}
	close(goOn)
	if err := errors.Join(<-first, <-answered, <-answered); err != nil {
		t.Fatal(err)
	}
	if !here() {
		t.Error("who was alone again did not sync himself")
	}

	s.sync.mu.Lock()
	s.sync.took = 2 * syncHereMax
	s.sync.mu.Unlock()
	if here() {
		t.Error("somebody was made to wait for a slow disk")
	}
	sim.Before(nil)
}

// TestAnswersMayWaitForTheNextRound: whom a round answers may take locks whose holders wait for the next one (waitDirty, under a group's lock). Both who syncs here and the syncer's
// own goroutine have passed their part on by then.
func TestAnswersMayWaitForTheNextRound(t *testing.T) {
	_, _, s := simStore(t, nil)
	for _, ask := range []func(func(error)){s.Sync, s.SyncHere, s.Sync, s.SyncHere} {
		dirty(t, s)
		done := make(chan error)
		ask2 := func(err error) {
			dirty(t, s)
			done <- errors.Join(err, s.SyncWait())
		}
		go ask(ask2)
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("nobody makes the next round while an answer waits for it")
		}
	}
}

// TestAnswersDoNotWaitForEachOther: one whom a round answers waits for as long as the others have not been told, in whatever order they came; so where the disk ends, too, and a
// store closes while an answer is still being given.
func TestAnswersDoNotWaitForEachOther(t *testing.T) {
	for _, ends := range []bool{false, true} {
		sim, _, s := simStore(t, nil)
		began, goOn := make(chan struct{}), make(chan struct{})
		var held atomic.Bool
		held.Store(true)
		sim.Before(func(op, name string) error {
			if op == "sync" && held.Swap(false) {
				close(began)
				<-goOn
				if ends {
					return syscall.EIO
				}
			}
			return nil
		})
		const n = 5
		var told, all sync.WaitGroup
		told.Add(n - 1)
		all.Add(n)
		ask := func(k int) {
			s.Sync(func(error) {
				defer all.Done()
				if k == 2 {
					told.Wait()
				} else {
					told.Done()
				}
			})
		}
		dirty(t, s)
		ask(0)
		<-began
		for k := 1; k < n; k++ {
			ask(k)
		}
		close(goOn)
		all.Wait()
		sim.Before(nil)

		if ends {
			continue
		}
		answering, closed := make(chan struct{}), make(chan struct{})
		s.Sync(func(error) {
			close(answering)
			<-closed
		})
		<-answering
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		close(closed)
	}
}

// TestSyncHereOfADiskThatHangs: the one who waits for the disk may stay in there for ever, but what he asked for is answered when it ends, as is everything else.
func TestSyncHereOfADiskThatHangs(t *testing.T) {
	sim, _, s := simStore(t, func(c *Config) { c.HangTimeout = 200 * time.Millisecond })
	dirty(t, s)
	goOn := make(chan struct{})
	sim.Before(func(op, name string) error {
		if op == "sync" {
			<-goOn
		}
		return nil
	})
	answers := make(chan error, 3)
	left := make(chan struct{})
	go func() {
		s.SyncHere(func(err error) { answers <- err })
		close(left)
	}()
	s.Sync(func(err error) { answers <- err })
	for range 2 {
		if err := <-answers; !errors.Is(err, ErrDiskFailed) {
			t.Errorf("a sync of a disk that hangs said %v", err)
		}
	}
	close(goOn)
	<-left
	s.SyncHere(func(err error) { answers <- err })
	if err := <-answers; !errors.Is(err, ErrDiskFailed) {
		t.Errorf("a sync of a disk that has ended said %v", err)
	}
	if len(answers) > 0 {
		t.Error("somebody was answered twice")
	}
}

// TestSyncsOfMany: everybody is answered, once, whoever makes the rounds, and what he staged before is durable then. Writers who wait at the bound are let go on.
func TestSyncsOfMany(t *testing.T) {
	_, _, s := simStore(t, func(c *Config) { c.DirtyBytesMax = 1 << 20 })
	const each = 200
	var wg sync.WaitGroup
	var answers atomic.Int64
	for k := range 8 {
		g := s.Group(GroupID(k))
		wg.Go(func() {
			for i := range each {
				stage(t, g, Entry{Kind: KindWrite, Key: Key(k+1) << 32, Vid: 1, Gen: 1, First: uint16(i % 64), Data: fill(uint64(i), 1+i%3*15)})
				end := s.j.endNow()
				done := make(chan error, 2)
				ask := s.Sync
				if (i+k)%3 > 0 {
					ask = s.SyncHere
				}
				ask(func(err error) { answers.Add(1); done <- err })
				if err := <-done; err != nil {
					t.Error(err)
				}
				if d := pos(s.j.durable.Load()); d < end {
					t.Errorf("group %d: durable up to %v, what was staged before the sync ends at %v", k, d, end)
				}
			}
		})
	}
	wg.Wait()
	if n := answers.Load(); n != 8*each {
		t.Errorf("%d answers to %d syncs", n, 8*each)
	}
	if err := s.Close(); err != nil { // which waits for a round that the dirty bytes may have wanted last
		t.Error(err)
	}
	s.sync.mu.Lock()
	if s.sync.held || s.sync.idle > 1 || len(s.sync.waiting) > 0 {
		t.Errorf("left behind: held %v, %d goroutines, %d waiters", s.sync.held, s.sync.idle, len(s.sync.waiting))
	}
	s.sync.mu.Unlock()
}
