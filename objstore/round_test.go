package objstore

import (
	"errors"
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

// TestAnswersMayWaitForTheNextRound: whom a round answers may take locks whose holders wait for the next one (waitDirty, under a group's lock). The syncer's part has been passed on by then.
func TestAnswersMayWaitForTheNextRound(t *testing.T) {
	_, _, s := simStore(t, nil)
	for range 4 {
		dirty(t, s)
		done := make(chan error)
		s.Sync(func(err error) {
			dirty(t, s)
			done <- errors.Join(err, s.SyncWait())
		})
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
		sim.Before = func(op, name string) error {
			if op == "sync" && held.Swap(false) {
				close(began)
				<-goOn
				if ends {
					return syscall.EIO
				}
			}
			return nil
		}
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
		sim.Before = nil

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
				s.Sync(func(err error) { answers.Add(1); done <- err })
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
