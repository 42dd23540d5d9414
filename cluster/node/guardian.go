package node

import (
	"slices"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// tellGuardian keeps the guardian informed: whose death to report, and whom to tell.
func (n *Node) tellGuardian() {
	sub := n.cons.Subscribe()
	defer sub.Cancel()
	var toldOf state.Member
	var told []string
	for {
		self, addrs := n.Self(), n.peerAddrs()
		if self.Node != state.NoNode && (self != toldOf || !slices.Equal(addrs, told)) {
			if err := n.guard.Tell(self, addrs); err != nil {
				n.log.Error("the guardian is gone: if this process is killed, it takes a lease's length until others notice", "err", err)
				return
			}
			toldOf, told = self, addrs
		}
		select {
		case <-sub.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// peerAddrs are the other nodes' addresses, those in service first.
func (n *Node) peerAddrs() []string {
	m, self := n.Map(), n.Self()
	var up, down []string
	for _, o := range m.Nodes {
		switch {
		case o.ID == self.Node || o.Removed:
		case o.Up:
			up = append(up, o.Addr)
		default:
			down = append(down, o.Addr)
		}
	}
	return append(up, down...)
}
