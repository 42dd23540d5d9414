package replica

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// takeover is a primary's way from its grant to its service (R2, R7, R19):
//
//  1. every member of the in-sync set is told the new term, and says where it stands. One that does not answer is shrunk out, and that begins it again;
//  2. if another has more than we do, it gets the group: the longest prefix wins, and nobody's entry is rolled back;
//  3. members that lack entries get them: from our tail, or object by object if that does not reach back (after a restart);
//  4. an entry of our own term commits everything before it; then we serve.
type takeover struct {
	began     time.Time
	positions map[*member]*wire.Position
	asked     map[*member]*wire.Conn // on which connection
	failed    map[*member]bool       // its disk has failed: it said so
	repairing bool                   // a member is being made equal, object by object
	wholing   bool                   // the mark is being taken off our own copy
	equal     bool                   // all are; our own entry is on its way
	recovered uint64                 // last number that survived a resume (R17)
	mark      uint64                 // our own entry's number; 0: not numbered yet
	slow      bool                   // said so in the log
}

// slowTakeover is when a takeover that still waits says what for.
const slowTakeover = 3 * time.Second

// activate begins to take the group over. mu is held.
func (g *group) activate(b *wire.Batch) {
	g.unpause()
	g.role, g.term, g.granted = activating, g.agree.Term, g.agree.Granted
	g.durable, g.told, g.change, g.handTo = 0, 0, nil, state.NoNode
	g.takeover = &takeover{began: time.Now(), positions: map[*member]*wire.Position{}, asked: map[*member]*wire.Conn{}, failed: map[*member]bool{}}
	g.members = nil
	g.setMembers()
	g.takeover.ask(g, b)
	g.takeover.step(g, b)
}

// tick asks members again that could not be asked, and says when it takes long.
func (t *takeover) tick(g *group, now time.Time, b *wire.Batch) {
	if t == nil {
		return
	}
	t.ask(g, b)
	for _, m := range g.members {
		g.pump(m, b)
		if t.equal {
			g.watch(m, now)
		}
	}
	t.step(g, b)
	g.advance(b)
	g.wantSet()
	if !t.slow && now.Sub(t.began) > slowTakeover {
		t.slow = true
		g.e.early.say(g.e.log, "groups wait for their replicas", waitsFor(t, g), g.id, fmt.Errorf("%d of %d answered for term %d", len(t.positions), len(g.members), g.term))
	}
}

// waitsFor names a member that has not answered.
func waitsFor(t *takeover, g *group) state.NodeID {
	for _, m := range g.members {
		if t.positions[m] == nil {
			return m.Node
		}
	}
	return state.NoNode
}

// ask sends our term to everybody who has not answered on its present connection.
func (t *takeover) ask(g *group, b *wire.Batch) {
	for _, m := range g.members {
		conn := m.p.current()
		if conn == nil {
			m.p.ensure()
			continue
		}
		if m.live || t.asked[m] == conn {
			continue
		}
		delete(t.positions, m) // said on an older connection
		t.asked[m] = conn
		h := wire.Header{Kind: wire.KindActivate, Group: uint32(g.id), Term: g.term, From: g.e.self().Inc, To: m.Inc}
		m.p.call(&h, nil, nil, nil, replicaSilenceMax, func(a *wire.Frame, b *wire.Batch) { t.answered(g, m, a, b) }, b)
	}
}

// answered takes a member's position.
func (t *takeover) answered(g *group, m *member, a *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.takeover != t || g.role != activating {
		return
	}
	var pos wire.Position
	switch {
	case a == nil, a.Status == wire.StatusBehind, a.Status == wire.StatusBusy: // its map is older than ours; tick asks again
		delete(t.asked, m)
	case a.Status == wire.StatusOldTerm:
		g.fence = max(g.fence, a.Term)
		g.stepDown(b)
	case a.Status != wire.StatusOK || pos.Parse(a.Meta) != nil:
		g.e.early.say(g.e.log, "members did not say where they stand", m.Node, g.id, errors.New(a.Status.String()))
		g.suspect(m)
		t.failed[m] = a.Status == wire.StatusFailed
		t.step(g, b)
	default:
		m.room = m.p.takeCredit(pos.Credit)
		m.removed = false
		t.positions[m] = &pos
		delete(t.failed, m)
		t.step(g, b)
	}
}

// dropFailed goes on without members whose disks have failed where the set would be too small to take them out (R10): they take nothing any more, as those that have ended, and
// what they had beyond us nobody was told of. They stay named, so writes wait for others. mu is held.
func (t *takeover) dropFailed(g *group) {
	if len(g.agree.InSync) > max(g.minCopies(), 1) || g.change != nil {
		return
	}
	g.members = slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool {
		if t.failed[m] {
			m.stop()
			g.without = true
		}
		return t.failed[m]
	})
}

// step goes as far as can be gone now. mu is held.
func (t *takeover) step(g *group, b *wire.Batch) {
	if t == nil || t.equal || g.handTo != state.NoNode || t.repairing || t.wholing {
		if t != nil && t.equal && t.mark == 0 {
			t.sign(g, b)
		}
		return
	}
	g.dropEnded()
	t.dropFailed(g)
	for _, m := range g.members {
		if t.positions[m] == nil {
			return
		}
	}
	if g.ending { // a resync of us is just ending: then we know where we are
		return
	}
	last := g.st.Last()
	switch { // a resync of us ended early, or just now: we are where our entries are, not where its stream began
	case last.LSN < g.last:
		g.last, g.journaled = last.LSN, min(g.journaled, last.LSN)
	case last.LSN > g.last: // durable
		g.last, g.journaled = last.LSN, last.LSN
	}
	if to := t.longer(g, wire.Number(last)); to != state.NoNode && !broken("R7") {
		g.handTo = to
		g.wantSet()
		return
	}
	if t.giveLost(g) { // whatever there is of the group, others have it: they are waited for (invariant 3)
		return
	}
	terms := g.where().Terms
	for _, m := range g.members {
		if m.live {
			continue
		}
		pos := t.positions[m]
		reach := g.last + 1
		if len(g.tail) > 0 {
			reach = g.tail[0].Number.LSN
		}
		if broken("R7") || broken("R19") {
			m.live, m.acked, m.sent, m.conn = true, g.last, g.last, m.p.current()
			continue
		}
		if newer(pos.Last, wire.Number(last)) && !pos.Syncing && !g.st.Syncing() {
			return // it has more than we do and could not be given the group: it goes first, or leaves the set
		}
		if pos.Lost && len(g.agree.InSync) > max(g.minCopies(), 1) { // it has to be given everything: that need not hold the group up
			g.suspect(m)
			return
		}
		same := !pos.Syncing && !pos.Lost && !g.st.Syncing() && pos.Last.LSN <= g.last && (pos.Last.LSN == 0 || termAt(terms, pos.Last.LSN) == pos.Last.Term)
		if same && pos.Last.LSN+1 >= reach {
			m.live, m.acked, m.sent, m.conn = true, pos.Last.LSN, pos.Last.LSN, m.p.current()
			g.pump(m, b)
			continue
		}
		t.repairing = true // one at a time: the others stay whole prefixes, should we die over it
		g.e.resyncer.repair(g, m, pos)
		return
	}
	if g.st.Syncing() {
		t.makeWhole(g)
		return
	}
	t.equal = true
	t.recovered = last.LSN
	t.sign(g, b)
}

// makeWhole takes the mark off our own copy. It got there while another primary made us equal, as a member of the set, and died over it: each object is then as it was
// at our last number or as it was at his, and what he had beyond us nobody had flushed; a disk that loses power may keep any part of that. All members are
// equal to it by now. mu is held.
func (t *takeover) makeWhole(g *group) {
	t.wholing = true
	st, last := g.st, g.st.Last()
	g.e.wg.Go(func() {
		err := st.EndSyncing(last)
		var b wire.Batch
		g.mu.Lock()
		t.wholing = false
		if err != nil {
			g.e.log.Error("take the mark of a resync off", "group", g.id, "error", err)
		} else if g.takeover == t {
			g.syncing = false
			t.step(g, &b)
		}
		g.mu.Unlock()
		b.End()
	})
}

// longer names the member with the longest of the best copies, if that is better than ours. A copy that is a mixture has no number to compare.
func (t *takeover) longer(g *group, ours wire.Number) state.NodeID {
	best, last, to := worth(g.lost, g.st.Syncing()), ours, state.NoNode
	for _, m := range g.members {
		pos := t.positions[m]
		w := worth(pos.Lost, pos.Syncing)
		if w < best || w == best && (w < whole || !newer(pos.Last, last)) || m.removed || !g.e.agreed().InService(m.Member) {
			continue
		}
		best, last, to = w, pos.Last, m.Node
	}
	return to
}

// newer compares positions of members of one set: of two terms the later knew of everything under the earlier.
func newer(a, b wire.Number) bool { return a.Term > b.Term || a.Term == b.Term && a.LSN > b.LSN }

// repaired continues after a member was made equal (or could not be).
func (t *takeover) repaired(g *group, m *member, err error, b *wire.Batch) {
	if g.takeover != t || g.role != activating {
		return
	}
	t.repairing = false
	if err != nil {
		g.e.early.say(g.e.log, "members could not be made equal and are tried again", m.Node, g.id, err)
		delete(t.positions, m)
		delete(t.asked, m)
		m.live = false
		return // tick asks it again
	}
	t.positions[m] = &wire.Position{Last: wire.Number(g.st.Last())}
	t.step(g, b)
}

// sign numbers an entry of our own term: when it is committed, so is everything before it. mu is held.
func (t *takeover) sign(g *group, b *wire.Batch) {
	if g.agree.RecoveredAt < g.agree.Resumes { // clients must know first what they have to send again
		g.e.proposer.add(g)
		return
	}
	en := getEntry()
	en.Kind = objstore.KindNoop
	if !g.number(en, nil, b) {
		g.e.early.say(g.e.log, "groups cannot be taken over", g.node(), g.id, fmt.Errorf("at %d, the store at %v: %v", g.last, g.st.Last(), g.store.Err()))
		return
	}
	t.mark = g.last
}

// committed is told that the commit point moved. mu is held.
func (t *takeover) committed(g *group, b *wire.Batch) {
	if t.mark == 0 || g.commit < t.mark {
		return
	}
	g.role, g.takeover, g.lost = serving, nil, false
	g.e.Stats.Takeovers.Add(1)
	g.rerun(b)
	g.e.resyncer.poke()
}
