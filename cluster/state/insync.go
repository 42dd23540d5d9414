package state

import (
	"slices"
	"time"
)

// settle makes a group's set and primary right after members came or went; the diagram is in doc.go. leased is who had a lease
// when the leader wrote the command (R6). It is idempotent, so it may be called for more groups than changed.
func (e *edit) settle(i int, leased []Member) {
	g := e.m.Groups[i]
	serving := e.serving(g.InSync, leased)
	if len(serving) == 0 {
		e.settleAlone(i)
		return
	}
	stay, gone := e.leavers(g)
	if !e.m.ShutDown && len(stay)-len(gone) >= e.m.Pools[g.ID.Pool()].MinCopies {
		stay = minus(stay, gone)
	}
	primary := g.Primary
	if !e.m.Intact(primary) {
		primary = Member{Node: NoNode}
		if !e.m.ShutDown {
			primary = e.choose(g, serving)
		}
	}
	if primary == g.Primary && len(stay) == len(g.InSync) && g.Back == nil {
		return
	}
	g = e.group(i)
	g.InSync, g.Back = stay, nil
	e.setPrimary(g, primary)
}

// settleAlone is settle for a group none of whose members is in service.
func (e *edit) settleAlone(i int) {
	g := e.m.Groups[i]
	var back []Member
	for _, b := range g.InSync {
		if n := e.m.Nodes[b.Node]; n.Inc != b.Inc && !n.Ended && !n.Removed {
			back = append(back, Member{b.Node, n.Inc})
		}
	}
	primary := g.Primary
	if !e.m.Intact(primary) {
		primary = Member{Node: NoNode}
	}
	if primary == g.Primary && slices.Equal(back, g.Back) {
		return
	}
	g = e.group(i)
	g.Back = back
	e.setPrimary(g, primary)
}

// settleAll settles every group that names one of nodes, or that waits for a primary.
func (e *edit) settleAll(leased []Member, touched func(NodeID) bool) {
	for i, g := range e.m.Groups {
		if g.Primary.Node == NoNode || slices.ContainsFunc(g.InSync, func(b Member) bool { return touched(b.Node) }) {
			e.settle(i, leased)
		}
	}
}

// serving are the members that are in service (R6): leased as far as the leader knew, and intact now that the command is applied.
func (e *edit) serving(set, leased []Member) []Member {
	var list []Member
	for _, b := range set {
		if e.m.Intact(b) && slices.Contains(leased, b) {
			list = append(list, b)
		}
	}
	return list
}

// leavers divides a set some of whose members are in service: superseded members leave at once (R6), ended ones if
// enough others stay (R10).
func (e *edit) leavers(g *Group) (stay, ended []Member) {
	for _, b := range g.InSync {
		n := e.m.Nodes[b.Node]
		if n.Inc != b.Inc || n.Removed {
			continue
		}
		stay = append(stay, b)
		if n.Ended {
			ended = append(ended, b)
		}
	}
	return stay, ended
}

// setPrimary keeps LostAt and the count of primaries true. g may be changed.
func (e *edit) setPrimary(g *Group, b Member) {
	if e.load != nil {
		if g.Primary.Node != NoNode {
			e.load[g.Primary.Node]--
		}
		if b.Node != NoNode {
			e.load[b.Node]++
		}
	}
	g.Primary = b
	switch {
	case b.Node != NoNode:
		g.LostAt = time.Time{}
	case g.LostAt.IsZero():
		g.LostAt = e.now
	}
}

// choose picks a primary among members in service: the preferred one if it is among them, else the one that leads the
// fewest groups for its weight, so that a dead node's load falls on all survivors alike.
func (e *edit) choose(g *Group, from []Member) Member {
	if e.load == nil {
		e.load = make([]int, len(e.m.Nodes))
		for _, g := range e.m.Groups {
			if g.Primary.Node != NoNode {
				e.load[g.Primary.Node]++
			}
		}
	}
	best := -1
	for i, b := range from {
		if len(g.Target) > 0 && b.Node == g.Target[0] {
			return b
		}
		if best < 0 || e.lighter(b.Node, from[best].Node) {
			best = i
		}
	}
	return from[best]
}

func (e *edit) lighter(a, b NodeID) bool {
	wa, wb := max(1, e.m.Nodes[a].VNodes), max(1, e.m.Nodes[b].VNodes)
	return (e.load[a]+1)*wb < (e.load[b]+1)*wa
}

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
		for _, id := range g.Target {
			if b := e.m.Current(id); len(e.serving([]Member{b}, leased)) > 0 {
				set = append(set, b)
			}
		}
	}
	if len(set) == 0 {
		return false
	}
	e.goOn(i, set)
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

// minus returns a new slice: a without the members of b.
func minus(a, b []Member) []Member {
	list := make([]Member, 0, len(a))
	for _, x := range a {
		if !slices.Contains(b, x) {
			list = append(list, x)
		}
	}
	return list
}
