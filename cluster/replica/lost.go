package replica

import "github.com/sheepdog-go/sheepdog/objstore"

// A copy that went with its disk is not the same as one that never held anything. A group of which this node has nothing, or a mixture, while a disk of it has failed is
// lost here until somebody brings it up to date:
//
//   - it is never the source of anything: in a takeover any other member's copy goes before it, also a mixture;
//   - if nobody who answers has more, the primary says so through raft (state.Group.NoCopy) and serves nothing;
//   - the disk stays one of the node's, failed, as long as a set names this node for such a group (LostGroups);
//   - `cluster recover force` gives it up: the group goes on with the longest of what there is, which may be nothing (state.Group.Forced).

// NamedOn counts the groups on a disk whose in-sync set, as the map in use has it, names this node: what they have there would be missed.
func (e *Engine) NamedOn(s *objstore.Store) int {
	n, m, self := 0, e.agreed(), e.self()
	for _, id := range e.GroupsOn(s) {
		if sg := m.Group(id); sg != nil && namesNode(sg.InSync, self.Node) {
			n++
		}
	}
	return n
}

// LostGroups counts the groups whose in-sync set, as the map in use has it, names this node though what it had of them went with a disk: as long as nobody else is named
// for it, or has said how much he has, this node's copy is missed.
func (e *Engine) LostGroups() int {
	n, self := 0, e.self()
	for _, sg := range e.agreed().Groups {
		if !namesNode(sg.InSync, self.Node) {
			continue
		}
		g := e.group(sg.ID)
		g.mu.Lock()
		if !g.open() || g.lost {
			n++
		}
		g.mu.Unlock()
	}
	return n
}

// leaveFailed gives the group another disk if the one it was on has failed: what it had there counts no more, and a resync is about to bring it all. While the
// in-sync set may name us nothing is given up. mu is held.
func (g *group) leaveFailed() {
	if g.agree != nil && !namesNode(g.agree.InSync, g.e.self().Node) {
		g.leave()
	}
}

// leave is leaveFailed when that was decided. mu is held.
func (g *group) leave() {
	if g.store == nil || g.store.Err() == nil {
		return
	}
	if s := g.e.cfg.Store(g.id); s == nil || s.Err() != nil {
		return
	}
	g.e.log.Warn("a group leaves a disk that failed", "group", g.id)
	g.dropTail()
	g.dropCopy()
	g.forget()
	g.lost = true
}

// startAnew takes another disk when an administrator's word has the group go on, once for each such word. mu is held.
func (g *group) startAnew() {
	if g.forced() && g.anew != g.agree.Forced {
		g.anew = g.agree.Forced
		g.leave()
	}
}

// forced says that the primary has its role by an administrator's word. mu is held.
func (g *group) forced() bool { return g.agree.Forced != 0 && g.agree.Forced == g.agree.Granted }

// noCopy says that we, the primary, have nothing of the group, and no member that answers has. mu is held.
func (g *group) noCopy() bool {
	failed := g.store != nil && g.store.Err() != nil
	if !failed && !(g.lost && g.role == activating) || g.agree.Lost() || g.forced() && !failed {
		return false
	}
	agreed := g.e.agreed()
	for _, m := range g.members {
		if !m.inSync || m.removed && !(failed && agreed.InService(m.Member)) { // our disk has failed: it is given the group, whether it answered us or not
			continue
		}
		if g.takeover == nil || g.takeover.positions[m] == nil || !g.takeover.positions[m].Lost {
			return false
		}
	}
	return true
}

// Copies by what they are worth in a takeover.
const (
	nothing = iota // it went with a disk: nothing, or a mixture that nobody finished
	mixture
	whole
)

func worth(lost, syncing bool) int {
	switch {
	case lost:
		return nothing
	case syncing:
		return mixture
	}
	return whole
}

// giveLost reports that nobody has a copy, unless an administrator has said to go on with nothing. It says whether the takeover must wait. mu is held.
func (t *takeover) giveLost(g *group) (wait bool) {
	if !g.lost {
		return false
	}
	if !g.forced() {
		g.wantSet()
		return true
	}
	g.e.log.Warn("a group goes on with nothing, by `cluster recover force`", "group", g.id, "term", g.term)
	g.lost = false
	return false
}
