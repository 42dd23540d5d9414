package state

import "slices"

// mayReturn says whether a member of an active set still counts for R10.
func (e *edit) mayReturn(b Member) bool {
	n := e.m.Nodes[b.Node]
	return n.Inc == b.Inc && !n.Removed
}

// syncChange applies a primary's proposal, group by group (R9).
func (e *edit) syncChange(c *SyncChange) *Error {
	if !e.m.Intact(c.By) {
		return refuse(Stale, "change sets for node %d incarnation %x: it has ended", c.By.Node, c.By.Inc)
	}
	done := 0
	why := refuse(Stale, "no group was named")
	for i := range c.Changes {
		if err := e.setChange(c.By, &c.Changes[i], c.Leased); err == nil {
			done++
		} else if why.Code == Stale {
			why = err // the one that asking again does not help against counts most
		}
	}
	if done == 0 {
		return why
	}
	return nil
}

func (e *edit) setChange(by Member, c *SetChange, leased []Member) *Error {
	i := e.m.groupAt(c.Group)
	if i < 0 {
		return refuse(Invalid, "no group %x", uint32(c.Group))
	}
	g := e.m.Groups[i]
	if g.Term != c.Term || g.Primary != by || g.Term != e.termBefore(i) {
		return refuse(Stale, "group %x is at term %d, not %d", uint32(c.Group), g.Term, c.Term)
	}
	if c.NoCopy {
		if g.NoCopy != g.Term {
			e.group(i).NoCopy = g.Term
		}
		return nil
	}
	set, err := e.changed(g, c)
	if err != nil {
		return err
	}
	primary := by
	if c.To != NoNode {
		at := slices.IndexFunc(set, func(b Member) bool { return b.Node == c.To })
		if at < 0 || len(e.serving(set[at:at+1], leased)) == 0 {
			return refuse(Stale, "group %x: node %d is not in sync and in service", uint32(c.Group), c.To)
		}
		primary = set[at]
	}
	if !slices.Contains(set, primary) {
		return refuse(Invalid, "group %x: a primary removes itself without naming another", uint32(c.Group))
	}
	if primary == g.Primary && slices.Equal(set, g.InSync) && c.To == NoNode {
		return nil
	}
	g = e.group(i)
	g.InSync, g.Back = set, nil
	e.setPrimary(g, primary)
	e.raised = append(e.raised, i)
	return nil
}

// termBefore is what a group's term was before this command, or one that never matches if the command changed the group already:
// a second change of one group in one command is stale, like one in the next command.
func (e *edit) termBefore(i int) uint64 {
	if g := e.m.Groups[i]; g != e.old.Groups[i] {
		return ^g.Term
	}
	return e.old.Groups[i].Term
}

// changed is the set that a change asks for, or why it may not be.
func (e *edit) changed(g *Group, c *SetChange) ([]Member, *Error) {
	set := minus(g.InSync, c.Remove)
	for _, b := range c.Add {
		if slices.Contains(set, b) || slices.Contains(c.Remove, b) {
			continue
		}
		if !e.m.Intact(b) {
			return nil, refuse(Stale, "group %x: node %d incarnation %x has ended", uint32(g.ID), b.Node, b.Inc)
		}
		if slices.ContainsFunc(set, func(a Member) bool { return a.Node == b.Node }) {
			return nil, refuse(Stale, "group %x names another incarnation of node %d", uint32(g.ID), b.Node)
		}
		set = append(set, b)
	}
	few := e.m.Pools[g.ID.Pool()].MinCopies
	if len(set) < few && len(set) < len(g.InSync) {
		may := 0
		for _, b := range g.InSync {
			if e.mayReturn(b) {
				may++
			}
		}
		if may >= few {
			return nil, refuse(TooFew, "group %x: %d replicas would stay in sync, min-copies is %d", uint32(g.ID), len(set), few)
		}
	}
	if len(set) == 0 {
		return nil, refuse(TooFew, "group %x: nobody would stay in sync", uint32(g.ID))
	}
	return set, nil
}
