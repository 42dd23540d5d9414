package node

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	joinTimeout   = time.Second
	formatTimeout = 10 * time.Second // for the nodes that are there to come in
	formatPeriod  = 20 * time.Millisecond
)

// errRefused is a member's word that this node may not join.
var errRefused = errors.New("refused")

// meetCluster joins the cluster that a blank node meets by gossip.
func (n *Node) meetCluster() {
	for _, m := range n.gossip.Met() {
		if m.Cluster != "" {
			if err := n.adopt(m.Cluster); err != nil {
				n.log.Info("join the cluster met", "node", m.Addr, "cluster", m.Cluster, "err", err)
			}
			return
		}
	}
}

// adopt makes this node one of a cluster, durably. It is refused if it belongs to another.
func (n *Node) adopt(cluster string) error {
	n.joinMu.Lock()
	defer n.joinMu.Unlock()
	switch own := n.clusterID(); {
	case cluster == "" || len(cluster) > 64:
		return fmt.Errorf("%q names no cluster", cluster)
	case own == cluster:
		return nil
	case own != "":
		return fmt.Errorf("this node belongs to cluster %s", own)
	}
	if _, err := n.stores.check(cluster); err != nil {
		return err
	}
	if err := n.dir.change(func(id *identity) { id.Cluster = cluster }); err != nil {
		return err
	}
	n.setCluster(cluster)
	n.wakeLive()
	n.spawn(func() { n.gossip.Update(n.meta(cluster)) })
	return nil
}

// admission asks members to let this node in, while no leader has been heard of. A refusal that lasts is final.
func (n *Node) admission(refusedSince *time.Time) error {
	if uuid, _ := n.cons.Leader(); uuid != "" {
		*refusedSince = time.Time{}
		return nil
	}
	err := n.askToJoin()
	if r := n.refused.Load(); err == nil && r != nil && len(n.sameCluster()) == 0 {
		err = fmt.Errorf("%w: directory %s belongs to cluster %s; %s", errRefused, n.dir.path, n.clusterID(), *r)
	}
	if !errors.Is(err, errRefused) {
		*refusedSince = time.Time{}
		return nil
	}
	if refusedSince.IsZero() {
		*refusedSince = time.Now()
	}
	if time.Since(*refusedSince) < refusalMax {
		return nil
	}
	return fmt.Errorf("this node cannot join: %w", err)
}

// sameCluster is who of this cluster is met by gossip.
func (n *Node) sameCluster() (list []gossip.Meta) {
	for _, m := range n.gossip.Met() {
		if m.Cluster == n.clusterID() {
			list = append(list, m)
		}
	}
	return list
}

// askToJoin asks members one after the other until one has passed it to the leader.
func (n *Node) askToJoin() (last error) {
	w := wire.Who{UUID: n.UUID(), Addr: n.addr, Cluster: n.clusterID()}
	for _, m := range n.sameCluster() {
		ctx, cancel := context.WithTimeout(n.ctx, joinTimeout)
		h, meta, err := n.peers.Do(ctx, m.Addr, wire.Header{Kind: wire.KindJoin}, w.Append(nil))
		cancel()
		switch {
		case err != nil:
			last = err
		case h.Status == wire.StatusInvalid:
			return fmt.Errorf("%w by %s: %s", errRefused, m.Addr, meta)
		case h.Status == wire.StatusOK:
			return nil
		default:
			last = fmt.Errorf("%s: %s", m.Addr, h.Status)
		}
	}
	return last
}

// Format makes a cluster of this node and of all blank nodes that gossip knows. It returns once the cluster is formatted, as far as this
// node knows, or refused.
func (n *Node) Format(ctx context.Context, copies, minCopies, pgs int, force bool) error {
	if !n.formatMu.TryLock() {
		return fmt.Errorf("this node is formatting already: %w", syscall.EBUSY)
	}
	defer n.formatMu.Unlock()
	if n.Map().Formatted() {
		if force {
			return fmt.Errorf("formatting again is not supported: stop all nodes and empty their directories")
		}
		return &state.Error{Code: state.Formatted, Text: "the cluster is formatted already"}
	}
	if n.clusterID() == "" || n.cons.Blank() && len(n.sameCluster()) == 0 { // the latter: it was interrupted in between
		if err := n.found(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*formatTimeout)
	defer cancel()
	if err := n.gather(ctx); err != nil {
		return err
	}
	res, err := n.Propose(ctx, &state.Command{Time: time.Now(), Format: &state.Format{
		Cluster: n.clusterID(), Copies: copies, MinCopies: minCopies, PGs: pgs}})
	if err != nil {
		return err
	}
	return res.Err()
}

// found begins a new cluster with this node alone.
func (n *Node) found() error {
	if n.clusterID() == "" {
		if err := n.adopt(newUUID()); err != nil {
			return err
		}
	}
	return n.cons.Bootstrap()
}

// gather invites every blank node that gossip knows and waits for all to be in service.
func (n *Node) gather(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, formatTimeout)
	defer cancel()
	cluster := n.clusterID()
	invited := map[string]bool{}
	for wait.Err() == nil {
		for _, m := range n.gossip.Met() {
			if m.Cluster == "" && !invited[m.UUID] {
				invited[m.UUID] = n.invite(wait, m, cluster)
			}
		}
		if n.allIn() {
			return nil
		}
		if err := n.Err(); err != nil {
			return fmt.Errorf("format: this node cannot go on: %w", err)
		}
		sleep(wait, formatPeriod)
	}
	if n.Self().Node == state.NoNode {
		return fmt.Errorf("format: this node is not registered after %s: no majority of raft's voters answers", formatTimeout)
	}
	n.log.Warn("format: not every node that gossip knows has come in: going on without")
	return nil
}

func (n *Node) invite(ctx context.Context, m gossip.Meta, cluster string) bool {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	w := wire.Who{UUID: n.UUID(), Addr: n.addr, Cluster: cluster}
	h, meta, err := n.peers.Do(ctx, m.Addr, wire.Header{Kind: wire.KindJoin, Flags: wire.FlagInvite}, w.Append(nil))
	if err != nil || h.Status != wire.StatusOK {
		n.log.Info("invite to the cluster", "node", m.Addr, "status", h.Status, "answer", string(meta), "err", err)
		return false
	}
	return true
}

// allIn says whether this node and all others met are in service.
func (n *Node) allIn() bool {
	m := n.Map()
	if !m.InService(n.Self()) {
		return false
	}
	for _, g := range n.gossip.Met() {
		if x := m.NodeByUUID(g.UUID); x == nil || !x.Up {
			return false
		}
	}
	return true
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
