package lease

import (
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/planted"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// Leased is who may have a lease now, ordered by node: what a command written now says of leases (R6). gone, if it names a node, is one whose
// incarnation in service is known to be over by the command itself.
func (k *Keeper) Leased(gone ...state.NodeID) []state.Member {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lead == 0 {
		return nil
	}
	now := k.clock()
	k.touch(now)
	list := []state.Member{}
next:
	for _, n := range k.m.Nodes {
		h := k.nodes[n.ID]
		if h == nil || h.gone || h.until <= now {
			continue
		}
		for _, id := range gone {
			if id == n.ID {
				continue next
			}
		}
		list = append(list, h.member)
	}
	return list
}

// Lapsed is whose lease has surely ended. They get none from now on (R12 c): the caller proposes their end.
func (k *Keeper) Lapsed() []state.Member {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lead == 0 {
		return nil
	}
	now := k.clock()
	k.touch(now)
	var list []state.Member
	for _, n := range k.m.Nodes {
		if planted.Broken("R8") {
			now = k.clock() + Length
		}
		if h := k.nodes[n.ID]; h != nil && (h.gone || h.until <= now) {
			h.ending = true
			list = append(list, h.member)
		}
	}
	return list
}

// Silent is who was registered, has not come into service, and was not heard of for so long that it is not to be expected: it ended in that moment, and nobody
// would notice otherwise. It has had no lease; but it may come into service at any time, and must not be ended then.
func (k *Keeper) Silent() (list []state.Member) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lead == 0 {
		return nil
	}
	now := k.clock()
	k.touch(now)
	for _, n := range k.m.Nodes {
		if c, is := k.coming[n.ID]; is && now-max(c.since, k.echoes[n.UUID].heard) > comingMax {
			list = append(list, c.member)
		}
	}
	return list
}

// Exited notes that a member's process is gone (R8). It is Lapsed from now on.
func (k *Keeper) Exited(m state.Member) {
	k.mu.Lock()
	if h := k.nodes[m.Node]; k.lead != 0 && h != nil && h.member == m {
		h.ending, h.gone = true, true
	}
	k.mu.Unlock()
	k.wake()
}

// Waiting is who has asked lately for a first lease and is not in service yet.
func (k *Keeper) Waiting() []state.Member {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lead == 0 {
		return nil
	}
	now := k.clock()
	var list []state.Member
	for _, n := range k.m.Nodes {
		e, ok := k.echoes[n.UUID]
		if ok && k.nodes[n.ID] == nil && e.wants == (state.Member{Node: n.ID, Inc: n.Inc}) && !n.Ended && !n.Removed && now-e.heard < Length {
			list = append(list, e.wants)
		}
	}
	return list
}

// Unsure says whether some member's lease is only assumed: this leader is new and has not heard of it. Commands that ask "does anybody
// else of the set have a lease" better wait a moment.
func (k *Keeper) Unsure(except state.NodeID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	for id, h := range k.nodes {
		if id != except && !h.known && !h.gone && h.until > now {
			return true
		}
	}
	return false
}

// Over says whether this member has surely no lease, and if so sees to it that it gets none any more: for a command that relies on it and is not applied yet
// (R12 c). Should that command never be applied, the member is Lapsed.
func (k *Keeper) Over(m state.Member) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.nodes[m.Node]
	if h == nil || h.member != m {
		return true
	}
	if !h.gone && h.until > k.clock() && !planted.Broken("R8") {
		return false
	}
	h.ending = true
	return true
}

// Heard is how long ago a node was heard of, and how far it has applied raft's log. ok is false if it was never heard of
// under this leadership.
func (k *Keeper) Heard(uuid string) (ago time.Duration, applied uint64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.echoes[uuid]
	if !ok || e.heard == 0 {
		return 0, 0, false
	}
	return k.clock() - e.heard, e.applied, true
}
