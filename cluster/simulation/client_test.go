package simulation

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// process is a client's: a program of its own, or part of a node.
type process struct {
	w    *world
	host string
	at   *machine // nil: a program's
	n    *node.Node
	c    *client.Client
	end  func()
	dead atomic.Bool // what it is told from now on nobody hears
}

// program starts a client beside the nodes, which knows some of them.
func (w *world) program() (*process, error) {
	p := &process{w: w, host: fmt.Sprint("c", w.clients.Add(1))}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	net, log := w.net.Host(p.host), w.logs(p.host)
	var addrs []string
	w.mu.Lock()
	for _, m := range w.machines {
		if !m.gone {
			addrs = append(addrs, m.host+":7000")
		}
	}
	w.mu.Unlock()
	watch, err := client.Watch(ctx, client.WatchConfig{Nodes: addrs, Net: net, ID: p.host, Logger: log})
	if err != nil {
		return nil, err
	}
	p.c, err = client.New(client.Config{Maps: watch, Net: net, Propose: watch.Propose, Latest: watch.Latest, ID: p.host, Logger: log})
	if err != nil {
		return nil, err
	}
	p.end = once(func() { p.c.Close(); watch.Close() })
	return p, nil
}

// gateway starts a client inside a machine's node.
func (m *machine) gateway() (*process, error) {
	n := m.running()
	if n == nil || n.Self().Node == state.NoNode || m.paused() != nil {
		return nil, errors.New("no node")
	}
	w := m.w
	p := &process{w: w, host: fmt.Sprint("g", w.clients.Add(1)), at: m, n: n}
	var err error
	p.c, err = client.New(client.Config{Maps: nodeMaps{n}, Net: n.Net(), Propose: n.Propose, Latest: n.Latest, Local: n.Engine(), LocalNode: n.Self().Node, Owner: n.Addr(), ID: p.host,
		Logger: w.logs(p.host)})
	if err != nil {
		return nil, err
	}
	p.end = once(p.c.Close)
	return p, nil
}

// once is sync.OnceFunc, but time passes while somebody waits for the one who does it.
func once(f func()) func() {
	var begun atomic.Bool
	done := make(chan struct{})
	return func() {
		if begun.Swap(true) {
			<-done
			return
		}
		f()
		close(done)
	}
}

// kill ends the process: nothing it did not hear before counts as heard.
func (p *process) kill() {
	if p.dead.Swap(true) {
		return
	}
	if p.at == nil {
		p.w.net.Kill(p.host)
	}
	p.w.wg.Go(p.end)
}

// alive waits while the process is paused.
func (p *process) alive() {
	for p.at != nil {
		ch := p.at.paused()
		if ch == nil {
			return
		}
		<-ch
	}
}

// endClients ends the clients inside a machine's node.
func (w *world) endClients(m *machine) {
	for _, s := range w.slots {
		s.mu.Lock()
		if s.p != nil && s.p.at == m {
			s.p.kill()
		}
		s.mu.Unlock()
	}
}

// session is one opening of a volume by one process.
type session struct {
	id   int
	v    *volume
	p    *process
	d    *client.Disk
	born int64
	over atomic.Bool // its disk fails everything
	told atomic.Bool // it was told that something is lost, and could not be sent again
}

// slot has a volume used by one client after another.
type slot struct {
	w *world
	v *volume

	mu sync.Mutex // guards what follows
	p  *process
}

// use runs until the world's clients are stopped.
func (s *slot) use(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	w := s.w
	for !w.stopped(s.v) {
		if w.resting.Load() {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		p, err := s.start(rng)
		if err != nil {
			time.Sleep(200 * time.Millisecond)
			continue
		}
		w.using.Add(1)
		s.session(p, rng)
		if rng.IntN(3) == 0 && !p.dead.Load() {
			p.end()
		}
		p.kill()
		w.using.Add(-1)
	}
}

func (s *slot) start(rng *rand.Rand) (p *process, err error) {
	if !s.v.shared && rng.IntN(2) == 0 {
		s.w.mu.Lock()
		m := s.w.machines[rng.IntN(len(s.w.machines))]
		s.w.mu.Unlock()
		p, err = m.gateway()
	} else {
		p, err = s.w.program()
	}
	if err == nil {
		s.mu.Lock()
		s.p = p
		s.mu.Unlock()
		if p.at != nil && p.at.running() != p.n { // it ended meanwhile
			p.kill()
		}
	}
	return p, err
}

// session opens the volume and has workers use it until it is over.
func (s *slot) session(p *process, rng *rand.Rand) {
	w, v := s.w, s.v
	var d *client.Disk
	for d == nil {
		if w.stopped(v) || w.resting.Load() || p.dead.Load() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		var err error
		d, err = p.c.Open(ctx, v.name, "", client.OpenOptions{})
		cancel()
		if err != nil {
			time.Sleep(100 * time.Millisecond)
		}
	}
	v.mu.Lock()
	x := &session{id: len(v.sessions) + 1, v: v, p: p, d: d, born: w.seq.Add(1)}
	v.sessions = append(v.sessions, x)
	v.mu.Unlock()
	w.event("session %d of %s by %s", x.id, v.name, p.host)
	var wg sync.WaitGroup
	for range 2 {
		r := rand.New(rand.NewPCG(rng.Uint64(), 4))
		wg.Go(func() {
			for !w.stopped(v) && !w.resting.Load() && !x.over.Load() && !p.dead.Load() {
				x.step(r)
				time.Sleep(time.Duration(r.Int64N(int64(80 * time.Millisecond))))
			}
		})
	}
	wg.Wait()
	if !p.dead.Load() && !x.over.Load() {
		if rng.IntN(2) == 0 {
			x.flush()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		d.Close(ctx)
		cancel()
	}
}

func (w *world) stopped(v *volume) bool {
	select {
	case <-w.stop:
		return true
	default:
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}

// Registers of a volume: places where something is at stake. Blocks that large writes and small ones share, the seam of two objects, sectors of one block.
const (
	volumeBytes = 28 << 20
	objectBytes = client.ObjectSize
	blockBytes  = client.BlockSize
	sectorBytes = 512
	largeBytes  = 64 << 10
)

func newVolume(name string, shared bool, groupOf func(index uint32) state.GroupID) *volume {
	v := &volume{name: name, shared: shared}
	for _, r := range []register{
		{off: 0, len: blockBytes}, {off: blockBytes, len: blockBytes}, {off: 2 * blockBytes, len: blockBytes}, {off: 3 * blockBytes, len: blockBytes},
		{off: objectBytes - blockBytes, len: blockBytes}, {off: objectBytes, len: blockBytes},
		{off: objectBytes + 600*blockBytes, len: blockBytes},
		{off: 2*objectBytes + 5*blockBytes, len: sectorBytes}, {off: 2*objectBytes + 5*blockBytes + 7*sectorBytes, len: sectorBytes},
		{off: 3 * objectBytes, len: blockBytes}, {off: 4 * objectBytes, len: blockBytes}, {off: 5 * objectBytes, len: blockBytes}, {off: 7*objectBytes - blockBytes, len: blockBytes},
	} {
		r.group = groupOf(uint32(r.off / objectBytes))
		v.regs = append(v.regs, r)
	}
	return v
}

// step does one operation, of a kind and at a place that chance picks.
func (s *session) step(r *rand.Rand) {
	first := r.IntN(len(s.v.regs))
	last := first + 1
	if r.IntN(4) == 0 && (first == 0 || first == 2 || first == 4) {
		last++
	}
	large := first == 0 && r.IntN(3) == 0
	if large {
		last = 4
	}
	fua := r.IntN(10) == 0
	switch k := r.IntN(20); {
	case k < 9:
		s.do(wire.KindWrite, first, last, large, fua)
	case k < 15:
		s.do(wire.KindRead, first, last, false, false)
	case k < 16:
		s.do(wire.KindZero, first, last, large, fua)
	case k < 17 && s.v.regs[first].len == blockBytes:
		s.do(wire.KindTrim, first, last, large, fua)
	default:
		s.flush()
	}
}

func (s *session) flush() { s.do(wire.KindFlush, 0, 0, false, false) }

// do is one operation on registers next to each other, and what became of it.
func (s *session) do(kind wire.Kind, first, last int, large, fua bool) {
	w, v := s.p.w, s.v
	s.p.alive()
	e := &event{kind: kind, sess: s, first: first, last: last, fua: fua}
	op := &client.Op{Kind: kind, FUA: fua && kind != wire.KindRead}
	if first < last {
		op.Off = v.regs[first].off
		op.Len = v.regs[last-1].off + v.regs[last-1].len - op.Off
		if large {
			op.Len = largeBytes
		}
	}
	e.call = w.seq.Add(1)
	e.value = uint64(e.call)
	switch kind {
	case wire.KindRead:
		op.Data = make([]byte, op.Len)
	case wire.KindWrite:
		op.Data = make([]byte, op.Len)
		for i := 0; i < len(op.Data); i += 8 {
			binary.LittleEndian.PutUint64(op.Data[i:], e.value)
		}
	}
	v.begin(e)
	err := submit(s.d, op)
	s.p.alive()
	if s.p.dead.Load() {
		w.done.unknown.Add(1)
		return
	}
	at := w.seq.Add(1)
	if err != nil {
		w.done.refused.Add(1)
		s.refused(e, err)
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	w.done.ops.Add(1)
	if kind == wire.KindRead {
		e.got = v.contents(w, op.Off, op.Data, first, last)
	}
	e.ret = at
}

// refused judges an error. A client sees none, but: its session was taken away, or of a shared disk a loss was told.
func (s *session) refused(e *event, err error) {
	w, v := s.p.w, s.v
	v.mu.Lock()
	stolen, deleted := v.stolen, v.closed
	v.mu.Unlock()
	switch {
	case deleted:
		s.over.Store(true)
	case errors.Is(err, client.ErrClosed):
		s.over.Store(true)
	case strings.Contains(err.Error(), "is fenced") || strings.Contains(err.Error(), "was deleted"):
		s.over.Store(true)
		if !stolen {
			w.t.Errorf("%s: %v, though nobody took it over", e.kind, err)
		}
	case v.shared && errors.Is(err, syscall.EIO) && (w.resumed() || strings.Contains(err.Error(), "the session lapsed meanwhile")):
	case w.copies == 1 && errors.Is(err, syscall.EIO) && w.resumed() && (strings.Contains(err.Error(), "a snapshot was taken meanwhile") || strings.Contains(err.Error(), "acknowledged writes there were lost")):
		// The one copy's node lost power while the client's was cut off for so long that its session lapsed, and a snapshot did not wait for it.
		s.told.Store(true)
	default:
		w.t.Errorf("session %d of %s: %s at #%d: %v", s.id, v.name, e.kind, e.call, err)
	}
}

// submit has one operation done.
func submit(d *client.Disk, op *client.Op) error {
	done := make(chan error, 1)
	op.Done = func(op *client.Op, _ *wire.Batch) { done <- op.Err }
	var b wire.Batch
	d.Submit(op, &b)
	if wait := b.EndLeaving(); wait != nil { // as a connection's reader does
		wait()
	}
	return <-done
}

// contents are the values of registers in what was read.
func (v *volume) contents(w *world, off uint64, data []byte, first, last int) (got []uint64) {
	for _, r := range v.regs[first:last] {
		part := data[r.off-off : r.off-off+r.len]
		x := binary.LittleEndian.Uint64(part)
		for i := 8; i < len(part); i += 8 {
			if y := binary.LittleEndian.Uint64(part[i:]); y != x {
				w.t.Errorf("%s at %d: torn: %d at its beginning, %d at %d", v.name, r.off, x, y, i)
				break
			}
		}
		got = append(got, x)
	}
	return got
}

// all reads every register of a disk.
func (v *volume) all(w *world, d *client.Disk) ([]uint64, error) {
	var got []uint64
	for n, r := range v.regs {
		op := &client.Op{Kind: wire.KindRead, Off: r.off, Len: r.len, Data: make([]byte, r.len)}
		if err := submit(d, op); err != nil {
			return nil, err
		}
		got = append(got, v.contents(w, r.off, op.Data, n, n+1)...)
	}
	return got, nil
}
