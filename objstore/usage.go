package objstore

// recount counts anew what vids have in the group, if a damaged object was
// copied again: what its lost tables had counted is not known, and would be
// counted for ever (rule 18). While another object is damaged it waits, so
// that a vid never seems collected because a table is lost. The error is the
// disk's.
func (g *Group) recount() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.miscounted || g.suspects > 0 {
		return nil
	}
	pinned := map[*object]bool{}
	defer func() {
		for o := range pinned {
			o.t.pins--
		}
	}()
	for o := g.unpinned(pinned); o != nil; o = g.unpinned(pinned) {
		if o.t != nil {
			o.t.pins++
			pinned[o] = true
			continue
		}
		g.mu.Unlock()
		err := g.s.load(o)
		g.mu.Lock()
		if err != nil {
			return err
		}
	}
	if g.suspects > 0 || g.dropped { // one of them was found to be damaged
		return nil
	}
	for _, u := range g.usage {
		*u = Usage{Gen: u.Gen}
	}
	for o := range pinned {
		for _, v := range o.t.list {
			v.u = g.usageOf(v.vid, v.gen)
			v.u.Objects++
			for _, c := range v.cells {
				v.u.add(c.state(), 1)
			}
		}
	}
	g.miscounted, g.changed = false, true
	return nil
}

// unpinned is an object that is not in the set. Holds mu.
func (g *Group) unpinned(pinned map[*object]bool) *object {
	if len(pinned) == len(g.objects) {
		return nil
	}
	for _, o := range g.objects {
		if !pinned[o] {
			return o
		}
	}
	return nil
}

// add counts n blocks of a state.
func (u *Usage) add(st State, n int64) {
	switch st {
	case Zero:
		u.Zero += n
	case Bad:
		u.Bad += n
	case Present:
		u.Present += n
	}
}
