package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pkg/xattr"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// stores are the node's disks. They are opened, or made, once the node belongs to a cluster.
type stores struct {
	cfg     objstore.Config
	named   []string // the directories that the node was started with
	self    *dir     // the node's, which remembers its disks
	gateway bool     // no further disk is made
	log     *slog.Logger

	opMu  opMutex              // one change of the list at a time; guards locks
	locks map[string]io.Closer // of the directories but the node's own
	incMu sync.Mutex           // one incarnation, or one disk that learns them, at a time; after opMu
	list  atomic.Pointer[[]*disk]
	homes sync.Map // state.GroupID → *objstore.Store
	wake  chan struct{}
}

// opMutex is a mutex that is held while a disk is closed, or the cluster agrees to something. It is a channel so that a simulated clock can pass while somebody waits
// for it.
type opMutex chan struct{}

func (m opMutex) Lock()   { m <- struct{}{} }
func (m opMutex) Unlock() { <-m }

// disk is one of the node's. It is not changed: another takes its place in the list.
type disk struct {
	knownDisk
	store *objstore.Store // nil: it failed in an earlier life
	total int             // groups that were on it when its removal began, or this process began
	stuck string          // why its groups cannot leave it now
}

// usable says that groups may be given a place on it.
func (d *disk) usable() bool {
	return d.store != nil && d.store.Err() == nil && d.State != DiskRemoving && d.State != DiskFailed
}

// newStores refuses disks that cannot be this node's, locks the further directories and makes sure that a store can live in each.
func newStores(cfg Config, self *dir) (*stores, error) {
	s := &stores{cfg: cfg.Store, self: self, gateway: cfg.VNodes == 0, log: cfg.Logger, locks: map[string]io.Closer{}, opMu: make(opMutex, 1), wake: make(chan struct{}, 1)}
	for _, d := range cfg.Dirs {
		if s.cfg.FS == nil {
			if abs, err := filepath.Abs(d); err == nil {
				d = abs
			}
		}
		s.named = append(s.named, d)
	}
	// First of all: nothing is written to a directory whose disk is not mounted.
	disks, err := s.check(self.get().Cluster)
	if err != nil {
		return nil, err
	}
	if s.cfg.FS != nil { // a simulation's: nobody else has it
		return s, nil
	}
	for _, f := range disks {
		if err := s.claim(f.dir); err != nil {
			s.unlock()
			return nil, err
		}
	}
	return s, nil
}

// claim locks a directory, unless it is the node's own, which is locked, and sees whether objects can live there.
func (s *stores) claim(dir string) error {
	if dir == s.named[0] {
		return probeXattr(dir)
	}
	if s.locks[dir] != nil {
		return nil
	}
	lock, err := lockDir(vfs.OS{}, dir)
	if err != nil {
		return err
	}
	if err := probeXattr(dir); err != nil {
		lock.Close()
		return err
	}
	s.locks[dir] = lock
	return nil
}

// probeXattr says early, and not when a cluster is formed, that a file system cannot hold objects.
func probeXattr(dir string) error {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return fmt.Errorf("use %s: %w", dir, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := xattr.FSet(f, "user.sheepdog", []byte("probe")); err != nil {
		return fmt.Errorf("the file system of %s keeps no user extended attributes: use ext4, xfs or btrfs, or mount it with user_xattr (%w)", dir, err)
	}
	return nil
}

// found is what a directory holds.
type found struct {
	dir  string
	disk string // the store's identity; "": there is none
	// stale says why it is not to be served: what it holds is not the latest, or it fails; "": it is.
	stale string
}

// check finds the node's disks, and refuses, before the node takes part in anything, disks of another cluster or node, and a node that lacks one of its own: what
// that one held would be gone without a word, and where all members of a group restarted this node could resume it empty (R5, R6). Looked at are the
// directories named at the start and those where disks were last; disks that failed or were removed are left alone.
func (s *stores) check(cluster string) ([]found, error) {
	self := s.self.get()
	known := map[string]knownDisk{}
	for _, k := range self.Disks {
		known[k.UUID] = k
	}
	var list []found
	at := map[string]string{} // disk → dir
	look := func(dir string, named bool) error {
		id, err := s.identity(dir)
		if err != nil {
			return err
		}
		switch {
		case id.Disk == "" && (!named || s.gateway || s.retired(dir, self)):
			return nil
		case id.Disk == "":
			list = append(list, found{dir: dir})
			return nil
		case id.Cluster != cluster:
			return fmt.Errorf("directory %s belongs to cluster %s, this node to %q", dir, id.Cluster, cluster)
		case id.Node != "" && id.Node != self.UUID:
			return fmt.Errorf("directory %s belongs to node %s, this is node %s", dir, id.Node, self.UUID)
		case at[id.Disk] != "":
			return fmt.Errorf("directories %s and %s hold the same disk %s: one is a copy", at[id.Disk], dir, id.Disk)
		case slices.Contains(self.Gone, id.Disk):
			s.log.Warn("this disk was removed from the node and is left alone: empty it, then `sheep node disk add` takes it in again", "dir", dir, "disk", id.Disk)
			return nil
		case known[id.Disk].State == DiskFailed:
			s.log.Warn("this disk has failed and is left alone: `sheep node disk remove` lets it go", "dir", dir, "disk", id.Disk, "why", known[id.Disk].Why)
			at[id.Disk] = dir
			return nil
		}
		at[id.Disk] = dir
		why, err := s.stale(dir, known[id.Disk])
		list = append(list, found{dir, id.Disk, why})
		return err
	}
	for _, d := range s.named {
		if err := look(d, true); err != nil {
			return nil, err
		}
	}
	for _, k := range self.Disks {
		if at[k.UUID] != "" || k.State == DiskFailed || slices.Contains(s.named, k.Dir) {
			continue
		}
		if err := look(k.Dir, false); err != nil {
			return nil, err
		}
	}
	for _, k := range self.Disks {
		if at[k.UUID] != "" || k.State == DiskFailed {
			continue
		}
		if k.State == DiskRemoving {
			if id, err := objstore.Retired(s.config(k.Dir)); err == nil && id.Disk == k.UUID {
				continue // its removal was all but complete
			}
		}
		return nil, fmt.Errorf("disk %s of this node, last seen in %s, is not there: mount it and name its directory; "+
			"if it is lost for good, remove this node from the cluster and let it join anew with empty directories", k.UUID, k.Dir)
	}
	return list, nil
}

// identity reads whose store a directory is; no store is no error.
func (s *stores) identity(dir string) (objstore.Identity, error) {
	id, err := objstore.ReadIdentity(s.config(dir))
	if errors.Is(err, objstore.ErrNotStore) || errors.Is(err, os.ErrNotExist) {
		return objstore.Identity{}, nil
	}
	return id, err
}

// retired says that a directory was a disk of this node, which was removed.
func (s *stores) retired(dir string, self identity) bool {
	id, err := objstore.Retired(s.config(dir))
	if err != nil || id.Node != self.UUID {
		return false
	}
	s.log.Info("this directory was a disk of the node and was removed: `sheep node disk add` takes it in again", "dir", dir, "disk", id.Disk)
	return true
}

func (s *stores) config(dir string) objstore.Config {
	cfg := s.cfg
	cfg.Dir, cfg.Logger = dir, s.log
	return cfg
}

// openStore opens a disk's store. A disk that hangs ends as one that fails, unless it is the last that works, or the others do not answer either: then it is not the disk, or
// ending it would help nobody. While it lasts the node asks for no lease (stuck).
func (s *stores) openStore(dir string, others bool) (*objstore.Store, error) {
	cfg := s.config(dir)
	cfg.Detached = others
	var self atomic.Pointer[objstore.Store]
	cfg.MayEnd = func() bool {
		st := self.Load()
		return st == nil && others || st != nil && slices.ContainsFunc(s.disks(), func(d *disk) bool { return d.store != st && d.usable() && d.store.Late() == 0 })
	}
	st, err := objstore.Open(cfg)
	self.Store(st)
	return st, err
}

// detach has calls to disks hold nobody, where there is more than one disk. opMu is held.
func (s *stores) detach() {
	all := s.all()
	for _, st := range all {
		st.Detach(len(all) > 1)
	}
}

// late says for how long a disk has not answered that counts as working.
func (s *stores) late() (longest time.Duration) {
	for _, d := range s.disks() {
		if d.store != nil && d.store.Err() == nil {
			longest = max(longest, d.store.Late())
		}
	}
	return longest
}

// open opens every disk's store, all at once, making those that are not there yet.
func (s *stores) open(cluster string) error {
	s.opMu.Lock()
	defer s.opMu.Unlock()
	if s.list.Load() != nil {
		return nil
	}
	disks, err := s.check(cluster)
	if err != nil {
		return err
	}
	if disks, err = s.setAside(disks); err != nil {
		return err
	}
	if err := forAll(disks, func(i int) error { return s.create(&disks[i], cluster) }); err != nil {
		return err
	}
	if err := s.remember(disks); err != nil { // before anything is written to them
		return err
	}
	opened := make([]*objstore.Store, len(disks))
	err = forAll(disks, func(i int) (err error) {
		opened[i], err = s.openStore(disks[i].dir, len(disks) > 1)
		if errors.Is(err, objstore.ErrDiskFailed) || errors.Is(err, syscall.EIO) {
			disks[i].stale = err.Error()
		}
		return err
	})
	if works := slices.DeleteFunc(slices.Clone(opened), func(st *objstore.Store) bool { return st == nil }); err != nil && len(works) > 0 && onlyFailed(disks, opened) {
		opened = works // one that fails, or hangs, at the start is one that failed
		disks, err = s.setAside(disks)
	}
	if err == nil {
		err = settle(opened, s.log)
	}
	if err != nil {
		for _, st := range opened {
			if st != nil {
				st.Close()
			}
		}
		return err
	}
	var list []*disk
	for _, k := range s.self.get().Disks {
		d := &disk{knownDisk: k}
		for i := range disks {
			if disks[i].disk == k.UUID {
				d.store = opened[i]
				d.total = len(opened[i].Groups())
				for _, id := range opened[i].Groups() {
					s.homes.Store(state.GroupID(id), opened[i])
				}
			}
		}
		list = append(list, d)
	}
	s.list.Store(&list)
	s.detach()
	return nil
}

// onlyFailed says that what could not be opened are disks that fail.
func onlyFailed(disks []found, opened []*objstore.Store) bool {
	for i, d := range disks {
		if opened[i] == nil && d.stale == "" {
			return false
		}
	}
	return true
}

// settle leaves one copy of each group: a move that was cut short left two (STORE.md rule 21). A whole one counts before a mixture, then the longer one.
func settle(opened []*objstore.Store, log *slog.Logger) error {
	at := map[objstore.GroupID]*objstore.Store{}
	dirty := map[*objstore.Store]bool{}
	for _, st := range opened {
		for _, id := range st.Groups() {
			keep, drop := st, at[id]
			if drop != nil {
				if better(drop.Group(id), keep.Group(id)) {
					keep, drop = drop, keep
				}
				log.Info("a second copy of a group is discarded", "group", uint32(id), "disk", drop.Identity().Disk, "kept", keep.Identity().Disk)
				if err := drop.DropGroup(id); err != nil {
					return err
				}
				dirty[drop] = true
			}
			at[id] = keep
		}
	}
	for st := range dirty {
		if err := st.SyncWait(); err != nil {
			return err
		}
	}
	return nil
}

func better(a, b *objstore.Group) bool {
	if a.Syncing() != b.Syncing() {
		return b.Syncing()
	}
	x, y := a.Last(), b.Last()
	return x.Term > y.Term || x.Term == y.Term && x.LSN >= y.LSN
}

// forAll calls f for every disk at once.
func forAll(disks []found, f func(i int) error) error {
	errs := make([]error, len(disks))
	var wg sync.WaitGroup
	for i := range disks {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// create makes the store of a directory that has none.
func (s *stores) create(f *found, cluster string) error {
	if f.disk != "" {
		return nil
	}
	id := objstore.Identity{Cluster: cluster, Disk: newUUID(), Node: s.self.get().UUID}
	if err := objstore.Create(s.config(f.dir), id); err != nil {
		return err
	}
	f.disk = id.Disk
	return nil
}

// remember makes it durable that these are the node's disks, and where they are. Disks that failed stay; those whose removal was all but complete go.
func (s *stores) remember(disks []found) error {
	was := s.self.get()
	var now []knownDisk
	gone := was.Gone
	for _, f := range disks {
		k := knownDisk{UUID: f.disk}
		if i := slices.IndexFunc(was.Disks, func(k knownDisk) bool { return k.UUID == f.disk }); i >= 0 {
			k = was.Disks[i]
		}
		k.Dir = f.dir
		now = append(now, k)
	}
	for _, k := range was.Disks {
		switch {
		case slices.ContainsFunc(now, func(n knownDisk) bool { return n.UUID == k.UUID }):
		case k.State == DiskRemoving:
			gone = append(gone, k.UUID)
		default:
			now = append(now, k)
		}
	}
	if slices.Equal(now, was.Disks) && len(gone) == len(was.Gone) {
		return nil
	}
	return s.self.change(func(id *identity) { id.Disks, id.Gone = now, gone })
}

// disks are all of the node's; none before they are open.
func (s *stores) disks() []*disk {
	if l := s.list.Load(); l != nil {
		return *l
	}
	return nil
}

// all are the open stores.
func (s *stores) all() (list []*objstore.Store) {
	for _, d := range s.disks() {
		if d.store != nil {
			list = append(list, d.store)
		}
	}
	return list
}

// home is the disk that holds a group; nil if this node stores nothing (yet). What has it keeps it: the choice is made durable by the group's own folder. On a disk
// that has failed or goes, a group that has nothing there gets another.
func (s *stores) home(id state.GroupID) *objstore.Store {
	disks := s.disks()
	if h, ok := s.homes.Load(id); ok {
		st := h.(*objstore.Store)
		i := slices.IndexFunc(disks, func(d *disk) bool { return d.store == st })
		if i >= 0 && (disks[i].usable() || disks[i].State == DiskRemoving && st.Err() == nil && st.Holds(objstore.GroupID(id))) {
			return st
		}
	}
	d := chooseHome(disks, id)
	if d == nil {
		for _, d := range disks { // none is usable: what there is says why
			if d.store != nil {
				return d.store
			}
		}
		return nil
	}
	s.homes.Store(id, d.store)
	return d.store
}

// chooseHome weighs disks by size (rendezvous hashing): a disk that comes or goes moves no group between the others.
func chooseHome(disks []*disk, id state.GroupID) *disk {
	var best *disk
	bestScore := math.Inf(-1)
	for _, d := range disks {
		if !d.usable() {
			continue
		}
		size := float64(max(d.store.Space().Total, 1))
		if score := scoreOf(d.UUID, id, size); score > bestScore {
			best, bestScore = d, score
		}
	}
	return best
}

// scoreOf is greatest for a disk as often as its size is a part of the whole.
func scoreOf(disk string, id state.GroupID, size float64) float64 {
	return -size / math.Log(hashOf(disk, id))
}

// hashOf is a number between 0 and 1 that only the disk and the group decide.
func hashOf(disk string, id state.GroupID) float64 {
	h := fnv.New64a()
	h.Write([]byte(disk))
	h.Write(binary.LittleEndian.AppendUint32(nil, uint32(id)))
	x := h.Sum64()
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	return (float64(x>>11) + 0.5) / (1 << 53)
}

// registered is what raft is told of the disks.
func (s *stores) registered() (list []state.Disk) {
	for _, d := range s.disks() {
		if d.store != nil && d.State != DiskFailed && d.store.Err() == nil {
			list = append(list, state.Disk{UUID: d.UUID, Bytes: uint64(max(0, d.store.Space().Total))})
		}
	}
	return list
}

// lostDisk says that a disk failed, and what it held with it.
func (s *stores) lostDisk() bool {
	return slices.ContainsFunc(s.disks(), func(d *disk) bool {
		return d.State == DiskFailed || d.store != nil && errors.Is(d.store.Err(), objstore.ErrDiskFailed)
	})
}

// bytes is the size of all disks together.
func (s *stores) bytes() uint64 {
	var sum uint64
	for _, d := range s.registered() {
		sum += d.Bytes
	}
	if s.list.Load() == nil { // before a cluster was joined: what they will be
		f := s.cfg.FS
		if f == nil {
			f = vfs.OS{}
		}
		for _, d := range s.named {
			if st, err := f.Statfs(d); err == nil {
				sum += uint64(st.Total)
			}
		}
	}
	return sum
}

// close checkpoints and closes every store.
func (s *stores) close() error {
	s.opMu.Lock()
	defer s.opMu.Unlock()
	var errs []error
	for _, d := range s.disks() {
		if d.store == nil {
			continue
		}
		if err := d.store.Close(); err != nil && !errors.Is(err, objstore.ErrDiskFailed) { // of that everybody knows
			errs = append(errs, fmt.Errorf("close store %s: %w", d.Dir, err))
		}
	}
	return errors.Join(errs...)
}

func (s *stores) unlock() {
	for _, l := range s.locks {
		l.Close()
	}
}
