package replica

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// table is all groups of a node. Every frame names one, so one is found without a lock or an allocation; none is ever forgotten.
type table struct {
	mu    sync.Mutex // of those who add
	list  atomic.Pointer[[]*group]
	slots atomic.Pointer[[]atomic.Pointer[group]] // a power of two of them, at most half in use; a group is in the first free one from its home on
}

func (t *table) init() {
	slots := make([]atomic.Pointer[group], 64)
	t.list.Store(new([]*group))
	t.slots.Store(&slots)
}

// find returns the group's slot, or the one it belongs in.
func find(slots []atomic.Pointer[group], id state.GroupID) (*atomic.Pointer[group], *group) {
	mask := uint32(len(slots) - 1)
	for i := uint32(id) * 0x9e3779b1 >> bits.LeadingZeros32(mask); ; i++ {
		slot := &slots[i&mask]
		if g := slot.Load(); g == nil || g.id == id {
			return slot, g
		}
	}
}

// get returns the group, made by e at first use.
func (t *table) get(e *Engine, id state.GroupID) *group {
	if _, g := find(*t.slots.Load(), id); g != nil {
		return g
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	slots, list := *t.slots.Load(), *t.list.Load()
	if 2*(len(list)+1) > len(slots) {
		slots = make([]atomic.Pointer[group], 2*len(slots))
		for _, g := range list {
			slot, _ := find(slots, g.id)
			slot.Store(g)
		}
		t.slots.Store(&slots)
	}
	slot, g := find(slots, id)
	if g == nil {
		g = newGroup(e, id)
		list = append(list, g) // whoever has the shorter one sees nothing of it
		t.list.Store(&list)
		slot.Store(g)
	}
	return g
}

// all is every group at this moment; nobody changes it.
func (t *table) all() []*group { return *t.list.Load() }
