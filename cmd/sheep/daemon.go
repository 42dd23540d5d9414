package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/certs"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/unixsock"
	"github.com/sheepdog-go/sheepdog/nbd"
)

const (
	defaultDir        = "/var/lib/sheepdog"
	defaultGossipPort = 7946
	defaultNBD        = "127.0.0.1:10809"
	off               = "off"

	// stopTimeout bounds a clean stop: handing primaries over, answering clients, a last checkpoint.
	stopTimeout = 30 * time.Second

	diskTimeout    = 20 * time.Second
	diskTimeoutMin = time.Second // a disk that sleeps, or writes much at once, may take as long
)

func (s *shell) daemonCommand() *cli.Command {
	return &cli.Command{Name: "daemon", Usage: "run a node", ArgsUsage: "[DIR[,DIR...]]", Action: s.daemon, Flags: append([]cli.Flag{
		&cli.StringFlag{Name: "listen", Value: "127.0.0.1:7000", Usage: "`HOST:PORT` for nodes and for administration"},
		&cli.StringFlag{Name: "advertise", Usage: "the `HOST` that others shall use (default: that of --listen)"},
		&cli.IntFlag{Name: "gossip-port", Value: defaultGossipPort, Usage: "TCP and UDP `PORT` on the same host by which nodes find each other"},
		&cli.StringFlag{Name: "join", Usage: "any nodes of the cluster: `HOST[:PORT],...`; the port is their gossip port"},
		&cli.StringFlag{Name: "nbd", Value: defaultNBD, Usage: "`HOST:PORT` for NBD clients, or off"},
		&cli.StringFlag{Name: "nbd-socket", Usage: "unix socket `PATH` for NBD clients, or off (default: DIR/nbd.sock)"},
		&cli.StringFlag{Name: "zone", Usage: "`NAME` of what fails together, a rack or a room: copies go to different zones (default: each node is one)"},
		&cli.DurationFlag{Name: "disk-timeout", Value: diskTimeout, Usage: "a disk that does not answer a call for this `TIME` has failed, unless it is the node's last"},
		&cli.IntFlag{Name: "vnodes", Value: 64, Usage: "weight: its share of the data; 0: a gateway, which votes and exports and stores nothing"},
	}, slices.Concat(unixsock.Flags("nbd-"), certs.Flags("nbd-"), logFlags("info"))...)}
}

// nodeOptions is what the command line says of a node.
type nodeOptions struct {
	dirs       []string // one per disk; the first is the node's own
	listen     string   // host:port
	advertise  string   // host
	gossipPort int
	join       []string
	nbd        string         // host:port; "": off
	nbdSocket  nbd.UnixSocket // no path: off
	zone       string
	vnodes     int
	disk       time.Duration   // after which a disk hangs; 0: the store's default
	security   *certs.Security // of NBD by TCP
	small      bool            // one of several in a process, on a laptop: little memory, small journals
}

// daemonOptions checks the flags.
func daemonOptions(c *cli.Context) (*nodeOptions, error) {
	if err := arguments(c, "[DIR[,DIR...]]"); err != nil {
		return nil, err
	}
	o := &nodeOptions{advertise: c.String("advertise"), gossipPort: c.Int("gossip-port"), zone: c.String("zone"), vnodes: c.Int("vnodes"),
		disk: c.Duration("disk-timeout")}
	dirs := defaultDir
	if c.NArg() == 1 {
		dirs = c.Args().First()
	}
	for dir := range strings.SplitSeq(dirs, ",") {
		if dir == "" {
			return nil, usagef("sheep daemon: a directory's name is empty")
		}
		o.dirs = append(o.dirs, dir)
	}
	var err error
	if o.listen, err = listenAddress(c.String("listen"), strconv.Itoa(defaultPort)); err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(o.listen)
	if ip := net.ParseIP(host); o.advertise == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
		return nil, usagef("sheep daemon: --listen %s is every address of this machine: say with --advertise by which one others shall find it", o.listen)
	}
	if o.gossipPort < 1 || o.gossipPort > 65535 {
		return nil, usagef("Invalid --gossip-port %d: use 1 to 65535", o.gossipPort)
	}
	if o.vnodes < 0 || o.vnodes > 1<<16 {
		return nil, usagef("Invalid --vnodes %d: use 0 to 65536", o.vnodes)
	}
	if o.disk < diskTimeoutMin || o.disk > time.Hour {
		return nil, usagef("Invalid --disk-timeout %v: use 1s to 1h", o.disk)
	}
	for word := range strings.SplitSeq(c.String("join"), ",") {
		if word = strings.TrimSpace(word); word != "" {
			o.join = append(o.join, word)
		}
	}
	if address := c.String("nbd"); address != off {
		if o.nbd, err = listenAddress(address, "10809"); err != nil {
			return nil, err
		}
	}
	if o.security, err = nbdSecurity(c); err != nil {
		return nil, err
	}
	if o.nbd != "" {
		if err := o.security.Check(c.Context, o.nbd); err != nil {
			return nil, usageError(err)
		}
	}
	socket := c.String("nbd-socket")
	switch socket {
	case off:
		socket = ""
	case "":
		socket = filepath.Join(o.dirs[0], "nbd.sock")
	}
	if o.nbdSocket, err = unixsock.FromFlags(c, "nbd-", socket); err != nil {
		return nil, usageError(err)
	}
	return o, nil
}

// nbdSecurity reads the flags about TLS.
func nbdSecurity(c *cli.Context) (*certs.Security, error) {
	s, err := certs.FromFlags(c, "nbd-")
	if errors.Is(err, certs.ErrUsage) {
		return nil, usageError(err)
	}
	return s, err
}

func usageError(err error) error { return usagef("%v", err) }

// listenAddress completes HOST to HOST:PORT.
func listenAddress(text, port string) (string, error) {
	host, p, err := net.SplitHostPort(text)
	if err != nil {
		host, p = strings.Trim(text, "[]"), port
	}
	n, err := strconv.Atoi(p)
	if err != nil || n < 1 || n > 65535 || strings.ContainsAny(host, " /") {
		return "", usagef("Invalid address '%s': use HOST:PORT", text)
	}
	return net.JoinHostPort(host, p), nil
}

// daemon runs a node until it is told to stop.
func (s *shell) daemon(c *cli.Context) error {
	o, err := daemonOptions(c)
	if err != nil {
		return err
	}
	log, err := logger(c, s.err)
	if err != nil {
		return err
	}
	n, err := startNode(c.Context, o, log)
	if err != nil {
		return &coded{exitFailed, fmt.Sprintf("Failed to start the node: %v", err)}
	}
	notifySystemd("READY=1")
	why := n.wait(c.Context)
	notifySystemd("STOPPING=1")
	go exitOnSecondSignal(func() {})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), stopTimeout)
	defer cancel()
	stopped := n.stop(ctx)
	if why != nil {
		return &coded{exitFailed, fmt.Sprintf("The node stopped: %v", why)}
	}
	if stopped != nil {
		return &coded{exitFailed, fmt.Sprintf("Failed to stop the node cleanly: %v", stopped)}
	}
	return nil
}
