package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// DiskState is what becomes of a disk; doc.go draws what may follow what.
type DiskState string

const (
	DiskInUse    DiskState = ""
	DiskFilling  DiskState = "filling"  // new: its share of the groups is being moved to it
	DiskRemoving DiskState = "removing" // its groups are being moved off it
	DiskFailed   DiskState = "failed"   // a write or a sync was refused, or it is an older copy of itself: it takes nothing any more, until a person removes it
)

// DiskInfo describes one disk of a node.
type DiskInfo struct {
	UUID, Dir string
	State     DiskState
	Why       string          // DiskFailed: what it said; else why it does not get on
	Store     *objstore.Store // nil: it failed in an earlier life of the node
	Groups    int             // that it holds now; DiskFailed: that have not got another disk yet
	Total     int             // DiskRemoving: that it held when that began, or when the node was started
}

func (s *stores) infos(e *replica.Engine) []DiskInfo {
	var list []DiskInfo
	for _, d := range s.disks() {
		i := DiskInfo{UUID: d.UUID, Dir: d.Dir, State: d.State, Why: d.Why, Store: d.store, Total: d.total}
		if d.store != nil {
			i.Groups = len(d.store.Groups())
			if err := d.store.Err(); errors.Is(err, objstore.ErrDiskFailed) && i.State != DiskFailed { // not one that is just being let go
				i.State, i.Why = DiskFailed, err.Error()
			}
			if i.State == DiskFailed {
				i.Groups = len(e.GroupsOn(d.store))
			}
		}
		if i.State == DiskRemoving || i.State == DiskFilling {
			i.Why = d.stuck
		}
		list = append(list, i)
	}
	return list
}

// AddDisk takes a directory in as another disk of this node, durably: it is one of the node's at the next start too, named or not. Its share of the groups is moved to it in the
// background. It may be called again for what was interrupted.
func (n *Node) AddDisk(ctx context.Context, dir string) (uuid string, err error) {
	s := n.stores
	s.opMu.Lock()
	defer s.opMu.Unlock()
	if uuid, err = n.addDisk(ctx, dir); err != nil {
		return "", fmt.Errorf("add disk %s: %w", dir, err)
	}
	s.poke()
	return uuid, nil
}

func (n *Node) addDisk(ctx context.Context, dir string) (string, error) {
	s := n.stores
	switch {
	case n.Self().Node == state.NoNode || s.list.Load() == nil:
		return "", fmt.Errorf("this node is not part of a cluster yet: %w", syscall.EAGAIN)
	case s.gateway:
		return "", fmt.Errorf("this node is a gateway, which stores nothing: start it with --vnodes: %w", fs.ErrInvalid)
	case !filepath.IsAbs(dir):
		return "", fmt.Errorf("name the directory from the root on: %w", fs.ErrInvalid)
	}
	dir = filepath.Clean(dir)
	if err := s.refuseDir(dir); err != nil {
		return "", err
	}
	f := found{dir: dir}
	id, err := s.identity(dir)
	self := s.self.get()
	switch {
	case err != nil:
		return "", err
	case id.Disk == "":
	case slices.Contains(self.Gone, id.Disk):
		return "", fmt.Errorf("it holds disk %s, which was removed from this node: empty the directory first: %w", id.Disk, fs.ErrExist)
	case slices.ContainsFunc(self.Disks, func(k knownDisk) bool { return k.UUID == id.Disk }):
		return "", fmt.Errorf("it is a copy of disk %s of this node: empty the directory first: %w", id.Disk, fs.ErrExist)
	case id.Cluster == n.clusterID() && id.Node == self.UUID:
		f.disk = id.Disk // an earlier attempt
	default:
		return "", fmt.Errorf("it belongs to node %s of cluster %s: %w", id.Node, id.Cluster, fs.ErrExist)
	}
	if s.cfg.FS == nil {
		if err := s.claim(dir); err != nil {
			return "", err
		}
	}
	d, err := n.takeIn(ctx, &f)
	if err != nil {
		s.release(dir)
		return "", err
	}
	n.log.Info("disk added", "dir", dir, "disk", d.UUID)
	return d.UUID, nil
}

// takeIn makes the disk's store, has the cluster agree that it is ours (STORE.md rule 21), remembers it and shows it to everybody. opMu is held.
func (n *Node) takeIn(ctx context.Context, f *found) (*disk, error) {
	s := n.stores
	if err := s.create(f, n.clusterID()); err != nil {
		return nil, err
	}
	st, err := s.openStore(f.dir, len(s.all()) > 0)
	if err != nil {
		return nil, err
	}
	k := knownDisk{UUID: f.disk, Dir: f.dir, State: DiskFilling}
	disks := append(s.registered(), state.Disk{UUID: k.UUID, Bytes: uint64(max(0, st.Space().Total))})
	err = n.proposeDisks(ctx, disks)
	if err != nil {
		st.Close()
		return nil, err
	}
	if speed := n.Map().Settings.ScrubSpeed; n.Map().Formatted() {
		st.SetScrubRate(speed)
	}
	d := &disk{knownDisk: k, store: st}
	if err := s.join(d); err != nil {
		st.Close()
		return nil, err
	}
	return d, nil
}

// join tells a new disk the node's incarnations, remembers it and shows it to everybody: it knows this incarnation, and is told the next. opMu is held.
func (s *stores) join(d *disk) error {
	s.incMu.Lock()
	defer s.incMu.Unlock()
	history := s.self.get().Incarnations
	if err := setIncarnations(d.store, history); err != nil {
		return err
	}
	d.Inc = history[len(history)-1]
	if err := s.self.change(func(id *identity) { id.Disks = append(id.Disks, d.knownDisk) }); err != nil {
		return err
	}
	s.publish(append(slices.Clone(s.disks()), d))
	return nil
}

// refuseDir says why a directory cannot be another disk.
func (s *stores) refuseDir(dir string) error {
	if s.cfg.FS != nil {
		return nil
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("it is no directory: %w", syscall.ENOTDIR)
	}
	for _, d := range s.disks() {
		if have, err := os.Stat(d.Dir); err == nil && os.SameFile(st, have) {
			return fmt.Errorf("it is a disk of this node already (%s): %w", d.UUID, fs.ErrExist)
		}
	}
	return nil
}

func (n *Node) proposeDisks(ctx context.Context, disks []state.Disk) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	res, err := n.Propose(ctx, &state.Command{ID: consensus.NewID(), Time: time.Now(), Disks: &state.Disks{By: n.Self(), Disks: disks}})
	if err != nil {
		return fmt.Errorf("agree on it with the cluster: %w", err)
	}
	return res.Err()
}

// publish shows a new list to everybody. opMu is held.
func (s *stores) publish(list []*disk) {
	s.list.Store(&list)
	s.detach()
}

// replace shows a disk's successor in its place. opMu is held.
func (s *stores) replace(old, now *disk) {
	list := slices.Clone(s.disks())
	if i := slices.Index(list, old); i >= 0 {
		list[i] = now
	}
	s.publish(list)
}

func (s *stores) release(dir string) {
	if l := s.locks[dir]; l != nil {
		l.Close()
		delete(s.locks, dir)
	}
}

func (s *stores) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// find returns the disk of that directory or identity. opMu is held.
func (s *stores) find(name string) *disk {
	for _, d := range s.disks() {
		if d.UUID == name || d.Dir == filepath.Clean(name) {
			return d
		}
	}
	return nil
}

// ErrLastDisk: the node would have no disk left.
var ErrLastDisk = errors.New("it is the only disk of this node that works: drain the node, or add another disk first")

// RemoveDisk begins to move a disk's groups to the node's others; when none is left on it, it is let go. That goes on over restarts, and its progress is in Disks. A disk
// that failed, in this life of the node or an earlier one, is let go at once, unless it had the only copy of something: then it is refused with EBUSY.
func (n *Node) RemoveDisk(name string) error {
	s := n.stores
	s.opMu.Lock()
	defer s.opMu.Unlock()
	d := s.find(name)
	if d == nil {
		return fmt.Errorf("remove disk %s: it is no disk of this node: %w", name, fs.ErrNotExist)
	}
	if err := n.refuseRemoval(d); err != nil {
		return fmt.Errorf("remove disk %s: %w", d.Dir, err)
	}
	if d.State == DiskRemoving {
		return nil
	}
	if d.State == DiskFailed {
		return n.letGo(d)
	}
	now := *d
	now.State, now.Why, now.total = DiskRemoving, "", len(d.store.Groups())
	if err := s.note(&now); err != nil {
		return err
	}
	s.replace(d, &now)
	n.log.Info("a disk's groups are moved to the node's others", "dir", d.Dir, "disk", d.UUID, "groups", now.total)
	s.poke()
	return nil
}

// note makes a disk's state durable.
func (s *stores) note(d *disk) error {
	return s.self.change(func(id *identity) {
		for i := range id.Disks {
			if id.Disks[i].UUID == d.UUID {
				id.Disks[i].State, id.Disks[i].Why = d.State, d.Why
			}
		}
	})
}

// refuseRemoval says why a disk cannot go. opMu is held.
func (n *Node) refuseRemoval(d *disk) error {
	s := n.stores
	if d.State == DiskFailed || d.store != nil && d.store.Err() != nil {
		return n.refuseLoss(d)
	}
	var room int64
	others := 0
	for _, o := range s.disks() {
		if o != d && o.usable() {
			sp := o.store.Space()
			room += max(0, sp.Free-max(sp.Total/nearFullPart, replica.RoomMargin))
			others++
		}
	}
	if others == 0 {
		return fmt.Errorf("%w: %w", ErrLastDisk, syscall.EBUSY)
	}
	if need := bytesOn(d.store); need > room {
		return fmt.Errorf("the node's other disks have room for %d MiB, it holds %d MiB: add a disk, or drain the node: %w", room>>20, need>>20, syscall.ENOSPC)
	}
	return nil
}

// refuseLoss says that a disk that failed had the only copies of groups, as far as this node knows. opMu is held.
func (n *Node) refuseLoss(d *disk) error {
	self := n.Self()
	if me := n.Map().Node(self.Node); me == nil || me.Inc != self.Inc { // until then the map may be one of before
		return fmt.Errorf("this node does not take part in the cluster yet, so whether it has the only copy of something is not known: %w", syscall.EAGAIN)
	}
	left := n.engine.LostGroups()
	if d.store != nil {
		left += n.engine.NamedOn(d.store)
	}
	if left == 0 {
		return nil
	}
	return fmt.Errorf("%d groups have their only copy on it, or on another failed disk of this node: wait until other replicas have them, "+
		"or give them up by `sheep cluster recover force`: %w", left, syscall.EBUSY)
}

// nearFullPart of a disk is not counted on when groups are moved to it.
const nearFullPart = 16

// bytesOn is what the groups on a disk hold.
func bytesOn(s *objstore.Store) (sum int64) {
	for _, id := range s.Groups() {
		s.Group(id).UsedAll(func(_ objstore.Vid, u objstore.Usage) bool {
			sum += u.Present * objstore.BlockSize
			return true
		})
	}
	return sum
}

// letGo forgets a disk that holds nothing any more, or that has failed. What was done of it before a crash is done again. opMu is held.
func (n *Node) letGo(d *disk) error {
	s := n.stores
	if d.State == DiskFailed {
		if d.store != nil {
			go d.store.Close() // its disk may never answer
		}
	} else {
		if err := d.store.Close(); err != nil {
			return err
		}
		if err := objstore.Retire(s.config(d.Dir)); err != nil {
			return err
		}
	}
	err := s.self.change(func(id *identity) {
		id.Disks = slices.DeleteFunc(id.Disks, func(k knownDisk) bool { return k.UUID == d.UUID })
		id.Gone = append(id.Gone, d.UUID)
	})
	if err != nil {
		return err
	}
	s.publish(slices.DeleteFunc(slices.Clone(s.disks()), func(o *disk) bool { return o == d }))
	s.release(d.Dir)
	n.log.Info("disk removed", "dir", d.Dir, "disk", d.UUID)
	n.spawn(func() { // the cluster learns of it now or with the next registration
		if err := n.proposeDisks(n.ctx, s.registered()); err != nil {
			n.log.Info("tell the cluster of a disk that was removed", "err", err)
		}
	})
	return nil
}
