package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pkg/xattr"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// stores are the node's disks. They are opened, or made, once the node belongs to a cluster.
type stores struct {
	cfg     objstore.Config
	dirs    []string
	self    *dir // the node's, which remembers its disks
	gateway bool // no further disk is made
	log     *slog.Logger
	locks   []io.Closer // of the directories but the first, whose lock is the node's

	list  atomic.Pointer[[]*objstore.Store] // nil until open
	homes sync.Map                          // state.GroupID → *objstore.Store, where there are several disks
}

// newStores refuses disks that cannot be this node's, locks the further directories and makes sure that a store can live in each.
func newStores(cfg Config, self *dir) (*stores, error) {
	s := &stores{cfg: cfg.Store, dirs: cfg.Dirs, self: self, gateway: cfg.VNodes == 0, log: cfg.Logger}
	id := self.get()
	if s.gateway && len(id.Disks) == 0 {
		s.dirs = nil
	}
	// First of all: nothing is written to a directory whose disk is not mounted.
	if _, err := s.check(id.Cluster); err != nil {
		return nil, err
	}
	if s.cfg.FS != nil { // a simulation's: nobody else has it
		return s, nil
	}
	for i, d := range s.dirs {
		if i > 0 {
			lock, err := lockDir(vfs.OS{}, d)
			if err != nil {
				s.unlock()
				return nil, err
			}
			s.locks = append(s.locks, lock)
		}
		if err := probeXattr(d); err != nil {
			s.unlock()
			return nil, err
		}
	}
	return s, nil
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
}

// check refuses, before the node takes part in anything, disks of another cluster or node, and a node that lacks one of its own: what that one held would
// be gone without a word, and where all members of a group restarted this node could resume it empty (R5, R6).
func (s *stores) check(cluster string) ([]found, error) {
	self := s.self.get()
	list := make([]found, 0, len(s.dirs))
	at := map[string]string{} // disk → dir
	for _, d := range s.dirs {
		id, err := objstore.ReadIdentity(s.config(d))
		switch {
		case errors.Is(err, objstore.ErrNotStore) || errors.Is(err, os.ErrNotExist):
		case err != nil:
			return nil, err
		case id.Cluster != cluster:
			return nil, fmt.Errorf("directory %s belongs to cluster %s, this node to %q", d, id.Cluster, cluster)
		case id.Node != "" && id.Node != self.UUID:
			return nil, fmt.Errorf("directory %s belongs to node %s, this is node %s", d, id.Node, self.UUID)
		case at[id.Disk] != "":
			return nil, fmt.Errorf("directories %s and %s hold the same disk %s: one is a copy", at[id.Disk], d, id.Disk)
		}
		if id.Disk != "" {
			at[id.Disk] = d
		}
		list = append(list, found{d, id.Disk})
	}
	for _, k := range self.Disks {
		if at[k.UUID] == "" {
			return nil, fmt.Errorf("disk %s of this node, last seen in %s, is not there: mount it and name its directory; "+
				"if it is lost for good, remove this node from the cluster and let it join anew with empty directories", k.UUID, k.Dir)
		}
	}
	return list, nil
}

func (s *stores) config(dir string) objstore.Config {
	cfg := s.cfg
	cfg.Dir, cfg.Logger = dir, s.log
	return cfg
}

// open opens every disk's store, all at once, making those that are not there yet.
func (s *stores) open(cluster string) error {
	if s.list.Load() != nil || len(s.dirs) == 0 {
		return nil
	}
	disks, err := s.check(cluster)
	if err != nil {
		return err
	}
	if s.gateway { // it has disks from before it became one, and gives up what is on them
		disks = slices.DeleteFunc(disks, func(f found) bool { return f.disk == "" })
	}
	if err := forAll(disks, func(i int) error { return s.create(&disks[i], cluster) }); err != nil {
		return err
	}
	if err := s.remember(disks); err != nil { // before anything is written to them
		return err
	}
	list := make([]*objstore.Store, len(disks))
	err = forAll(disks, func(i int) (err error) {
		list[i], err = objstore.Open(s.config(disks[i].dir))
		return err
	})
	if err != nil {
		for _, st := range list {
			if st != nil {
				st.Close()
			}
		}
		return err
	}
	s.list.Store(&list)
	return nil
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

// remember makes it durable that these are the node's disks, and where they are.
func (s *stores) remember(disks []found) error {
	known := make([]knownDisk, len(disks))
	for i, f := range disks {
		known[i] = knownDisk{UUID: f.disk, Dir: f.dir}
	}
	if slices.Equal(known, s.self.get().Disks) {
		return nil
	}
	return s.self.change(func(id *identity) { id.Disks = known })
}

// all are the open stores.
func (s *stores) all() []*objstore.Store {
	if l := s.list.Load(); l != nil {
		return *l
	}
	return nil
}

// home is the disk that holds a group; nil if this node stores nothing (yet). With several disks the choice is made durable by the
// group's own folder: a disk that has it keeps it.
func (s *stores) home(id state.GroupID) *objstore.Store {
	list := s.all()
	switch len(list) {
	case 0:
		return nil
	case 1:
		return list[0]
	}
	if st, ok := s.homes.Load(id); ok {
		return st.(*objstore.Store)
	}
	st := chooseHome(list, id)
	actual, _ := s.homes.LoadOrStore(id, st)
	return actual.(*objstore.Store)
}

// chooseHome finds the disk that has the group already, or weighs disks by size (rendezvous hashing).
func chooseHome(list []*objstore.Store, id state.GroupID) *objstore.Store {
	for _, st := range list {
		for _, have := range st.Groups() {
			if have == objstore.GroupID(id) {
				return st
			}
		}
	}
	var best *objstore.Store
	var bestScore uint64
	for i, st := range list {
		if st.Err() != nil {
			continue
		}
		h := (uint64(id)<<8|uint64(i))*0x9e3779b97f4a7c15 ^ 0xd6e8feb86659fd93
		h ^= h >> 32
		h *= 0xd6e8feb86659fd93
		h ^= h >> 32
		// The largest size/-ln(u) wins; for a choice made once per group an integer stand-in will do: the size times a hash.
		score, _ := bits.Mul64(h, uint64(st.Space().Total)|1)
		if best == nil || score > bestScore {
			best, bestScore = st, score
		}
	}
	if best == nil {
		return list[0]
	}
	return best
}

// bytes is the size of all disks together.
func (s *stores) bytes() uint64 {
	var sum uint64
	f := s.cfg.FS
	if f == nil {
		f = vfs.OS{}
	}
	for _, d := range s.dirs {
		if st, err := f.Statfs(d); err == nil {
			sum += uint64(st.Total)
		}
	}
	return sum
}

// close checkpoints and closes every store.
func (s *stores) close() error {
	var errs []error
	for _, st := range s.all() {
		if err := st.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close store %s: %w", filepath.Clean(st.Identity().Disk), err))
		}
	}
	return errors.Join(errs...)
}

func (s *stores) unlock() {
	for _, l := range s.locks {
		l.Close()
	}
}
