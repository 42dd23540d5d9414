package node

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/pkg/xattr"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore"
	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// stores are the node's disks. They are opened, or made, once the node belongs to a cluster.
type stores struct {
	cfg   objstore.Config
	dirs  []string
	node  string
	log   *slog.Logger
	locks []*os.File // of the directories but the first, whose lock is the node's

	list  atomic.Pointer[[]*objstore.Store] // nil until open
	homes sync.Map                          // state.GroupID → *objstore.Store, where there are several disks
}

// newStores locks the further directories and makes sure that a store can live in each.
func newStores(cfg Config, uuid string) (*stores, error) {
	s := &stores{cfg: cfg.Store, dirs: cfg.Dirs, node: uuid, log: cfg.Logger}
	if cfg.VNodes == 0 {
		s.dirs = nil
	}
	if s.cfg.FS != nil { // a simulation's: nobody else has it
		return s, nil
	}
	for i, d := range s.dirs {
		if i > 0 {
			lock, err := lockDir(d)
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

// check refuses, before the node takes part in anything, disks of another cluster.
func (s *stores) check(cluster string) error {
	for _, d := range s.dirs {
		cfg := s.cfg
		cfg.Dir, cfg.Logger = d, s.log
		id, err := objstore.ReadIdentity(cfg)
		if errors.Is(err, objstore.ErrNotStore) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if id.Cluster != cluster {
			return fmt.Errorf("directory %s belongs to cluster %s, this node to %q", d, id.Cluster, cluster)
		}
		if id.Node != "" && id.Node != s.node {
			return fmt.Errorf("directory %s belongs to node %s, this is node %s", d, id.Node, s.node)
		}
	}
	return nil
}

// open opens every disk's store, all at once, making those that are not there yet.
func (s *stores) open(cluster string) error {
	if s.list.Load() != nil || len(s.dirs) == 0 {
		return nil
	}
	if err := s.check(cluster); err != nil {
		return err
	}
	list := make([]*objstore.Store, len(s.dirs))
	errs := make([]error, len(s.dirs))
	var wg sync.WaitGroup
	for i, d := range s.dirs {
		wg.Go(func() { list[i], errs[i] = s.openOne(d, cluster) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
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

func (s *stores) openOne(dir, cluster string) (*objstore.Store, error) {
	cfg := s.cfg
	cfg.Dir, cfg.Logger = dir, s.log
	_, err := objstore.ReadIdentity(cfg)
	if errors.Is(err, objstore.ErrNotStore) || errors.Is(err, os.ErrNotExist) {
		err = objstore.Create(cfg, objstore.Identity{Cluster: cluster, Disk: newUUID(), Node: s.node})
	}
	if err != nil {
		return nil, err
	}
	return objstore.Open(cfg)
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
