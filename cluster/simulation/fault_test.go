package simulation

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// driver breaks things, one after the other, and mends them, soon or later.
type driver struct {
	w     *world
	r     *rand.Rand
	kinds []func(d *driver) // one of them is as likely as it is often in here
	undo  []func()
}

// newDriver draws which kinds of faults there are, and how often each: some seeds know everything, others little, and that again and again.
func newDriver(w *world, r *rand.Rand) *driver {
	d := &driver{w: w, r: r, kinds: kinds}
	if r.IntN(2) == 0 {
		return d
	}
	d.kinds = nil
	for len(d.kinds) == 0 {
		for _, k := range kinds {
			for range max(0, r.IntN(6)-2) {
				d.kinds = append(d.kinds, k)
			}
		}
	}
	return d
}

func timeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// kinds are all faults, the more usual ones more than once.
var kinds = []func(d *driver){
	(*driver).kill, (*driver).kill, (*driver).power, (*driver).power, (*driver).all, (*driver).several, (*driver).partition, (*driver).partition, (*driver).isolate,
	(*driver).pause, (*driver).resets, (*driver).slow, (*driver).disk, (*driver).dies, (*driver).dies, (*driver).clients, (*driver).clients, (*driver).people, (*driver).people, (*driver).restart,
}

// fault does one thing, lets time pass, and mostly undoes it.
func (d *driver) fault() {
	d.w.done.faults.Add(1)
	d.kinds[d.r.IntN(len(d.kinds))](d)
	d.w.pass(2 * time.Second)
	for len(d.undo) > 0 && (len(d.undo) > 2 || d.r.IntN(3) > 0) {
		i := d.r.IntN(len(d.undo))
		u := d.undo[i]
		d.undo = slices.Delete(d.undo, i, i+1)
		u()
		d.w.pass(time.Second)
	}
}

// machine picks one that is there.
func (d *driver) machine() *machine {
	list := d.present()
	return list[d.r.IntN(len(list))]
}

func (d *driver) present() (list []*machine) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	for _, m := range d.w.machines {
		if !m.gone {
			list = append(list, m)
		}
	}
	return list
}

// down ends machines at once and has them come back later.
func (d *driver) down(power bool, list ...*machine) {
	w := d.w
	var was []state.Member
	for _, m := range list {
		b := state.Member{Node: state.NoNode}
		if n := m.running(); n != nil {
			b = n.Self()
		}
		was = append(was, b)
	}
	w.end(power, list...)
	if !power && d.r.IntN(4) > 0 {
		for i, m := range list {
			m.exited(was[i])
		}
	}
	for _, m := range list {
		d.undo = append(d.undo, func() { d.start(m) })
	}
}

func (d *driver) start(m *machine) {
	if m.running() == nil && !m.gone {
		d.w.event("start %s", m.host)
		m.faults.clear()
		m.run()
	}
}

func (d *driver) kill() {
	m := d.machine()
	d.w.event("kill %s", m.host)
	d.down(false, m)
}

func (d *driver) power() {
	m := d.machine()
	d.w.event("power cut %s", m.host)
	d.down(true, m)
}

func (d *driver) all() {
	power := d.r.IntN(3) > 0
	d.w.event("all end, power cut: %v", power)
	d.down(power, d.present()...)
	d.w.pass(time.Second)
	for _, i := range d.r.Perm(len(d.undo)) {
		if d.r.IntN(8) > 0 {
			d.undo[i]()
			d.undo[i] = func() {}
			d.w.pass(500 * time.Millisecond)
		}
	}
}

func (d *driver) several() {
	list := d.present()
	d.r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	list = list[:min(2, len(list))]
	power := d.r.IntN(2) > 0
	d.w.event("%s and %s end, power cut: %v", list[0].host, list[len(list)-1].host, power)
	if d.r.IntN(2) == 0 {
		d.down(power, list...)
		return
	}
	for _, m := range list {
		d.down(power, m)
		d.w.pass(500 * time.Millisecond)
	}
}

func (d *driver) restart() {
	m := d.machine()
	n := m.running()
	if n == nil || d.r.IntN(2) == 0 || m.paused() != nil {
		d.w.event("restart %s", m.host)
		d.down(false, m)
	} else {
		d.w.event("stop %s cleanly", m.host)
		d.w.endClients(m)
		ctx, cancel := timeout(8 * time.Second)
		n.Stop(ctx)
		cancel()
		d.w.end(false, m)
		d.undo = append(d.undo, func() { d.start(m) })
	}
	u := d.undo[len(d.undo)-1]
	d.undo = d.undo[:len(d.undo)-1]
	u()
}

func (d *driver) partition() {
	a, b := d.machine().host, d.machine().host
	if d.r.IntN(5) == 0 {
		b = d.client()
	}
	if a == b || b == "" {
		return
	}
	both := d.r.IntN(2) == 0
	d.w.event("cut %s to %s, both ways: %v", a, b, both)
	d.w.net.Cut(a, b)
	if both {
		d.w.net.Cut(b, a)
	}
	d.undo = append(d.undo, func() { d.w.event("heal %s to %s", a, b); d.w.net.Heal(a, b); d.w.net.Heal(b, a) })
}

// client is a program's host, "" if there is none.
func (d *driver) client() string {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	s := d.w.slots[d.r.IntN(len(d.w.slots))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p == nil || s.p.at != nil {
		return ""
	}
	return s.p.host
}

func (d *driver) isolate() {
	m := d.machine()
	how := d.r.IntN(3) // in, out, both
	d.w.event("isolate %s (%d)", m.host, how)
	list := d.present()
	for _, o := range list {
		if o != m && how != 0 {
			d.w.net.Cut(m.host, o.host)
		}
		if o != m && how != 1 {
			d.w.net.Cut(o.host, m.host)
		}
	}
	d.undo = append(d.undo, func() {
		d.w.event("heal %s", m.host)
		for _, o := range list {
			d.w.net.Heal(m.host, o.host)
			d.w.net.Heal(o.host, m.host)
		}
	})
}

func (d *driver) pause() {
	m := d.machine()
	d.w.event("pause %s", m.host)
	m.pause()
	d.undo = append(d.undo, func() { d.w.event("%s goes on", m.host); m.unpause() })
}

func (d *driver) resets() {
	d.w.event("resets")
	for range 5 + d.r.IntN(10) {
		a, b := d.machine().host, d.machine().host
		if d.r.IntN(2) == 0 {
			b = d.client()
		}
		d.w.net.Reset(a, b)
		d.w.pass(100 * time.Millisecond)
	}
}

func (d *driver) slow() {
	seed := d.r.Uint64()
	most := uint64(1 + d.r.IntN(40))
	d.w.event("links take up to %d ms", most)
	d.w.net.Latency(func(from, to string) time.Duration {
		h := seed
		for _, c := range from + ">" + to {
			h = (h ^ uint64(c)) * 0x100000001b3
		}
		return time.Duration(h>>32%(most*1000)) * time.Microsecond
	})
	d.undo = append(d.undo, func() {
		d.w.event("links are fast")
		d.w.net.Latency(func(string, string) time.Duration { return 50 * time.Microsecond })
	})
}

func (d *driver) disk() {
	m := d.machine()
	f := &m.faults
	n := int64(1 + d.r.IntN(3))
	switch k := d.r.IntN(3); {
	case k == 0 && d.w.copies > 2 && d.wellAgain():
		d.reads(m, n)
		return
	case k <= 1:
		d.w.event("%d writes of %s fail", n, m.host)
		f.writes.Store(n)
	default:
		d.w.event("%d syncs of %s fail", n, m.host)
		f.syncs.Store(n)
	}
	d.undo = append(d.undo, func() { d.newDisk(m) })
}

// wellAgain undoes what is wrong and says that all copies are there.
func (d *driver) wellAgain() bool {
	for range 3 {
		list := d.undo
		d.undo = nil
		for _, u := range list {
			u()
		}
	}
	for range 50 {
		if len(d.undo) == 0 && d.w.whole() {
			return true
		}
		time.Sleep(100 * time.Millisecond)
	}
	return false
}

// dies has every call to a disk fail, from one on that comes soon, while all other copies are there: no client may be told. It is given so long that its
// store has noticed; before that, what it had alone would be lost if the others went.
func (d *driver) dies() {
	if d.w.copies < 3 || !d.wellAgain() {
		return
	}
	m := d.machine()
	n := m.running()
	if n == nil {
		return
	}
	how, calls := deadDisks[d.r.IntN(len(deadDisks))], d.r.IntN(40)
	if d.r.IntN(3) == 0 {
		calls = d.r.IntN(400)
	}
	disk := 0
	m.faults.dir = "/"
	if d.w.twoDisks {
		disk, m.faults.dir = 1, secondDisk
		if len(n.Stores()) < 2 {
			return
		}
		if d.r.IntN(4) == 0 {
			d.removeDisk(m) // it dies meanwhile
		}
	}
	d.w.event("the disk of %s %s in %d calls", m.host, how.name, calls)
	m.faults.left.Store(int64(calls))
	m.faults.dead.Store(how)
	for range 100 {
		if st := n.Stores(); len(st) <= disk || st[disk].Err() != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	d.undo = append(d.undo, func() { d.newDisk(m) })
}

// removeDisk has the groups of a machine's second disk move to the first.
func (d *driver) removeDisk(m *machine) {
	if n := m.running(); n != nil && len(n.Stores()) == 2 {
		d.w.event("remove the second disk of %s: %v", m.host, n.RemoveDisk(secondDisk))
	}
}

// newDisk gives a machine its disk back, as a power cut leaves it, if it has failed.
func (d *driver) newDisk(m *machine) {
	if !m.faults.any.Load() || m.running() == nil {
		m.faults.clear()
		return
	}
	d.w.event("%s gets its disk back", m.host)
	d.w.end(true, m)
	d.start(m)
}

// reads fails some while all other copies are there: what the only good copy cannot read is lost, and a checkpoint or a resync may be who finds out. Then the
// disks are scrubbed, so that what is marked as bad is repaired before anything else happens.
func (d *driver) reads(m *machine, n int64) {
	d.w.event("%d reads of %s fail", n, m.host)
	m.faults.reads.Store(n)
	d.w.pass(2 * time.Second)
	m.faults.reads.Store(0)
	d.w.scrub()
}

func (d *driver) clients() {
	d.w.mu.Lock()
	s := d.w.slots[d.r.IntN(len(d.w.slots))]
	d.w.mu.Unlock()
	if d.r.IntN(2) == 0 {
		d.w.event("unlock %s", s.v.name)
		d.w.mu.Lock()
		list := slices.Clone(d.w.volumes)
		d.w.mu.Unlock()
		for _, v := range list { // one that was made anew under the name is meant, too
			if v.name == s.v.name {
				v.mu.Lock()
				v.stolen = true
				v.mu.Unlock()
			}
		}
		d.w.propose(5*time.Second, &state.Command{Unlock: &state.Unlock{Name: s.v.name}})
		return
	}
	s.mu.Lock()
	p := s.p
	s.mu.Unlock()
	if p != nil {
		d.w.event("kill client %s", p.host)
		p.kill()
	}
}

// people have a node join, be drained and taken back, or removed.
func (d *driver) people() {
	w := d.w
	m := d.machine()
	switch k := d.r.IntN(3); {
	case w.twoDisks && d.r.IntN(3) == 0:
		d.removeDisk(m)
	case k == 0 && len(w.machines) < 9:
		x := w.addMachine("", 64)
		w.event("%s joins", x.host)
		x.run()
	case k == 1 || len(d.present()) < 5:
		n := m.running()
		if n == nil || n.Self().Node == state.NoNode {
			return
		}
		id := n.Self().Node
		w.event("drain %s", m.host)
		w.propose(5*time.Second, &state.Command{NodeOut: &state.NodeOut{Node: id, Out: true, Drain: true}})
		var undrain func()
		undrain = func() {
			w.event("undrain %s", m.host)
			if _, err := w.propose(20*time.Second, &state.Command{NodeOut: &state.NodeOut{Node: id}}); err != nil {
				d.undo = append(d.undo, undrain) // nobody leads: once more
			}
		}
		d.undo = append(d.undo, undrain)
	default:
		d.remove(m)
	}
}

// remove drains a node and removes it for good, if that can be done in time.
func (d *driver) remove(m *machine) {
	w := d.w
	n := m.running()
	if n == nil || n.Self().Node == state.NoNode || len(d.undo) > 0 {
		return
	}
	id := n.Self().Node
	w.event("drain %s to remove it", m.host)
	if _, err := w.propose(5*time.Second, &state.Command{NodeOut: &state.NodeOut{Node: id, Out: true, Drain: true}}); err != nil {
		return
	}
	empty := func() bool {
		return !slices.ContainsFunc(w.newest().Groups, func(g *state.Group) bool {
			return slices.ContainsFunc(g.InSync, func(b state.Member) bool { return b.Node == id })
		})
	}
	for range 200 {
		if empty() {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !empty() {
		w.event("%s is not drained", m.host)
		w.propose(20*time.Second, &state.Command{NodeOut: &state.NodeOut{Node: id}})
		return
	}
	w.mu.Lock()
	m.gone = true
	w.mu.Unlock()
	w.end(false, m)
	w.hub.forget(m.host + ":7000")
	for range 100 {
		if x := w.newest().Node(id); !x.Up {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	res, err := w.propose(20*time.Second, &state.Command{NodeOut: &state.NodeOut{Node: id, Remove: true}})
	w.event("removed %s: %v %v", m.host, res.Code, err)
	if err != nil && err != errUnknown {
		w.t.Errorf("remove %s: %v", m.host, err)
	}
}

// heal mends everything.
func (d *driver) heal() {
	w := d.w
	w.event("heal everything")
	w.net.HealAll()
	for _, m := range d.present() {
		m.unpause()
		if m.faults.any.Load() {
			w.end(true, m)
		}
		d.start(m)
		m.faults.clear()
	}
	for range 20 {
		list := d.undo
		d.undo = nil
		for _, u := range list {
			u()
		}
	}
}
