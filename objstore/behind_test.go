package objstore

import (
	"errors"
	"strings"
	"syscall"
	"testing"
)

// TestWriteBehind: the disk begins with large writes while nobody has asked for a sync, and a
// write-back that fails so is told by the sync that covers the write (rule 8). Who commits with CommitHere
// does it himself.
func TestWriteBehind(t *testing.T) {
	for i, fails := range []error{nil, syscall.EIO, syscall.ENOSYS, nil, syscall.EIO} {
		here := i > 2
		sim, _, s := simStore(t, nil)
		begun := make(chan string, 1)
		sim.Before = func(op, name string) error {
			if op != "writebehind" {
				return nil
			}
			select {
			case begun <- name:
			default:
			}
			return fails
		}
		g := s.Group(1)
		const blocks = 32
		for i := range writeBehindBytes / (blocks * BlockSize) {
			stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, First: uint16(i * blocks), Data: fill(uint64(i), blocks)})
		}
		if err := s.CommitHere(); err != nil {
			t.Fatal(err)
		}
		if here {
			s.WriteBehind()
			if len(begun) == 0 {
				t.Error("the write-back was left to another goroutine")
			}
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
		sim.Before = nil
	}
}
