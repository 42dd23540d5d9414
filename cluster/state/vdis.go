package state

import "slices"

// vdi returns a copy of a VDI that may be changed and then put.
func (e *edit) vdi(vid uint32) *VDI {
	v := *e.m.dir.vdi(vid)
	return &v
}

// putVDI adds or replaces an entry of the directory. v is not to be changed afterwards.
func (e *edit) putVDI(v *VDI) {
	list := slices.Clone(e.m.VDIs)
	i, found := vdiAt(list, v.Vid)
	if found {
		e.m.dir = e.m.dir.with(list[i], v)
		list[i] = v
	} else {
		e.m.dir = e.m.dir.with(nil, v)
		list = slices.Insert(list, i, v)
	}
	e.m.VDIs = list
}

// dropVDI takes an entry out of the directory.
func (e *edit) dropVDI(vid uint32) {
	if i, found := vdiAt(e.m.VDIs, vid); found {
		e.m.dir = e.m.dir.with(e.m.VDIs[i], nil)
		e.m.VDIs = slices.Delete(slices.Clone(e.m.VDIs), i, i+1)
	}
}

func vdiAt(list []*VDI, vid uint32) (int, bool) {
	return slices.BinarySearchFunc(list, vid, func(v *VDI, vid uint32) int { return int(v.Vid) - int(vid) })
}

// newVid is the vid for a new VDI: the name's hash, or the next that is free (R24). 0 when there is none.
func (e *edit) newVid(name string) uint32 {
	vid := HashName(name)
	for range MaxVid + 1 {
		if !e.m.dir.taken(vid) {
			return vid
		}
		vid = (vid + 1) & MaxVid
	}
	return 0
}

func (e *edit) createVDI(c *CreateVDI) *Error {
	if err := asError(CheckName(c.Name)); err != nil {
		return err
	}
	size, err := RoundSize(c.Size)
	if err != nil {
		return asError(err)
	}
	if e.m.Working(c.Name) != nil {
		return refuse(Exists, textExists)
	}
	pool := e.m.Pools[0]
	if c.Copies != 0 && c.Copies != pool.Copies {
		pool = e.m.poolFor(c.Copies, 0)
		if pool == nil {
			if err := e.addPool(&AddPool{Copies: c.Copies}); err != nil {
				return err
			}
			pool = e.m.Pools[len(e.m.Pools)-1]
		}
	}
	vid := e.newVid(c.Name)
	if vid == 0 {
		return refuse(Invalid, "every VDI number is in use")
	}
	v := &VDI{
		Vid: vid, Gen: e.index, Name: c.Name, Size: size, Root: vid, RootGen: e.index, Disk: e.index, Pool: pool.ID,
		Created: e.now, Shared: c.Shared, LastSnap: e.lastSnap(c.Name),
	}
	e.putVDI(v)
	e.res.Vid = vid
	return nil
}

// lastSnap is the greatest snapshot number under a name whose working VDI is gone.
func (e *edit) lastSnap(name string) uint32 {
	if n := e.m.dir.naming(name); n != nil && len(n.snaps) > 0 {
		return e.m.dir.vdi(n.snaps[len(n.snaps)-1]).SnapID
	}
	return 0
}

func (e *edit) cloneVDI(c *CloneVDI) *Error {
	if err := asError(CheckName(c.New)); err != nil {
		return err
	}
	if c.Snap == "" {
		return refuse(Invalid, "Only snapshot VDIs can be cloned")
	}
	from, err := e.m.Lookup(c.Name, c.Snap)
	if err != nil {
		return asError(err)
	}
	if e.m.Working(c.New) != nil {
		return refuse(Exists, textExists)
	}
	vid := e.newVid(c.New)
	if vid == 0 {
		return refuse(Invalid, "every VDI number is in use")
	}
	e.putVDI(&VDI{
		Vid: vid, Gen: e.index, Name: c.New, Size: from.Size, Parent: from.Vid, Root: from.Root, RootGen: from.RootGen, Disk: e.index, Pool: from.Pool,
		Created: e.now, LastSnap: e.lastSnap(c.New),
	})
	e.res.Vid = vid
	return nil
}

// rollback is a deletion and a clone in one. It is another disk: whoever had the old one open, and lapsed, does not get this one for it.
func (e *edit) rollback(c *Rollback) *Error {
	if c.Snap == "" {
		return refuse(Invalid, "A VDI can only be rolled back to a snapshot")
	}
	to, err := e.m.Lookup(c.Name, c.Snap)
	if err != nil {
		return asError(err)
	}
	v := e.m.Working(c.Name)
	switch {
	case v == nil:
		return refuse(Missing, "there is no working VDI %s any more: a clone of its snapshot may take the name", c.Name)
	case v.State == Closing:
		return refuse(Busy, "a snapshot of %s is being taken", c.Name)
	}
	if held := e.m.SessionsOf(v.Vid); len(held) > 0 {
		return refuse(Busy, "VDI %s is in use by %s", c.Name, held[0].Owner)
	}
	vid := e.newVid(c.Name)
	if vid == 0 {
		return refuse(Invalid, "every VDI number is in use")
	}
	old := e.vdi(v.Vid)
	old.State = Deleted
	e.putVDI(old)
	e.putVDI(&VDI{
		Vid: vid, Gen: e.index, Name: c.Name, Size: to.Size, Parent: to.Vid, Root: to.Root, RootGen: to.RootGen, Disk: e.index, Pool: to.Pool,
		Created: e.now, Shared: v.Shared, LastSnap: v.LastSnap,
	})
	e.res.Vid = vid
	return nil
}

// resizeVDI makes a VDI larger. (Smaller ones would need what lies beyond to be freed first, on every replica.)
func (e *edit) resizeVDI(c *ResizeVDI) *Error {
	size, err := RoundSize(c.Size)
	if err != nil {
		return asError(err)
	}
	v := e.m.Working(c.Name)
	switch {
	case v == nil:
		return refuse(Missing, textNoVDI)
	case v.State == Closing:
		return refuse(Busy, "a snapshot of %s is being taken", c.Name)
	case size < v.Size:
		return refuse(Invalid, "Shrinking VDIs is not implemented: %s has %d bytes", c.Name, v.Size)
	}
	v = e.vdi(v.Vid)
	v.Size = size
	e.putVDI(v)
	e.res.Vid = v.Vid
	return nil
}

// deleteVDI marks a working VDI or a snapshot deleted: its name and tag are free, nobody may open it, and the collector takes over.
func (e *edit) deleteVDI(c *DeleteVDI) *Error {
	v, err := e.m.Lookup(c.Name, c.Snap)
	if err != nil {
		return asError(err)
	}
	if v.State == Closing && !c.Force {
		return refuse(Busy, "a snapshot of %s is being taken", c.Name)
	}
	if held := e.m.SessionsOf(v.Vid); len(held) > 0 {
		if !c.Force {
			return refuse(Busy, "VDI %s is in use by %s", c.Name, held[0].Owner)
		}
		e.fence(v.Vid)
	}
	v = e.vdi(v.Vid)
	v.State, v.Closing, v.CloseTag = Deleted, 0, ""
	e.putVDI(v)
	e.res.Vid = v.Vid
	return nil
}

// asError makes the package's own error of one that is known to be that.
func asError(err error) *Error {
	if err == nil {
		return nil
	}
	return err.(*Error)
}
