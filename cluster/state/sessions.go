package state

import "slices"

// openSess opens a VDI for writing (R14). The generation rises, so that whatever the last holder left under way is refused, unless several may write.
func (e *edit) openSess(c *OpenSess) *Error {
	v := e.m.Working(c.Name)
	if v == nil {
		return refuse(Missing, textNoVDI)
	}
	if c.Holder.Node != NoNode && !e.m.Intact(c.Holder) {
		return refuse(Stale, "open %s for node %d incarnation %x: it has ended", c.Name, c.Holder.Node, c.Holder.Inc)
	}
	if c.Client == "" || len(c.Client) > wordBytesMax || len(c.Owner) > wordBytesMax {
		return refuse(Invalid, "open %s: a client needs a name", c.Name)
	}
	for _, s := range e.m.SessionsOf(v.Vid) {
		if s.Client == c.Client && s.Holder == c.Holder { // another connection of the same process, or the same one asking again
			e.res.Vid, e.res.Sess = v.Vid, s
			return nil
		}
		if !v.Shared {
			return refuse(Busy, "VDI %s is already locked by %s", c.Name, s.Owner)
		}
	}
	if !v.Shared || v.SessGen == 0 {
		v = e.vdi(v.Vid)
		v.SessGen++
		e.putVDI(v)
	}
	s := &Session{ID: e.m.NextSess, Vid: v.Vid, Gen: v.SessGen, Client: c.Client, Holder: c.Holder, Owner: c.Owner, Since: e.now}
	e.m.NextSess++
	e.m.Sessions = append(slices.Clip(slices.Clone(e.m.Sessions)), s)
	e.res.Vid, e.res.Sess = v.Vid, s
	return nil
}

func (e *edit) closeSess(c *CloseSess) *Error {
	if e.m.Session(c.ID) == nil {
		return refuse(Missing, "no session %d", c.ID)
	}
	e.releaseSessions(func(s *Session) bool { return s.ID == c.ID })
	return nil
}

// unlock takes a VDI from whoever holds it, and fences it.
func (e *edit) unlock(c *Unlock) *Error {
	v := e.m.Working(c.Name)
	if v == nil {
		return refuse(Missing, textNoVDI)
	}
	e.fence(v.Vid)
	e.res.Vid = v.Vid
	return nil
}

// fence ends all sessions of a vid and raises its generation.
func (e *edit) fence(vid uint32) {
	e.releaseSessions(func(s *Session) bool { return s.Vid == vid })
	v := e.vdi(vid)
	v.SessGen++
	e.putVDI(v)
}

// releaseSessions ends sessions. Their generation stays current until the VDI is opened again: nobody else writes until then.
func (e *edit) releaseSessions(which func(*Session) bool) {
	if slices.ContainsFunc(e.m.Sessions, which) {
		e.m.Sessions = slices.DeleteFunc(slices.Clone(e.m.Sessions), which)
	}
}
