package state

import (
	"slices"
	"strconv"
	"time"
)

// New is the state before anything was agreed.
func New() *Map {
	return &Map{Settings: DefaultSettings(), FirstTerm: 1, NextSess: 1, starts: []int{0}, dir: newIndex()}
}

// DefaultSettings are what `cluster set` starts from.
func DefaultSettings() Settings {
	return Settings{
		RebuildAfter:  10 * time.Minute,
		ResumeWait:    30 * time.Second,
		RecoverySpeed: 100 << 20,
		RecoveryFloor: 10 << 20,
		ScrubSpeed:    10 << 20,
		ScrubFloor:    1 << 20,
		CollectSpeed:  4096,
	}
}

// Formatted says that there are groups to store in.
func (m *Map) Formatted() bool { return m.Cluster != "" }

// Node is the node with this number, nil if there is none. Removed nodes are still found.
func (m *Map) Node(id NodeID) *Node {
	if uint64(id) < uint64(len(m.Nodes)) {
		return m.Nodes[id] // numbered from 0 without gaps
	}
	return nil
}

// NodeByUUID is the node whose directory has this identity, nil if none has.
func (m *Map) NodeByUUID(uuid string) *Node {
	for _, n := range m.Nodes {
		if n.UUID == uuid {
			return n
		}
	}
	return nil
}

// Intact says that a member is its node's current incarnation, has not ended, and its node was not removed: it may have a lease, and what it had it has.
func (m *Map) Intact(b Member) bool {
	n := m.Node(b.Node)
	return n != nil && n.Inc == b.Inc && !n.Ended && !n.Removed
}

// InService says that a member is intact and has been in service: it had a lease the last time the leader said so.
func (m *Map) InService(b Member) bool { return m.Intact(b) && m.Nodes[b.Node].Up }

// Current is a node's current incarnation as a member.
func (m *Map) Current(id NodeID) Member {
	if n := m.Node(id); n != nil {
		return Member{id, n.Inc}
	}
	return Member{Node: NoNode}
}

// Pool is the pool with this number, nil if there is none. Pool 0 is the default one.
func (m *Map) Pool(id uint16) *Pool {
	if int(id) < len(m.Pools) {
		return m.Pools[id] // numbered from 0 without gaps
	}
	return nil
}

// Group is the placement group with this number, nil if there is none.
func (m *Map) Group(id GroupID) *Group {
	if i := m.groupAt(id); i >= 0 {
		return m.Groups[i]
	}
	return nil
}

// groupAt is a group's place in Groups, -1 if there is no such group.
func (m *Map) groupAt(id GroupID) int {
	p := int(id.Pool())
	if p >= len(m.Pools) || id.Index() >= m.Pools[p].PGs {
		return -1
	}
	return m.starts[p] + id.Index()
}

// PoolGroups are a pool's groups by their index. Not to be changed.
func (m *Map) PoolGroups(pool uint16) []*Group {
	if int(pool) >= len(m.Pools) {
		return nil
	}
	return m.Groups[m.starts[pool]:m.starts[pool+1]:m.starts[pool+1]]
}

// GroupFor is the group that keeps an object of a VDI.
func (m *Map) GroupFor(v *VDI, index uint32) GroupID { return GroupOf(m.Pools[v.Pool], v.Root, index) }

// VDI is the entry with this vid, in whatever state, nil if there is none.
func (m *Map) VDI(vid uint32) *VDI { return m.dir.vdi(vid) }

// Working is the VDI that is written through a name, nil if there is none.
func (m *Map) Working(name string) *VDI {
	if n := m.dir.naming(name); n != nil && n.work != 0 {
		return m.dir.vdi(n.work)
	}
	return nil
}

// Lookup finds the working VDI of a name, or with snap its snapshot with that tag or number.
func (m *Map) Lookup(name, snap string) (*VDI, error) {
	n := m.dir.naming(name)
	if n == nil || snap == "" && n.work == 0 {
		return nil, &Error{Missing, textNoVDI}
	}
	if snap == "" {
		return m.dir.vdi(n.work), nil
	}
	if v := m.snapshot(n, snap); v != nil {
		return v, nil
	}
	return nil, &Error{Missing, textNoTag}
}

func (m *Map) snapshot(n *naming, snap string) *VDI {
	if !allDigits(snap) {
		for _, vid := range n.snaps {
			if v := m.dir.vdi(vid); v.Tag == snap {
				return v
			}
		}
		return nil
	}
	id, err := strconv.ParseUint(snap, 10, 32)
	if err != nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(n.snaps, uint32(id), func(vid, id uint32) int { return int(int64(m.dir.vdi(vid).SnapID) - int64(id)) })
	if !ok {
		return nil
	}
	return m.dir.vdi(n.snaps[i])
}

// Snapshots are the snapshots of a name in the order of their numbers.
func (m *Map) Snapshots(name string) []*VDI {
	n := m.dir.naming(name)
	if n == nil {
		return nil
	}
	list := make([]*VDI, len(n.snaps))
	for i, vid := range n.snaps {
		list[i] = m.dir.vdi(vid)
	}
	return list
}

// Chain is a vid and its ancestors, newest first, as the store reads through them; nil if there is no such vid. It is made once and then remembered: calling it
// for every request costs no allocation. Not to be changed.
func (m *Map) Chain(vid uint32) []VidGen {
	if vid > MaxVid {
		return nil
	}
	n := m.dir.vids.get(vid)
	if n == nil {
		return nil
	}
	if c := n.chain.Load(); c != nil && c.under == m.dir.splices {
		return c.vids
	}
	c := &chain{under: m.dir.splices}
	for v := n.vdi; v != nil; v = m.dir.vdi(v.Parent) {
		c.vids = append(c.vids, VidGen{Vid: v.Vid, Gen: v.Gen})
	}
	n.chain.Store(c)
	return c.vids
}

// Session is a live session, nil if it has ended.
func (m *Map) Session(id uint64) *Session {
	if i, ok := m.sessionAt(id); ok {
		return m.Sessions[i]
	}
	return nil
}

func (m *Map) sessionAt(id uint64) (int, bool) {
	return slices.BinarySearchFunc(m.Sessions, id, func(s *Session, id uint64) int {
		switch {
		case s.ID < id:
			return -1
		case s.ID > id:
			return 1
		}
		return 0
	})
}

// SessionsOf are the live sessions that write a vid.
func (m *Map) SessionsOf(vid uint32) []*Session {
	var list []*Session
	for _, s := range m.Sessions {
		if s.Vid == vid {
			list = append(list, s)
		}
	}
	return list
}
