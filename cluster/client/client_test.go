package client

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// start begins an Op and returns where its end is told.
func start(d *Disk, op *Op) chan error {
	done := make(chan error, 1)
	op.Done = func(op *Op, _ *wire.Batch) { done <- op.Err }
	var b wire.Batch
	d.Submit(op, &b)
	b.End()
	return done
}

func do(d *Disk, op *Op) error { return <-start(d, op) }

func write(d *Disk, off uint64, data []byte) error {
	return do(d, &Op{Kind: wire.KindWrite, Off: off, Len: uint64(len(data)), Data: data})
}

func read(t testing.TB, d *Disk, off uint64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := do(d, &Op{Kind: wire.KindRead, Off: off, Len: uint64(n), Data: b}); err != nil {
		t.Fatal(err)
	}
	return b
}

func flush(d *Disk) error { return do(d, &Op{Kind: wire.KindFlush}) }

func open(t testing.TB, c *Client, name string) *Disk {
	t.Helper()
	d, err := c.Open(context.Background(), name, "", OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func closeAll(t testing.TB, c *Client, disks ...*Disk) {
	t.Helper()
	for _, d := range disks {
		if err := d.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	c.Close()
	if n := c.Stats.Retained.Load(); n != 0 {
		t.Errorf("%d bytes are still retained", n)
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i*7) ^ seed
	}
	return b
}

// each runs a test with a client that is part of a node, and with one that is not.
func each(t *testing.T, nodes int, run func(t *testing.T, f *fake, c *Client)) {
	for name, local := range map[string]state.NodeID{"gateway": 0, "program": state.NoNode} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t, nodes)
				f.vdi("alpha", 64<<20)
				t.Cleanup(func() { time.Sleep(time.Minute) }) // what the fake does late
				run(t, f, f.client(local))
			})
		})
	}
}

func TestPiecesOfEverySizeComeBack(t *testing.T) {
	largest := 64 << 20
	if testing.Short() { // the race detector looks at every byte
		largest = 9 << 20
	}
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		for _, x := range []struct{ off, n int }{{0, 4096}, {512, 512}, {4095, 2}, {objectSize - 4096, 8192}, {objectSize - 1, 2}, {3 * objectSize, objectSize},
			{5*objectSize + 4096, 3*objectSize + 100}, {64<<20 - 4096, 4096}, {0, largest}} {
			want := pattern(x.n, byte(x.off))
			if err := write(d, uint64(x.off), want); err != nil {
				t.Fatal(err)
			}
			if got := read(t, d, uint64(x.off), x.n); !bytes.Equal(got, want) {
				t.Fatalf("%d bytes at %d come back changed", x.n, x.off)
			}
		}
		if err := do(d, &Op{Kind: wire.KindZero, Off: 4096, Len: uint64(largest - 8192)}); err != nil {
			t.Fatal(err)
		}
		if got := read(t, d, 4096, largest-8192); !bytes.Equal(got, make([]byte, largest-8192)) {
			t.Fatal("zeroes are none")
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		closeAll(t, c, d)
	})
}

// Checksums that the caller brings go with the pieces they are of: the fake node compares each with its block.
func TestSumsOfTheCaller(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		off, data := uint64(objectSize-2*blockSize), pattern(objectSize+5*blockSize, 9)
		if err := do(d, &Op{Kind: wire.KindWrite, Off: off, Len: uint64(len(data)), Data: data, Sums: AppendSums(nil, off, data)}); err != nil {
			t.Fatal(err)
		}
		if got := read(t, d, off, len(data)); !bytes.Equal(got, data) {
			t.Error("comes back changed")
		}
		if s := AppendSums(nil, 512, data); s != nil {
			t.Error("a write that is not whole blocks has no checksums of blocks")
		}
		closeAll(t, c, d)
	})
}

// A request of many objects ends soon when nobody waits for it any more.
func TestWhatNobodyWaitsForIsGivenUp(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		const enough = 100
		f.vdi("wide", 1<<50)
		d := open(t, c, "wide")
		var gone atomic.Bool
		var begun atomic.Int32
		f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindExtents && begun.Add(1) == enough {
				gone.Store(true)
			}
			return serve
		})
		if err := do(d, &Op{Kind: wire.KindExtents, Len: 1 << 50, Gone: &gone}); !errors.Is(err, context.Canceled) {
			t.Errorf("given up with %v", err)
		}
		if n := begun.Load(); n > enough+pieceWindow {
			t.Errorf("%d pieces of it began", n)
		}
		f.setFault(nil)
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Error(err)
		}
		closeAll(t, c, d)
	})
}

func TestOutOfRangeIsRefused(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		for _, x := range []struct {
			op   *Op
			want error
		}{
			{&Op{Kind: wire.KindWrite, Off: 64 << 20, Len: 1, Data: []byte{1}}, syscall.ENOSPC},
			{&Op{Kind: wire.KindRead, Off: 64 << 20, Len: 1, Data: []byte{1}}, syscall.EINVAL},
			{&Op{Kind: wire.KindTrim, Off: 1<<64 - 512, Len: 1024}, syscall.EINVAL},
			{&Op{Kind: wire.KindWrite, Off: 0, Len: 2, Data: []byte{1}}, syscall.EINVAL},
			{&Op{Kind: wire.KindAppend, Off: 0, Len: 2}, syscall.EINVAL},
		} {
			if err := do(d, x.op); !errors.Is(err, x.want) {
				t.Errorf("%v, want %v", err, x.want)
			}
		}
		if err := do(d, &Op{Kind: wire.KindWrite}); err != nil {
			t.Errorf("nothing written: %v", err)
		}
		closeAll(t, c, d)
	})
}

func TestR14OneSessionPerProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		a, b := f.program(), f.client(1)
		d1, d2 := open(t, a, "alpha"), open(t, a, "alpha")
		if n := len(f.Map().Sessions); n != 1 {
			t.Fatalf("%d sessions", n)
		}
		if _, err := b.Open(context.Background(), "alpha", "", OpenOptions{}); !errors.Is(err, syscall.EBUSY) {
			t.Fatalf("opened twice: %v", err)
		}
		if _, err := b.Open(context.Background(), "beta", "", OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("opened what is not there: %v", err)
		}
		r, err := b.Open(context.Background(), "alpha", "", OpenOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := write(r, 0, pattern(4096, 1)); !errors.Is(err, syscall.EROFS) {
			t.Fatalf("written through a reader: %v", err)
		}
		if err := write(d1, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, d2, 0, 4096), pattern(4096, 1)) || !bytes.Equal(read(t, r, 0, 4096), pattern(4096, 1)) {
			t.Fatal("a Disk does not see another's write")
		}
		d1.Close(context.Background())
		if err := write(d2, 0, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		closeAll(t, a, d2)
		if n := len(f.Map().Sessions); n != 0 {
			t.Fatalf("%d sessions are left", n)
		}
		d3 := open(t, b, "alpha")
		closeAll(t, b, r, d3)
	})
}

func TestR14FencedIsDead(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.must(&state.Command{Unlock: &state.Unlock{Name: "alpha"}})
		if err := write(d, 0, pattern(4096, 2)); !errors.Is(err, syscall.EIO) {
			t.Fatalf("a fenced write: %v", err)
		}
		if err := flush(d); !errors.Is(err, syscall.EIO) {
			t.Fatalf("a fenced flush: %v", err)
		}
		d.Close(context.Background())
		d = open(t, c, "alpha")
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("the fenced write is there")
		}
		closeAll(t, c, d)
	})
}

func TestR14LapsedSessionIsOpenedAgain(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
		time.Sleep(time.Second)
		if err := write(d, 0, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		if n := c.Stats.Renewed.Load(); n != 1 {
			t.Fatalf("renewed %d times", n)
		}
		// A stranger who had it in between ends it for good, even if he is gone again.
		f.mu.Lock()
		id := f.m.Sessions[0].ID
		f.mu.Unlock()
		block := make(chan struct{})
		f.mu.Lock()
		m, _ := f.m.Apply(f.m.Index+1, &state.Command{CloseSess: &state.CloseSess{ID: id}})
		m, r := m.Apply(m.Index+1, &state.Command{OpenSess: &state.OpenSess{Name: "alpha", Client: "stranger", Holder: state.Member{Node: state.NoNode}}})
		m, _ = m.Apply(m.Index+1, &state.Command{CloseSess: &state.CloseSess{ID: r.Sess.ID}})
		f.publish(m)
		f.mu.Unlock()
		close(block)
		if err := write(d, 0, pattern(4096, 3)); !errors.Is(err, syscall.EIO) {
			t.Fatalf("written after a stranger: %v", err)
		}
		closeAll(t, c, d)
	})
}

func TestRetryableAnswersAreRetried(t *testing.T) {
	for name, v := range map[string]verdict{"busy": busy, "behind": behind, "not primary": never, "lost": lost, "silent": silent} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t, 3)
				f.vdi("alpha", 64<<20)
				c := f.program()
				d := open(t, c, "alpha")
				var n atomic.Int32
				f.setFault(func(state.NodeID, *wire.Request) verdict {
					if n.Add(1)%3 == 0 {
						return serve
					}
					return v
				})
				for i := range 8 {
					if err := write(d, uint64(i)*objectSize, pattern(8192, byte(i))); err != nil {
						t.Fatal(err)
					}
					if got := read(t, d, uint64(i)*objectSize, 8192); !bytes.Equal(got, pattern(8192, byte(i))) {
						t.Fatal("read something else")
					}
				}
				if err := flush(d); err != nil {
					t.Fatal(err)
				}
				if c.Stats.Retries.Load()+c.Stats.Reconnects.Load() == 0 {
					t.Fatal("nothing was retried")
				}
				f.setFault(nil)
				closeAll(t, c, d)
			})
		})
	}
}

func TestFinalAnswersEndARequest(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		for v, want := range map[verdict]error{noSpace: syscall.ENOSPC, bad: syscall.EIO} {
			f.setFault(func(state.NodeID, *wire.Request) verdict { return v })
			if err := write(d, 0, pattern(3*objectSize, 1)); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		f.setFault(nil)
		if err := write(d, 0, pattern(3*objectSize, 2)); err != nil {
			t.Error(err)
		}
		closeAll(t, c, d)
	})
}

func TestWaitsForAPrimary(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.move(id, state.NoNode)
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1)})
		time.Sleep(time.Minute)
		select {
		case err := <-done:
			t.Fatalf("done without a primary: %v", err)
		default:
		}
		at := time.Now()
		f.move(id, 2)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if late := time.Since(at); late > 10*time.Millisecond {
			t.Fatalf("sent %s after the map was there", late)
		}
		closeAll(t, c, d)
	})
}

func TestMovedPrimaryIsFollowedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		c := f.program()
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.move(id, 0)
		f.setFault(func(n state.NodeID, _ *wire.Request) verdict {
			if n == 0 {
				return silent
			}
			return serve
		})
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1)})
		time.Sleep(100 * time.Millisecond)
		f.mu.Lock()
		clear(f.open) // the term fences what node 0 holds
		f.mu.Unlock()
		f.move(id, 1)
		at := time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if late := time.Since(at); late > 10*time.Millisecond {
			t.Fatalf("followed after %s", late)
		}
		f.setFault(nil)
		closeAll(t, c, d)
	})
}

func TestR15OverlappingWritesGoOneByOne(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		var hold atomic.Bool
		hold.Store(true)
		f.setFault(func(state.NodeID, *wire.Request) verdict {
			if hold.Load() {
				return busy
			}
			return serve
		})
		var list []chan error
		for i := range 20 { // each touches its neighbours, the fake watches
			list = append(list, start(d, &Op{Kind: wire.KindWrite, Off: uint64(i) * 2048, Len: 6144, Data: pattern(6144, byte(i))}))
		}
		time.Sleep(100 * time.Millisecond)
		hold.Store(false)
		for _, done := range list {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		want := make([]byte, 20*2048+4096)
		for i := range 20 {
			copy(want[i*2048:], pattern(6144, byte(i)))
		}
		if got := read(t, d, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatal("overlapping writes came out of order")
		}
		if c.Stats.Waits.Load() == 0 {
			t.Fatal("none waited")
		}
		closeAll(t, c, d)
	})
}

// TestZerosThatAreWrittenDoNotFlood: of a request to write zeros over a whole disk only some objects are under way at a time: each is 4 MiB to be moved to all replicas. Holes,
// which cost nothing, go faster.
func TestZerosThatAreWrittenDoNotFlood(t *testing.T) {
	for _, provision := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t, 3)
			f.vdi("alpha", 1<<30)
			c := f.program()
			d := open(t, c, "alpha")
			var now, most atomic.Int64
			f.setFault(func(_ state.NodeID, r *wire.Request) verdict {
				if r.Kind == wire.KindZero || r.Kind == wire.KindWrite {
					if n := now.Add(1); n > most.Load() {
						most.Store(n)
					}
					time.AfterFunc(time.Second, func() { now.Add(-1) })
				}
				return tardy
			})
			if err := do(d, &Op{Kind: wire.KindZero, Len: 1 << 30, Provision: provision}); err != nil {
				t.Fatal(err)
			}
			want := int64(pieceWindow)
			if provision {
				want = zeroWindow
			}
			if n := most.Load(); n < want-1 || n > want+1 { // what was answered is not counted off to the nanosecond
				t.Errorf("provision %v: %d pieces under way, not %d", provision, n, want)
			}
			f.setFault(nil)
			closeAll(t, c, d)
		})
	}
}
