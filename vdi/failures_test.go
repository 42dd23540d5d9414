package vdi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// Failures by their number in tests/FAILURES.md, from a client's disk down to simulated disks, in virtual time.

// cable does things to what passes between two hosts.
type cable struct {
	wire.Network
	host string
	pass func(from, to string, p []byte, stop <-chan struct{}) []byte // what is written in place of p; it may wait, until stop
}

func (c cable) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	nc, err := c.Network.Dial(addr, timeout)
	if err != nil {
		return nil, err
	}
	return newCabled(nc, c), nil
}

func (c cable) Listen(addr string) (net.Listener, error) {
	l, err := c.Network.Listen(addr)
	if err != nil {
		return nil, err
	}
	return cabledListener{l, c}, nil
}

type cabledListener struct {
	net.Listener
	c cable
}

func (l cabledListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newCabled(nc, l.c), nil
}

type cabled struct {
	net.Conn
	c    cable
	once sync.Once
	stop chan struct{}
}

func newCabled(nc net.Conn, c cable) *cabled {
	return &cabled{Conn: nc, c: c, stop: make(chan struct{})}
}

func (c *cabled) Write(p []byte) (int, error) {
	to, _, _ := strings.Cut(c.RemoteAddr().String(), ":")
	q := c.c.pass(c.c.host, to, p, c.stop)
	if n, err := c.Conn.Write(q); err != nil {
		return n, err
	}
	return len(p), nil
}

func (c *cabled) Close() error {
	c.once.Do(func() { close(c.stop) })
	return c.Conn.Close()
}

// openDisk is a client's disk.
type openDisk struct {
	*Stream
	t *testing.T
}

func (d openDisk) Close() {
	d.t.Helper()
	if err := d.d.Close(context.Background()); err != nil {
		d.t.Error(err)
	}
}

// create makes a VDI and opens it for the client.
func (s *site) create(c *client.Client, name string, size uint64) openDisk {
	s.t.Helper()
	s.must(&state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: size}})
	return s.open(c, name, "")
}

func (s *site) open(c *client.Client, name, snap string) openDisk {
	s.t.Helper()
	s.until(time.Minute, "the client knows "+name, func() bool { _, err := c.Map().Lookup(name, snap); return err == nil })
	d, err := c.Open(context.Background(), name, snap, client.OpenOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return openDisk{NewStream(context.Background(), d), s.t}
}

func (s *site) must(cmd *state.Command) state.Result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range s.nodes {
		if n == nil {
			continue
		}
		r, err := n.Propose(ctx, cmd)
		if err = errors.Join(err, r.Err()); err != nil {
			s.t.Fatal(err)
		}
		return r
	}
	s.t.Fatal("no node runs")
	return state.Result{}
}

func (s *site) until(within time.Duration, what string, ok func() bool) time.Duration {
	s.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > within {
			s.t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

func (s *site) newest() *state.Map {
	best := state.New()
	for _, n := range s.nodes {
		if n != nil && n.Map().Index > best.Index {
			best = n.Map()
		}
	}
	return best
}

// whole waits until every group has all its copies where they shall be, and compares them byte by byte.
func (s *site) whole() {
	s.t.Helper()
	s.until(5*time.Minute, "every group is whole", func() bool {
		m := s.newest()
		return !slices.ContainsFunc(m.Groups, func(g *state.Group) bool {
			return !m.InService(g.Primary) || len(g.InSync) != len(g.Target) || slices.ContainsFunc(g.InSync, func(b state.Member) bool { return !m.InService(b) })
		})
	})
	groups, objects := 0, int64(0)
	s.until(time.Minute, "every group is compared", func() bool {
		groups, objects = 0, 0
		for _, n := range s.nodes {
			if n == nil {
				continue
			}
			var last replica.CheckProgress
			if err := n.Engine().Check(context.Background(), nil, func(p replica.CheckProgress) {
				for _, f := range p.Findings {
					s.t.Error(f)
				}
				last = p
			}); err != nil {
				s.t.Error(err)
			}
			groups, objects = groups+last.GroupsDone, objects+last.Objects
		}
		return groups == len(s.newest().Groups)
	})
	s.t.Logf("%d objects in %d groups compared on all replicas", objects, groups)
}

// used is what the disks hold for a VDI, and whether anything at all.
func (s *site) used(vid uint32) (blocks uint64) {
	for _, n := range s.nodes {
		if n == nil {
			continue
		}
		for _, st := range n.Stores() {
			for _, id := range st.Groups() {
				blocks += uint64(st.Group(id).Used(objstore.Vid(vid)).Present)
			}
		}
	}
	return blocks
}

func inBubble(t *testing.T, f func(t *testing.T)) {
	if testing.Short() {
		t.Skip("starts nodes")
	}
	synctest.Test(t, f)
}

// All nodes are restarted cleanly, one after the other, while a disk is written: no error, and nobody is copied anew.
func TestFailure05RollingRestart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := newSite(t, 5)
		c, _ := s.client("program")
		const size = 32 << 20
		d, want := s.create(c, "alpha", size), make([]byte, size)
		rand.NewChaCha8([32]byte{5}).Read(want)
		if _, err := d.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		s.whole()
		var copied, wrote int64
		for i := range s.nodes {
			before := c.Stats.WriteBytes.Load()
			var wg sync.WaitGroup
			wg.Go(func() { exercise(t, d.Stream, want, 15, uint64(i)) })
			copied += s.nodes[i].Engine().Stats.ResyncBytes.Load()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			if err := s.nodes[i].Stop(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			s.run(i)
			wg.Wait()
			s.whole()
			wrote += c.Stats.WriteBytes.Load() - before
		}
		for _, n := range s.nodes {
			copied += n.Engine().Stats.ResyncBytes.Load()
		}
		compare(t, d.Stream, want, "afterwards")
		t.Logf("%d bytes were written meanwhile, %d copied to bring nodes up to date; the disk holds %d on each", wrote, copied, size)
		if copied > 2*wrote+size/8 {
			t.Errorf("%d bytes were copied", copied)
		}
	})
}

// A switch, a network card or a driver flips bits that TCP's checksum does not see: on the way from the client, between nodes, and back. Each flipped payload is refused
// by its checksum and sent again; nobody gets wrong bytes and no replica keeps them.
func TestFailure22FlippedBitsOnTheWire(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var on atomic.Bool
		var flipped atomic.Int64
		var mu sync.Mutex
		rnd := rand.New(rand.NewPCG(22, 1))
		flip := func(from, to string, p []byte, _ <-chan struct{}) []byte {
			if !on.Load() || len(p) < 4096 {
				return p
			}
			mu.Lock()
			defer mu.Unlock()
			if rnd.IntN(15) != 0 {
				return p
			}
			flipped.Add(1)
			q := bytes.Clone(p)
			q[len(q)-4096+rnd.IntN(4096)] ^= 1 << rnd.IntN(8)
			return q
		}
		s := newSiteOf(t, 22, 3, func(host string, n wire.Network) wire.Network { return cable{n, host, flip} }, func(int, *node.Config) {})
		c, _ := s.client("program")
		const size = 16 << 20
		d, want := s.create(c, "alpha", size), make([]byte, size)
		exercise(t, d.Stream, want, 20, 1)
		on.Store(true)
		for round := range 6 {
			exercise(t, d.Stream, want, 40, uint64(2+round))
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		compare(t, d.Stream, want, "while bits flip")
		on.Store(false)
		compare(t, d.Stream, want, "afterwards")
		s.whole()
		for i, n := range s.nodes {
			if r := n.Engine().Stats.Repaired.Load(); r != 0 {
				t.Errorf("node %d kept %d flipped blocks until they were read", i, r)
			}
		}
		if n := flipped.Load(); n < 50 {
			t.Errorf("only %d payloads were flipped", n)
		}
		t.Logf("%d payloads were flipped, %d requests tried again", flipped.Load(), c.Stats.Retries.Load())
	})
}

// Large packets vanish between two of three nodes, small ones pass: gossip and leases say that all is well, data does not get through. Whoever of the two is needed for a group's
// writes is taken out of its set by the data path; the disk goes on.
func TestFailure23LargePacketsVanish(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var on atomic.Bool
		hole := func(from, to string, p []byte, stop <-chan struct{}) []byte {
			for len(p) > 1400 && on.Load() && (from == "n0" && to == "n1" || from == "n1" && to == "n0") {
				select {
				case <-stop:
					return p
				case <-time.After(100 * time.Millisecond): // TCP sends it again and again
				}
			}
			return p
		}
		s := newSiteOf(t, 23, 3, func(host string, n wire.Network) wire.Network { return cable{n, host, hole} }, func(int, *node.Config) {})
		c, _ := s.client("program")
		const size = 16 << 20
		d, want := s.create(c, "alpha", size), make([]byte, size)
		exercise(t, d.Stream, want, 20, 1)
		on.Store(true)
		began := time.Now()
		var longest time.Duration
		for round := range 30 {
			at := time.Now()
			exercise(t, d.Stream, want, 3, uint64(2+round))
			longest = max(longest, time.Since(at))
		}
		if longest > 15*time.Second {
			t.Errorf("the disk waited %s", longest)
		}
		t.Logf("30 rounds took %s, the longest %s; epoch %d", time.Since(began), longest, s.newest().Epoch)
		compare(t, d.Stream, want, "with the hole")
		on.Store(false)
		exercise(t, d.Stream, want, 20, 99)
		compare(t, d.Stream, want, "afterwards")
		s.whole()
	})
}

// A snapshot and a whole VDI are deleted while a node is down. When it returns, nothing of them comes back, and no space stays taken.
func TestFailure52DeletedWhileANodeWasDown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := newSite(t, 52)
		c, _ := s.client("program")
		const size = 8 << 20
		d, want := s.create(c, "alpha", size), make([]byte, size)
		gone := s.create(c, "beta", size)
		exercise(t, d.Stream, want, 20, 1)
		exercise(t, gone.Stream, make([]byte, size), 20, 2)
		snap := s.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "alpha", Tag: "one"}}).Vid
		s.until(time.Minute, "the snapshot is there", func() bool { v := s.newest().VDI(snap); return v != nil && v.State == state.Frozen })
		exercise(t, d.Stream, want, 20, 3)
		beta := s.newest().Working("beta").Vid
		s.whole()
		if s.used(snap) == 0 || s.used(beta) == 0 {
			t.Fatal("the test has nothing to delete")
		}
		s.crash(2)
		exercise(t, d.Stream, want, 5, 4)
		s.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "alpha", Snap: "one"}})
		s.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "beta", Force: true}})
		time.Sleep(time.Minute)
		if _, err := gone.WriteAt(make([]byte, 4096), 0); err == nil {
			t.Error("a deleted VDI takes writes")
		}
		exercise(t, d.Stream, want, 5, 5)
		s.run(2)
		s.whole()
		s.until(10*time.Minute, "nothing of them is left, on no node", func() bool { return s.used(snap) == 0 && s.used(beta) == 0 })
		s.until(time.Minute, "their numbers are free", func() bool { return s.newest().VDI(beta) == nil })
		compare(t, d.Stream, want, "alpha afterwards")
		if _, err := c.Open(context.Background(), "beta", "", client.OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("beta: %v", err)
		}
		s.whole()
	})
}

// A chain of a hundred clones; one in the middle and its snapshot are deleted. What stands on it reads what it read before.
func TestFailure53DeepCloneChain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := newSite(t, 53)
		c, _ := s.client("program")
		const size, deep = 4 << 20, 100
		want := make([]byte, size)
		name := "clone000"
		s.must(&state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: size}})
		var middle []byte
		for i := range deep {
			d := s.open(c, name, "")
			block := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			for _, at := range []int{i * 8192, 900 * 4096} {
				copy(want[at:], block)
				if _, err := d.WriteAt(block, int64(at)); err != nil {
					t.Fatal(err)
				}
			}
			d.Close()
			if i == deep/2 {
				middle = bytes.Clone(want)
			}
			v := s.must(&state.Command{CloseVDI: &state.CloseVDI{Name: name, Tag: "base"}}).Vid
			s.until(time.Minute, "frozen", func() bool { x := s.newest().VDI(v); return x != nil && x.State == state.Frozen })
			next := fmt.Sprintf("clone%03d", i+1)
			s.must(&state.Command{CloneVDI: &state.CloneVDI{Name: name, Snap: "base", New: next}})
			name = next
		}
		d := s.open(c, name, "")
		compare(t, d.Stream, want, "a hundred clones deep")
		mid := fmt.Sprintf("clone%03d", deep/2)
		old := s.open(c, mid, "base")
		compare(t, old.Stream, middle, "the middle")
		old.Close()
		s.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: mid}})
		s.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: mid, Snap: "base"}})
		time.Sleep(3 * time.Minute) // the collector merges
		compare(t, d.Stream, want, "after the middle was deleted")
		exercise(t, d.Stream, want, 10, 1)
		compare(t, d.Stream, want, "written again")
		s.whole()
	})
}

// A disk is made larger while it is written, and nodes die meanwhile: what is beyond the old end reads as zeroes and takes writes; the size is what was agreed. Smaller it
// does not get: that is refused with a word that says so.
func TestFailure55ResizeUnderWrites(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := newSite(t, 55)
		c, _ := s.client("program")
		const size = 8 << 20
		d, want := s.create(c, "alpha", size), make([]byte, 2*size)
		var wg sync.WaitGroup
		wg.Go(func() { exercise(t, d.Stream, want[:size], 60, 1) })
		wg.Go(func() {
			time.Sleep(5 * time.Millisecond)
			s.crash(1)
			s.must(&state.Command{ID: "grow", ResizeVDI: &state.ResizeVDI{Name: "alpha", Size: 2 * size}})
			s.crash(0)
			s.run(0)
			s.run(1)
		})
		wg.Wait()
		s.until(time.Minute, "all know the size", func() bool { return d.Size() == 2*size && s.newest().Working("alpha").Size == 2*size })
		compare(t, d.Stream, want, "after it grew")
		exercise(t, d.Stream, want, 20, 2)
		compare(t, d.Stream, want, "written beyond its old end")
		r, err := s.nodes[0].Propose(context.Background(), &state.Command{ResizeVDI: &state.ResizeVDI{Name: "alpha", Size: size}})
		if err != nil || !strings.Contains(fmt.Sprint(r.Err()), "Shrinking") {
			t.Errorf("to shrink it was answered %v, %v", r.Err(), err)
		}
		compare(t, d.Stream, want, "after the refusal")
		s.powerCut()
		s.whole()
		compare(t, d.Stream, want, "after a power cut")
	})
}

// TestFailure53RollbackWithAnOpenClient: it is refused; and a client that was cut off while the VDI was rolled back writes nothing into it when it is back.
func TestFailure53RollbackWithAnOpenClient(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := newSite(t, 54)
		c, _ := s.client("program")
		const size = 8 << 20
		s.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "disk", Size: size}})
		d := s.open(c, "disk", "")
		clean := make([]byte, size)
		copy(clean[4096:], bytes.Repeat([]byte{1}, 4096))
		if _, err := d.WriteAt(clean[4096:8192], 4096); err != nil {
			t.Fatal(err)
		}
		v := s.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "disk", Tag: "clean"}}).Vid
		s.until(time.Minute, "frozen", func() bool { x := s.newest().VDI(v); return x != nil && x.State == state.Frozen })
		if _, err := d.WriteAt(bytes.Repeat([]byte{2}, 64<<10), 0); err != nil {
			t.Fatal(err)
		}
		back := &state.Command{Rollback: &state.Rollback{Name: "disk", Snap: "clean"}}
		if r, err := s.nodes[0].Propose(context.Background(), back); err != nil || r.Code != state.Busy {
			t.Fatalf("rolled back under its client: %v, %v", r.Err(), err)
		}
		s.must(&state.Command{Unlock: &state.Unlock{Name: "disk"}})
		s.must(&state.Command{Rollback: back.Rollback})
		if _, err := d.WriteAt(bytes.Repeat([]byte{3}, 4096), 4<<20); !errors.Is(err, syscall.EIO) {
			t.Errorf("the client of before wrote: %v", err)
		}
		d.Close()
		d = s.open(c, "disk", "")
		compare(t, d.Stream, clean, "rolled back")
		exercise(t, d.Stream, clean, 10, 1)
		compare(t, d.Stream, clean, "written after it")
		d.Close()
		time.Sleep(3 * time.Minute) // the collector takes what was given up
		d = s.open(c, "disk", "")
		compare(t, d.Stream, clean, "after the collector")
		d.Close()
		s.whole()
	})
}
