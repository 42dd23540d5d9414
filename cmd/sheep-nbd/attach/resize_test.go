package attach

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// growing is a backend whose disk gets another size, and sometimes does not open.
type growing struct {
	*nbd.MemBackend
	mu    sync.Mutex
	size  uint64
	fails int // so many times
	stale int // so many times it opens with the size that it had
	had   uint64
}

// newGrowing has a disk of size bytes, and room for 1 MiB.
func newGrowing(size uint64) *growing {
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Size: 1 << 20, MultiConn: true})
	return &growing{MemBackend: mem, size: size}
}

func (g *growing) set(size uint64) { g.mu.Lock(); g.had, g.size = g.size, size; g.mu.Unlock() }

func (g *growing) Open(ctx context.Context, name string) (nbd.Device, nbd.ExportInfo, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fails > 0 {
		g.fails--
		return nil, nbd.ExportInfo{}, errors.New("no node answers")
	}
	d, info, err := g.MemBackend.Open(ctx, name)
	info.Size = g.size
	if g.stale > 0 {
		g.stale--
		info.Size = g.had
	}
	return &sizedDevice{d, info.Size}, info, err
}

// sizedDevice refuses what is past the end of the disk that it was opened as.
type sizedDevice struct {
	nbd.Device
	size uint64
}

func (d *sizedDevice) Submit(r *nbd.Request) {
	if r.Offset+r.Length > d.size {
		r.Queue(syscall.ENOSPC)
		return
	}
	d.Device.Submit(r)
}

// grown waits until the kernel knows the new size, and writes to the disk's very end.
func (s *servedDevice) grown(t *testing.T, k *fakeKernel, size uint64) {
	t.Helper()
	eventually(t, "the kernel knows the new size", func() bool { d, _ := s.a.view.look(0); return d.Size == size })
	for range 4 {
		if err := k.write(0, size-4096, make([]byte, 4096)); err != nil {
			t.Error(err)
		}
	}
}

// TestResizeMeetsDeadConnection: one that is brought in place of a dead one finds the new size first. The others, which do not know it, must go
// before the kernel hears of it.
func TestResizeMeetsDeadConnection(t *testing.T) {
	for _, connections := range []int{1, 3} {
		k, g := newFakeKernel(t), newGrowing(1<<18)
		cfg := k.config(0)
		cfg.Connections = connections
		resized := make(chan uint64, 1)
		s := serve(t, k, g, cfg, resized)
		for _, size := range []uint64{1 << 20, 1 << 19} {
			g.set(size)
			k.mu.Lock()
			one := k.devices[0].slots[connections/2]
			k.mu.Unlock()
			k.kill(one)
			resized <- size // which of the two is met first is a matter of luck
			s.grown(t, k, size)
		}
		s.end(t)
	}
}

// TestResizeWhileNothingOpens: it is not forgotten.
func TestResizeWhileNothingOpens(t *testing.T) {
	k, g := newFakeKernel(t), newGrowing(1<<19)
	resized := make(chan uint64, 1)
	s := serve(t, k, g, k.config(0), resized)
	g.mu.Lock()
	g.size, g.fails = 1<<20, 3
	g.mu.Unlock()
	resized <- 1 << 20
	s.grown(t, k, 1<<20)
	s.end(t)
}

// TestResizeIsHeardOfLate: who opens the disk may know less than who told of its size; also while several connections are made.
func TestResizeIsHeardOfLate(t *testing.T) {
	for _, stale := range []int{1, 2, 4} {
		k, g := newFakeKernel(t), newGrowing(1<<20)
		g.had = 1 << 19
		resized := make(chan uint64, 1)
		if stale < 4 {
			g.stale = stale // of those that attach
		}
		s := serve(t, k, g, k.config(0), resized)
		resized <- 1 << 20
		s.grown(t, k, 1<<20)
		for _, size := range []uint64{1 << 18, 1 << 19} {
			g.set(size)
			g.mu.Lock()
			g.stale = stale
			g.mu.Unlock()
			resized <- size
			s.grown(t, k, size)
		}
		s.end(t)
	}
}

// TestResizeMeetsDetaching: one ends the other, and well.
func TestResizeMeetsDetaching(t *testing.T) {
	k, g := newFakeKernel(t), newGrowing(1<<20)
	resized := make(chan uint64, 1)
	s := serve(t, detaching{k}, g, k.config(0), resized)
	g.set(1 << 19)
	resized <- 1 << 19
	s.wait(t)
	if n := s.a.exports.count(); n != 0 {
		t.Errorf("%d disks are open at the end", n)
	}
}

// detaching is a kernel whose device somebody else detaches just before it gets another size.
type detaching struct{ *fakeKernel }

func (k detaching) Reconfigure(index int, r *Request) error {
	if err := k.Disconnect(index); err != nil {
		return err
	}
	return k.fakeKernel.Reconfigure(index, r)
}

func TestResize(t *testing.T) {
	k, g := newFakeKernel(t), newGrowing(1<<19)
	resized := make(chan uint64, 1)
	s := serve(t, k, g, k.config(0), resized)
	for _, size := range []uint64{1 << 20, 1 << 18} {
		g.set(size)
		resized <- size
		s.grown(t, k, size)
	}
	s.end(t)
}
