package simulation

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

const healTime = 90 * time.Second

// conclude checks, with everything mended, that nothing is stuck, lost, different or left behind.
func (w *world) conclude() {
	quiet := make(chan struct{})
	watched := make(chan struct{})
	go func() { defer close(watched); w.watch(quiet) }()
	defer func() { close(quiet); <-watched }()
	if !w.until(healTime, "every group is whole", w.whole) {
		return
	}
	close(w.stop)
	done := make(chan struct{})
	go func() { w.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(healTime):
		w.dump()
		w.t.Error("a request is not answered though nothing is wrong any more")
		return
	}
	if w.rng.IntN(3) == 0 { // once more, when nobody is there to send anything again
		w.event("the last power cut")
		w.end(true, w.machines...)
		for _, m := range w.machines {
			if !m.gone {
				m.run()
			}
		}
		if !w.until(healTime, "every group is whole after the last power cut", w.whole) {
			return
		}
	}
	w.finalReads()
	w.equal()
	w.agree()
	w.collected()
}

// finalReads looks at every volume and snapshot once more.
func (w *world) finalReads() {
	for _, v := range w.volumes {
		if v.closed {
			continue
		}
		e := &event{kind: wire.KindRead, first: 0, last: len(v.regs), call: w.seq.Add(1), what: "at the end"}
		got, ok := w.read(v, v.name, "", 60*time.Second)
		if !ok {
			w.t.Errorf("%s cannot be read at the end", v.name)
			continue
		}
		e.got, e.ret = got, w.seq.Add(1)
		v.begin(e)
	}
	for _, s := range w.snapshots {
		if !w.hold(s, 60*time.Second) {
			w.t.Errorf("snapshot %s of %s cannot be read at the end", s.tag, s.v.name)
		}
	}
	for _, s := range append(w.old, w.snapshots...) {
		if s.got != nil {
			s.e.got = s.got
			s.v.begin(s.e)
		}
	}
}

// equal compares all replicas byte by byte (invariant 11).
func (w *world) equal() {
	for _, m := range w.machines {
		n := m.running()
		if n == nil {
			continue
		}
		err := n.Engine().Check(context.Background(), nil, func(p replica.CheckProgress) {
			for _, f := range p.Findings {
				w.t.Errorf("%s finds: %s", m.host, f)
			}
		})
		if err != nil {
			w.t.Errorf("compare replicas on %s: %v", m.host, err)
		}
	}
}

// scrub has all disks read through.
func (w *world) scrub() {
	for _, rate := range []int64{1 << 40, 0} {
		for _, m := range w.machines {
			if n := m.running(); n != nil {
				for _, st := range n.Stores() {
					st.SetScrubRate(rate)
				}
			}
		}
		time.Sleep(time.Second)
	}
}

// agree has all nodes at the same index with the same state.
func (w *world) agree() {
	same := func() bool {
		m := w.newest()
		for _, x := range w.machines {
			if n := x.running(); n != nil && n.Map().Index != m.Index {
				return false
			}
		}
		return true
	}
	if !w.until(10*time.Second, "all nodes have the newest map", same) {
		return
	}
	var want []byte
	for _, x := range w.machines {
		n := x.running()
		if n == nil {
			continue
		}
		got, err := state.EncodeMap(n.Map())
		if err != nil {
			w.t.Error(err)
		}
		if want == nil {
			want = got
		} else if !bytes.Equal(got, want) {
			w.t.Errorf("%s has another map at the same index", x.host)
		}
	}
}

// collected deletes everything and waits until nothing is left of it on any disk.
func (w *world) collected() {
	for _, d := range w.newest().VDIs {
		if d.State == state.Deleted || d.Name == "" {
			continue
		}
		snap := ""
		if d.State == state.Frozen {
			snap = fmt.Sprint(d.SnapID)
		}
		if _, err := w.propose(20*time.Second, &state.Command{DeleteVDI: &state.DeleteVDI{Name: d.Name, Snap: snap, Force: true}}); err != nil {
			w.t.Errorf("delete %s:%s: %v", d.Name, snap, err)
		}
	}
	left := func() (list []string) {
		for _, v := range w.newest().VDIs {
			list = append(list, fmt.Sprintf("vid %06x (%s) in the directory", v.Vid, v.Name))
		}
		for _, m := range w.machines {
			n := m.running()
			if n == nil {
				continue
			}
			for _, st := range n.Stores() {
				for _, id := range st.Groups() {
					st.Group(id).Objects(0, func(o objstore.ObjectInfo) bool {
						list = append(list, fmt.Sprintf("object %v on %s", o.Key, m.host))
						return true
					})
				}
			}
		}
		return list
	}
	if !w.until(healTime, "what is deleted is collected", func() bool { return len(left()) == 0 }) {
		for _, l := range left() {
			w.t.Log(l)
		}
	}
}

// endAll stops everything that runs.
func (w *world) endAll() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.ended = time.Since(w.start).Round(time.Millisecond)
	w.net.HealAll()
	for _, s := range w.slots {
		s.mu.Lock()
		if s.p != nil {
			s.p.kill()
		}
		s.mu.Unlock()
	}
	w.end(false, w.machines...)
	w.wg.Wait()
	time.Sleep(time.Minute) // timers of what has ended
}

// badSnapshots are those that hold no single point in time: a write is in one, and one that was answered before it began is not.
func (w *world) badSnapshots() (bad []string) {
	for _, s := range append(w.old, w.snapshots...) {
		if s.got == nil || len(w.losses) > 0 {
			continue
		}
		v := s.v
		by := map[uint64]*event{}
		for _, e := range v.events {
			if e.kind == wire.KindWrite {
				by[e.value] = e
			}
		}
		for i := range v.regs {
			b := by[s.got[i]]
			if b == nil {
				continue
			}
			for j := range v.regs {
				in := by[s.got[j]]
				if in == nil || in.ret == 0 {
					continue
				}
				for _, a := range v.events {
					if a.writes() && a.first <= j && j < a.last && a.ret != 0 && a.ret < b.call && in.ret < a.call && a.value != in.value {
						bad = append(bad, fmt.Sprintf("snapshot %s of %s: has %d at %d, but at %d %d instead of %d, which was answered before %d was asked for", s.tag, v.name,
							b.value, v.regs[i].off, v.regs[j].off, in.value, a.value, b.value))
					}
				}
			}
		}
	}
	return bad
}
