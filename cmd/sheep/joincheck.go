package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
)

const (
	joinCheckBefore = time.Second
	joinCheckFor    = time.Minute // after the start
	joinCheckEvery  = time.Second
	joinCheckWait   = 3 * time.Second // for one answer
)

// A person may start a directory of one cluster with --join to another. Gossip would keep the two apart, and the node would go on with its old
// cluster, which is not what that person wanted. So who is named is asked whose they are: once before the node takes part in anything, and for a
// while after the start those who did not answer then.

// joinAddrs are the node ports of those whom --join names. It names gossip ports; nodes of a cluster share the other ports by habit.
func (o *nodeOptions) joinAddrs() map[string]bool {
	host, port, _ := net.SplitHostPort(o.listen)
	left := map[string]bool{}
	for _, j := range o.join {
		if h, _, err := net.SplitHostPort(j); err == nil {
			j = h
		}
		if j != host && j != o.advertise {
			left[net.JoinHostPort(j, port)] = true
		}
	}
	return left
}

// checkBefore asks once, before the node starts.
func (o *nodeOptions) checkBefore(ctx context.Context) error {
	ours := clusterOf(o.dirs[0])
	if ours == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, joinCheckBefore)
	defer cancel()
	return o.askWhose(ctx, ours, o.joinAddrs())
}

// checkAfter asks until all who were named have answered well, or for a while.
func (n *runningNode) checkAfter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinCheckFor)
	defer cancel()
	left := n.options.joinAddrs()
	tick := time.NewTicker(joinCheckEvery)
	defer tick.Stop()
	for len(left) > 0 {
		if ours := n.node.Cluster(); ours != "" {
			if err := n.options.askWhose(ctx, ours, left); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// askWhose asks those who are left, all at once, and takes out those who belong to our cluster. One that belongs to another is the error.
func (o *nodeOptions) askWhose(ctx context.Context, ours string, left map[string]bool) error {
	type answer struct{ addr, cluster string }
	answers := make(chan answer, len(left))
	for addr := range left {
		go func() { answers <- answer{addr, clusterAt(ctx, addr)} }()
	}
	for range len(left) {
		switch a := <-answers; a.cluster {
		case "":
		case ours:
			delete(left, a.addr)
		default:
			return fmt.Errorf("directory %s belongs to cluster %s, but %s, which --join names, to cluster %s: use another directory, or other nodes",
				o.dirs[0], ours, a.addr, a.cluster)
		}
	}
	return nil
}

// clusterAt asks a node which cluster it belongs to; "" if it does not answer or belongs to none.
func clusterAt(ctx context.Context, addr string) string {
	ctx, cancel := context.WithTimeout(ctx, joinCheckWait)
	defer cancel()
	c := admin.NewClient(addr)
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return ""
	}
	return st.Cluster
}

// clusterOf reads from a node's directory which cluster it belongs to; "" if to none, or if there is no reading it: cluster/node, whose file it is,
// will have its say.
func clusterOf(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "epoch", "node.json"))
	if err != nil {
		return ""
	}
	var id struct {
		Cluster string `json:"cluster"`
	}
	if json.Unmarshal(b, &id) != nil {
		return ""
	}
	return id.Cluster
}
