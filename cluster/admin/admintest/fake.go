// Package admintest is a cluster of one process and no disks, for tests of what administers clusters: the agreed state is the true
// one (state.Map.Apply); nodes, clocks and data are made up, and the same in every run.
package admintest

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// Start is when everything in a Cluster began; each command is a minute later than the one before.
var Start = time.Date(2026, 11, 22, 8, 25, 24, 0, time.UTC)

// Cluster is what all its nodes agree on.
type Cluster struct {
	mu      sync.Mutex
	m       *state.Map
	changed chan struct{} // closed and replaced when m changes
	clock   time.Time
	addrs   []string
	stopped []bool
	usage   admin.Usage

	findings []string
	disks    map[int][]admin.Disk // of nodes to which some were added or whose were removed
}

// New returns an unformatted cluster whose nodes shall have these addresses.
func New(addrs ...string) *Cluster {
	return &Cluster{m: state.New(), changed: make(chan struct{}), clock: Start, addrs: addrs, stopped: make([]bool, len(addrs)), usage: admin.Usage{}}
}

// Node is the i-th node, as the API sees it.
func (c *Cluster) Node(i int) *Node { return &Node{c: c, i: i} }

// SetUsage says what a VDI holds.
func (c *Cluster) SetUsage(vid uint32, bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.usage[vid] = bytes
}

// SetFindings says what a check finds.
func (c *Cluster) SetFindings(findings ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.findings = findings
}

// Stopped says whether somebody stopped node i.
func (c *Cluster) Stopped(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped[i]
}

// Apply is raft: it applies a command at the next index, with the cluster's own clock.
func (c *Cluster) Apply(cmd *state.Command) state.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.apply(cmd)
}

func (c *Cluster) apply(cmd *state.Command) state.Result {
	if cmd.Force != nil { // as the raft leader would
		cmd.Force.Leased = c.leased()
	}
	cmd.Time = c.clock
	c.clock = c.clock.Add(time.Minute)
	if cmd.ID == "" {
		cmd.ID = rand.Text()
	}
	next, r := c.m.Apply(c.m.Index+1, cmd)
	c.m = next
	close(c.changed)
	c.changed = make(chan struct{})
	if cmd.CloseVDI != nil && r.Code == state.OK {
		c.freeze(r)
	}
	return r
}

// freeze ends a snapshot at once: nothing is written here.
func (c *Cluster) freeze(r state.Result) {
	v := c.m.VDI(r.Vid)
	var terms []uint64
	for _, g := range c.m.PoolGroups(v.Pool) {
		terms = append(terms, g.Term)
	}
	c.apply(&state.Command{FreezeVDI: &state.FreezeVDI{Vid: r.Vid, Closing: r.Index, Terms: terms}})
}

// leased are those in service.
func (c *Cluster) leased() []state.Member {
	return slices.DeleteFunc(c.members(), func(m state.Member) bool { return !c.m.InService(m) })
}

// members are the nodes' incarnations.
func (c *Cluster) members() []state.Member {
	var list []state.Member
	for _, n := range c.m.Nodes {
		if !n.Removed {
			list = append(list, state.Member{Node: n.ID, Inc: n.Inc})
		}
	}
	return list
}

// Kill ends a node's incarnation: the others go on.
func (c *Cluster) Kill(id state.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.members()
	i := slices.IndexFunc(all, func(m state.Member) bool { return m.Node == id })
	c.apply(&state.Command{Ended: &state.Ended{Members: all[i : i+1], Leased: slices.Delete(slices.Clone(all), i, i+1), Why: "killed"}})
}

// Return starts a node that was killed again: a new incarnation, in no set yet.
func (c *Cluster) Return(id state.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.m.Node(id)
	c.apply(&state.Command{Register: &state.Register{UUID: n.UUID, Addr: n.Addr, VNodes: n.VNodes, PrevInc: n.Inc, Inc: n.Inc + 1000, Boot: "boot", Leased: c.members()}})
	back := []state.Member{{Node: id, Inc: n.Inc + 1000}}
	c.apply(&state.Command{InService: &state.InService{Members: back, Leased: c.members()}})
}

// Node implements admin.LocalNode.
type Node struct {
	c *Cluster
	i int
}

func (n *Node) ID() state.NodeID {
	if len(n.Map().Nodes) <= n.i {
		return state.NoNode
	}
	return state.NodeID(n.i)
}

func (n *Node) Map() *state.Map {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.c.m
}

func (n *Node) Wait(ctx context.Context, index uint64) error {
	for {
		n.c.mu.Lock()
		at, changed := n.c.m.Index, n.c.changed
		n.c.mu.Unlock()
		if at >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *Node) Propose(_ context.Context, cmd *state.Command) (state.Result, error) {
	return n.c.Apply(cmd), nil
}

func (n *Node) Format(_ context.Context, r admin.FormatRequest) error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if len(n.c.m.Nodes) == 0 {
		for i, addr := range n.c.addrs {
			n.c.apply(&state.Command{Register: &state.Register{UUID: uuid(i), Addr: addr, VNodes: 64, Inc: uint64(100 + i), Boot: "boot"}})
		}
		n.c.apply(&state.Command{InService: &state.InService{Members: n.c.members(), Leased: n.c.members()}})
	}
	result := n.c.apply(&state.Command{Format: &state.Format{Cluster: "cluster-" + rand.Text(), Copies: r.Copies, MinCopies: r.MinCopies, PGs: r.PGs, Force: r.Force}})
	if result.Code != state.OK {
		return result.Err()
	}
	return nil
}

func (n *Node) Met() []admin.Peer {
	var list []admin.Peer
	for i, addr := range n.c.addrs {
		list = append(list, admin.Peer{UUID: uuid(i), Addr: addr, VNodes: 64})
	}
	return list
}

func (n *Node) UUID() string { return uuid(n.i) }

func uuid(i int) string { return fmt.Sprintf("uuid-%d", i) }

func (n *Node) Cluster() string { return n.Map().Cluster }

func (n *Node) Leader() string { return n.c.addrs[0] }

func (n *Node) Voters() (list []string) {
	for _, x := range n.Map().Nodes {
		list = append(list, x.UUID)
	}
	return list
}

func (n *Node) Self() admin.Self {
	return admin.Self{Pid: 1000 + n.i, Version: "test", Started: Start, Leader: n.i == 0, Lease: true, Index: n.Map().Index,
		Disks: n.disks(), Counters: map[string]uint64{"reads": 1}}
}

// ResyncBytes is nothing: there are no bytes.
func (n *Node) ResyncBytes() uint64 { return 0 }

// Usage gives it all to the first node, so that sums come out right.
func (n *Node) Usage() admin.Usage {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	u := admin.Usage{}
	if n.i == 0 {
		for vid, bytes := range n.c.usage {
			u[vid] = bytes
		}
	}
	return u
}

func (n *Node) Check(_ context.Context, only []uint32, event func(admin.CheckEvent)) error {
	n.c.mu.Lock()
	findings := n.c.findings
	n.c.mu.Unlock()
	if n.i == 0 {
		for _, f := range findings {
			event(admin.CheckEvent{Finding: f})
		}
	}
	var checked []uint32
	for _, g := range n.Map().Groups {
		if g.Primary.Node == n.ID() && (len(only) == 0 || slices.Contains(only, uint32(g.ID))) {
			checked = append(checked, uint32(g.ID))
		}
	}
	event(admin.CheckEvent{Groups: len(checked), Total: len(checked), Checked: checked, Objects: 7})
	return nil
}

func (n *Node) Stop() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.c.stopped[n.i] = true
}

// disks are one, unless AddDisk or RemoveDisk changed that.
func (n *Node) disks() []admin.Disk {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if list, ok := n.c.disks[n.i]; ok {
		return list
	}
	return []admin.Disk{{ID: fmt.Sprintf("disk-%d", n.i), Path: fmt.Sprintf("/disk%d", n.i), Size: 76 << 30, Used: 236 << 20, Avail: 75 << 30, State: "ok", Inodes: 1 << 20,
		Groups: 64}}
}

func (n *Node) setDisks(list []admin.Disk) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.c.disks == nil {
		n.c.disks = map[int][]admin.Disk{}
	}
	n.c.disks[n.i] = list
}

// AddDisk adds one that is empty.
func (n *Node) AddDisk(_ context.Context, dir string) error {
	list := n.disks()
	if slices.ContainsFunc(list, func(d admin.Disk) bool { return d.Path == dir }) {
		return fmt.Errorf("add disk %s: it is a disk of this node already: %w", dir, fs.ErrExist)
	}
	n.setDisks(append(slices.Clone(list), admin.Disk{ID: "disk-of-" + dir, Path: dir, Size: 10 << 30, Avail: 10 << 30, State: "ok", Inodes: 1 << 20}))
	return nil
}

// RemoveDisk removes one at once.
func (n *Node) RemoveDisk(disk string) error {
	list := n.disks()
	i := slices.IndexFunc(list, func(d admin.Disk) bool { return d.Path == disk || d.ID == disk })
	switch {
	case i < 0:
		return fmt.Errorf("remove disk %s: it is no disk of this node: %w", disk, fs.ErrNotExist)
	case len(list) == 1:
		return fmt.Errorf("remove disk %s: it is the only disk of this node that works: %w", disk, syscall.EBUSY)
	}
	n.setDisks(slices.Delete(slices.Clone(list), i, i+1))
	return nil
}
