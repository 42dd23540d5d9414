package state

import (
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/planted"
)

// epochsMax bounds the history that `cluster info` shows.
const epochsMax = 200

// Apply makes the next Map out of a command. index is its place in raft's log and must rise. The receiver stays as it is. A command that is refused
// changes nothing but Index and Recent; the Result says why.
func (m *Map) Apply(index uint64, cmd *Command) (*Map, Result) {
	if index <= m.Index {
		return m, Result{Index: index, Code: Stale, Error: "this place in the log was applied before"}
	}
	if cmd == nil {
		cmd = &Command{}
	}
	if done, ok := m.Recent.find(cmd.ID); ok {
		next := *m
		next.Index = index
		return &next, done
	}
	e := &edit{old: m, index: index, now: normal(cmd.Time), res: Result{Index: index}}
	e.m = new(Map)
	*e.m = *m
	if err := e.run(cmd); err != nil {
		*e.m = *m
		e.res = Result{Index: index, Code: err.Code, Error: err.Text}
	} else {
		e.seal()
	}
	e.m.Index = index
	e.remember(cmd.ID)
	return e.m, e.res
}

// edit is a Map being made. Groups, nodes and VDIs that were there before are replaced by changed copies, never changed.
type edit struct {
	old, m *Map
	index  uint64
	now    time.Time
	res    Result

	ownGroups, ownNodes bool  // the slices are e.m's own already
	nodesMoved          bool  // who is in service changed: a new epoch
	raised              []int // groups whose term rises even if nothing else changed (R9)
	load                []int // primaries per node, made when first needed
}

func (e *edit) run(c *Command) *Error {
	if c.count() != 1 {
		return refuse(Invalid, "a command holds exactly one order, this one %d", c.count())
	}
	switch {
	case c.Format != nil:
		return e.format(c.Format)
	case c.Register != nil:
		return e.register(c.Register)
	case c.Ended != nil:
		return e.ended(c.Ended)
	case c.InService != nil:
		return e.inService(c.InService)
	case c.NodeOut != nil:
		return e.nodeOut(c.NodeOut)
	case c.Disks != nil:
		return e.setDisks(c.Disks)
	case c.Set != nil:
		return e.set(c.Set)
	case c.Shutdown != nil:
		return e.shutdown(c.Shutdown)
	}
	if !e.m.Formatted() {
		return refuse(Unformatted, textUnformatted)
	}
	switch {
	case c.Resume != nil:
		return e.resume(c.Resume)
	case c.Sync != nil:
		return e.syncChange(c.Sync)
	case c.Recovered != nil:
		return e.recovered(c.Recovered)
	case c.Force != nil:
		return e.force(c.Force)
	case c.AddPool != nil:
		return e.addPool(c.AddPool)
	case c.CreateVDI != nil:
		return e.createVDI(c.CreateVDI)
	case c.DeleteVDI != nil:
		return e.deleteVDI(c.DeleteVDI)
	case c.CloseVDI != nil:
		return e.closeVDI(c.CloseVDI)
	case c.FreezeVDI != nil:
		return e.freezeVDI(c.FreezeVDI)
	case c.AbortClose != nil:
		return e.abortClose(c.AbortClose)
	case c.CloneVDI != nil:
		return e.cloneVDI(c.CloneVDI)
	case c.Rollback != nil:
		return e.rollback(c.Rollback)
	case c.ResizeVDI != nil:
		return e.resizeVDI(c.ResizeVDI)
	case c.Collected != nil:
		return e.collected(c.Collected)
	case c.OpenSess != nil:
		return e.openSess(c.OpenSess)
	case c.CloseSess != nil:
		return e.closeSess(c.CloseSess)
	case c.Replayed != nil:
		return e.replayed(c.Replayed)
	case c.Unlock != nil:
		return e.unlock(c.Unlock)
	}
	panic("a command that Command.count knows and edit.run does not")
}

// count says how many orders a command holds.
func (c *Command) count() int {
	n := 0
	for _, set := range [...]bool{
		c.Format != nil, c.Register != nil, c.Ended != nil, c.InService != nil, c.Resume != nil, c.Sync != nil,
		c.Recovered != nil, c.NodeOut != nil, c.Disks != nil, c.Set != nil, c.Shutdown != nil, c.AddPool != nil, c.CreateVDI != nil,
		c.DeleteVDI != nil, c.CloseVDI != nil, c.FreezeVDI != nil, c.AbortClose != nil, c.CloneVDI != nil, c.Rollback != nil,
		c.ResizeVDI != nil, c.Collected != nil, c.OpenSess != nil, c.CloseSess != nil, c.Replayed != nil, c.Unlock != nil, c.Force != nil,
	} {
		if set {
			n++
		}
	}
	return n
}

// seal does what follows from every change alike: terms (R2) and the epoch.
func (e *edit) seal() {
	if e.ownGroups && len(e.old.Groups) <= len(e.m.Groups) && e.old.Cluster == e.m.Cluster {
		for i, was := range e.old.Groups {
			g := e.m.Groups[i]
			if g != was && (slices.Contains(e.raised, i) || g.Primary != was.Primary || !slices.Equal(g.InSync, was.InSync)) && !(planted.Broken("R2") && g.Resumes != was.Resumes) {
				g.Term = was.Term + 1
			}
			if g.Primary != was.Primary {
				g.Granted = g.Term
			}
		}
	}
	if e.nodesMoved && e.m.Formatted() {
		e.newEpoch()
	}
}

func (e *edit) newEpoch() {
	up := []NodeID{}
	for _, n := range e.m.Nodes {
		if n.Up {
			up = append(up, n.ID)
		}
	}
	e.m.Epoch++
	epochs := e.m.Epochs
	if len(epochs) >= epochsMax {
		epochs = epochs[len(epochs)-epochsMax+1:]
	}
	e.m.Epochs = append(slices.Clip(slices.Clone(epochs)), Epoch{Epoch: e.m.Epoch, Time: e.now, Nodes: up})
}

func (e *edit) remember(id string) {
	if id != "" {
		e.m.Recent = e.m.Recent.with(CommandResult{ID: id, At: e.now.UnixMilli(), Result: e.res})
	}
}

// group returns a copy of Groups[i] that may be changed (its slices may only be replaced).
func (e *edit) group(i int) *Group {
	if !e.ownGroups {
		e.m.Groups, e.ownGroups = slices.Clone(e.m.Groups), true
	}
	if g := e.m.Groups[i]; i >= len(e.old.Groups) || g != e.old.Groups[i] {
		return g
	}
	g := *e.m.Groups[i]
	e.m.Groups[i] = &g
	return &g
}

// node returns a copy of a node that may be changed.
func (e *edit) node(id NodeID) *Node {
	if !e.ownNodes {
		e.m.Nodes, e.ownNodes = slices.Clone(e.m.Nodes), true
	}
	if n := e.m.Nodes[id]; int(id) >= len(e.old.Nodes) || n != e.old.Nodes[id] {
		return n
	}
	n := *e.m.Nodes[id]
	e.m.Nodes[id] = &n
	return &n
}

// normal makes a time that looks the same before and after it was written down.
func normal(t time.Time) time.Time {
	t = t.UTC().Round(0)
	if y := t.Year(); y < 1 || y > 9998 { // outside of what JSON takes
		return time.Time{}
	}
	return t
}
