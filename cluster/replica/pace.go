package replica

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// pace says how much resync and scrub may take between their floor and their ceiling: what clients leave. Clients tell by how long their writes take
// from their number to their commit, and flushes from their round's begin to its end, against how long that takes while nothing, or no more
// than the floor, is copied, with as many replicas: one more costs something in itself, for which the copying that brings it is not to blame.
// Where it is longer by more than the slack they have the share shrinks at once, else it grows slowly; with no client about, it is all. What is normal changes while
// copies are made (other machines use the processors too, clients do other things), so copying holds its breath now and then, to see it.
type pace struct {
	writes, flushes gauges
	taken           atomic.Int64  // bytes copied since the last look
	share           atomic.Uint64 // bits of a float64, 0 to 1
	breath          atomic.Bool   // nothing may be copied until the next look
	looks           int           // the ticker's alone
	quiet           int           // looks in a row in which no client did anything; the ticker's alone
}

const (
	paceTicks  = 2    // ticks between two looks
	paceSlack  = 1.4  // clients keep 70 % of their speed,
	paceWrites = 1.8  // as they do where a write takes so much longer from its number to its commit: that is about half of what its client waits for
	paceShrink = 0.7  // of the share, at one look
	paceGrow   = 0.07 // at one look
	paceStart  = 0.3  // what begins beside clients at most has
	paceQuiet  = 5    // looks without any client after which there is none
	paceSample = 8    // one write in so many is measured
	paceBreath = 10   // one look in so many is without copying
)

// gauges are those of one thing by how many other replicas have a part in it; the last also stands for more.
type gauges [5]gauge

func (gs *gauges) of(replicas int) *gauge { return &gs[min(replicas, len(gs)-1)] }

// active says that something was, or is, under way.
func (gs *gauges) active() bool {
	for i := range gs {
		if gs[i].n.Load()+gs[i].open.Load() > 0 {
			return true
		}
	}
	return false
}

// look is that of the gauge which tells most, in parts of slack.
func (gs *gauges) look(calm bool, weight, slack float64) (slower float64) {
	fewer := 0.0 // what is normal with fewer replicas, where it is not known for as many
	for i := range gs {
		slower = max(slower, gs[i].look(calm, weight, fewer)/slack)
		fewer = max(fewer, gs[i].normal)
	}
	return slower
}

// gauge is how long something takes now and how long it does when nothing is in its way. What has begun and not ended counts too: where everything waits, nothing ends.
type gauge struct {
	n, sum      atomic.Int64
	open, begun atomic.Int64 // how many are under way, and the sum of when they began, since start
	normal      float64      // the ticker's alone
}

// begin returns when, for end or drop.
func (ga *gauge) begin() time.Duration {
	now := time.Since(start)
	ga.open.Add(1)
	ga.begun.Add(int64(now))
	return now
}

func (ga *gauge) end(began time.Duration) {
	ga.drop(began)
	ga.n.Add(1)
	ga.sum.Add(int64(time.Since(start) - began))
}

// drop is for what ends without having been done.
func (ga *gauge) drop(began time.Duration) {
	ga.open.Add(-1)
	ga.begun.Add(-int64(began))
}

// look returns how much longer than normal it took since the last look, 0 where that is not known. calm: this is what is normal. other is
// taken for normal, where calm never was, if it is known.
func (ga *gauge) look(calm bool, weight, other float64) float64 {
	open := float64(ga.open.Load())
	waited := max(0, open*float64(time.Since(start))-float64(ga.begun.Load())) // so far, of all that is under way
	normal := ga.normal
	if normal == 0 {
		normal = other
	}
	n := ga.n.Load()
	if n < 4 {
		if waited/max(open, 1) > paceSlack*normal && normal > 0 {
			return waited / open / normal
		}
		return 0
	}
	sum := float64(ga.sum.Swap(0))
	mean := sum / float64(n)
	ga.n.Add(-n)
	switch {
	case ga.normal == 0 && (calm || other == 0):
		ga.normal, normal = mean, mean
	case calm:
		ga.normal += (mean - ga.normal) * weight
		normal = ga.normal
	}
	return max(mean, (sum+waited)/(float64(n)+open)) / max(normal, 1)
}

// look is called every paceTicks ticks. floor is what is always allowed, in bytes a second.
func (p *pace) look(floor float64) {
	seconds := (paceTicks * tickInterval).Seconds()
	taken := float64(p.taken.Swap(0))
	some := p.writes.active() || p.flushes.active()
	calm, weight := taken <= 1.2*floor*seconds, 1.0/64
	breath := p.breath.Load()
	switch {
	case breath:
		weight = 1.0 / 3
	case taken == 0:
		weight = 1.0 / 16
	}
	p.looks++
	p.breath.Store(some && taken > 0 && p.looks%paceBreath == 0)
	slower := max(p.writes.look(calm, weight, paceWrites), p.flushes.look(calm, weight, paceSlack))
	share := p.get()
	if some {
		p.quiet = 0
	} else {
		p.quiet++
	}
	switch {
	case p.quiet >= paceQuiet:
		share = 1
	case slower > 1 && !calm:
		share *= paceShrink
	case breath: // it says nothing of the copying
	case taken == 0:
		share = paceStart
	case slower > 0 || calm:
		share = min(1, share+paceGrow)
	}
	p.share.Store(math.Float64bits(share))
}

func (p *pace) get() float64 { return math.Float64frombits(p.share.Load()) }

// between is where the share is between a floor and a ceiling.
func (p *pace) between(floor, ceiling int64) int64 {
	return min(floor, ceiling) + int64(p.get()*float64(max(0, ceiling-floor)))
}

// resyncSpeed is how many bytes a second this node may copy to others now.
func (e *Engine) resyncSpeed() int64 {
	s := &e.agreed().Settings
	d := state.DefaultSettings()
	return e.pace.between(orDefault(s.RecoveryFloor, d.RecoveryFloor), orDefault(s.RecoverySpeed, d.RecoverySpeed))
}

// ScrubSpeed is how many bytes a second each disk of this node may be scrubbed at now: no more than the floor while a resync needs the disk.
func (e *Engine) ScrubSpeed() int64 {
	m := e.agreed()
	d := state.DefaultSettings()
	floor, ceiling := orDefault(m.Settings.ScrubFloor, d.ScrubFloor), orDefault(m.Settings.ScrubSpeed, d.ScrubSpeed)
	if resyncing(m, e.self().Node) {
		return min(floor, ceiling)
	}
	return e.pace.between(floor, ceiling)
}

// resyncing says that a node, or another one with a copy of the same group, can be brought up to date now.
func resyncing(m *state.Map, node state.NodeID) bool {
	for _, sg := range m.Groups {
		if !isTarget(sg.Target, node) {
			continue
		}
		for _, t := range sg.Target {
			if n := m.Node(t); n != nil && n.Up && !isMember(sg.InSync, state.Member{Node: t, Inc: n.Inc}) {
				return true
			}
		}
	}
	return false
}

func orDefault(v, d int64) int64 {
	if v <= 0 {
		return d
	}
	return v
}

// lookAtPace is the ticker's.
func (e *Engine) lookAtPace() {
	e.pace.look(float64(orDefault(e.agreed().Settings.RecoveryFloor, state.DefaultSettings().RecoveryFloor)))
	e.Stats.ResyncAllowed.Store(e.resyncSpeed())
}
