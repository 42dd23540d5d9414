package state

import "slices"

// closeVDI begins a snapshot: primaries park new writes to the vid (R22).
func (e *edit) closeVDI(c *CloseVDI) *Error {
	if err := asError(CheckTag(c.Tag)); err != nil {
		return err
	}
	v := e.m.Working(c.Name)
	switch {
	case v == nil:
		return refuse(Missing, textNoVDI)
	case v.State == Closing:
		return refuse(Busy, "another snapshot of %s is being taken", c.Name)
	case c.Tag != "" && e.m.snapshot(e.m.dir.naming(c.Name), c.Tag) != nil:
		return refuse(Exists, "%s has a snapshot with the tag %s already", c.Name, c.Tag)
	}
	v = e.vdi(v.Vid)
	v.State, v.Closing, v.CloseTag = Closing, e.index, c.Tag
	e.putVDI(v)
	e.res.Vid = v.Vid
	return nil
}

// closing finds the VDI that a freeze or an abort is about.
func (e *edit) closing(vid uint32, id uint64) (*VDI, *Error) {
	v := e.m.VDI(vid)
	if v == nil || v.State != Closing || v.Closing != id {
		return nil, refuse(Stale, "snapshot %d of %06x is not being taken (any more)", id, vid)
	}
	return v, nil
}

// freezeVDI ends a snapshot: the vid is the snapshot now, and its name goes on with a new vid on top of it. Sessions follow.
func (e *edit) freezeVDI(c *FreezeVDI) *Error {
	v, err := e.closing(c.Vid, c.Closing)
	if err != nil {
		return err
	}
	groups := e.m.PoolGroups(v.Pool)
	if len(c.Terms) != len(groups) {
		return refuse(Invalid, "freeze %06x: %d terms for %d groups", c.Vid, len(c.Terms), len(groups))
	}
	for i, g := range groups {
		if g.Term != c.Terms[i] || g.Primary.Node == NoNode {
			return refuse(Stale, "freeze %06x: group %x is at term %d, not %d", c.Vid, uint32(g.ID), g.Term, c.Terms[i])
		}
	}
	if s := e.m.Owing(v.Vid); s != nil {
		return refuse(Stale, "freeze %06x: %s has yet to send again what groups lost", c.Vid, s.Owner)
	}
	vid := e.newVid(v.Name)
	if vid == 0 {
		return refuse(Invalid, "every VDI number is in use")
	}
	snap := e.vdi(v.Vid)
	next := e.vdi(v.Vid)
	snap.State, snap.Tag, snap.SnapID, snap.Frozen, snap.Next = Frozen, v.CloseTag, v.LastSnap+1, e.now, vid
	snap.Closing, snap.CloseTag, snap.LastSnap, snap.SessFor = 0, "", 0, ""
	e.putVDI(snap)
	next.Vid, next.Gen, next.Parent, next.Created = vid, e.index, v.Vid, e.now
	next.State, next.Closing, next.CloseTag, next.LastSnap = Working, 0, "", v.LastSnap+1
	e.putVDI(next)
	e.follow(v.Vid, vid)
	e.res.Vid = vid
	return nil
}

// follow moves the sessions of a vid to the one that took its name over.
func (e *edit) follow(from, to uint32) {
	if len(e.m.SessionsOf(from)) == 0 {
		return
	}
	list := slices.Clone(e.m.Sessions)
	for i, s := range list {
		if s.Vid == from {
			moved := *s
			moved.Vid = to
			list[i] = &moved
		}
	}
	e.m.Sessions = list
}

// abortClose gives a snapshot up: parked writes go on.
func (e *edit) abortClose(c *AbortClose) *Error {
	v, err := e.closing(c.Vid, c.Closing)
	if err != nil {
		return err
	}
	e.giveUp(v.Vid)
	e.res.Vid = v.Vid
	return nil
}

// giveUp has a VDI that was being frozen be written again.
func (e *edit) giveUp(vid uint32) {
	v := e.vdi(vid)
	v.State, v.Closing, v.CloseTag = Working, 0, ""
	e.putVDI(v)
}
