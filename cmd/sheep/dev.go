package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/certs"
	"github.com/sheepdog-go/sheepdog/nbd"
)

const (
	devNodesMax = 64
	demoName    = "demo"
	demoBytes   = 1 << 30
	devPoll     = 20 * time.Millisecond
	devReady    = 60 * time.Second // for the nodes to find each other, format and lead
)

func (s *shell) devCommand() *cli.Command {
	return &cli.Command{Name: "dev", Usage: "run a whole cluster on this machine, to try it", Action: s.dev, Flags: append([]cli.Flag{
		&cli.IntFlag{Name: "nodes", Value: 3, Usage: "number of nodes; they listen on 127.0.0.1, 127.0.0.2, ..."},
		&cli.StringFlag{Name: "dir", Usage: "keep everything in `DIR`, and begin with what is there (default: a temporary directory)"},
		&cli.IntFlag{Name: "copies", Aliases: []string{"c"}, DefaultText: "3, or as many as there are nodes", Usage: "copies of everything"},
		&cli.IntFlag{Name: "port", Aliases: []string{"p"}, Value: defaultPort, Usage: "port of the nodes"},
		&cli.IntFlag{Name: "gossip-port", Value: defaultGossipPort, Usage: "port of their gossip"},
		&cli.IntFlag{Name: "nbd-port", Value: 10809, Usage: "port of their NBD servers"},
	}, logFlags("error")...)}
}

// devOptions is what the command line asks for.
type devOptions struct {
	nodes, copies             int
	dir                       string
	port, gossipPort, nbdPort int
}

func parseDev(c *cli.Context) (*devOptions, error) {
	if err := arguments(c); err != nil {
		return nil, err
	}
	o := &devOptions{nodes: c.Int("nodes"), copies: c.Int("copies"), dir: c.String("dir"), port: c.Int("port"), gossipPort: c.Int("gossip-port"), nbdPort: c.Int("nbd-port")}
	if o.nodes < 1 || o.nodes > devNodesMax {
		return nil, usagef("Invalid number of nodes %d: use 1 to %d", o.nodes, devNodesMax)
	}
	if !c.IsSet("copies") {
		o.copies = min(3, o.nodes)
	}
	if o.copies < 1 || o.copies > o.nodes {
		return nil, usagef("Invalid number of copies %d: use 1 to %d, the number of nodes", o.copies, o.nodes)
	}
	for _, p := range []int{o.port, o.gossipPort, o.nbdPort} {
		if p < 1 || p > 65535 {
			return nil, usagef("Invalid port %d: use 1 to 65535", p)
		}
	}
	return o, nil
}

// dev runs a cluster until it is told to stop.
func (s *shell) dev(c *cli.Context) error {
	o, err := parseDev(c)
	if err != nil {
		return err
	}
	log, err := logger(c, s.err)
	if err != nil {
		return err
	}
	keep := o.dir != ""
	if !keep {
		if o.dir, err = os.MkdirTemp("", "sheep-dev-"); err != nil {
			return systemf("make a temporary directory: %w", err)
		}
	}
	cleanup := func() {
		if !keep {
			os.RemoveAll(o.dir)
		}
	}
	defer cleanup()
	cluster, err := startDev(c.Context, o, log)
	if err == nil {
		s.welcome(o, keep)
		err = cluster.wait(c.Context)
		go exitOnSecondSignal(cleanup)
		if c.Context.Err() != nil {
			s.printf("\nStopping...\n")
			s.out.Flush()
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), stopTimeout)
	defer cancel()
	stopped := cluster.stop(ctx)
	if err == nil {
		err = stopped
	}
	if err != nil {
		return &coded{exitFailed, fmt.Sprintf("Failed to run the cluster: %v", err)}
	}
	return nil
}

// devCluster is the nodes of one process.
type devCluster struct {
	nodes []*runningNode
}

// startDev starts the nodes, formats the cluster if it is not, and makes the VDI to try. What was started is in the result, also with an error.
func startDev(ctx context.Context, o *devOptions, log *slog.Logger) (*devCluster, error) {
	cluster := &devCluster{}
	for i := range o.nodes {
		n, err := startNode(ctx, o.node(i), log.With("node", i))
		if err != nil {
			return cluster, err
		}
		cluster.nodes = append(cluster.nodes, n)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, devReady, errors.New("the nodes did not get ready in time"))
	defer cancel()
	client := admin.NewClient(net.JoinHostPort(devHost(0), strconv.Itoa(o.port)))
	defer client.Close()
	return cluster, prepareDev(ctx, client, o, cluster.nodes[0].node.Cluster() != "")
}

func devHost(i int) string { return fmt.Sprintf("127.0.0.%d", i+1) }

// node is the options of one of them.
func (o *devOptions) node(i int) *nodeOptions {
	dir := filepath.Join(o.dir, fmt.Sprintf("node%d", i+1))
	n := &nodeOptions{dirs: []string{dir}, listen: net.JoinHostPort(devHost(i), strconv.Itoa(o.port)), gossipPort: o.gossipPort,
		nbd: net.JoinHostPort(devHost(i), strconv.Itoa(o.nbdPort)), nbdSocket: nbd.UnixSocket{Path: filepath.Join(dir, "nbd.sock")}, vnodes: 64, small: true, security: new(certs.Security)}
	for other := range o.nodes {
		if other != i {
			n.join = append(n.join, devHost(other))
		}
	}
	return n
}

// prepareDev waits until the nodes have found each other, formats, waits until all groups are served, and makes the demo VDI. A cluster that is kept
// from an earlier time is only waited for.
func prepareDev(ctx context.Context, a *admin.Client, o *devOptions, kept bool) error {
	var st admin.Status
	if !kept {
		err := eventually(ctx, devPoll, func() (bool, error) {
			nodes, err := a.Nodes(ctx)
			return len(nodes) == o.nodes, err
		})
		if err != nil {
			return fmt.Errorf("wait for the nodes to find each other: %w", err)
		}
		if err := a.Format(ctx, admin.FormatRequest{Copies: o.copies}); err != nil {
			return fmt.Errorf("format: %w", err)
		}
	}
	err := eventually(ctx, devPoll, func() (_ bool, err error) {
		st, err = a.Status(ctx)
		return err == nil && (st.State == "running" || kept && st.State == "degraded"), err
	})
	if err != nil {
		return fmt.Errorf("wait until the cluster runs (%s): %w", st.Text, err)
	}
	if kept {
		return nil
	}
	_, err = propose(ctx, a, &state.Command{ID: rand.Text(), Time: time.Now(), CreateVDI: &state.CreateVDI{Name: demoName, Size: demoBytes}})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create the VDI %s: %w", demoName, err)
	}
	return nil
}

// eventually asks until it is so; a node that does not answer is asked again, too.
func eventually(ctx context.Context, every time.Duration, ask func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ok, err := ask()
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// wait returns when ctx ends or a node has stopped by itself, with why.
func (d *devCluster) wait(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := make(chan error, len(d.nodes))
	for _, n := range d.nodes {
		go func() { first <- n.wait(ctx) }()
	}
	return <-first
}

// stop stops all nodes at once: on purpose, so that all are in sync when they start again.
func (d *devCluster) stop(ctx context.Context) error {
	if len(d.nodes) > 0 {
		d.nodes[0].leaveTogether(ctx)
	}
	errs := make([]error, len(d.nodes))
	var wg sync.WaitGroup
	for i, n := range d.nodes {
		wg.Go(func() { errs[i] = n.stop(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// welcome prints what to try. Every line can be pasted into another terminal.
func (s *shell) welcome(o *devOptions, keep bool) {
	where := o.dir + " (gone after Ctrl-C; --dir keeps it)"
	if keep {
		where = o.dir
	}
	plural := "nodes"
	if o.nodes == 1 {
		plural = "node"
	}
	s.printf("A cluster of %d %s is running, %d copies of everything, in %s.\n", o.nodes, plural, o.copies, where)
	s.printf("Every node exports every VDI over NBD. Try, in another terminal:\n\n")
	sheep, at := s.ownName(), ""
	if o.port != defaultPort {
		at = fmt.Sprintf(" -p %d", o.port)
	}
	uri := func(i int, export string) string {
		host := devHost(min(i, o.nodes-1))
		if o.nbdPort != 10809 {
			host = net.JoinHostPort(host, strconv.Itoa(o.nbdPort))
		}
		return "nbd://" + host + export
	}
	for _, line := range []string{
		"qemu-img info " + uri(0, "/"+demoName),
		"nbdinfo --list " + uri(1, ""),
		sheep + " cluster info" + at,
		sheep + " node info" + at,
		sheep + " vdi list" + at,
		"nbdcopy " + uri(2, "/"+demoName) + " " + demoName + ".img",
		sheep + " vdi snapshot " + demoName + " -s empty" + at,
		sheep + " vdi tree" + at,
		sheep + " cluster check" + at,
	} {
		s.printf("    %s\n", line)
	}
	s.printf("\nCtrl-C stops it.\n")
	s.out.Flush()
}

// ownName is how this program is called from another terminal.
func (s *shell) ownName() string {
	exe, err := os.Executable()
	switch {
	case err != nil:
		return "sheep"
	case strings.Contains(exe, string(filepath.Separator)+"go-build"):
		return "go run ./cmd/sheep"
	case !strings.ContainsRune(os.Args[0], filepath.Separator):
		return filepath.Base(os.Args[0]) // found through PATH
	}
	return exe
}
