package state

import "slices"

// disksMax bounds what one node may have.
const disksMax = 256

// setDisks takes a node's word on which disks it stores. What lies on which is its own affair.
func (e *edit) setDisks(c *Disks) *Error {
	n := e.m.Node(c.By.Node)
	if n == nil || !e.m.Intact(c.By) {
		return refuse(Stale, "incarnation %x of node %d is over", c.By.Inc, c.By.Node)
	}
	if err := e.checkDisks(n, c.Disks); err != nil {
		return err
	}
	n = e.node(n.ID)
	n.Disks, n.Disk = slices.Clone(c.Disks), 0
	for _, d := range c.Disks {
		n.Disk += d.Bytes
	}
	return nil
}

// checkDisks refuses disks that are named twice, or that another node has. n is whose they are; nil: a new node's.
func (e *edit) checkDisks(n *Node, disks []Disk) *Error {
	if len(disks) > disksMax {
		return refuse(Invalid, "%d disks, a node has at most %d", len(disks), disksMax)
	}
	for i, d := range disks {
		if d.UUID == "" || len(d.UUID) > wordBytesMax || d.Bytes > countMax/disksMax {
			return refuse(Invalid, "disk %d has the identity %.40q and %d bytes", i, d.UUID, d.Bytes)
		}
		if holdsDisk(disks[:i], d.UUID) {
			return refuse(Invalid, "disk %s is named twice", d.UUID)
		}
		for _, o := range e.m.Nodes {
			if (n == nil || o.ID != n.ID) && !o.Removed && holdsDisk(o.Disks, d.UUID) {
				return refuse(Wrong, "disk %s is one of node %d's: a directory was copied, or moved while its node still counts on it", d.UUID, o.ID)
			}
		}
	}
	return nil
}

func holdsDisk(disks []Disk, uuid string) bool {
	return slices.ContainsFunc(disks, func(d Disk) bool { return d.UUID == uuid })
}
