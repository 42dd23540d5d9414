package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// campaignStagger keeps two voters that hear of the leader's death together from splitting the vote.
const campaignStagger = 150 * time.Millisecond

// sayExited has the leader end an incarnation, and returns once the map says so.
func (n *Node) sayExited(ctx context.Context, b state.Member, passedOn bool) error {
	last := error(consensus.ErrNoLeader)
	for {
		uuid, changed := n.cons.Leader()
		switch {
		case n.cons.Leading() != 0:
			return n.leader.Exited(ctx, n.cons, b)
		case passedOn:
			return consensus.ErrNoLeader
		case uuid != "" && n.isNode(uuid, b):
			n.campaign(ctx, uuid)
		case uuid != "" && uuid != n.UUID():
			e := wire.Exited{Node: uint32(b.Node), Inc: b.Inc}
			h, meta, err := n.peers.Do(ctx, n.cons.Addr(uuid), wire.Header{Kind: wire.KindExited, Flags: wire.FlagPassedOn}, e.Append(nil))
			if err == nil && h.Status == wire.StatusOK {
				return nil
			}
			if last = err; err == nil {
				last = fmt.Errorf("leader: %s: %s", h.Status, meta)
			}
		}
		select {
		case <-changed:
		case <-time.After(retryPause):
		case <-ctx.Done():
			return last
		}
	}
}

const retryPause = 20 * time.Millisecond

// isNode says whether b is an incarnation of the node with that uuid, and the newest.
func (n *Node) isNode(uuid string, b state.Member) bool {
	x := n.Map().NodeByUUID(uuid)
	return x != nil && x.ID == b.Node && x.Inc == b.Inc && b.Node != n.Self().Node
}

// campaign has this voter stand for election because the leader is gone: each in its turn, and only as long as nobody else was elected.
func (n *Node) campaign(ctx context.Context, gone string) {
	voters := n.cons.Voters()
	slices.Sort(voters)
	turn := 0
	for _, v := range voters {
		if v == n.UUID() {
			break
		}
		if v != gone {
			turn++
		}
	}
	if !slices.Contains(voters, n.UUID()) {
		return
	}
	_, changed := n.cons.Leader()
	select {
	case <-time.After(time.Duration(turn) * campaignStagger):
		if uuid, _ := n.cons.Leader(); uuid == gone || uuid == "" {
			n.log.Info("the leader is gone: standing for election")
			n.cons.Campaign()
		}
	case <-changed:
	case <-ctx.Done():
	}
}
