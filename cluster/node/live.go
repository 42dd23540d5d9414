package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

const (
	livePeriod = 100 * time.Millisecond
	// A refusal to be admitted, or a meeting with another cluster alone, that lasts this long is final.
	refusalMax = 3 * time.Second
	// One registration waits this long for an outcome before the state of things is looked at again.
	registerTimeout = 10 * time.Second
)

// live walks through the node's life: admission, registration, a new incarnation when this one has ended.
func (n *Node) live() {
	var refusedSince time.Time
	t := time.NewTicker(livePeriod)
	defer t.Stop()
	for {
		err := n.liveOnce(&refusedSince)
		if err != nil && n.ctx.Err() == nil {
			n.fail(err)
			return
		}
		select {
		case <-t.C:
		case <-n.liveWake:
		case <-n.ctx.Done():
			return
		}
	}
}

// liveOnce takes the next step; an error is final.
func (n *Node) liveOnce(refusedSince *time.Time) error {
	if n.leaving.Load() {
		return nil
	}
	if n.clusterID() == "" {
		n.meetCluster()
	}
	if n.clusterID() == "" {
		return nil
	}
	if n.Self().Node == state.NoNode {
		if err := n.stores.open(n.clusterID()); err != nil {
			return err
		}
		if final := n.admission(refusedSince); final != nil {
			return final
		}
		if uuid, _ := n.cons.Leader(); uuid == "" {
			return nil
		}
		return n.register()
	}
	if n.registering != nil { // whether it was agreed is not known: nothing of what the map says of this node can be judged before
		return n.register()
	}
	self, m := n.Self(), n.Map()
	me := m.Node(self.Node)
	switch {
	case me == nil || m.Index == 0:
	case me.Removed:
		return fmt.Errorf("this node (%d) was removed from the cluster: empty its directory to join anew", me.ID)
	case me.Inc != self.Inc && !n.knows(me.Inc):
		return fmt.Errorf("node %d was started on a copy of this directory: this one stops", me.ID)
	case me.Inc == self.Inc && me.Ended:
		n.log.Warn("this node was silent for too long and lost its place: taking a new incarnation", "node", me.ID, "incarnation", fmt.Sprintf("%x", self.Inc))
		n.holder.Drop()
		return n.register()
	}
	return n.noteFormatted(m)
}

// knows says whether an incarnation is this directory's.
func (n *Node) knows(inc uint64) bool {
	for _, i := range n.dir.get().Incarnations {
		if i == inc {
			return true
		}
	}
	return false
}

// noteFormatted makes it durable that this directory is part of a cluster that exists.
func (n *Node) noteFormatted(m *state.Map) error {
	if !m.Formatted() || n.dir.get().Formatted {
		return nil
	}
	return n.dir.change(func(id *identity) { id.Formatted = true })
}

// registration is one that has no outcome yet.
type registration struct {
	id  string // of the command: the same for every try, so that a repeat is harmless
	cmd state.Register
}

// register makes a new incarnation durable on every disk, then known (R5, STORE.md rule 21), and begins to ask for its lease. If the cluster gives no answer it is to be called again.
func (n *Node) register() error {
	if n.registering == nil {
		r, err := n.newRegistration()
		if err != nil {
			return err
		}
		n.registering = r
	}
	r := n.registering
	ctx, cancel := context.WithTimeout(n.ctx, registerTimeout)
	defer cancel()
	res, err := n.Propose(ctx, &state.Command{ID: r.id, Time: time.Now(), Register: &r.cmd})
	switch {
	case err != nil:
		n.log.Info("waiting for the cluster", "err", err)
		return nil
	case res.Code == state.Busy: // our former self may have a lease
		r.id = consensus.NewID()
		return nil
	case res.Code == state.Stale: // this incarnation ended before it began: another
		n.registering = nil
		return nil
	case res.Code != state.OK:
		return fmt.Errorf("the cluster refuses this node: %w", errors.New(res.Error))
	}
	n.registering = nil
	n.registered(state.Member{Node: res.Node, Inc: r.cmd.Inc})
	return nil
}

func (n *Node) newRegistration() (*registration, error) {
	known := n.dir.get()
	inc, err := n.stores.newIncarnation()
	if err != nil {
		return nil, err
	}
	r := state.Register{UUID: known.UUID, Addr: n.addr, Gossip: n.cfg.gossipAddr(), NBD: n.cfg.NBD, Zone: n.cfg.Zone, VNodes: n.cfg.VNodes,
		Disk: n.stores.bytes(), Disks: n.stores.registered(), Inc: inc, Boot: n.cfg.BootID, History: known.Incarnations}
	if k := len(known.Incarnations); k > 0 {
		r.PrevInc = known.Incarnations[k-1]
	}
	if known.Formatted {
		r.Cluster = known.Cluster
	}
	return &registration{id: consensus.NewID(), cmd: r}, nil
}

// registered begins to serve as m, as soon as it has a lease.
func (n *Node) registered(m state.Member) {
	n.log.Info("registered", "node", m.Node, "incarnation", fmt.Sprintf("%x", m.Inc))
	n.member.Store(&m)
	n.holder.Begin(m)
	n.use(n.Map())
	n.gossip.Update(n.meta(n.clusterID()))
}
