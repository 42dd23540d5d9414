package simulation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/gossip"
	"github.com/sheepdog-go/sheepdog/cluster/memnet"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// world is a cluster in virtual time: true nodes on simulated disks and a network in memory.
type world struct {
	t      *testing.T
	seed   uint64
	copies int
	rng    *rand.Rand // the driver's alone

	tables      int64 // how much of its tables a store keeps in memory, in bytes
	files       int   // how many files it keeps open; 0: the default
	twoDisks    bool  // of each machine
	checkpoints time.Duration

	net   *memnet.Net
	start time.Time
	hub   hub
	seq   atomic.Int64 // orders everything that clients call and are told

	mu       sync.Mutex // guards what follows
	machines []*machine
	best     *state.Map // newest map seen on any node
	cuts     int64      // power cuts of any machine, counted
	resumes  map[state.GroupID]uint64
	losses   []loss
	marks    [4]int64 // of the last looks at the map

	volumes []*volume
	slots   []*slot
	ended   time.Duration

	snapshots, old []*snapshot   // there, and deleted
	stop           chan struct{} // closed when clients shall come to an end
	wg             sync.WaitGroup
	clients        atomic.Int64 // names given
	resting        atomic.Bool  // nobody uses anything for a while
	using          atomic.Int64 // processes that do
	terse          bool         // no line for each event
	done           stats
}

type stats struct {
	ops, unknown, refused, faults, snapshots, rollbacks, resumes atomic.Int64
}

// machine is one node's: what outlives its process.
type machine struct {
	w      *world
	host   string
	zone   string
	vnodes int
	raft   *consensus.Memory
	gone   bool // removed from the cluster

	// World's mu guards these.
	node *node.Node // nil: not running
	disk *simfs.FS

	frozen atomic.Int64 // what the clock says while the process is paused; 0: it runs
	resume chan struct{}
	faults diskFaults
}

// loss is a moment at which a group went on with what was left after all its members had ended, at least one by a power cut.
type loss struct {
	group  state.GroupID
	before int64 // between these two
	after  int64
}

func newWorld(t *testing.T, seed uint64) *world {
	return &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 11)), net: memnet.New(), start: time.Now(), tables: 1 << 20, checkpoints: 5 * time.Second, hub: hub{met: map[string]gossip.Meta{}},
		best: state.New(), resumes: map[state.GroupID]uint64{}, stop: make(chan struct{})}
}

// hub is gossip that always works: it decides nothing.
type hub struct {
	mu  sync.Mutex
	met map[string]gossip.Meta
}

type hubFinder struct {
	h    *hub
	uuid string
}

func (f hubFinder) Met() (list []gossip.Meta) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	for _, m := range f.h.met {
		if m.UUID != f.uuid {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b gossip.Meta) int { return strings.Compare(a.Addr, b.Addr) })
	return list
}

func (f hubFinder) Addr(uuid string) string {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return f.h.met[uuid].Addr
}

func (f hubFinder) Update(m gossip.Meta) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	f.h.met[m.UUID] = m
}

func (f hubFinder) Close() {}

func (h *hub) forget(addr string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, m := range h.met {
		if m.Addr == addr {
			delete(h.met, k)
		}
	}
}

// logs are the nodes' and clients' own, with SIM_LOG set.
func (w *world) logs(who string) *slog.Logger {
	if os.Getenv("SIM_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(virtual{slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}), w.start}).With("n", who)
}

// virtual stamps log lines with virtual time.
type virtual struct {
	slog.Handler
	start time.Time
}

func (v virtual) Handle(ctx context.Context, r slog.Record) error {
	r.AddAttrs(slog.Duration("at", time.Since(v.start)))
	r.Time = time.Time{}
	return v.Handler.Handle(ctx, r)
}

func (v virtual) WithAttrs(a []slog.Attr) slog.Handler {
	return virtual{v.Handler.WithAttrs(a), v.start}
}

// event is one line of the story that a failing seed tells.
func (w *world) event(format string, args ...any) {
	line := fmt.Sprintf("%9.3fs #%d ", time.Since(w.start).Seconds(), w.seq.Load()) + fmt.Sprintf(format, args...)
	if os.Getenv("SIM_LOG") != "" {
		fmt.Fprintln(os.Stderr, line)
	}
	if !w.terse {
		w.t.Log(line)
	}
}

// addMachine brings a new one, whose node does not run yet.
func (w *world) addMachine(zone string, vnodes int) *machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := len(w.machines)
	m := &machine{w: w, host: fmt.Sprint("n", i), zone: zone, vnodes: vnodes, raft: consensus.NewMemory()}
	m.useDisk(simfs.New(w.seed*100 + uint64(i)))
	w.machines = append(w.machines, m)
	return m
}

// useDisk has the machine find this on its disk. World's mu is held, or nobody else knows the machine.
func (m *machine) useDisk(d *simfs.FS) {
	m.disk = d
	m.faults.on(d)
}

// clock is the machine's, as its process sees it.
func (m *machine) clock() time.Duration {
	if at := m.frozen.Load(); at != 0 {
		return time.Duration(at)
	}
	return time.Since(m.w.start) + time.Hour
}

// run starts the machine's node.
func (m *machine) run() {
	w := m.w
	w.mu.Lock()
	disk := m.disk
	w.mu.Unlock()
	if err := mend(disk); err != nil {
		w.t.Errorf("mend %s: %v", m.host, err)
	}
	dirs := []string{"/d"}
	if w.twoDisks {
		disk.Mkdir(secondDisk) // unless it is there
		dirs = append(dirs, secondDisk)
	}
	n, err := node.Start(node.Config{Dirs: dirs, Listen: m.host + ":7000", Zone: m.zone, VNodes: m.vnodes, Net: w.net.Host(m.host), Raft: m.raft,
		Store: objstore.Config{FS: disk, SegmentBytes: 256 << 10, JournalBytesMax: 2 << 20, ReserveBytes: 256 << 10, TableCacheBytes: m.w.tables, OpenFilesMax: m.w.files,
			CheckpointInterval: m.w.checkpoints, ScrubBytesPerSecond: -1},
		BootID: strings.Repeat("b", 36), Clock: m.clock,
		Finder: func(self gossip.Meta, _ func()) (node.Finder, error) {
			f := hubFinder{&w.hub, self.UUID}
			f.Update(self)
			return f, nil
		},
		Logger: w.logs(m.host)})
	if err != nil {
		w.t.Errorf("start %s: %v", m.host, err)
		return
	}
	w.mu.Lock()
	m.node = n
	w.mu.Unlock()
}

func (m *machine) running() *node.Node {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.node
}

// pause stops the machine's process, as SIGSTOP does: nothing goes in or out, and when it goes on it believes what it believed. (Its disk is not stopped: what it does there
// nobody sees.)
func (m *machine) pause() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.frozen.Load() != 0 {
		return
	}
	m.resume = make(chan struct{})
	m.frozen.Store(int64(m.clock()))
	m.w.net.Pause(m.host)
}

func (m *machine) unpause() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.frozen.Load() == 0 {
		return
	}
	m.frozen.Store(0)
	m.w.net.Resume(m.host)
	close(m.resume)
}

// paused is closed when the machine's process goes on; nil: it runs.
func (m *machine) paused() <-chan struct{} {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.frozen.Load() == 0 {
		return nil
	}
	return m.resume
}

// end ends processes at the same instant: with power their disks lose some of what was not synced, otherwise everything they wrote stays. What runs in the dead
// processes for a moment longer reaches nobody.
func (w *world) end(power bool, list ...*machine) {
	var ended []*node.Node
	var who []*machine
	for _, m := range list {
		if m.running() != nil {
			who = append(who, m)
			w.endClients(m)
		}
	}
	w.mu.Lock()
	for _, m := range who {
		w.net.Kill(m.host)
	}
	for _, m := range who {
		if power {
			m.useDisk(m.disk.Cut())
			w.cuts++
		} else {
			if w.copies == 1 && m.faults.any.Load() { // what its disk did not take, nobody else has
				w.cuts++
			}
			m.useDisk(m.disk.Kill())
		}
		ended = append(ended, m.node)
		m.node = nil
		if m.frozen.Load() != 0 {
			m.frozen.Store(0)
			close(m.resume)
		}
	}
	w.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range ended {
		wg.Go(n.Crash)
	}
	wg.Wait()
}

// exited is the word of the machine's guardian: incarnation b has ended.
func (m *machine) exited(b state.Member) {
	w := m.w
	if b.Node == state.NoNode {
		return
	}
	e := wire.Exited{Node: uint32(b.Node), Inc: b.Inc}
	w.mu.Lock()
	list := slices.Clone(w.machines)
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	for _, o := range list {
		if o == m {
			continue
		}
		w.wg.Go(func() {
			c, err := wire.DialCaller(w.net.Host(m.host), o.host+":7000", 500*time.Millisecond)
			if err != nil {
				return
			}
			defer c.Close()
			c.Do(ctx, wire.Header{Kind: wire.KindExited}, e.Append(nil), nil)
		})
	}
	w.wg.Go(func() { time.Sleep(3 * time.Second); cancel() })
}

// newest is the map that is furthest, on nodes that run or ran.
func (w *world) newest() *state.Map {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newestLocked()
}

func (w *world) newestLocked() *state.Map {
	for _, m := range w.machines {
		if m.node == nil {
			continue
		}
		if x := m.node.Map(); x.Index > w.best.Index {
			w.best = x
		}
	}
	return w.best
}

// resumed says whether a set ever resumed after all its members had ended (R6).
func (w *world) resumed() bool {
	return slices.ContainsFunc(w.newest().Groups, func(g *state.Group) bool { return g.Resumes > 0 })
}

const watchPeriod = 10 * time.Millisecond

// watch asserts what must hold at any instant, and notes when groups go on after all their members had ended.
func (w *world) watch(stop chan struct{}) {
	was := state.New() // looked at before; others move w.best too
	for {
		select {
		case <-stop:
			return
		case <-time.After(watchPeriod):
		}
		w.mu.Lock()
		m := w.newestLocked()
		for _, x := range w.machines {
			if x.node == nil || x.frozen.Load() != 0 {
				continue
			}
			if x.node.Leased() && !m.InService(x.node.Self()) {
				w.t.Errorf("invariant 4: %s has a lease as %+v, but map %d says it is not in service", x.host, x.node.Self(), m.Index)
			}
			if err := x.node.Err(); err != nil && !x.gone && !x.faults.any.Load() {
				w.t.Errorf("%s gave up: %v", x.host, err)
				x.gone = true
			}
		}
		if m != was {
			for _, g := range m.Groups {
				if g.Resumes == w.resumes[g.ID] {
					continue
				}
				w.resumes[g.ID] = g.Resumes
				w.done.resumes.Add(1)
				w.checkResume(was, m, g)
				if w.cuts > 0 {
					w.losses = append(w.losses, loss{g.ID, w.marks[0], w.seq.Add(1)})
				}
			}
		}
		was = m
		copy(w.marks[:], w.marks[1:])
		w.marks[3] = w.seq.Add(1)
		w.mu.Unlock()
	}
}

// checkResume asserts R6: a set is resumed only when none of its members is in service.
func (w *world) checkResume(was, m *state.Map, g *state.Group) {
	old := was.Group(g.ID)
	if old == nil || old.Resumes+1 != g.Resumes {
		return
	}
	for _, b := range old.InSync {
		for _, x := range w.machines {
			if x.node != nil && x.frozen.Load() == 0 && x.node.Self() == b && x.node.Leased() {
				w.t.Errorf("R6: group %d was resumed, but %s, of its set, is in service as %+v", g.ID, x.host, b)
			}
		}
	}
}

// until lets time pass until ok.
func (w *world) until(within time.Duration, what string, ok func() bool) bool {
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.dump()
			w.t.Errorf("not within %s: %s", within, what)
			return false
		}
	}
	return true
}

func (w *world) dump() {
	m := w.newest()
	for _, n := range m.Nodes {
		w.event("node %d %s: inc %x up %v ended %v out %v removed %v", n.ID, n.Addr, n.Inc, n.Up, n.Ended, n.Out, n.Removed)
	}
	w.mu.Lock()
	for _, x := range w.machines {
		if x.node != nil {
			w.event("%s: self %+v leased %v leads %v map %d err %v", x.host, x.node.Self(), x.node.Leased(), x.node.IsLeader(), x.node.Map().Index, x.node.Err())
		}
	}
	w.mu.Unlock()
	for _, g := range m.Groups {
		w.event("group %d: term %d primary %v in sync %v target %v back %v", g.ID, g.Term, g.Primary, g.InSync, g.Target, g.Back)
	}
}

// whole says that every group has all its replicas in sync, and a primary in service.
func (w *world) whole() bool {
	m := w.newest()
	for _, g := range m.Groups {
		if !m.InService(g.Primary) || len(g.InSync) != len(g.Target) {
			return false
		}
		for _, b := range g.InSync {
			if !m.InService(b) || !slices.Contains(g.Target, b.Node) {
				return false
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.machines {
		if x.node != nil && !x.gone && !x.node.Leased() {
			return false
		}
	}
	return true
}

// propose has the cluster decide on a command, through any node. It tries for a while; an error means that the outcome is not known, or a refusal.
func (w *world) propose(within time.Duration, cmd *state.Command) (state.Result, error) {
	cmd.ID, cmd.Time = fmt.Sprint("cmd", w.seq.Add(1)), time.Now()
	end := time.Now().Add(within)
	for i := int(w.seq.Load()); ; i++ {
		w.mu.Lock()
		x := w.machines[i%len(w.machines)]
		n := x.node
		if x.frozen.Load() != 0 {
			n = nil
		}
		w.mu.Unlock()
		if n != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			res, err := n.Propose(ctx, cmd)
			cancel()
			if err == nil {
				return res, res.Err()
			}
		}
		if time.Now().After(end) {
			return state.Result{}, errUnknown
		}
		time.Sleep(50 * time.Millisecond)
	}
}

var errUnknown = errors.New("outcome unknown")

type nodeMaps struct{ *node.Node }

func (m nodeMaps) Subscribe() (<-chan struct{}, func()) {
	sub := m.Node.Subscribe()
	return sub.C, sub.Cancel
}

var _ client.Maps = nodeMaps{}
