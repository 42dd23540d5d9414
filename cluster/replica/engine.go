package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// Config is what an Engine stands on.
type Config struct {
	Self func() state.Member // this node and its incarnation
	Net  wire.Network
	// Store is the group's home disk; nil on a gateway. It is asked when a group is first needed, and again when the disk it was on has failed and the group
	// is to be brought up to date elsewhere.
	Store func(state.GroupID) *objstore.Store
	// LostDisk says that this node once had a disk that it does not have any more: of a group that it has nothing of, it cannot know whether it held something.
	LostDisk func() bool
	Leased   func() bool // this node's lease holds now (R12, R13)
	Propose  func(ctx context.Context, cmd *state.Command) (state.Result, error)
	// ReportClosed tells the leader that groups hold no unfinished write to a vid that is being frozen (R22).
	ReportClosed func(r ClosedReport)
	Logger       *slog.Logger
}

// ClosedReport says that these groups, at these terms, have made all writes to Vid durable and park new ones.
type ClosedReport struct {
	Vid     uint32            `json:"vid"`
	Closing uint64            `json:"closing"`
	Groups  []state.GroupTerm `json:"groups"`
}

const (
	tickInterval = 50 * time.Millisecond
	seldomTicks  = 10 // every so many ticks groups at rest are looked at too
	// A replica that owes an answer and says nothing this long is taken out of the in-sync sets (R8). A machine that falls silent
	// is replaced as primary within 5 s; as a secondary it should cost less.
	replicaSilenceMax = 2 * time.Second
	// A flush may take this long on a slow disk before its node is dropped.
	syncSilenceMax = 8 * time.Second
	readersMax     = 64   // goroutines that wait for cold blocks
	parkedMax      = 4096 // requests waiting in one group
	tailMax        = 4096 // numbered and uncommitted entries of one group
)

// Engine keeps all groups of one node.
type Engine struct {
	cfg Config
	log *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	groups  table
	stirred stirred
	ticked  atomic.Int64 // when tick last began, as time since start
	cur     atomic.Pointer[view]

	mu      sync.Mutex // guards what follows
	peers   map[state.NodeID]*peer
	clients map[string]*clientState
	lazy    []*group // committed further than their replicas were told

	mapMu   sync.Mutex    // one MapChanged at a time
	applied chan struct{} // closed and replaced when a newer map is in use
	inUse   uint64        // the index of the newest map that all groups have taken into use

	early    sparse
	pace     pace
	proposer proposer
	resyncer resyncer
	closings closings
	readers  chan struct{}
	rot      rotFindings

	collectAt time.Time // when the next object may be freed; of the collector's goroutine
	calm      calm
	disks     sync.Map // *objstore.Store → uint32
	diskCount atomic.Uint32

	Stats Stats
}

// Stats counts what happened since the start.
type Stats struct {
	Reads, Writes, Flushes    atomic.Int64
	ReadBytes, WriteBytes     atomic.Int64
	Takeovers, Shrinks, Joins atomic.Int64
	DoneBefore                atomic.Int64 // changes of shared VDIs that came again and were answered without doing them again
	ResyncBytes               atomic.Int64
	ResyncBlocks              atomic.Int64
	Repaired                  atomic.Int64 // blocks and objects that were written anew by us as the primary, for reads and scrubs of any replica
	RotRepaired, RotLeft      atomic.Int64 // what scrubs of our disks found: repaired, and with no good copy anywhere
	Compared, Differ          atomic.Int64 // objects whose tables were compared on all replicas, and those that were not equal
	ResyncAllowed             atomic.Int64 // bytes a second that may be copied now
}

// view is a map in use, with what is derived from it.
type view struct {
	m      *state.Map
	chains *sync.Map // vid → []objstore.VidGen, of this directory
}

// New makes an engine; MapChanged gives it its groups.
func New(cfg Config) *Engine {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Engine{cfg: cfg, log: cfg.Logger, peers: map[state.NodeID]*peer{}, clients: map[string]*clientState{}, applied: make(chan struct{}),
		readers: make(chan struct{}, readersMax)}
	e.groups.init()
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.cur.Store(&view{m: state.New(), chains: new(sync.Map)})
	e.rot.found = make(chan *objstore.BlockError, rotQueueMax)
	e.proposer.init(e)
	e.resyncer.init(e)
	e.closings.init(e)
	e.ticked.Store(int64(time.Since(start)))
	e.wg.Go(e.tick)
	e.wg.Go(e.proposer.run)
	e.wg.Go(e.resyncer.run)
	e.wg.Go(e.collect)
	e.wg.Go(e.repairRot)
	e.wg.Go(e.compareTables)
	return e
}

// Close stops everything. Requests under way are answered as by a node that is not the primary.
func (e *Engine) Close() {
	e.cancel()
	e.mu.Lock()
	peers := make([]*peer, 0, len(e.peers))
	for _, p := range e.peers {
		peers = append(peers, p)
	}
	e.mu.Unlock()
	for _, p := range peers {
		p.close()
	}
	var b wire.Batch
	e.eachGroup(func(g *group) {
		g.mu.Lock()
		g.stepDown(&b)
		g.role = idle
		g.mu.Unlock()
	})
	b.End()
	e.wg.Wait()
}

func (e *Engine) self() state.Member { return e.cfg.Self() }

func (e *Engine) agreed() *state.Map { return e.cur.Load().m }

// group returns the group's state, made at first use.
func (e *Engine) group(id state.GroupID) *group {
	return e.groups.get(e, id)
}

func (e *Engine) eachGroup(f func(*group)) {
	for _, g := range e.groups.all() {
		f(g)
	}
}

// MapChanged takes a newer agreed map into use. Maps in between may be left out.
func (e *Engine) MapChanged(m *state.Map) {
	e.mapMu.Lock()
	defer e.mapMu.Unlock()
	old := e.cur.Load()
	if m.Index <= old.m.Index && old.m.Index != 0 {
		return
	}
	if old.m.Cluster != "" && m.Cluster != old.m.Cluster {
		e.formatted()
	}
	v := &view{m: m, chains: old.chains}
	dirChanged := !sameVDIs(m.VDIs, old.m.VDIs)
	if dirChanged {
		v.chains = new(sync.Map)
	}
	e.cur.Store(v)
	nodesChanged := !sameNodes(m.Nodes, old.m.Nodes)
	if nodesChanged {
		e.nodesChanged(m)
	}
	var b wire.Batch
	for i, sg := range m.Groups {
		var was *state.Group
		if i < len(old.m.Groups) && m.Cluster == old.m.Cluster {
			was = old.m.Groups[i]
		}
		if was != sg {
			e.group(sg.ID).update(sg, &b)
		} else if dirChanged {
			e.group(sg.ID).unpark(&b)
		}
	}
	b.End()
	e.closings.mapChanged(m)
	e.resyncer.poke()
	e.mu.Lock()
	e.inUse = m.Index
	close(e.applied)
	e.applied = make(chan struct{})
	e.mu.Unlock()
}

// formatted forgets everything of the cluster before: it was formatted again.
func (e *Engine) formatted() {
	var b wire.Batch
	e.eachGroup(func(g *group) {
		g.mu.Lock()
		g.stepDown(&b)
		g.role, g.fence = idle, 0
		if g.open() {
			g.drop()
		}
		g.mu.Unlock()
	})
	b.End()
}

func sameVDIs(a, b []*state.VDI) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func sameNodes(a, b []*state.Node) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// waitApplied waits until a map of at least this index is in use by every group: one that has not taken it yet would believe a change of its set undone that is
// decided (R9).
func (e *Engine) waitApplied(ctx context.Context, index uint64) error {
	for {
		e.mu.Lock()
		ch, done := e.applied, e.inUse >= index
		e.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// chain returns the versions a read of vid may see, newest first.
func (v *view) chain(vid uint32) []objstore.VidGen {
	if c, ok := v.chains.Load(vid); ok {
		return c.([]objstore.VidGen)
	}
	var c []objstore.VidGen
	for id := vid; id != 0; {
		d := v.m.VDI(id)
		if d == nil {
			break
		}
		c = append(c, objstore.VidGen{Vid: objstore.Vid(d.Vid), Gen: d.Gen})
		id = d.Parent
	}
	v.chains.Store(vid, c)
	return c
}

// Index is the index of the map in use: what this engine judges by (R12).
func (e *Engine) Index() uint64 { return e.agreed().Index }

// Stuck says for how long the engine has not got round to its groups: a disk that hangs under one of them holds it. A node that is stuck should not renew its
// lease, so that others take over.
func (e *Engine) Stuck() time.Duration {
	if d := time.Since(start) - time.Duration(e.ticked.Load()); d > 2*tickInterval {
		return d
	}
	return 0
}

// Submit takes a request of a client in this process.
func (e *Engine) Submit(r *wire.Request, b *wire.Batch) {
	e.group(state.GroupID(r.Group)).submit(r, b)
}

// Frame takes what arrives on a connection that a client or a primary opened to this node.
func (e *Engine) Frame(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	if f.Kind != wire.KindPing {
		e.calm.disturb()
	}
	switch f.Kind {
	case wire.KindHello:
		e.hello(c, f, b)
	case wire.KindRead, wire.KindWrite, wire.KindZero, wire.KindTrim, wire.KindFlush, wire.KindExtents:
		e.clientRequest(c, f, b)
	case wire.KindRelay:
		e.relay(c, f, b)
	case wire.KindRotten:
		e.rotten(c, f, b)
	case wire.KindPing:
		e.answer(c, f, wire.StatusOK, nil, b)
	default:
		e.fromPrimary(c, f, b)
	}
}

// Closed is told that such a connection ended.
func (e *Engine) Closed(c *wire.Conn, err error) {}

// answer sends a simple answer to f.
func (e *Engine) answer(c *wire.Conn, f *wire.Frame, s wire.Status, meta []byte, b *wire.Batch) {
	h := wire.Header{Kind: f.Kind | wire.KindAnswer, Status: s, ID: f.ID, Group: f.Group, Term: f.Term}
	c.Send(&h, meta, nil, nil)
	b.Flush(c)
}

// refuse answers f with an error as a sentence.
func (e *Engine) refuse(c *wire.Conn, f *wire.Frame, s wire.Status, err error, b *wire.Batch) {
	e.answer(c, f, s, []byte(err.Error()), b)
}

// tick does what has to happen without anybody asking.
func (e *Engine) tick() {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-e.ctx.Done():
			return
		case <-t.C:
		}
		e.ticked.Store(int64(time.Since(start)))
		var b wire.Batch
		e.mu.Lock()
		lazy := e.lazy
		e.lazy = nil
		peers := make([]*peer, 0, len(e.peers))
		for _, p := range e.peers {
			peers = append(peers, p)
		}
		e.mu.Unlock()
		for _, g := range lazy {
			g.tellCommit(&b)
		}
		now := time.Now()
		for _, p := range peers {
			p.check(now)
		}
		if n%paceTicks == 0 {
			e.lookAtPace()
		}
		if n%seldomTicks == 0 {
			for _, g := range e.groups.all() {
				g.tick(now, true, &b)
			}
		} else {
			for _, g := range e.stirred.take() {
				g.tick(now, false, &b)
			}
		}
		b.End()
	}
}

// diskFailed is called when a store of ours refuses everything for good (STORE.md rule 8).
func (e *Engine) diskFailed(err error) {
	if err != nil && !errors.Is(err, objstore.ErrClosed) {
		e.log.Debug("disk failed", "error", err) // the store has said so, and the node does: this is once for each group
	}
}

// Resign hands every group this node is primary of to another in-sync member, as far as there is one, and returns when that is agreed.
func (e *Engine) Resign(ctx context.Context) error {
	for {
		left := 0
		m := e.agreed()
		self := e.self()
		e.eachGroup(func(g *group) {
			g.mu.Lock()
			if g.role == serving && len(g.members) > 0 {
				if to := g.otherMember(m); to != state.NoNode {
					g.handTo = to
					g.wantSet()
					left++
				}
			}
			g.mu.Unlock()
		})
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("resign %d groups of node %d: %w", left, self.Node, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}
