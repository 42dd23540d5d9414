package state

import "slices"

// returned are the current incarnations of a lost set's members that have a lease: those that would go on.
func (m *Map) returned(g *Group, leased []Member) []Member {
	var list []Member
	for _, b := range g.InSync {
		if now := m.Current(b.Node); m.Intact(now) && slices.Contains(leased, now) {
			list = append(list, now)
		}
	}
	return list
}

// enough is how many members of a lost set have to be back before it may resume (R6, R10).
func (m *Map) enough(g *Group) int {
	may := 0
	for _, b := range g.InSync {
		if !m.Nodes[b.Node].Removed {
			may++
		}
	}
	return max(1, min(may, m.Pools[g.ID.Pool()].MinCopies))
}

// ResumeDue says which groups a leader should now put into a Resume: those that lost their primary and of which a member is in service
// after all, or all members that may return have, or enough have and the wait for the others is over. leased is who has a lease;
// waited says whether Settings.ResumeWait has passed since the caller saw that the group was lost and a member was back.
func (m *Map) ResumeDue(leased []Member, waited func(*Group) bool) []GroupTerm {
	if m.ShutDown {
		return nil
	}
	var list []GroupTerm
	for _, g := range m.Groups {
		if g.Primary.Node == NoNode && m.resumeDue(g, leased, waited) {
			list = append(list, GroupTerm{g.ID, g.Term})
		}
	}
	return list
}

func (m *Map) resumeDue(g *Group, leased []Member, waited func(*Group) bool) bool {
	absent := 0
	for _, b := range g.InSync {
		if m.Intact(b) && slices.Contains(leased, b) {
			return true
		}
		if now := m.Current(b.Node); !m.Nodes[b.Node].Removed && !(m.Intact(now) && slices.Contains(leased, now)) {
			absent++
		}
	}
	back := m.returned(g, leased)
	return len(back) >= m.enough(g) && (absent == 0 || waited(g))
}

// resume lets lost sets go on (R6, R7).
func (e *edit) resume(c *Resume) *Error {
	done := 0
	why := refuse(Stale, "every group has moved on")
	for _, t := range c.Groups {
		i := e.m.groupAt(t.Group)
		if i < 0 || e.m.Groups[i].Term != t.Term || e.m.Groups[i].Primary.Node != NoNode {
			continue
		}
		g := e.m.Groups[i]
		if len(e.serving(g.InSync, c.Leased)) > 0 {
			e.settle(i, c.Leased)
			done++
			continue
		}
		back := e.m.returned(g, c.Leased)
		if few := e.m.enough(g); len(back) < few {
			why = refuse(TooFew, "group %x: %d of its replicas are back, it takes %d", uint32(g.ID), len(back), few)
			continue
		}
		e.goOn(i, back)
		done++
	}
	if done == 0 {
		return why
	}
	return nil
}

// goOn activates a lost group with members that restarted.
func (e *edit) goOn(i int, set []Member) {
	g := e.group(i)
	g.InSync, g.Back = set, nil
	g.Resumes++
	g.ResumedAt = e.index
	e.setPrimary(g, e.choose(g, set))
}

// force is `cluster recover force`: groups go on with whoever is in service, of the set or else of the targets. An active group is shrunk
// to the members in service.
func (e *edit) force(c *Force) *Error {
	done := 0
	for _, t := range c.Groups {
		i := e.m.groupAt(t.Group)
		if i < 0 || e.m.Groups[i].Term != t.Term || e.m.Groups[i] != e.old.Groups[i] {
			continue
		}
		if e.forceGroup(i, c.Leased) {
			done++
		}
	}
	if done == 0 {
		return refuse(Stale, "every group has moved on, or nobody who might hold it is in service")
	}
	return nil
}

func (e *edit) forceGroup(i int, leased []Member) bool {
	g := e.m.Groups[i]
	if g.Lost() {
		return e.forceTargets(i, leased)
	}
	if set := e.serving(g.InSync, leased); len(set) > 0 { // these have lost nothing
		if e.m.Intact(g.Primary) && !slices.Contains(set, g.Primary) {
			return false // the primary may be serving still: it has to end first
		}
		primary := g.Primary
		g = e.group(i)
		g.InSync, g.Back = set, nil
		if !slices.Contains(set, primary) {
			primary = e.choose(g, set)
		}
		e.setPrimary(g, primary)
		return true
	}
	if e.m.Intact(g.Primary) {
		return false
	}
	set := e.m.returned(g, leased)
	if len(set) == 0 {
		return e.forceTargets(i, leased)
	}
	e.goOn(i, set)
	return true
}

// forceTargets has a group go on with whoever shall hold it and is in service: the longest of what they have counts, which may be nothing.
func (e *edit) forceTargets(i int, leased []Member) bool {
	var set []Member
	for _, id := range e.m.Groups[i].Target {
		if b := e.m.Current(id); len(e.serving([]Member{b}, leased)) > 0 {
			set = append(set, b)
		}
	}
	if len(set) == 0 {
		return false
	}
	e.goOn(i, set)
	g := e.group(i)
	g.Forced, g.Granted = g.Term+1, g.Term+1 // a term of its own, also if it names whom it named
	e.raised = append(e.raised, i)
	return true
}

// recovered keeps what a new primary found to have survived (R17). The first word on a resume stands: what a later primary of the same
// set finds includes what was written since.
func (e *edit) recovered(c *Recovered) *Error {
	done := 0
	for _, r := range c.Groups {
		i := e.m.groupAt(r.Group)
		if i < 0 || e.m.Groups[i].Term != r.Term || e.m.Groups[i].Primary != c.By || e.m.Groups[i].RecoveredAt == e.m.Groups[i].Resumes {
			continue
		}
		g := e.group(i)
		g.Recovered, g.RecoveredAt = r.LSN, g.Resumes
		done++
	}
	if done == 0 {
		return refuse(Stale, "every group has moved on")
	}
	return nil
}
