package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/vdi"
)

// A client that comes while the node takes its place in the cluster waits for so long.
const openWaitMax = 15 * time.Second

// gateway is a node's NBD backend. NBD clients may connect before the node belongs to a cluster: they find no exports then. Once the node
// has its number in the map, a cluster client of it serves them; until then clients of a cluster that is there wait.
type gateway struct {
	node    *node.Node
	options *nodeOptions
	log     *slog.Logger
	ready   atomic.Pointer[served]
	opened  chan struct{} // closed when ready is set
}

// served is what there is once the node is part of a cluster.
type served struct {
	client  *client.Client
	backend *vdi.Backend
}

func newGateway(n *node.Node, o *nodeOptions, log *slog.Logger) *gateway {
	return &gateway{node: n, options: o, log: log, opened: make(chan struct{})}
}

// open makes the client, once the node has a number.
func (g *gateway) open() {
	cfg := client.Config{Maps: nodeMaps{g.node}, Net: g.node.Net(), Propose: g.node.Propose, Latest: g.node.Latest, Local: g.node.Engine(), LocalNode: g.node.Self().Node,
		Owner: g.node.Addr(), Logger: g.log}
	if g.options.small {
		cfg.RetainBytesMax = 16 << 20
	}
	c, err := client.New(cfg)
	if err != nil {
		g.log.Error("NBD clients cannot be served", "err", err)
		return
	}
	g.ready.Store(&served{c, vdi.NewBackend(c, vdi.BackendOptions{})})
	close(g.opened)
}

func (g *gateway) close() {
	if s := g.ready.Load(); s != nil {
		s.client.Close()
	}
}

// List implements nbd.Backend.
func (g *gateway) List(ctx context.Context) ([]nbd.ExportInfo, error) {
	if s := g.ready.Load(); s != nil {
		return s.backend.List(ctx)
	}
	return nil, nil
}

// Info implements nbd.Backend.
func (g *gateway) Info(ctx context.Context, name string) (nbd.ExportInfo, error) {
	s, err := g.formatted(ctx, name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	return s.backend.Info(ctx, name)
}

// Open implements nbd.Backend.
func (g *gateway) Open(ctx context.Context, name string) (nbd.Device, nbd.ExportInfo, error) {
	s, err := g.formatted(ctx, name)
	if err != nil {
		return nil, nbd.ExportInfo{}, err
	}
	return s.backend.Open(ctx, name)
}

// formatted waits until there is something to serve, if there will be.
func (g *gateway) formatted(ctx context.Context, name string) (*served, error) {
	if g.node.Cluster() != "" {
		wait, cancel := context.WithTimeout(ctx, openWaitMax)
		defer cancel()
		select {
		case <-g.opened:
		case <-wait.Done():
			return nil, fmt.Errorf("open %s: this node is not back in its cluster yet: a majority of the nodes must be up", name)
		}
	}
	if s := g.ready.Load(); s != nil && g.node.Map().Formatted() {
		return s, nil
	}
	return nil, fmt.Errorf("open %s: %w", name, state.ErrUnformatted)
}

// nodeMaps lets a cluster client follow the node's own map.
type nodeMaps struct{ *node.Node }

func (m nodeMaps) Subscribe() (<-chan struct{}, func()) {
	sub := m.Node.Subscribe()
	return sub.C, sub.Cancel
}

// requestCounters count NBD requests by kind; nil where there is no such kind.
type requestCounters []*admin.Latency

func newRequestCounters() requestCounters {
	c := make(requestCounters, 16)
	for _, op := range []nbd.Op{nbd.OpRead, nbd.OpWrite, nbd.OpFlush, nbd.OpTrim, nbd.OpWriteZeroes, nbd.OpCache, nbd.OpBlockStatus} {
		c[op] = admin.NewLatency(op.String())
	}
	return c
}

func (c requestCounters) all() admin.Latencies {
	return slices.DeleteFunc(admin.Latencies(slices.Clone(c)), func(l *admin.Latency) bool { return l == nil })
}

func (c requestCounters) observe(op nbd.Op, length uint64, took time.Duration, code uint32) {
	if int(op) < len(c) && c[op] != nil {
		c[op].Observe(length, took, code != 0)
	}
}
