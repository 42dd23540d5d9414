package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/guard"
	"github.com/sheepdog-go/sheepdog/cluster/lead"
	"github.com/sheepdog-go/sheepdog/cluster/lease"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
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
	guard  *guard.Guard // nil: none

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
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.start(); err != nil {
		n.teardown()
		return nil, err
	}
	return n, nil
}

func (n *Node) start() (err error) {
	if n.dir, err = openDir(n.cfg.Dirs[0]); err != nil {
		return err
	}
	id := n.dir.get()
	n.setCluster(id.Cluster)
	if n.stores, err = newStores(n.cfg, id.UUID); err != nil {
		return err
	}
	if err = n.stores.check(id.Cluster); err != nil {
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
	n.holder = lease.NewHolder(n.cfg.Clock, func() uint64 { return n.cons.Map().Index })
	n.engine = replica.New(replica.Config{Self: n.Self, Net: n.cfg.Net, Store: n.stores.home, Map: n.cons.Map, Leased: n.holder.Valid,
		Propose: n.Propose, ReportClosed: n.reportClosed, Logger: n.log})
	if err = n.startGossip(id); err != nil {
		return err
	}
	n.wg.Go(func() { n.mux.Serve() })
	n.wg.Go(func() { n.accept(frames) })
	n.wg.Go(n.follow)
	n.wg.Go(n.renew)
	n.wg.Go(n.live)
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

// fail ends the node: it cannot go on. The caller of Start sees it by Done.
func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.err = err
		n.holder.Drop()
		close(n.done)
	})
}

// Done is closed when the node cannot go on; Err says why. It still wants to be stopped.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the node cannot go on; nil while it can.
func (n *Node) Err() error {
	select {
	case <-n.done:
		return n.err
	default:
		return nil
	}
}

// Stop ends the node cleanly: what it is primary of is handed over as far as ctx has time and the cluster goes on; then it says that it is gone, so that nobody
// has to wait for its lease to run out. It may be called more than once.
func (n *Node) Stop(ctx context.Context) error {
	n.stopOnce.Do(func() {
		n.leaving.Store(true)
		if n.Err() == nil && n.Self().Node != state.NoNode && n.holder.Valid() {
			n.leaveService(ctx)
		}
		n.stopErr = n.teardown()
	})
	return n.stopErr
}

// Crash ends the node as a kill does, for simulations: nobody is told but by its connections.
func (n *Node) Crash() {
	n.stopOnce.Do(func() {
		n.leaving.Store(true)
		n.stopErr = n.teardown()
	})
}

// leaveService hands over and says goodbye.
func (n *Node) leaveService(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if m := n.Map(); m.Formatted() && !m.ShutDown && n.othersServe(m) {
		if err := n.engine.Resign(ctx); err != nil {
			n.log.Info("not every group could be handed over before stopping", "err", err)
		}
	}
	n.cons.HandOver(handOverTimeout)
	self := n.Self()
	n.holder.Drop()
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), goodbyeTimeout)
	defer cancel()
	if err := n.sayExited(ctx, self, false); err != nil {
		n.log.Debug("say goodbye", "err", err)
	}
}

const (
	stopTimeout     = 5 * time.Second
	handOverTimeout = time.Second
	goodbyeTimeout  = 500 * time.Millisecond
)

func (n *Node) othersServe(m *state.Map) bool {
	self := n.Self()
	for _, o := range m.Nodes {
		if o.Up && o.ID != self.Node && o.VNodes > 0 {
			return true
		}
	}
	return false
}

// teardown ends whatever was started.
func (n *Node) teardown() error {
	n.cancel()
	n.spawnMu.Lock()
	n.stopping = true
	n.spawnMu.Unlock()
	if n.guard != nil {
		n.guard.Stop()
	}
	if n.holder != nil {
		n.holder.Drop()
	}
	if n.gossip != nil {
		n.gossip.Close()
	}
	if n.mux != nil {
		n.mux.Close()
	}
	n.closeConns()
	if n.engine != nil {
		n.engine.Close()
	}
	if n.cons != nil {
		n.cons.Close()
	}
	if n.peers != nil {
		n.peers.Close()
		n.renews.Close()
	}
	n.wg.Wait()
	var errs []error
	if n.stores != nil {
		errs = append(errs, n.stores.close())
		n.stores.unlock()
	}
	if n.dir != nil {
		n.dir.close()
	}
	return errors.Join(errs...)
}

// UUID is the node's identity.
func (n *Node) UUID() string { return n.dir.get().UUID }

// Addr is where others dial this node.
func (n *Node) Addr() string { return n.addr }

// Self is this node and its incarnation, as registered; Node is state.NoNode before that.
func (n *Node) Self() state.Member {
	if m := n.member.Load(); m != nil {
		return *m
	}
	return state.Member{Node: state.NoNode}
}

// Map is the agreed map as this node has applied it.
func (n *Node) Map() *state.Map { return n.cons.Map() }

// Subscribe follows the map.
func (n *Node) Subscribe() *consensus.Subscription { return n.cons.Subscribe() }

// WaitApplied waits until Map is at index or beyond.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	return n.cons.WaitApplied(ctx, index)
}

// Propose has the cluster decide on a command, and returns once this node's map shows the outcome.
func (n *Node) Propose(ctx context.Context, cmd *state.Command) (state.Result, error) {
	return n.cons.Propose(ctx, cmd)
}

// Engine is the replication engine: the wire.Submitter for clients in this process.
func (n *Node) Engine() *replica.Engine { return n.engine }

// Net is how this node reaches others.
func (n *Node) Net() wire.Network { return n.cfg.Net }

// HTTP is the listener of what reaches the node's port and is neither frames nor raft: the admin API's.
func (n *Node) HTTP() net.Listener { return n.http }

// Stores are the node's disks; none before it belongs to a cluster, or if it is a gateway.
func (n *Node) Stores() []*objstore.Store { return n.stores.all() }

// Leased says whether this node may serve now.
func (n *Node) Leased() bool { return n.holder.Valid() }

// IsLeader says whether this node leads the cluster.
func (n *Node) IsLeader() bool { return n.cons.Leading() != 0 }

// LeaderAddr is the address of the node that leads; "": none is known.
func (n *Node) LeaderAddr() string {
	uuid, _ := n.cons.Leader()
	return n.cons.Addr(uuid)
}

// Voters are the uuids of the nodes that vote in raft.
func (n *Node) Voters() []string { return n.cons.Voters() }

// Cluster is the cluster that this node belongs to; "": none yet.
func (n *Node) Cluster() string { return n.clusterID() }

// Met is whom gossip knows, this node included.
func (n *Node) Met() []gossip.Meta {
	return append([]gossip.Meta{n.meta(n.clusterID())}, n.gossip.Met()...)
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

// follow hands newer maps to whoever needs them.
func (n *Node) follow() {
	sub := n.cons.Subscribe()
	defer sub.Cancel()
	for {
		m := n.cons.Map()
		n.holder.Applied()
		if n.Self().Node != state.NoNode { // the engine has to know which node it is
			n.engine.MapChanged(m)
		}
		n.wakeLive()
		select {
		case <-sub.C:
		case <-n.ctx.Done():
			return
		}
	}
}
