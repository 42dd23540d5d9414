package state

import (
	"slices"
	"unicode/utf8"
)

const (
	vnodesMax    = 1 << 20
	wordBytesMax = 255 // of addresses, zones, identities
)

// register makes a node or a node's new incarnation known (R5, R6).
func (e *edit) register(c *Register) *Error {
	if err := c.check(); err != nil {
		return err
	}
	if c.Cluster != "" && c.Cluster != e.m.Cluster {
		return refuse(Wrong, "the directory belongs to cluster %s, this one is %q", c.Cluster, e.m.Cluster)
	}
	n := e.m.NodeByUUID(c.UUID)
	if err := e.checkDisks(n, c.Disks); err != nil {
		return err
	}
	if n == nil {
		return e.newNode(c)
	}
	e.res.Node = n.ID
	switch {
	case n.Removed:
		return refuse(Wrong, "node %d was removed from this cluster: empty its directory to join anew", n.ID)
	case n.Inc == c.Inc && n.Ended:
		return refuse(Stale, "incarnation %x of node %d has ended: take a new one", c.Inc, n.ID)
	case n.Inc == c.Inc:
		e.update(n.ID, c)
		return nil
	case n.Inc != c.PrevInc && !slices.Contains(c.History, n.Inc):
		return refuse(Wrong, "the directory is not node %d's latest: it does not know incarnation %x (an older copy, or a second daemon with a copy of it)", n.ID, n.Inc)
	case !n.Ended && n.Boot != c.Boot && slices.Contains(c.Leased, Member{n.ID, n.Inc}):
		// Only a process of the same boot that holds the directory's lock proves that its predecessor is dead (R8).
		return refuse(Busy, "node %d still has a lease, given to it on another machine or before a reboot: wait until it ends", n.ID)
	}
	e.newIncarnation(n.ID, c)
	return nil
}

func (c *Register) check() *Error {
	for _, s := range [...]string{c.UUID, c.Addr, c.Gossip, c.NBD, c.Zone, c.Cluster, c.Boot} {
		if len(s) > wordBytesMax || !utf8.ValidString(s) {
			return refuse(Invalid, "register: %.40q… is too long or not UTF-8", s)
		}
	}
	switch {
	case c.UUID == "":
		return refuse(Invalid, "register: a node needs an identity")
	case c.Inc == 0:
		return refuse(Invalid, "register: a node needs an incarnation")
	case c.VNodes < 0 || c.VNodes > vnodesMax:
		return refuse(Invalid, "register: %d vnodes, allowed are 0 to %d", c.VNodes, vnodesMax)
	}
	return nil
}

func (e *edit) newNode(c *Register) *Error {
	if c.Cluster != "" {
		return refuse(Wrong, "the directory was part of this cluster, which does not know it (%s)", c.UUID)
	}
	id := e.m.NextNode
	e.m.NextNode++
	e.m.Nodes, e.ownNodes = append(slices.Clip(slices.Clone(e.m.Nodes)), &Node{ID: id, UUID: c.UUID, Since: e.now}), true
	e.res.Node = id
	e.update(id, c)
	return nil
}

// update takes over what a registration says about a node, and gives groups to one that is new or has another weight or zone.
func (e *edit) update(id NodeID, c *Register) {
	n := e.node(id)
	moved := n.Zone != c.Zone || n.VNodes != c.VNodes
	n.Addr, n.Gossip, n.NBD, n.Zone, n.VNodes, n.Disk, n.Inc, n.Boot = c.Addr, c.Gossip, c.NBD, c.Zone, c.VNodes, c.Disk, c.Inc, c.Boot
	n.Disks = slices.Clone(c.Disks)
	if moved {
		e.retarget()
	}
}

func (e *edit) newIncarnation(id NodeID, c *Register) {
	n := e.node(id)
	if n.Up {
		e.nodesMoved = true
	}
	n.Up, n.Ended, n.Since = false, false, e.now
	e.releaseSessions(func(s *Session) bool { return s.Holder.Node == id && s.Holder.Inc != c.Inc })
	e.update(id, c)
	e.settleAll(c.Leased, func(touched NodeID) bool { return touched == id })
}

// ended says that incarnations are over (R8).
func (e *edit) ended(c *Ended) *Error {
	var over []NodeID
	known := false
	for _, b := range c.Members {
		n := e.m.Node(b.Node)
		if n == nil || n.Inc != b.Inc {
			continue
		}
		known = true
		if n.Ended || c.IfDown && n.Up {
			continue
		}
		n = e.node(b.Node)
		if n.Up {
			e.nodesMoved = true
		}
		n.Up, n.Ended, n.Since = false, true, e.now
		over = append(over, b.Node)
	}
	if !known {
		return refuse(Stale, "these incarnations were followed by others already")
	}
	e.releaseSessions(func(s *Session) bool { return s.Holder.Node != NoNode && !e.m.Intact(s.Holder) })
	e.settleAll(c.Leased, func(id NodeID) bool { return slices.Contains(over, id) })
	return nil
}

// inService says that members got their first lease.
func (e *edit) inService(c *InService) *Error {
	known, back := false, false
	for _, b := range c.Members {
		if !e.m.Intact(b) {
			continue
		}
		known = true
		n := e.m.Nodes[b.Node]
		if n.Up {
			continue
		}
		n = e.node(b.Node)
		n.Up, n.Since = true, e.now
		e.nodesMoved = true
		if n.Out && !n.Draining { // it was given up after a while; drained nodes stay out until somebody says otherwise
			n.Out, back = false, true
		}
	}
	if !known {
		return refuse(Stale, "these incarnations have ended")
	}
	if back {
		e.retarget()
	}
	e.settleAll(c.Leased, func(NodeID) bool { return false })
	return nil
}

// nodeOut gives a node's groups to others, takes that back, drains or removes it.
func (e *edit) nodeOut(c *NodeOut) *Error {
	n := e.m.Node(c.Node)
	if n == nil || n.Removed {
		return refuse(Missing, "no node %d", c.Node)
	}
	if c.Remove {
		return e.removeNode(n.ID)
	}
	if c.IfDown && n.Up {
		return refuse(Busy, "node %d is in service again", n.ID)
	}
	out := c.Out || c.Drain
	if n.Out == out && n.Draining == c.Drain {
		return nil
	}
	if out && e.storesAlone(n.ID) {
		return refuse(Busy, "node %d is the only one that stores: add another first", n.ID)
	}
	n = e.node(n.ID)
	n.Out, n.Draining = out, c.Drain
	e.retarget()
	return nil
}

func (e *edit) storesAlone(id NodeID) bool {
	return e.m.Formatted() && !slices.ContainsFunc(e.m.Nodes, func(n *Node) bool { return n.ID != id && n.stores() })
}

// removeNode forgets a node for ever. One that is still alive and needed is drained first.
func (e *edit) removeNode(id NodeID) *Error {
	var in, alone int
	for _, g := range e.m.Groups {
		if slices.ContainsFunc(g.InSync, func(b Member) bool { return b.Node == id }) {
			in++
			if len(g.InSync) == 1 {
				alone++
			}
		}
	}
	n := e.m.Nodes[id]
	switch {
	case alone > 0:
		return refuse(Busy, "node %d holds the only current copy of %d groups: bring it back, or `sheep cluster recover force` gives them up", id, alone)
	case in > 0 && !n.Ended:
		return refuse(Busy, "node %d is still in sync for %d groups: `sheep node drain %d` first", id, in, id)
	}
	if n.Up {
		e.nodesMoved = true
	}
	n = e.node(id)
	n.Up, n.Out, n.Removed, n.Ended, n.Since = false, true, true, true, e.now
	e.releaseSessions(func(s *Session) bool { return s.Holder.Node == id })
	for i, g := range e.m.Groups {
		if !slices.ContainsFunc(g.InSync, func(b Member) bool { return b.Node == id }) {
			continue
		}
		g = e.group(i)
		g.InSync = slices.DeleteFunc(slices.Clone(g.InSync), func(b Member) bool { return b.Node == id })
		g.Back = slices.DeleteFunc(slices.Clone(g.Back), func(b Member) bool { return b.Node == id })
		if len(g.Back) == 0 {
			g.Back = nil
		}
	}
	e.retarget()
	return nil
}
