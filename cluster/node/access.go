package node

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// UUID is the node's identity.
func (n *Node) UUID() string { return n.dir.get().UUID }

// Addr is where others dial this node.
func (n *Node) Addr() string { return n.addr }

// Self is this node and its incarnation, as registered; Node is state.NoNode before that.
func (n *Node) Self() state.Member {
	if m := n.member.Load(); m != nil {
		return *m
	}
	return state.Member{Node: state.NoNode}
}

// Map is the agreed map as this node has applied it.
func (n *Node) Map() *state.Map { return n.cons.Map() }

// Subscribe follows the map.
func (n *Node) Subscribe() *consensus.Subscription { return n.cons.Subscribe() }

// WaitApplied waits until Map is at index or beyond.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	return n.cons.WaitApplied(ctx, index)
}

// Propose has the cluster decide on a command, and returns once this node's map shows the outcome.
func (n *Node) Propose(ctx context.Context, cmd *state.Command) (state.Result, error) {
	return n.cons.Propose(ctx, cmd)
}

// Engine is the replication engine: the wire.Submitter for clients in this process.
func (n *Node) Engine() *replica.Engine { return n.engine }

// Net is how this node reaches others.
func (n *Node) Net() wire.Network { return n.cfg.Net }

// HTTP is the listener of what reaches the node's port and is neither frames nor raft: the admin API's.
func (n *Node) HTTP() net.Listener { return n.http }

// Stores are the node's disks; none before it belongs to a cluster, or if it is a gateway.
func (n *Node) Stores() []*objstore.Store { return n.stores.all() }

// Disks are the node's disks, those that have failed among them.
func (n *Node) Disks() []DiskInfo { return n.stores.infos(n.engine) }

// Leased says whether this node may serve now.
func (n *Node) Leased() bool { return n.holder.Valid() }

// IsLeader says whether this node leads the cluster.
func (n *Node) IsLeader() bool { return n.cons.Leading() != 0 }

// LeaderAddr is the address of the node that leads; "": none is known.
func (n *Node) LeaderAddr() string {
	uuid, _ := n.cons.Leader()
	return n.cons.Addr(uuid)
}

// Latest is the index of the map that the cluster's leader has; an error if none is known or it does not answer.
func (n *Node) Latest(ctx context.Context) (index uint64, err error) {
	if n.IsLeader() {
		return n.Map().Index, nil
	}
	leader := n.LeaderAddr()
	if leader == "" {
		return 0, errors.New("no leader is known")
	}
	h, meta, err := n.peers.Do(ctx, leader, wire.Header{Kind: wire.KindWho}, nil)
	if err != nil {
		return 0, fmt.Errorf("ask the leader %s for its map's index: %w", leader, err)
	}
	var who wire.Who
	if h.Status != wire.StatusOK {
		return 0, fmt.Errorf("ask the leader %s for its map's index: %s: %s", leader, h.Status, meta)
	}
	if err := who.Parse(meta); err != nil {
		return 0, fmt.Errorf("the leader %s: %w", leader, err)
	}
	return who.Index, nil
}

// Voters are the uuids of the nodes that vote in raft.
func (n *Node) Voters() []string { return n.cons.Voters() }

// Cluster is the cluster that this node belongs to; "": none yet.
func (n *Node) Cluster() string { return n.clusterID() }

// Met is whom gossip knows, this node included.
func (n *Node) Met() []gossip.Meta {
	return append([]gossip.Meta{n.meta(n.clusterID())}, n.gossip.Met()...)
}
