package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Raft's clock. With a lease of 2 s these keep a silent leader's primaries away for less than 5 s: 3 heartbeat timeouts at
// worst until a follower moves, an election, and the lease.
const (
	heartbeatTimeout = 500 * time.Millisecond
	electionTimeout  = 500 * time.Millisecond
	// Followers learn what is committed with the next message; this is how long an idle leader takes to send one. (But see nudge.go.)
	commitTimeout     = 25 * time.Millisecond
	rpcTimeout        = 3 * time.Second
	snapshotThreshold = 4096
	trailingLogs      = 2048
	snapshotInterval  = time.Minute
	snapshotsKept     = 2
)

// LogName is the file of raft's log in Config.Dir.
const LogName = "log.db"

// Config is what a Consensus needs.
type Config struct {
	UUID    string        // this node: raft's server id
	Addr    string        // host:port that peers dial
	Cluster func() string // identity of the cluster this node belongs to; "" refuses all raft traffic
	Dir     string        // where raft's log and snapshots lie; "" keeps them in Memory
	Memory  *Memory       // a simulation's store, which outlives the Consensus

	Listen net.Listener // the mux's, for wire.PrefaceRaft
	Net    wire.Network
	Peers  *Callers // for asking the leader
	// Lookup finds the present address of a node; "" if it is not known: then raft's own record counts.
	Lookup func(uuid string) string

	// Prepare fills in what only the leader knows, just before the command goes into the log. An error refuses it for now: the
	// proposer tries again. It must not wait.
	Prepare func(term uint64, cmd *state.Command) error
	// Begin is called when this node leads and has applied everything before: proposals are taken once it returned.
	Begin func(c *Consensus, term uint64)
	// Lead runs while this node leads; it returns soon after ctx has ended.
	Lead func(ctx context.Context, c *Consensus, term uint64)
	// Fatal is told that raft's disk failed. This node's raft can do no more.
	Fatal func(error)

	Logger *slog.Logger
}

// Memory is a raft store in memory.
type Memory struct {
	Store *raft.InmemStore
	Snaps raft.SnapshotStore
	Maps  *SharedMaps // nil: this node makes all maps itself
}

// NewMemory makes an empty one.
func NewMemory() *Memory {
	return &Memory{Store: raft.NewInmemStore(), Snaps: raft.NewInmemSnapshotStore()}
}

// Consensus is this node's part in the agreement.
type Consensus struct {
	cfg    Config
	log    *slog.Logger
	fsm    *fsm
	raft   *raft.Raft
	stream *stream
	trans  *raft.NetworkTransport
	store  *timedStore
	bolt   *raftboltdb.BoltStore

	proposing turn          // log order is the order of Prepare
	changing  turn          // one change of raft's members at a time
	ready     atomic.Uint64 // the term this node leads and has begun; 0: none

	nudger nudger

	leaderMu      sync.Mutex
	leader        string        // uuid, "": unknown
	leaderChanged chan struct{} // closed when leader changes

	closing chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

// Open starts this node's raft. A store without anything in it waits: for Bootstrap, or for a leader that adds this node.
func Open(cfg Config) (*Consensus, error) { return open(cfg, nil) }

// open starts raft; logs, if given, takes the place of the log store.
func open(cfg Config, own raft.LogStore) (*Consensus, error) {
	var shared *SharedMaps
	if cfg.Memory != nil {
		shared = cfg.Memory.Maps
	}
	c := &Consensus{cfg: cfg, log: cfg.Logger, fsm: newFSMOf(shared), proposing: newTurn(), changing: newTurn(), leaderChanged: make(chan struct{}), closing: make(chan struct{})}
	c.nudger = nudger{c: c, peers: map[raft.ServerID]uint64{}}
	c.fsm.applied = c.nudger.applied
	logs, stable, snaps, err := c.openStore()
	if err != nil {
		return nil, err
	}
	if own != nil {
		logs = own
	}
	c.store = &timedStore{LogStore: logs, stable: stable, now: time.Now, fatal: cfg.Fatal, slow: func(what string, d time.Duration) {
		c.log.Warn("raft's disk is slow", "call", what, "took", d)
	}}
	cache, err := raft.NewLogCache(512, c.store)
	if err != nil {
		return nil, err
	}
	hlog := raftLogger(c.log)
	c.stream = newStream(cfg.Listen, cfg.Net, cfg.UUID, cfg.Addr, cfg.Cluster)
	// One RPC in flight to each peer: raft's pipeline gains little and, when its reader ends over a newer term while the sender waits, never ends: nor
	// does a shutdown then (raft 1.8, found by simulation).
	c.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: c, Logger: hlog, Stream: c.stream, MaxPool: 3, MaxRPCsInFlight: 1, Timeout: rpcTimeout})
	c.raft, err = raft.NewRaft(c.raftConfig(hlog), c.fsm, cache, c.store, snaps, &transport{c.trans, c})
	if err != nil {
		c.trans.Close()
		c.closeStore()
		return nil, fmt.Errorf("start raft in %s: %w", cfg.Dir, err)
	}
	c.wg.Add(3)
	go c.observe()
	go c.leadership()
	go c.watch()
	return c, nil
}

func (c *Consensus) raftConfig(l hclog.Logger) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.cfg.UUID)
	rc.HeartbeatTimeout = heartbeatTimeout
	rc.ElectionTimeout = electionTimeout
	rc.LeaderLeaseTimeout = heartbeatTimeout
	rc.CommitTimeout = commitTimeout
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = false
	rc.SnapshotThreshold = snapshotThreshold
	rc.SnapshotInterval = snapshotInterval
	rc.TrailingLogs = trailingLogs
	rc.NoLegacyTelemetry = true
	rc.Logger = l
	return rc
}

// openStore opens raft's log: on disk, or a simulation's.
func (c *Consensus) openStore() (raft.LogStore, raft.StableStore, raft.SnapshotStore, error) {
	if c.cfg.Dir == "" {
		m := c.cfg.Memory
		if m.Maps != nil {
			return sharedLogs{m.Store, m.Maps}, m.Store, m.Snaps, nil
		}
		return m.Store, m.Store, m.Snaps, nil
	}
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return nil, nil, nil, err
	}
	path := filepath.Join(c.cfg.Dir, LogName)
	// NoFreelistSync: one write less for each append; the list is rebuilt at open. A second daemon does not get this far (the
	// directory is locked), so a wait for bbolt's own lock is a mistake of ours.
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{NoFreelistSync: true,
		FreelistType: bbolt.FreelistMapType, Timeout: 5 * time.Second}})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open raft's log %s: %w", path, err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(c.cfg.Dir, snapshotsKept, raftLogger(c.log))
	if err != nil {
		bolt.Close()
		return nil, nil, nil, fmt.Errorf("open raft's snapshots in %s: %w", c.cfg.Dir, err)
	}
	c.bolt = bolt
	return bolt, bolt, snaps, nil
}

func (c *Consensus) closeStore() {
	if c.bolt != nil {
		c.bolt.Close()
	}
}

// Close ends this node's raft. It may be called more than once.
func (c *Consensus) Close() error {
	var err error
	c.once.Do(func() {
		close(c.closing)
		err = c.raft.Shutdown().Error()
		c.trans.Close()
		c.trans.CloseStreams()
		c.wg.Wait()
		c.closeStore()
	})
	return err
}

// Map is the agreed state as this node has applied it. It is read without a lock and never changes.
func (c *Consensus) Map() *state.Map { return c.fsm.cur.Load() }

// Subscribe follows the map.
func (c *Consensus) Subscribe() *Subscription { return c.fsm.subscribe() }

// Since returns the commands that lead from the map at index to the current one; ok is false when they are not kept.
func (c *Consensus) Since(index uint64) ([]Command, bool) { return c.fsm.since(index) }

// Term is raft's current term here: once this has returned T, the node voted for nobody in a later term before the call.
func (c *Consensus) Term() uint64 { return c.raft.CurrentTerm() }

// AppliedIndex is how far raft's log is applied here, entries included that are not commands.
func (c *Consensus) AppliedIndex() uint64 { return c.raft.AppliedIndex() }

// Leading is the term under which this node leads and takes proposals; 0: it does not.
func (c *Consensus) Leading() uint64 {
	t := c.ready.Load()
	if t == 0 || c.raft.State() != raft.Leader || c.raft.CurrentTerm() != t {
		return 0
	}
	return t
}

// Blank says that nothing was ever agreed here: no raft configuration is known.
func (c *Consensus) Blank() bool {
	return len(c.raft.GetConfiguration().Configuration().Servers) == 0 && c.raft.LastIndex() == 0
}

// Bootstrap makes this node the only voter of a new cluster.
func (c *Consensus) Bootstrap() error {
	err := c.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(c.cfg.UUID), Address: serverAddress(c.cfg.UUID, c.cfg.Addr)}}}).Error()
	if err != nil {
		return fmt.Errorf("begin a new cluster: %w", err)
	}
	c.Campaign()
	return nil
}
