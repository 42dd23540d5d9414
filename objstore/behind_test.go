package objstore

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestWriteBehind: the disk begins with large writes while nobody has asked for a sync, and a
// write-back that fails so is told by the sync that covers the write (rule 8). Who commits with CommitHere
// does it himself.
func TestWriteBehind(t *testing.T) {
	for i, fails := range []error{nil, syscall.EIO, syscall.ENOSYS, nil, syscall.EIO, nil} {
		here := i > 2
		sim, _, s := simStore(t, nil)
		begun := make(chan string, 1)
		var hold atomic.Pointer[chan struct{}]
		sim.Before(func(op, name string) error {
			if op != "writebehind" {
				return nil
			}
			if c := hold.Load(); c != nil {
				<-*c
			}
			select {
			case begun <- name:
			default:
			}
			return fails
		})
		g := s.Group(1)
		const blocks = 32
		for i := range writeBehindBytes / (blocks * BlockSize) {
			stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, First: uint16(i * blocks), Data: fill(uint64(i), blocks)})
		}
		if err := s.CommitHere(); err != nil {
			t.Fatal(err)
		}
		if here {
			if slow := i == 5; slow {
				s.sync.mu.Lock()
				s.sync.began = time.Now().Add(-2 * slowRound)
				s.sync.mu.Unlock()
			}
			goOn := make(chan struct{})
			hold.Store(&goOn)
			left := make(chan struct{})
			go func() {
				s.WriteBehind()
				close(left)
			}()
			if i == 5 {
				<-left // not held by a disk that takes nothing, while a sync is slow
				close(goOn)
			} else {
				close(goOn)
				if <-left; len(begun) == 0 {
					t.Error("the write-back was left to another goroutine")
				}
			}
			s.sync.mu.Lock()
			s.sync.began = time.Time{}
			s.sync.mu.Unlock()
		} else if err := s.Commit(); err != nil {
			t.Fatal(err)
		}
		if name := <-begun; !strings.Contains(name, "/obj/") {
			t.Errorf("write-back began of %s", name)
		}
		if n := s.m.syncs.Load(); n != 0 {
			t.Errorf("%d syncs that nobody asked for", n)
		}
		err := s.SyncWait()
		if fails == syscall.EIO && (!errors.Is(err, ErrDiskFailed) || !errors.Is(err, syscall.EIO)) || fails != syscall.EIO && err != nil {
			t.Errorf("write-back that ended with %v: the sync says %v", fails, err)
		}
		sim.Before(nil)
	}
}
