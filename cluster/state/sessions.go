package state

import "slices"

// openSess opens a VDI for writing (R14). The generation rises, so that whatever the last holder left under way is refused, unless several may write.
func (e *edit) openSess(c *OpenSess) *Error {
	v := e.m.Working(c.Name)
	if v == nil {
		return refuse(Missing, textNoVDI)
	}
	if c.Holder.Node != NoNode && !e.m.InService(c.Holder) {
		return refuse(Stale, "open %s for node %d incarnation %x: it is not in service", c.Name, c.Holder.Node, c.Holder.Inc)
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
		if !v.Shared {
			v.SessFor = c.Client
		}
		e.putVDI(v)
	}
	s := &Session{ID: e.m.NextSess, Vid: v.Vid, Gen: v.SessGen, Client: c.Client, Holder: c.Holder, Owner: c.Owner, Since: e.now}
	e.m.NextSess++
	e.m.Sessions = append(slices.Clip(slices.Clone(e.m.Sessions)), s)
	e.res.Vid, e.res.Sess = v.Vid, s
	return nil
}

func (e *edit) closeSess(c *CloseSess) *Error {
	if c.Open != "" {
		done, known := e.m.Recent.find(c.Open)
		switch {
		case known && done.Sess != nil && e.m.Session(done.Sess.ID) != nil:
			c = &CloseSess{ID: done.Sess.ID}
		case known:
			return nil
		default:
			at := CommandResult{ID: c.Open, At: e.now.UnixMilli(), Result: Result{Index: e.index, Code: Stale, Error: "it was given up"}}
			e.m.Recent = e.m.Recent.with(at)
			return nil
		}
	}
	if e.m.Session(c.ID) == nil {
		return refuse(Missing, "no session %d", c.ID)
	}
	e.releaseSessions(func(s *Session) bool { return s.ID == c.ID })
	return nil
}

// replayed notes how far a session's client has made good what groups lost (R17).
func (e *edit) replayed(c *Replayed) *Error {
	s := e.m.Session(c.Sess)
	switch {
	case s == nil:
		return refuse(Missing, "no session %d", c.Sess)
	case c.Index >= e.index:
		return refuse(Invalid, "session %d replayed up to map index %d, which is to come", c.Sess, c.Index)
	case c.Index <= s.Replayed:
		return nil
	}
	e.m.Sessions = slices.Clone(e.m.Sessions)
	now := *s
	now.Replayed = c.Index
	e.m.Sessions[slices.Index(e.m.Sessions, s)] = &now
	return nil
}

// Owes says that groups of the session's VDI resumed since its client last said that it had sent again what they lost (R17).
func (m *Map) Owes(s *Session) bool {
	v := m.VDI(s.Vid)
	return v != nil && slices.ContainsFunc(m.PoolGroups(v.Pool), func(g *Group) bool { return g.ResumedAt > s.Replayed })
}

// Owing is a session of a VDI that owes, nil if none does: a snapshot taken now might lack what its client was answered before, and that would
// come into the disk behind it.
func (m *Map) Owing(vid uint32) *Session {
	for _, s := range m.SessionsOf(vid) {
		if m.Owes(s) {
			return s
		}
	}
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
	v.SessFor = ""
	e.putVDI(v)
}

// releaseSessions ends sessions. Their generation stays current until the VDI is opened again: nobody else writes until then.
func (e *edit) releaseSessions(which func(*Session) bool) {
	if slices.ContainsFunc(e.m.Sessions, which) {
		for _, s := range e.m.Sessions {
			if v := e.m.VDI(s.Vid); which(s) && v != nil && v.State == Closing && e.m.Owes(s) {
				e.giveUp(v.Vid) // its client may have sent a part again already, of which no report says that it is durable
			}
		}
		e.m.Sessions = slices.DeleteFunc(slices.Clone(e.m.Sessions), which)
	}
}
