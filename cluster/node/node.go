package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/guard"
	"github.com/sheepdog-go/sheepdog/cluster/lead"
	"github.com/sheepdog-go/sheepdog/cluster/lease"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Node is one running storage node.
type Node struct {
	cfg  Config
	log  *slog.Logger
	dir  *dir
	addr string

	mux    *wire.Mux
	http   net.Listener
	peers  *consensus.Callers // questions to other nodes
	renews *consensus.Callers // renewals alone, so that nothing stands before them
	cons   *consensus.Consensus
	leader *lead.Leader
	holder *lease.Holder
	gossip Finder
	stores *stores
	engine *replica.Engine

	useMu      sync.Mutex    // one map at a time is given to the engine; nothing else waits for it
	usingSince atomic.Int64  // when that began, on the lease's clock; 0: none is being given
	inUse      atomic.Uint64 // index of the map that the engine has taken into use: what a lease asks for (R12 d)

	heard atomic.Int64 // when this node last had a lease, or began, on the lease's clock

	guard *guard.Guard // nil: none

	member   atomic.Pointer[state.Member] // registered; nil before
	joinMu   sync.Mutex                   // held while the cluster that this node belongs to is decided
	cluster  atomic.Pointer[string]       // whose raft traffic is let in
	formatMu sync.Mutex

	controls chan struct{} // a token for each request that is waited for
	watchers chan struct{}
	liveWake chan struct{}
	leaving  atomic.Bool // no new registration

	registering *registration          // without an outcome yet; live alone uses it
	refused     atomic.Pointer[string] // a node of another cluster was met

	connsMu sync.Mutex
	conns   map[*wire.Conn]struct{}

	ctx    context.Context // of everything that runs
	cancel context.CancelFunc
	wg     sync.WaitGroup

	spawnMu  sync.Mutex
	stopping bool // nothing new is started

	failOnce sync.Once
	err      error
	done     chan struct{} // closed when the node cannot go on

	stopOnce sync.Once
	stopErr  error
}

const (
	controlsMax = 256 // requests of peers and clients that wait for something
	watchersMax = 1024
)

// Start starts a node. It returns once the node's port answers; the node joins its cluster, or waits for one to be formatted, in the background.
func Start(cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.BootID == "" {
		if cfg.BootID, err = bootID(); err != nil {
			return nil, err
		}
	}
	n := &Node{cfg: cfg, log: cfg.Logger, addr: cfg.addr(), controls: make(chan struct{}, controlsMax), watchers: make(chan struct{}, watchersMax),
		liveWake: make(chan struct{}, 1), conns: map[*wire.Conn]struct{}{}, done: make(chan struct{})}
	n.heard.Store(int64(cfg.Clock()))
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.start(); err != nil {
		n.teardown()
		return nil, err
	}
	return n, nil
}

func (n *Node) start() (err error) {
	if n.dir, err = openDir(n.cfg.Dirs[0], n.cfg.Store.FS); err != nil {
		return err
	}
	id := n.dir.get()
	n.setCluster(id.Cluster)
	if n.stores, err = newStores(n.cfg, n.dir); err != nil {
		return err
	}
	l, err := n.cfg.Net.Listen(n.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", n.cfg.Listen, err)
	}
	n.mux = wire.NewMux(l)
	frames, raft := n.mux.Listen(wire.PrefaceFrames), n.mux.Listen(wire.PrefaceRaft)
	n.http = n.mux.Listen("")
	n.peers, n.renews = consensus.NewCallers(n.cfg.Net), consensus.NewCallers(n.cfg.Net)
	n.holder = n.newHolder(n.cfg.Clock)
	n.leader = lead.New(n.cfg.Clock, id.UUID, n.log)
	logDir := n.dir.raft()
	if n.cfg.Raft != nil {
		logDir = ""
	} else if err = n.dir.checkLog(); err != nil {
		return err
	}
	n.cons, err = consensus.Open(consensus.Config{
		UUID: id.UUID, Addr: n.addr, Cluster: n.clusterID, Dir: logDir, Memory: n.cfg.Raft, Listen: raft, Net: n.cfg.Net, Peers: n.peers, Lookup: n.lookup,
		Prepare: n.leader.Prepare, Begin: n.leader.Begin, Lead: n.leader.Run,
		Fatal:  func(err error) { n.fail(fmt.Errorf("raft's disk failed: %w", err)) },
		Logger: n.log})
	if err != nil {
		return err
	}
	n.engine = replica.New(replica.Config{Self: n.Self, Net: n.cfg.Net, Store: n.stores.home, LostDisk: n.stores.lostDisk, Leased: n.holder.Valid,
		Propose: n.Propose, ReportClosed: n.reportClosed, Logger: n.log})
	if err = n.startGossip(id); err != nil {
		return err
	}
	n.wg.Go(func() { n.mux.Serve() })
	n.wg.Go(func() { n.accept(frames) })
	n.wg.Go(n.follow)
	n.wg.Go(n.renew)
	n.wg.Go(n.live)
	n.wg.Go(n.moveGroups)
	if len(n.cfg.Guardian) > 0 {
		if n.guard, err = guard.Start(n.cfg.Guardian, n.log); err != nil {
			return err
		}
		n.wg.Go(n.tellGuardian)
	}
	return nil
}

func (n *Node) startGossip(id identity) error {
	if n.cfg.Finder != nil {
		f, err := n.cfg.Finder(n.meta(id.Cluster), n.wakeLive)
		n.gossip = f
		return err
	}
	known := ""
	if n.cfg.host() != n.cfg.Advertise {
		if ips, err := net.LookupIP(n.cfg.Advertise); err == nil && len(ips) > 0 {
			known = ips[0].String()
		}
	}
	g, err := gossip.Start(gossip.Config{Host: n.cfg.host(), Known: known, Port: n.cfg.GossipPort, Join: n.cfg.Join,
		Self: n.meta(id.Cluster), Changed: n.wakeLive, Logger: n.log,
		Refused: func(addr, cluster string) {
			s := fmt.Sprintf("node %s belongs to cluster %s", addr, cluster)
			n.refused.Store(&s)
			n.wakeLive()
		}})
	if err != nil {
		return err
	}
	n.gossip = g
	return nil
}

// meta is what gossip says of this node.
func (n *Node) meta(cluster string) gossip.Meta {
	m := gossip.Meta{UUID: n.UUID(), Addr: n.addr, Cluster: cluster, Zone: n.cfg.Zone, VNodes: n.cfg.VNodes}
	if self := n.Self(); self.Node != state.NoNode {
		m.Node, m.Inc = uint32(self.Node), self.Inc
	}
	return m
}

// lookup finds a node's address for raft.
func (n *Node) lookup(uuid string) string {
	if n.gossip == nil {
		return ""
	}
	return n.gossip.Addr(uuid)
}

func (n *Node) clusterID() string {
	if s := n.cluster.Load(); s != nil {
		return *s
	}
	return ""
}

func (n *Node) setCluster(c string) { n.cluster.Store(&c) }

func (n *Node) wakeLive() {
	select {
	case n.liveWake <- struct{}{}:
	default:
	}
}

// spawn runs f in a goroutine that Stop waits for, unless the node is stopping.
func (n *Node) spawn(f func()) bool {
	n.spawnMu.Lock()
	defer n.spawnMu.Unlock()
	if n.stopping {
		return false
	}
	n.wg.Go(f)
	return true
}
