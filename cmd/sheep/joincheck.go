package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
)

const (
	joinCheckFor   = time.Minute // how long after the start a node that --join names is asked whose it is
	joinCheckEvery = time.Second
	joinCheckWait  = 3 * time.Second // for one answer
)

// checkJoin finds out whether somebody started a directory of one cluster with --join to another. Gossip would keep the two apart, and the node would go on with
// its old cluster, which is not what that person wanted. It returns nil when all who were named have answered well, or after a while.
func (n *runningNode) checkJoin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinCheckFor)
	defer cancel()
	_, port, _ := net.SplitHostPort(n.options.listen) // --join names gossip ports; nodes of a cluster share the other ports by habit
	left := map[string]bool{}
	for _, j := range n.options.join {
		host := j
		if h, _, err := net.SplitHostPort(j); err == nil {
			host = h
		}
		if addr := net.JoinHostPort(host, port); addr != n.node.Addr() {
			left[addr] = true
		}
	}
	tick := time.NewTicker(joinCheckEvery)
	defer tick.Stop()
	for len(left) > 0 {
		for addr := range left {
			theirs, ok := clusterAt(ctx, addr)
			if !ok {
				continue
			}
			if ours := n.node.Cluster(); ours != "" && ours != theirs {
				return fmt.Errorf("directory %s belongs to cluster %s, but %s, which --join names, to cluster %s: use another directory, or other nodes",
					n.options.dirs[0], ours, addr, theirs)
			}
			delete(left, addr)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// clusterAt asks a node which cluster it belongs to; not ok if it does not answer or belongs to none.
func clusterAt(ctx context.Context, addr string) (cluster string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, joinCheckWait)
	defer cancel()
	c := admin.NewClient(addr)
	defer c.Close()
	st, err := c.Status(ctx)
	return st.Cluster, err == nil && st.Cluster != ""
}
