package objstore

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
)

// Group is one placement group's share of the store: its objects, how far
// its entries go, and what resync needs to know.
//
// Its entries are staged by one caller at a time (they are numbered); all
// other calls may be made concurrently.
type Group struct {
	s  *Store
	id GroupID

	mu       sync.Mutex // guards what follows and all objects of the group; taken before journal.mu
	objects  map[Key]*object
	last     Number
	syncing  bool
	anyNext  bool // syncing and nothing staged yet: any number may come
	terms    []Number
	usage    map[Vid]*Usage
	dropped  bool
	suspects int // damaged objects

	miscounted bool // usage still has what a damaged object had that was copied again

	droppedAt pos

	changed    bool      // state or objects, since the last cut
	dirty      []*object // changed since the last cut
	cutNumber  uint64    // the last checkpoint that took this group
	cutState   []byte    // its catalog record at that cut
	cutObjects []*object
}

// Usage is what one vid has in one group (rule 18).
type Usage struct {
	Gen     uint64
	Objects int64 // in which it has a table
	Present int64 // blocks
	Zero    int64
	Bad     int64
}

const termsKept = 64

func newGroup(s *Store, id GroupID) *Group {
	return &Group{s: s, id: id, objects: map[Key]*object{}, usage: map[Vid]*Usage{}}
}

// ID is the group's number.
func (g *Group) ID() GroupID { return g.id }

// Last is the number of the last entry staged.
func (g *Group) Last() Number {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// Syncing says that the content is a mixture and Last not comparable.
func (g *Group) Syncing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.syncing
}

// TermStarts is the first number seen of each of the newest terms, oldest
// first, so that two replicas can find the last number they have in common.
func (g *Group) TermStarts() []Number {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.terms)
}

// Used is what a vid has in this group.
func (g *Group) Used(vid Vid) Usage {
	g.mu.Lock()
	defer g.mu.Unlock()
	if u := g.usage[vid]; u != nil {
		return *u
	}
	return Usage{}
}

// UsedAll yields every vid that has a table in the group.
func (g *Group) UsedAll(yield func(Vid, Usage) bool) {
	g.mu.Lock()
	vids := make([]Vid, 0, len(g.usage))
	used := make([]Usage, 0, len(g.usage))
	for v, u := range g.usage {
		if u.Objects > 0 {
			vids, used = append(vids, v), append(used, *u)
		}
	}
	g.mu.Unlock()
	for i, v := range vids {
		if !yield(v, used[i]) {
			return
		}
	}
}

func (g *Group) usageOf(vid Vid, gen uint64) *Usage {
	u := g.usage[vid]
	if u == nil || u.Gen != gen && u.Objects == 0 {
		u = &Usage{Gen: gen}
		g.usage[vid] = u
	}
	return u
}

// Objects yields every object whose version's LSN is above, in order of
// their keys. Damaged ones are always among them.
func (g *Group) Objects(above uint64, yield func(ObjectInfo) bool) error {
	if err := g.s.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	if g.dropped {
		g.mu.Unlock()
		return fmt.Errorf("objects of group %d: %w", g.id, ErrDropped)
	}
	list := make([]ObjectInfo, 0, len(g.objects))
	for k, o := range g.objects {
		if o.exists() && (o.version.LSN > above || above == 0 || o.damaged) {
			list = append(list, ObjectInfo{Key: k, Version: o.version, Damaged: o.damaged})
		}
	}
	g.mu.Unlock()
	slices.SortFunc(list, func(a, b ObjectInfo) int { return cmp.Compare(a.Key, b.Key) })
	for _, i := range list {
		if !yield(i) {
			break
		}
	}
	return nil
}

// exists says that the object has a version: at rest all objects do.
func (o *object) exists() bool { return o.t == nil || len(o.t.list) > 0 || o.damaged }

// next is the one place that judges an entry's number.
func (g *Group) next(n Number) error {
	switch {
	case g.dropped:
		return fmt.Errorf("group %d entry %v: group is dropped: %w", g.id, n, ErrOrder)
	case g.syncing && g.anyNext:
		return nil
	case n.LSN != g.last.LSN+1 || n.Term < g.last.Term:
		return fmt.Errorf("group %d entry %v after %v: %w", g.id, n, g.last, ErrOrder)
	}
	return nil
}

// advance takes an entry's number. Holds mu.
func (g *Group) advance(n Number) {
	if len(g.terms) == 0 || n.Term != g.last.Term {
		g.terms = append(g.terms, n)
		if len(g.terms) > termsKept {
			g.terms = append(g.terms[:0], g.terms[1:]...)
		}
	}
	g.last, g.anyNext = n, false
}

// touch prepares the group for a change by the record at pl: if a running
// checkpoint takes what is before pl, it gets the state from before the
// change. Holds mu.
func (g *Group) touch(pl place) {
	if pl.cutNumber != 0 && g.cutNumber < pl.cutNumber {
		g.takeCut(pl.cutNumber)
	}
	g.changed = true
}

// takeCut freezes what checkpoint n takes of the group. Holds mu.
func (g *Group) takeCut(n uint64) {
	g.cutNumber = n
	if !g.changed && !g.s.cutAll.Load() {
		return
	}
	g.changed = false
	g.cutState = g.appendRecord(nil)
	g.cutObjects, g.dirty = g.dirty, nil
	for _, o := range g.cutObjects {
		o.t.dirty, o.t.cut = false, true
	}
}

// control journals a record that is not an entry and does what it says under
// the mutex. It waits for room in the journal.
func (g *Group) control(kind recordKind, body []byte, do func(pl place)) (place, error) {
	for {
		if err := g.s.Err(); err != nil {
			return place{}, err
		}
		g.mu.Lock()
		if g.dropped {
			g.mu.Unlock()
			return place{}, fmt.Errorf("group %d: %w", g.id, ErrDropped)
		}
		pl, err := g.s.j.appendBody(kind, g.id, body)
		if err == nil {
			g.touch(pl)
			do(pl)
		}
		g.mu.Unlock()
		if err != errNoRoom {
			return pl, err
		}
		if err := g.s.j.waitRoom(); err != nil {
			return place{}, err
		}
	}
}

// touch prepares an object for a change, as Group.touch did for its group.
func (o *object) touch() {
	t := o.t
	if t.cut && !bugLateCut.active() {
		t.snap, t.cut = o.snapshot(), false
	}
	if !t.dirty {
		if t.snap == nil && !t.plan {
			o.g.s.objectDirty()
		}
		t.dirty = true
		o.g.dirty = append(o.g.dirty, o)
	}
}
