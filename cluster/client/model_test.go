package client

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestModel runs random requests, many at a time, against a cluster that refuses, delays, forgets, loses connections, moves primaries, loses power,
// takes snapshots, lets sessions lapse and closes and opens the disk, and compares with a byte array. MODEL_SEED runs one seed, MODEL_RUNS more of them.
func TestModel(t *testing.T) {
	if s, err := strconv.ParseUint(os.Getenv("MODEL_SEED"), 10, 64); err == nil {
		runModel(t, s)
		return
	}
	runs, err := strconv.Atoi(os.Getenv("MODEL_RUNS"))
	if err != nil {
		runs = 6
	}
	if testing.Short() {
		runs = 1
	}
	base := uint64(time.Now().UnixNano())
	for i := range runs {
		runModel(t, base+uint64(i))
		if t.Failed() {
			return
		}
	}
}

func runModel(t *testing.T, seed uint64) {
	t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newModel(t, seed)
			defer time.Sleep(time.Minute) // what the fake does late
			for range 60 {
				m.step()
				if t.Failed() {
					return
				}
			}
			m.end()
		})
	})
}

type model struct {
	t    *testing.T
	rnd  *rand.Rand
	f    *fake
	c    *Client
	d    *Disk
	want []byte
	snap int
}

const modelSize = 6*objectSize + 512

func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), f: newFake(t, 3), want: make([]byte, modelSize)}
	m.f.vdi("alpha", modelSize)
	if m.rnd.IntN(2) == 0 {
		m.c = m.f.client(0)
	} else {
		m.c = m.f.program()
	}
	m.d = open(t, m.c, "alpha")
	faults := rand.New(rand.NewPCG(seed, 2))
	rate := faults.Float64() * 0.2
	local := m.c.cfg.LocalNode
	m.f.setFault(func(node state.NodeID, r *wire.Request) verdict {
		m.f.mu.Lock()
		defer m.f.mu.Unlock()
		if faults.Float64() >= rate {
			return serve
		}
		list := []verdict{busy, behind, never, silent, lost, late}
		if node == local {
			list = list[:3] // a primary in the same process always answers
		}
		return list[faults.IntN(len(list))]
	})
	return m
}

// step runs some requests that don't overlap, while something happens.
func (m *model) step() {
	type running struct {
		op   *Op
		done chan error
	}
	var list []running
	begin := func(op *Op) { list = append(list, running{op, start(m.d, op)}) }
	for at := uint64(m.rnd.IntN(objectSize)); ; {
		n := uint64(1 + m.rnd.IntN(3*blockSize))
		if m.rnd.IntN(8) == 0 {
			n = uint64(1 + m.rnd.IntN(objectSize+objectSize/2))
		}
		if m.rnd.IntN(2) == 0 {
			at, n = (at+blockSize-1)&^(blockSize-1), (n+blockSize-1)&^(blockSize-1)
		}
		if at+n > modelSize {
			break
		}
		begin(m.op(at, n))
		at += n + uint64(m.rnd.IntN(objectSize/2))
	}
	if m.rnd.IntN(3) == 0 {
		begin(&Op{Kind: wire.KindFlush})
	}
	m.happen()
	for _, r := range list {
		select {
		case err := <-r.done:
			if err != nil {
				m.t.Errorf("%s at %d+%d: %v", r.op.Kind, r.op.Off, r.op.Len, err)
			}
		case <-time.After(10 * time.Minute):
			m.t.Fatalf("%s at %d+%d is not answered", r.op.Kind, r.op.Off, r.op.Len)
		}
		if r.op.Kind == wire.KindRead && !bytes.Equal(r.op.Data, m.want[r.op.Off:r.op.Off+r.op.Len]) {
			m.t.Errorf("read at %d+%d: not what was written", r.op.Off, r.op.Len)
		}
	}
	if m.rnd.IntN(5) == 0 {
		m.reopen()
	}
}

// reopen is what a VM does whose connection broke. The last flush often has no time to be done.
func (m *model) reopen() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(m.rnd.IntN(3000))*time.Millisecond)
	defer cancel()
	closed := make(chan struct{})
	d := m.d
	go func() {
		d.Close(ctx)
		close(closed)
	}()
	time.Sleep(time.Duration(m.rnd.IntN(5)) * time.Millisecond)
	if m.rnd.IntN(2) == 0 {
		<-closed
	}
	if m.rnd.IntN(3) == 0 {
		time.Sleep(time.Duration(m.rnd.IntN(10)) * time.Second)
	}
	m.d = open(m.t, m.c, "alpha")
	<-closed
}

func (m *model) op(at, n uint64) *Op {
	op := &Op{Off: at, Len: n, FUA: m.rnd.IntN(10) == 0}
	switch m.rnd.IntN(6) {
	case 0, 1:
		op.Kind, op.Data, op.FUA = wire.KindRead, make([]byte, n), false
	case 2:
		op.Kind = wire.KindZero
		op.Provision = m.rnd.IntN(2) == 0
		clear(m.want[at : at+n])
	default:
		op.Kind, op.Data = wire.KindWrite, pattern(int(n), byte(m.rnd.IntN(256)))
		copy(m.want[at:], op.Data)
	}
	return op
}

// happen is what the world does meanwhile.
func (m *model) happen() {
	groups := m.f.Map().PoolGroups(0)
	id := groups[m.rnd.IntN(len(groups))].ID
	if m.rnd.IntN(2) == 0 {
		time.Sleep(time.Duration(m.rnd.IntN(5)) * time.Millisecond)
	}
	switch m.rnd.IntN(8) {
	case 0:
		m.f.move(id, state.NoNode)
		time.Sleep(time.Duration(m.rnd.IntN(4000)) * time.Millisecond)
		m.f.move(id, state.NodeID(m.rnd.IntN(3)))
	case 1:
		m.f.move(id, state.NodeID(m.rnd.IntN(3)))
	case 2: // all at once, as when the whole site loses power
		for _, g := range groups {
			m.cut(g.ID)
		}
	case 3:
		m.cut(id)
	case 4:
		m.f.hang(state.NodeID(m.rnd.IntN(3)))
	case 5:
		m.snapshot()
	case 6:
		if list := m.f.Map().Sessions; m.rnd.IntN(3) == 0 && len(list) > 0 {
			m.f.apply(&state.Command{CloseSess: &state.CloseSess{ID: list[0].ID}})
		}
	}
}

// cut takes a group's power away, keeping some of what was not flushed. How far it recovered is said at once, later, or only after the next cut.
func (m *model) cut(id state.GroupID) {
	m.f.mu.Lock()
	m.f.resume(id, m.rnd.IntN(4))
	again := m.rnd.IntN(4) == 0
	m.f.mu.Unlock()
	if again {
		time.Sleep(time.Duration(m.rnd.IntN(20)) * time.Millisecond)
		m.f.mu.Lock()
		m.f.resume(id, m.rnd.IntN(4))
		m.f.mu.Unlock()
	}
	if m.rnd.IntN(2) == 0 {
		time.Sleep(time.Duration(m.rnd.IntN(200)) * time.Millisecond)
	}
	m.f.mu.Lock()
	m.f.recovered(id)
	m.f.mu.Unlock()
}

// snapshot closes and freezes the working vid.
func (m *model) snapshot() {
	m.snap++
	r := m.f.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "alpha", Tag: fmt.Sprint("t", m.snap)}})
	time.Sleep(time.Duration(m.rnd.IntN(300)) * time.Millisecond)
	for range 2000 {
		if m.freeze(r) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.f.must(&state.Command{AbortClose: &state.AbortClose{Vid: r.Vid, Closing: r.Index}}) // as the leader does: a primary hangs, which cannot be flushed
}

// freeze freezes it, unless a client has yet to send again what groups lost.
func (m *model) freeze(r state.Result) bool {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	if m.f.m.Owing(r.Vid) != nil {
		return false
	}
	var terms []uint64
	for _, g := range m.f.m.PoolGroups(0) {
		m.f.group(g.ID).flush() // as R22 has it
		terms = append(terms, g.Term)
	}
	next, res := m.f.m.Apply(m.f.m.Index+1, &state.Command{FreezeVDI: &state.FreezeVDI{Vid: r.Vid, Closing: r.Index, Terms: terms}})
	if err := res.Err(); err != nil {
		m.t.Fatal(err)
	}
	m.f.publish(next)
	return true
}

// end flushes, cuts the power of everything, and compares all.
func (m *model) end() {
	if err := flush(m.d); err != nil {
		m.t.Fatal(err)
	}
	for _, g := range m.f.Map().PoolGroups(0) {
		m.f.powerCut(g.ID, 0)
	}
	if !bytes.Equal(m.f.content("alpha"), m.want) {
		got := m.f.content("alpha")
		for at := 0; at < len(got); at += 512 {
			if !bytes.Equal(got[at:at+512], m.want[at:at+512]) {
				m.t.Errorf("what was flushed is not what is there, at %d (object %d, block %d)", at, at/objectSize, at%objectSize/blockSize)
				break
			}
		}
	}
	m.f.setFault(nil)
	closeAll(m.t, m.c, m.d)
}
