package objstore

import "fmt"

// check holds the refusals that depend on what the object has: nothing that
// an entry does may touch another generation of its vids (rule 11).
func (o *object) check(e *Entry) error {
	if bugGenerations.active() {
		return nil
	}
	if v := o.t.find(e.Vid); v != nil && v.gen != e.Gen {
		return fmt.Errorf("%v entry %v object %v: vid %06x has generation %d, not %d: %w",
			e.Kind, e.Number, e.Key, e.Vid, v.gen, e.Gen, ErrGeneration)
	}
	if e.Kind != KindMerge {
		return nil
	}
	if v := o.t.find(e.Into); v != nil && v.gen != e.IntoGen {
		return fmt.Errorf("%v entry %v object %v: vid %06x has generation %d, not %d: %w",
			e.Kind, e.Number, e.Key, e.Into, v.gen, e.IntoGen, ErrGeneration)
	}
	return nil
}

// creates says that the entry makes the version it is for.
func (k EntryKind) creates() bool { return k == KindWrite || k == KindZero }

// apply changes the tables as an entry says; the same in the running store
// and in replay. at gives a write's cells. Holds the group's mutex; check
// has passed.
func (o *object) apply(e *Entry, p pos, at func(i int) uint32) {
	v := o.t.find(e.Vid)
	if v == nil {
		if !e.Kind.creates() {
			if o.damaged { // others may have something, and whoever has this number has what was here
				o.version = e.Number
			}
			return // nothing of it here: on every replica alike
		}
		v = o.add(e.Vid, e.Gen)
	}
	first, count := int(e.First), int(e.Count)
	switch e.Kind {
	case KindWrite:
		for i := range count {
			o.set(v, first+i, cell{at(i), e.CRCs[i]}, p)
		}
	case KindZero:
		for i := range count {
			o.set(v, first+i, cell{at: cellZero}, p)
		}
	case KindTrim, KindFree:
		for i := range count {
			o.set(v, first+i, cell{}, p)
		}
	case KindBad:
		for i := range count {
			o.set(v, first+i, badCell(), p)
		}
	case KindMerge:
		v = o.merge(v, e, p)
	case KindDelete:
		o.drop(v, p)
	}
	v.version, v.changed = e.Number, true
	if bugVersionKept.active() && e.Kind == KindMerge {
		return
	}
	o.version = e.Number
}

func badCell() cell {
	if bugBadIsZero.active() {
		return cell{}
	}
	return cell{at: cellBad}
}

// merge moves to Into what it lacks of v (rule 16). No data moves; where
// Into has no table yet, v's becomes its.
func (o *object) merge(v *table, e *Entry, p pos) *table {
	into := o.t.find(e.Into)
	if into == nil {
		u := o.g.usageOf(e.Into, e.IntoGen)
		moveUsage(v, u)
		v.vid, v.gen, v.u = e.Into, e.IntoGen, u
		o.t.res = nil
		return v
	}
	for b := range v.cells {
		if (into.cells[b].at == cellAbsent || bugMergeOver.active()) && v.cells[b].at != cellAbsent {
			o.move(v, into, b)
		}
	}
	o.drop(v, p)
	return into
}

// move hands a block's cell from one version to another without giving up
// its slot.
func (o *object) move(from, to *table, block int) {
	c := from.cells[block]
	o.t.res = nil
	from.cells[block], to.cells[block] = cell{}, c
	if bugMergeFrees.active() && c.kind() == cellSlot {
		o.t.free(c.value())
	}
	if bugUsageMerge.active() {
		return
	}
	o.count(from, c, -1)
	o.count(to, c, 1)
}

// moveUsage accounts all of v's blocks to u.
func moveUsage(v *table, u *Usage) {
	v.u.Objects--
	u.Objects++
	for _, c := range v.cells {
		v.u.add(c.state(), -1)
		u.add(c.state(), 1)
	}
}
