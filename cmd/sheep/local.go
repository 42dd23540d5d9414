package main

import (
	"context"
	"os"
	"runtime"
	"slices"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/node"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/version"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// localNode is a running node as the admin API wants to see it (admin.LocalNode).
type localNode struct{ n *runningNode }

func (l *localNode) ID() state.NodeID { return l.n.node.Self().Node }
func (l *localNode) Map() *state.Map  { return l.n.node.Map() }
func (l *localNode) Leader() string   { return l.n.node.LeaderAddr() }
func (l *localNode) Voters() []string { return l.n.node.Voters() }
func (l *localNode) UUID() string     { return l.n.node.UUID() }
func (l *localNode) Cluster() string  { return l.n.node.Cluster() }
func (l *localNode) Stop()            { l.n.tell() }

func (l *localNode) Wait(ctx context.Context, index uint64) error {
	return l.n.node.WaitApplied(ctx, index)
}

func (l *localNode) Propose(ctx context.Context, cmd *state.Command) (state.Result, error) {
	return l.n.node.Propose(ctx, cmd)
}

func (l *localNode) Format(ctx context.Context, r admin.FormatRequest) error {
	return l.n.node.Format(ctx, r.Copies, r.MinCopies, r.PGs, r.Force)
}

func (l *localNode) Met() []admin.Peer {
	var list []admin.Peer
	for _, m := range l.n.node.Met() {
		list = append(list, admin.Peer{UUID: m.UUID, Addr: m.Addr, Zone: m.Zone, VNodes: m.VNodes})
	}
	return list
}

func (l *localNode) Self() admin.Self {
	node := l.n.node
	s := admin.Self{Pid: os.Getpid(), Version: version.String(), Started: l.n.started, Leader: node.IsLeader(), Voter: slices.Contains(node.Voters(), node.UUID()), Lease: node.Leased(), Index: node.Map().Index,
		Disks: []admin.Disk{}, Counters: map[string]uint64{}, Goroutines: runtime.NumGoroutine()}
	for _, i := range node.Disks() {
		s.Disks = append(s.Disks, diskOf(i))
		if i.Store != nil {
			countersOf(s.Counters, "store", i.Store.Metrics())
		}
	}
	stats := &node.Engine().Stats
	countersOf(s.Counters, "engine", stats)
	s.Rot = admin.Rot{Repaired: uint64(stats.RotRepaired.Load()), Unrepairable: uint64(stats.RotLeft.Load()), Compared: uint64(stats.Compared.Load()),
		Differ: uint64(stats.Differ.Load())}
	if g := l.n.gateway.ready.Load(); g != nil {
		countersOf(s.Counters, "client", &g.client.Stats)
	}
	return s
}

func (l *localNode) ResyncBytes() uint64 { return uint64(l.n.node.Engine().Stats.ResyncBytes.Load()) }

// Usage sums what VDIs hold in the groups that this node is primary of.
func (l *localNode) Usage() admin.Usage {
	u := admin.Usage{}
	m, self := l.Map(), l.ID()
	for _, st := range l.n.node.Stores() {
		for _, id := range st.Groups() {
			g := m.Group(state.GroupID(id))
			if g == nil || g.Primary.Node != self {
				continue
			}
			st.Group(id).UsedAll(func(vid objstore.Vid, used objstore.Usage) bool {
				u[vid] += uint64(used.Present) * objstore.BlockSize
				return true
			})
		}
	}
	return u
}

func (l *localNode) Check(ctx context.Context, only []uint32, event func(admin.CheckEvent)) error {
	return l.n.node.Engine().Check(ctx, only, func(p replica.CheckProgress) {
		e := admin.CheckEvent{Groups: p.GroupsDone, Total: p.Groups, Objects: uint64(p.Objects)}
		for _, f := range p.Findings {
			e.Finding = f
			event(e)
		}
		e.Finding, e.Checked = "", p.Checked
		event(e)
	})
}

// diskOf describes one disk.
func diskOf(i node.DiskInfo) admin.Disk {
	d := admin.Disk{ID: i.UUID, Path: i.Dir, State: "ok", Inodes: -1, Groups: i.Groups}
	if i.Store != nil {
		space, scrub := i.Store.Space(), i.Store.Scrub()
		d.Size, d.Used, d.Avail, d.Inodes = uint64(space.Total), uint64(space.Used), uint64(space.Free), space.InodesFree
		d.Full, d.Near = space.Full || space.Free < replica.RoomMargin, space.NearFull || space.Free < replica.RoomMargin
		d.Scrub = admin.Scrub{PerSec: scrub.Rate, Started: scrub.Started, Rounds: scrub.Rounds, LastRound: int(scrub.LastRound.Seconds()), LastEnd: scrub.LastEnd,
			Blocks: scrub.Blocks, Bad: scrub.Bad}
	}
	switch {
	case i.State == node.DiskFailed:
		d.State, d.Fault, d.Full, d.Near = "failed", i.Why, false, false
	case i.State == node.DiskRemoving:
		d.State, d.Note, d.Total = "removing", i.Why, max(i.Total, i.Groups)
	case d.Full:
		d.State = "full"
	case d.Near:
		d.State = "near full"
	case i.State == node.DiskFilling:
		d.State, d.Note = "filling", i.Why
	}
	return d
}

func (l *localNode) AddDisk(ctx context.Context, dir string) error {
	_, err := l.n.node.AddDisk(ctx, dir)
	return err
}

func (l *localNode) RemoveDisk(disk string) error { return l.n.node.RemoveDisk(disk) }
