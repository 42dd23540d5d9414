package node

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// movesPeriod is how often disks are looked at: whether one failed, whether groups are to be moved.
const movesPeriod = 500 * time.Millisecond

// moveGroups sees to it that groups are on the disks where they shall be, and notices disks that fail.
func (n *Node) moveGroups() {
	t := time.NewTicker(movesPeriod)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-n.stores.wake:
		case <-n.ctx.Done():
			return
		}
		if n.Self().Node == state.NoNode || !n.Map().Formatted() {
			continue
		}
		for _, d := range n.stores.disks() {
			switch {
			case d.State == DiskFailed:
			case d.store.Err() != nil:
				n.diskFailed(d)
			case d.State == DiskRemoving:
				n.empty(d)
			case d.State == DiskFilling:
				n.fill(d)
			}
		}
		n.leaveIfNoDisk()
	}
}

// diskFailed makes it durable that a disk is not to be trusted any more, also after a restart.
func (n *Node) diskFailed(d *disk) {
	if n.ctx.Err() != nil {
		return
	}
	s := n.stores
	s.opMu.Lock()
	defer s.opMu.Unlock()
	if !slices.Contains(s.disks(), d) {
		return
	}
	now := *d
	now.State, now.Why = DiskFailed, d.store.Err().Error()
	if err := s.note(&now); err != nil {
		n.log.Error("remember that a disk failed", "dir", d.Dir, "err", err)
		return
	}
	s.replace(d, &now)
	n.log.Error("a disk has failed: its groups go elsewhere, the node's others go on; replace it, then `sheep node disk remove` and `add`",
		"dir", d.Dir, "disk", d.UUID, "why", now.Why)
}

// leaveIfNoDisk gives the node's groups to others when none of its disks works: the node stays, votes and exports.
func (n *Node) leaveIfNoDisk() {
	disks := n.stores.disks()
	if len(disks) == 0 || n.stores.gateway {
		return
	}
	for _, d := range disks {
		if d.State != DiskFailed {
			return
		}
	}
	me := n.Map().Node(n.Self().Node)
	if me == nil || me.Out {
		return
	}
	n.log.Error("no disk of this node works: its groups go to other nodes")
	res, err := n.Propose(n.ctx, &state.Command{ID: consensus.NewID(), Time: time.Now(), NodeOut: &state.NodeOut{Node: me.ID, Out: true}})
	if err == nil {
		err = res.Err()
	}
	if err != nil {
		n.log.Warn("give this node's groups to others", "err", err)
	}
}

// empty moves a disk's groups to the others; when none is left, the disk is let go.
func (n *Node) empty(d *disk) {
	s := n.stores
	stuck := ""
	if err := n.moveAll(n.engine.GroupsOn(d.store), d, func(id state.GroupID) *disk { return chooseHome(s.disks(), id) }); err != nil {
		stuck = err.Error()
	}
	if n.ctx.Err() != nil || d.store.Err() != nil {
		return
	}
	s.opMu.Lock()
	defer s.opMu.Unlock()
	d = s.noteStuck(d, stuck)
	if len(n.engine.GroupsOn(d.store)) > 0 {
		return
	}
	if err := n.letGo(d); err != nil {
		n.log.Error("let a disk go", "dir", d.Dir, "err", err)
	}
}

// noteStuck shows why a disk's groups do not move; "": they do. opMu is held.
func (s *stores) noteStuck(d *disk, why string) *disk {
	if why == d.stuck {
		return d
	}
	now := *d
	now.stuck = why
	s.replace(d, &now)
	if why != "" {
		s.log.Info("not all groups move yet that shall move to or from a disk", "dir", d.Dir, "why", why)
	}
	return &now
}

// fill moves a new disk's share to it.
func (n *Node) fill(d *disk) {
	s := n.stores
	var list []state.GroupID
	for _, o := range s.disks() {
		if o == d || !o.usable() {
			continue
		}
		for _, id := range n.engine.GroupsOn(o.store) {
			if chooseHome(s.disks(), id) == d {
				list = append(list, id)
			}
		}
	}
	if err := n.moveAll(list, d, func(state.GroupID) *disk { return d }); err != nil {
		s.opMu.Lock()
		s.noteStuck(d, err.Error())
		s.opMu.Unlock()
		return
	}
	if n.ctx.Err() != nil || d.store.Err() != nil {
		return
	}
	s.opMu.Lock()
	defer s.opMu.Unlock()
	if !slices.Contains(s.disks(), d) { // it is to be removed again
		return
	}
	now := *d
	now.State, now.stuck = DiskInUse, ""
	if err := s.note(&now); err != nil {
		n.log.Error("remember that a disk has its share", "dir", d.Dir, "err", err)
		return
	}
	s.replace(d, &now)
	n.log.Info("a new disk has its share of the groups", "dir", d.Dir, "groups", len(n.engine.GroupsOn(d.store)))
}

// movesMax is how many groups move at once: they share the disks' syncs.
const movesMax = 32

// moveAll moves groups, some at a time, until all are where they shall be or about, the disk that this is for, has changed. The error is one of those met.
func (n *Node) moveAll(list []state.GroupID, about *disk, to func(state.GroupID) *disk) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	next := 0
	for range movesMax {
		wg.Go(func() {
			for {
				mu.Lock()
				if next == len(list) || n.ctx.Err() != nil || about.store.Err() != nil || !slices.Contains(n.stores.disks(), about) {
					mu.Unlock()
					return
				}
				id := list[next]
				next++
				mu.Unlock()
				err := error(ErrLastDisk)
				if d := to(id); d != nil {
					err = n.move(id, d)
				}
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// move moves one group. What cannot be moved now is tried again.
func (n *Node) move(id state.GroupID, to *disk) error {
	if sp := to.store.Space(); sp.NearFull {
		return errors.New("disk " + to.Dir + " is nearly full")
	}
	err := n.engine.Move(n.ctx, id, to.store, func() { n.stores.homes.Store(id, to.store) })
	if errors.Is(err, replica.ErrBusy) {
		n.log.Debug("a group cannot be moved now", "group", id, "err", err)
	}
	return err
}
