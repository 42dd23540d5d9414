package nbd

import (
	"context"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
)

// fakeBackend has one export whose device does what a test says.
type fakeBackend struct {
	info   ExportInfo
	submit func(r *Request)
	push   func()
	ready  func(r *Request) // Prepare
	open   func(ctx context.Context) error
	device func() Device // instead of the fake one

	lists, infos, opens, closes atomic.Int32

	mu   sync.Mutex
	ctxs []context.Context // those of Open
}

func (b *fakeBackend) List(context.Context) ([]ExportInfo, error) {
	b.lists.Add(1)
	return []ExportInfo{b.info}, nil
}

func (b *fakeBackend) Info(_ context.Context, name string) (ExportInfo, error) {
	b.infos.Add(1)
	if name != b.info.Name {
		return ExportInfo{}, fmt.Errorf("fake %q: %w", name, fs.ErrNotExist)
	}
	return b.info, nil
}

func (b *fakeBackend) Open(ctx context.Context, name string) (Device, ExportInfo, error) {
	b.opens.Add(1)
	if b.open != nil {
		if err := b.open(ctx); err != nil {
			return nil, ExportInfo{}, err
		}
	}
	b.mu.Lock()
	b.ctxs = append(b.ctxs, ctx)
	b.mu.Unlock()
	if b.device != nil {
		return b.device(), b.info, nil
	}
	return &fakeDevice{b: b}, b.info, nil
}

func (b *fakeBackend) lastContext() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ctxs[len(b.ctxs)-1]
}

type fakeDevice struct {
	b      *fakeBackend
	closed atomic.Bool
}

func (d *fakeDevice) Submit(r *Request) {
	if d.closed.Load() {
		panic("Submit after Close")
	}
	if d.b.submit == nil {
		clear(r.Data)
		r.Queue(nil)
		return
	}
	d.b.submit(r)
}

func (d *fakeDevice) Prepare(r *Request) {
	if d.b.ready != nil {
		d.b.ready(r)
	}
}

func (d *fakeDevice) Push() {
	if d.b.push != nil {
		d.b.push()
	}
}

func (d *fakeDevice) Close() error {
	if d.closed.Swap(true) {
		panic("Close twice")
	}
	d.b.closes.Add(1)
	return nil
}

// allCan is an export that offers everything.
func allCan(size uint64) ExportInfo {
	return ExportInfo{Name: "x", Size: size, CanTrim: true, CanZero: true, CanFastZero: true, CanCache: true, BlockStatus: true, MultiConn: true}
}

// box hands an error from a test to a device.
type box struct {
	mu  sync.Mutex
	err error
}

func (b *box) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *box) get() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
