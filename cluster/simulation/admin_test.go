package simulation

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// snapshot is one that was taken.
type snapshot struct {
	v   *volume
	tag string
	e   *event   // a read of all registers at one point in time
	got []uint64 // what it holds
}

// administrate does what people do with VDIs, beside the faults, until stopped.
func (w *world) administrate(r *rand.Rand, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(200+r.IntN(3000)) * time.Millisecond):
		}
		v := w.volumes[r.IntN(len(w.volumes))]
		switch k := r.IntN(11); {
		case k < 5:
			w.takeSnapshot(v)
		case k < 7:
			w.dropSnapshot(r)
		case k < 9 && len(w.volumes) < 5:
			w.clone(r)
		case k == 10 && len(w.volumes) < 8:
			w.rollback(r)
		default:
			w.shortLived(fmt.Sprint("s", r.IntN(2)))
		}
	}
}

// takeSnapshot takes one of a volume, unless that was deleted: if nobody knows whether it was, the VDI of that name may be another's.
func (w *world) takeSnapshot(v *volume) {
	v.mu.Lock()
	closed := v.closed
	v.mu.Unlock()
	if closed {
		return
	}
	tag := fmt.Sprint("t", w.seq.Add(1))
	e := &event{kind: wire.KindRead, first: 0, last: len(v.regs), call: w.seq.Add(1), what: tag}
	res, err := w.propose(20*time.Second, &state.Command{CloseVDI: &state.CloseVDI{Name: v.name, Tag: tag}})
	if err != nil {
		w.event("snapshot of %s: %v", v.name, err)
		return
	}
	for {
		d := w.newest().VDI(res.Vid)
		if d == nil {
			w.t.Errorf("snapshot %s of %s: the vid is gone", tag, v.name)
			return
		}
		if d.State == state.Frozen {
			break
		}
		if d.State != state.Closing || d.Closing != res.Index {
			if w.newest().Index >= res.Index {
				w.event("snapshot of %s was given up", v.name)
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.ret = w.seq.Add(1)
	w.done.snapshots.Add(1)
	w.event("snapshot %s of %s between #%d and #%d", tag, v.name, e.call, e.ret)
	w.mu.Lock()
	w.snapshots = append(w.snapshots, &snapshot{v: v, tag: tag, e: e})
	w.mu.Unlock()
}

// read reads what a snapshot holds, by a client of its own; false: not now.
func (w *world) read(v *volume, name, tag string, within time.Duration) ([]uint64, bool) {
	p, err := w.program()
	if err != nil {
		return nil, false
	}
	defer p.end()
	ctx, cancel := timeout(within)
	defer cancel()
	var d *client.Disk
	for d == nil {
		if d, err = p.c.Open(ctx, name, tag, client.OpenOptions{ReadOnly: true}); err != nil {
			if ctx.Err() != nil {
				return nil, false
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	type answer struct {
		got []uint64
		err error
	}
	done := make(chan answer, 1)
	go func() {
		got, err := v.all(w, d)
		done <- answer{got, err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			w.t.Errorf("read %s:%s: %v", name, tag, a.err)
		}
		return a.got, a.err == nil
	case <-ctx.Done():
		p.end()
		<-done
		return nil, false
	}
}

// hold notes what a snapshot holds; it may never hold anything else.
func (w *world) hold(s *snapshot, within time.Duration) bool {
	got, ok := w.read(s.v, s.v.name, s.tag, within)
	if !ok {
		return false
	}
	for i := range got {
		if s.got != nil && s.got[i] != got[i] {
			w.t.Errorf("snapshot %s of %s at %d: holds %d, held %d", s.tag, s.v.name, s.v.regs[i].off, got[i], s.got[i])
		}
	}
	s.got = got
	return true
}

func (w *world) dropSnapshot(r *rand.Rand) {
	if len(w.snapshots) == 0 {
		return
	}
	i := r.IntN(len(w.snapshots))
	s := w.snapshots[i]
	if s.got == nil && !w.hold(s, 5*time.Second) {
		return
	}
	_, err := w.propose(20*time.Second, &state.Command{DeleteVDI: &state.DeleteVDI{Name: s.v.name, Snap: s.tag}})
	w.event("delete snapshot %s of %s: %v", s.tag, s.v.name, err)
	w.snapshots = append(w.snapshots[:i:i], w.snapshots[i+1:]...)
	w.old = append(w.old, s)
}

// clone makes a volume of a snapshot and has it used.
func (w *world) clone(r *rand.Rand) {
	if len(w.snapshots) == 0 {
		return
	}
	s := w.snapshots[r.IntN(len(w.snapshots))]
	if !w.hold(s, 5*time.Second) {
		return
	}
	name := fmt.Sprint("c", w.seq.Add(1))
	res, err := w.propose(20*time.Second, &state.Command{CloneVDI: &state.CloneVDI{Name: s.v.name, Snap: s.tag, New: name}})
	w.event("clone %s of %s:%s: %v", name, s.v.name, s.tag, err)
	if err != nil {
		return
	}
	v := w.volume(name, false, res.Vid)
	v.from = s.got
	w.useVolume(v)
}

// rollback has a volume begin again as one of its snapshots. What used it ends before; it is a volume of its own from then on.
func (w *world) rollback(r *rand.Rand) {
	if len(w.snapshots) == 0 {
		return
	}
	s := w.snapshots[r.IntN(len(w.snapshots))]
	s.v.mu.Lock()
	closed := s.v.closed
	s.v.mu.Unlock()
	if closed || !w.hold(s, 5*time.Second) {
		return
	}
	s.v.mu.Lock()
	s.v.closed, s.v.stolen = true, true
	s.v.mu.Unlock()
	left := make(chan struct{})
	go func() { s.v.users.Wait(); close(left) }()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		w.propose(20*time.Second, &state.Command{Unlock: &state.Unlock{Name: s.v.name}})
		select {
		case <-left: // nobody is just opening it
		case <-time.After(time.Second):
			continue
		}
		res, err := w.propose(20*time.Second, &state.Command{Rollback: &state.Rollback{Name: s.v.name, Snap: s.tag}})
		w.event("roll %s back to %s: %v", s.v.name, s.tag, err)
		switch {
		case err == nil:
			v := w.volume(s.v.name, s.v.shared, res.Vid)
			v.from = s.got
			w.done.rollbacks.Add(1)
			w.useVolume(v)
			return
		case res.Code != state.Busy:
			return
		}
	}
}

// shortLived makes a VDI, writes to it, checks that nothing of an earlier one of the name shows, and deletes it.
func (w *world) shortLived(name string) {
	v := w.create(name, false)
	if v == nil {
		return
	}
	w.useVolume(v)
	time.Sleep(2 * time.Second)
	v.mu.Lock()
	v.closed, v.stolen = true, true
	v.mu.Unlock()
	_, err := w.propose(20*time.Second, &state.Command{DeleteVDI: &state.DeleteVDI{Name: name, Force: true}})
	w.event("delete %s: %v", name, err)
}
