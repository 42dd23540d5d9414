package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// drainTimeout bounds how long NBD clients are still served when the node stops: what is under way, and the last flush of disks they had open.
const drainTimeout = 10 * time.Second

// runningNode is a node with all that it serves: frames and raft (cluster/node), NBD by TCP and unix socket, the admin API.
type runningNode struct {
	options *nodeOptions
	node    *node.Node
	gateway *gateway
	nbd     nbdServers
	admin   *admin.Server
	log     *slog.Logger
	started time.Time

	told     chan struct{} // closed when the admin API says stop
	tellOnce sync.Once
	broken   chan error // a server that ended by itself
	serving  sync.WaitGroup
	settling sync.WaitGroup // what is done in the background
	unsettle context.CancelFunc
	stopOnce sync.Once
	stopErr  error
}

// startNode starts a node with all its servers. It returns when clients can connect; whatever is in the way (a port, a directory) is an error here.
func startNode(ctx context.Context, o *nodeOptions, log *slog.Logger) (*runningNode, error) {
	n := &runningNode{options: o, log: log, started: time.Now(), told: make(chan struct{}), broken: make(chan error, 4)}
	if err := o.checkBefore(ctx); err != nil {
		return nil, err
	}
	listeners, err := o.listenNBD(ctx) // first: a node that cannot serve its clients shall not join the cluster
	if err != nil {
		return nil, err
	}
	n.node, err = node.Start(o.config(log))
	if err != nil {
		closeAll(listeners)
		return nil, err
	}
	n.gateway = newGateway(n.node, o, log)
	requests := newRequestCounters()
	n.nbd, err = newNBDServers(o, o.nbdConfig(log, requests, n.node.Engine().Quiet), n.gateway)
	if err != nil {
		closeAll(listeners)
		return nil, errors.Join(err, n.node.Stop(ctx))
	}
	n.admin = admin.NewServer(&localNode{n}, log, append(n.nbd.metrics(), requests.all())...)
	n.serve(func() error { return n.admin.Serve(n.node.HTTP()) })
	for _, l := range listeners {
		n.serve(func() error { return n.nbd.behind(l).Serve(l) })
	}
	settle, cancel := context.WithCancel(context.Background())
	n.unsettle = cancel
	n.settling.Go(func() { n.revive(settle) })
	n.settling.Go(func() { n.paceScrub(settle) })
	n.settling.Go(func() {
		if err := n.checkAfter(settle); err != nil {
			n.broken <- err
		}
	})
	n.settling.Go(func() {
		if n.registered(settle) {
			n.gateway.open()
		}
	})
	log.Info("node started", "address", n.node.Addr(), "directories", o.dirs, "nbd", o.nbd, "socket", o.nbdSocket.Path, "uuid", n.node.UUID())
	return n, nil
}

// serve runs a server until it ends; if that is by itself, the node stops.
func (n *runningNode) serve(f func() error) {
	n.serving.Go(func() {
		if err := f(); err != nil {
			n.broken <- err
		}
	})
}

// wait returns when ctx ends or the admin API says so, or with an error when the node cannot go on.
func (n *runningNode) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-n.told:
		return nil
	case err := <-n.broken:
		return err
	case <-n.node.Done():
		return n.node.Err()
	}
}

// tell makes wait return.
func (n *runningNode) tell() { n.tellOnce.Do(func() { close(n.told) }) }

// stop ends everything in the order in which it depends on each other. It may be called more than once.
func (n *runningNode) stop(ctx context.Context) error {
	n.stopOnce.Do(func() {
		n.unsettle()
		n.settling.Wait()
		drain, cancel := context.WithTimeout(ctx, drainTimeout)
		defer cancel()
		if err := n.nbd.Shutdown(drain); err != nil {
			n.log.Warn("not every NBD client could be served to the end", "err", err)
		}
		n.gateway.close()
		n.admin.Shutdown(drain)
		n.stopErr = n.node.Stop(ctx)
		n.serving.Wait()
		n.log.Info("node stopped", "address", n.node.Addr())
	})
	return n.stopErr
}

// rootCause is the errno in what package net says at length.
func rootCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// config is what cluster/node is told.
func (o *nodeOptions) config(log *slog.Logger) node.Config {
	cfg := node.Config{Dirs: o.dirs, Listen: o.listen, Advertise: o.advertise, GossipPort: o.gossipPort, Join: o.join, Zone: o.zone, VNodes: o.vnodes,
		NBD: o.nbd, Logger: log}
	cfg.Store.HangTimeout = o.disk
	if o.small {
		cfg.Store = objstore.Config{HangTimeout: o.disk, SegmentBytes: 8 << 20, JournalBytesMax: 256 << 20, CheckpointBytes: 64 << 20, TableCacheBytes: 64 << 20,
			OpenFilesMax: 256, ReserveBytes: 8 << 20, DirtyBytesMax: 32 << 20}
		return cfg
	}
	if exe, err := os.Executable(); err == nil {
		cfg.Guardian = []string{exe, guardianName}
	}
	return cfg
}

// nbdConfig is what package nbd is told.
func (o *nodeOptions) nbdConfig(log *slog.Logger, requests requestCounters, quiet func() bool) nbd.Config {
	cfg := nbd.Config{Logger: log, Observe: requests.observe, Quiet: quiet, QuietDrain: true}
	if o.small {
		cfg.MaxBytes = 256 << 20
	}
	return cfg
}
