package main

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// reviveTry bounds one try to have the cluster agree; it is tried until the node stops.
const reviveTry = 10 * time.Second

// scrubPacing is how often the speed of scrubs is looked at.
const scrubPacing = time.Second

const leaveTry = 3 * time.Second

// revive takes the cluster out of a shutdown: `cluster shutdown` marks it as stopped on purpose, so that sets do not shrink while everybody leaves;
// the first node to be started again says that this is over. A node that was running when the mark was set must not.
func (n *runningNode) revive(ctx context.Context) {
	if !n.registered(ctx) {
		return
	}
	for n.node.Map().ShutDown && ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, reviveTry)
		_, err := n.node.Propose(try, &state.Command{ID: rand.Text(), Time: time.Now(), Shutdown: &state.Shutdown{Down: false}})
		cancel()
		if err == nil {
			n.log.Info("the cluster was shut down and goes on")
			return
		}
		n.log.Debug("end the cluster's shutdown", "err", err)
	}
}

// paceScrub has disks scrubbed as fast as clients and `cluster set` leave room for.
func (n *runningNode) paceScrub(ctx context.Context) {
	again := time.NewTicker(scrubPacing)
	defer again.Stop()
	for {
		if n.node.Map().Formatted() {
			rate := n.node.Engine().ScrubSpeed()
			for _, st := range n.node.Stores() {
				if st.Scrub().Rate != rate {
					st.SetScrubRate(rate)
				}
			}
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// registered waits until the node has its number in the map; false if ctx ended before.
func (n *runningNode) registered(ctx context.Context) bool {
	sub := n.node.Subscribe()
	defer sub.Cancel()
	again := time.NewTicker(50 * time.Millisecond) // the number comes a moment after the map that holds it
	defer again.Stop()
	for n.node.Self().Node == state.NoNode {
		select {
		case <-sub.C:
		case <-again.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// leaveTogether marks the cluster as shut down, if it can agree on that soon. Without the mark every node's stop looks like a loss to the others.
func (n *runningNode) leaveTogether(ctx context.Context) {
	if !n.node.Map().Formatted() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTry)
	defer cancel()
	_, err := n.node.Propose(ctx, &state.Command{ID: rand.Text(), Time: time.Now(), Shutdown: &state.Shutdown{Down: true}})
	if err != nil {
		n.log.Debug("shut the cluster down", "err", err)
	}
}
