package node

import (
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/lease"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

const (
	defaultListen     = "127.0.0.1:7000"
	defaultGossipPort = 7946
)

// Config says what a node is. Zero means the default.
type Config struct {
	Dirs       []string // one per disk; the first holds the node's identity
	Listen     string   // host:port of the node's port (127.0.0.1:7000)
	Advertise  string   // host that others dial (Listen's)
	GossipPort int      // 7946, TCP and UDP, on Listen's host
	Join       []string // host or host:gossip-port of nodes to look for; tried for ever
	Zone       string   // "": a zone of its own
	VNodes     int      // weight; 0 makes a gateway, which stores nothing
	NBD        string   // host:port of its NBD server, for people
	Guardian   []string // command that runs guard.Main; empty: no guardian

	// A simulation's stand-ins; nil is the real thing.
	Raft   *consensus.Memory                                      // instead of the directory's log
	Finder func(self gossip.Meta, changed func()) (Finder, error) // instead of memberlist

	Store  objstore.Config // settings for its stores; Dir and Logger are set by the node
	Net    wire.Network    // TCP
	Clock  lease.Clock     // CLOCK_BOOTTIME
	BootID string          // of the machine; "": as the kernel has it
	Logger *slog.Logger    // slog.Default
}

// Finder finds nodes: package gossip does.
type Finder interface {
	Met() []gossip.Meta      // everybody there but this node
	Addr(uuid string) string // where a node is; "": not met
	Update(self gossip.Meta) // what this node is now
	Close()
}

func (c Config) withDefaults() (Config, error) {
	if len(c.Dirs) == 0 {
		return c, fmt.Errorf("node: no directory given")
	}
	for _, d := range c.Dirs {
		if strings.TrimSpace(d) == "" {
			return c, fmt.Errorf("node: an empty directory name")
		}
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return c, fmt.Errorf("node: listen on %q: want host:port: %w", c.Listen, err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return c, fmt.Errorf("node: listen on %q: the port is no number", c.Listen)
	}
	if c.Advertise == "" {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			return c, fmt.Errorf("node: listening on %s: say with --advertise which address other nodes dial", c.Listen)
		}
		c.Advertise = host
	}
	if c.GossipPort == 0 {
		c.GossipPort = defaultGossipPort
	}
	if c.VNodes < 0 {
		return c, fmt.Errorf("node: %d vnodes", c.VNodes)
	}
	if c.Net == nil {
		tcp := wire.TCP{}
		if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
			tcp.From = host
		}
		c.Net = tcp
	}
	if c.Clock == nil {
		c.Clock = lease.Boottime
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// addr is where others dial this node.
func (c *Config) addr() string {
	_, port, _ := net.SplitHostPort(c.Listen)
	return net.JoinHostPort(c.Advertise, port)
}

// host is where this node listens.
func (c *Config) host() string {
	host, _, _ := net.SplitHostPort(c.Listen)
	return host
}

// gossipAddr is how others reach its gossip.
func (c *Config) gossipAddr() string {
	return net.JoinHostPort(c.Advertise, strconv.Itoa(c.GossipPort))
}
