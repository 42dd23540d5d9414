package state

import (
	"slices"
	"sync/atomic"
)

// VidGen is a vid in one of its lives (vids are reused, generations are not). It has no name of its own so that the store, which knows nothing of
// this package, may declare the same type and chains pass from here to there without a copy.
type VidGen = struct {
	Vid uint32
	Gen uint64
}

// index finds VDIs. It is derived from Map.VDIs, never encoded, and persistent like the Map itself: changing it gives a new one.
type index struct {
	vids    *trie[node]     // by vid
	names   *trie[[]naming] // by HashName: the names with that hash
	ties    *trie[ties]     // by vid: who refers to it
	splices *splice         // changes its identity whenever an ancestor is taken out of chains
}

// splice is an identity; it has a size so that no two share an address.
type splice struct{ _ byte }

// node is one VDI in the index, with its chain once somebody has asked for it.
type node struct {
	vdi   *VDI
	chain atomic.Pointer[chain]
}

type chain struct {
	under *splice // valid while the index still has this
	vids  []VidGen
}

// naming is what a name means: its working VDI (0: none) and its snapshots in the order of their numbers.
type naming struct {
	name  string
	work  uint32
	snaps []uint32
}

// ties are the VDIs that refer to a vid.
type ties struct {
	children []uint32 // whose parent it is, ascending
	family   int      // whose root it is
}

func newIndex() *index {
	return &index{vids: new(trie[node]), names: new(trie[[]naming]), ties: new(trie[ties]), splices: new(splice)}
}

func (x *index) vdi(vid uint32) *VDI {
	if vid > MaxVid {
		return nil
	}
	if n := x.vids.get(vid); n != nil {
		return n.vdi
	}
	return nil
}

func (x *index) naming(name string) *naming {
	if bucket := x.names.get(HashName(name)); bucket != nil {
		for i := range *bucket {
			if (*bucket)[i].name == name {
				return &(*bucket)[i]
			}
		}
	}
	return nil
}

// children are the VDIs whose parent vid is, ascending.
func (x *index) children(vid uint32) []uint32 {
	if t := x.ties.get(vid & MaxVid); t != nil {
		return t.children
	}
	return nil
}

// taken says that a new VDI may not have this vid: one has it, stands on it, or belongs to a family named by it (the first half of every
// object's key is the family's root, R24).
func (x *index) taken(vid uint32) bool {
	if vid == 0 || x.vids.get(vid) != nil {
		return true
	}
	t := x.ties.get(vid)
	return t != nil && (len(t.children) > 0 || t.family > 0)
}

// with returns an index in which now stands in place of old; either may be nil.
func (x *index) with(old, now *VDI) *index {
	n := *x
	if old != nil {
		n.rename(old, false)
		n.tie(old, -1)
	}
	if now == nil {
		n.vids = n.vids.set(old.Vid, nil)
		n.splices = new(splice)
		return &n
	}
	fresh := &node{vdi: now}
	if old != nil {
		if old.Parent == now.Parent && old.Gen == now.Gen {
			fresh.chain.Store(n.vids.get(old.Vid).chain.Load())
		} else {
			n.splices = new(splice)
		}
	}
	n.vids = n.vids.set(now.Vid, fresh)
	n.rename(now, true)
	n.tie(now, +1)
	return &n
}

// rename adds a VDI to what its name means, or takes it out.
func (x *index) rename(v *VDI, add bool) {
	if v.State == Deleted {
		return
	}
	key := HashName(v.Name)
	var bucket []naming
	if p := x.names.get(key); p != nil {
		bucket = slices.Clone(*p)
	}
	i := slices.IndexFunc(bucket, func(n naming) bool { return n.name == v.Name })
	if i < 0 {
		i, bucket = len(bucket), append(bucket, naming{name: v.Name})
	}
	n := &bucket[i]
	switch {
	case v.State != Frozen && add:
		n.work = v.Vid
	case v.State != Frozen:
		n.work = 0
	case add:
		n.snaps = insertedBy(n.snaps, v.Vid, func(vid uint32) bool { return x.vdi(vid).SnapID > v.SnapID })
	default:
		n.snaps = without(n.snaps, v.Vid)
	}
	if n.work == 0 && len(n.snaps) == 0 {
		bucket = slices.Delete(bucket, i, i+1)
	}
	if len(bucket) == 0 {
		x.names = x.names.set(key, nil)
		return
	}
	x.names = x.names.set(key, &bucket)
}

// tie counts v's references to its parent and its root.
func (x *index) tie(v *VDI, by int) {
	root := ties{}
	if t := x.ties.get(v.Root); t != nil {
		root = *t
	}
	root.family += by
	x.ties = x.ties.set(v.Root, &root)
	if v.Parent == 0 {
		return
	}
	parent := ties{}
	if t := x.ties.get(v.Parent); t != nil {
		parent = *t
	}
	if by > 0 {
		parent.children = insertedBy(parent.children, v.Vid, func(vid uint32) bool { return vid > v.Vid })
	} else {
		parent.children = without(parent.children, v.Vid)
	}
	x.ties = x.ties.set(v.Parent, &parent)
}

// insertedBy returns a new slice with vid before the first element that is after it.
func insertedBy(s []uint32, vid uint32, after func(uint32) bool) []uint32 {
	i := slices.IndexFunc(s, after)
	if i < 0 {
		i = len(s)
	}
	n := make([]uint32, 0, len(s)+1)
	n = append(n, s[:i]...)
	n = append(n, vid)
	return append(n, s[i:]...)
}

// without returns a new slice that lacks vid.
func without(s []uint32, vid uint32) []uint32 {
	n := make([]uint32, 0, len(s))
	for _, v := range s {
		if v != vid {
			n = append(n, v)
		}
	}
	return n
}
