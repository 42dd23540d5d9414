// Package simfs is a file system in memory on which power can be cut.
//
// # Fault model
//
// What was written lies in memory until a sync. A power cut keeps, by a
// seeded choice, any subset of the 512-byte sectors that were not synced,
// some of them torn inside, any size between the synced and the last one, and
// any subset of the changes of names that their directory's sync has not
// covered; a rename happens whole or not at all. Attributes set before a file
// got its name come with the name; those set later are durable only with
// SyncFS. Sectors may also reach the disk by themselves at any time before.
//
// After a sync that failed with EIO what it was to write is read from memory
// as before, and never reaches the disk.
//
// Calls can be made to fail, to wait and to find no space; see Before and
// Capacity. Nothing blocks on anything but these, so the file system can be
// used in a testing/synctest bubble.
package simfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// ErrPower is every call's answer once the power is off.
var ErrPower = errors.New("power is off")

// FS is a simulated file system. Its root directory "/" exists.
type FS struct {
	hook     atomic.Pointer[func(op, name string) error] // of Before
	mu       sync.Mutex
	rng      *rand.Rand
	root     *dir
	dirs     map[string]*dir
	locks    map[string]bool
	off      bool
	syncs    int
	cutAt    int // the sync at which power goes; 0: never
	cutImage *FS
	flushOne int // one in so many writes lets some sectors reach the disk

	capacity  int64 // bytes; 0: no bound
	used      int64
	inodesMax int64
	inodes    int64
	noXattr   bool
}

// New makes an empty file system; seed decides what a power cut keeps.
func New(seed uint64) *FS {
	f := &FS{rng: rand.New(rand.NewPCG(seed, 0x5eed)), dirs: map[string]*dir{}, locks: map[string]bool{}, flushOne: 16}
	f.root = newDir()
	f.dirs["/"] = f.root
	return f
}

// SetCapacity bounds the bytes and the files that fit; 0 is no bound.
func (f *FS) SetCapacity(bytes, inodes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity, f.inodesMax = bytes, inodes
}

// SetNoXattr makes attributes fail as on a file system without them.
func (f *FS) SetNoXattr(no bool) { f.noXattr = no }

// Used is how many bytes files take.
func (f *FS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

// Memory is about how many bytes of memory the files take: what they hold, and
// what of that the disk does not have yet.
func (f *FS) Memory() (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.dirs {
		for _, i := range d.names {
			for _, p := range i.pages {
				n += pageMemory
				if p.old != nil {
					n += pageSize
				}
			}
		}
	}
	return n
}

// Syncs counts the syncs so far, of files, directories and all.
func (f *FS) Syncs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncs
}

// CutAtSync has the power go at the k-th sync from now on: while it is under
// way, so that any part of it may have happened, or right after it.
func (f *FS) CutAtSync(k int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutAt = f.syncs + k
}

// Off says that the power went.
func (f *FS) Off() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.off
}

// Cut turns the power off, if it is on, and returns the file system as it is
// when it comes back. The old one answers ErrPower for ever.
func (f *FS) Cut() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut()
	return f.cutImage
}

func (f *FS) cut() {
	if !f.off {
		f.off = true
		f.cutImage = f.image()
	}
}

// Clone copies the file system as it is, as if all of it were synced.
func (f *FS) Clone() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := f.rng
	f.rng = nil
	defer func() { f.rng = keep }()
	return f.image()
}

// Kill ends the process that uses the file system and returns it for the next one: everything written is there, what was not synced is still
// not synced, and locks are free. The old one answers ErrPower for ever.
func (f *FS) Kill() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return f.cutImage
	}
	f.off = true
	f.cutImage = &FS{rng: f.rng, root: f.root, dirs: f.dirs, locks: map[string]bool{}, flushOne: f.flushOne,
		capacity: f.capacity, used: f.used, inodesMax: f.inodesMax, inodes: f.inodes, noXattr: f.noXattr}
	return f.cutImage
}

// dir is a directory: its names as they are and as they are on the disk.
type dir struct {
	names   map[string]*inode
	durable map[string]*inode
	pending []nameOp
}

// nameOp sets names (or removes them, for nil) in one step.
type nameOp struct {
	set map[string]*inode
}

func newDir() *dir { return &dir{names: map[string]*inode{}, durable: map[string]*inode{}} }

func (d *dir) do(set map[string]*inode) {
	d.pending = append(d.pending, nameOp{set})
	apply(d.names, set)
}

func apply(names, set map[string]*inode) {
	for n, i := range set {
		if i == nil {
			delete(names, n)
		} else {
			names[n] = i
		}
	}
}

func (d *dir) sync() {
	for _, op := range d.pending {
		apply(d.durable, op.set)
	}
	d.pending = nil
}

// inode is a file or a directory.
type inode struct {
	isDir   bool
	pages   map[int64]*page
	size    int64
	durable int64 // size
	xattr   map[string]string
	// What the disk has of them, where it is something else: fdatasync leaves
	// an attribute that changed behind.
	xattrOld map[string]string
	links    int
	opens    int
	failures int // of write-back
}

// page is 4 KiB of a file. old is what the disk has of the sectors in
// dirty and lost.
type page struct {
	data  [pageSize]byte
	old   *[pageSize]byte
	dirty uint8
	lost  uint8 // sectors that a failed sync left in memory only
	hole  bool  // takes no space
}

const (
	pageSize   = 4096
	sectorSize = 512
	pageMemory = 4864 // the allocator's size for a page
)

// image is what a power cut leaves. Without rng it is everything.
func (f *FS) image() *FS {
	g := &FS{dirs: map[string]*dir{}, locks: map[string]bool{}, flushOne: f.flushOne,
		capacity: f.capacity, inodesMax: f.inodesMax, noXattr: f.noXattr}
	seed := uint64(1)
	if f.rng != nil {
		seed = f.rng.Uint64()
	}
	g.rng = rand.New(rand.NewPCG(seed, 0x5eed))
	seen := map[*inode]*inode{}
	for _, path := range sortedKeys(f.dirs) {
		d := f.dirs[path]
		names := map[string]*inode{}
		apply(names, d.durable)
		for _, op := range d.pending {
			if f.keep() {
				apply(names, op.set)
			}
		}
		nd := newDir()
		for _, n := range sortedKeys(names) {
			i := names[n]
			if seen[i] == nil {
				seen[i] = f.inodeImage(g, i)
			}
			nd.names[n], nd.durable[n] = seen[i], seen[i]
			seen[i].links++
		}
		g.dirs[path] = nd
	}
	// A directory whose name did not survive is gone with what it holds.
	g.root = g.dirs["/"]
	for path := range g.dirs {
		for p := path; p != "/"; p = filepath.Dir(p) {
			parent := g.dirs[filepath.Dir(p)]
			if parent == nil || parent.names[filepath.Base(p)] == nil {
				delete(g.dirs, path)
				break
			}
		}
	}
	return g
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (f *FS) keep() bool { return f.rng == nil || f.rng.IntN(2) == 0 }

func (f *FS) inodeImage(g *FS, i *inode) *inode {
	n := &inode{isDir: i.isDir, pages: map[int64]*page{}, xattr: map[string]string{}, size: i.size}
	g.inodes++
	attrs := i.xattr
	if i.xattrOld != nil && f.rng != nil && f.rng.IntN(2) == 0 {
		attrs = i.xattrOld
	}
	for k, v := range attrs {
		n.xattr[k] = v
	}
	if i.size != i.durable && f.rng != nil {
		switch f.rng.IntN(3) {
		case 0:
			n.size = i.durable
		case 1:
			lo, hi := min(i.size, i.durable), max(i.size, i.durable)
			n.size = lo + f.rng.Int64N(hi-lo+1)
		}
	}
	n.durable = n.size
	// Some files lose everything, some nothing, most something.
	mode := 1
	if f.rng != nil {
		mode = f.rng.IntN(4)
	}
	numbers := make([]int64, 0, len(i.pages))
	for k := range i.pages {
		numbers = append(numbers, k)
	}
	slices.Sort(numbers)
	for _, k := range numbers {
		p := i.pages[k]
		q := &page{data: p.data}
		for s := 0; s < pageSize/sectorSize && p.dirty|p.lost != 0; s++ {
			at := s * sectorSize
			if p.lost&(1<<s) != 0 {
				copy(q.data[at:at+sectorSize], p.old[at:at+sectorSize])
			}
			if p.dirty&(1<<s) == 0 || f.rng == nil {
				continue
			}
			if mode == 0 || mode >= 2 && f.rng.IntN(2) == 0 {
				copy(q.data[at:at+sectorSize], p.old[at:at+sectorSize])
			} else if f.rng.IntN(4) == 0 { // torn inside
				cut := f.rng.IntN(sectorSize)
				for k := at + cut; k < at+sectorSize; k++ {
					q.data[k] = byte(f.rng.Uint32())
				}
			}
		}
		from := k * pageSize
		if from >= n.size {
			continue
		}
		if over := from + pageSize - n.size; over > 0 {
			clear(q.data[pageSize-over:])
		}
		if q.data == ([pageSize]byte{}) && p.hole {
			continue
		}
		n.pages[k] = q
		g.used += pageSize
	}
	return n
}

// Before has fn called before each call, with the operation ("write", "read",
// "sync", "syncdir", "syncfs", "create", "link", "open", "remove", "rename",
// "mkdir", "willread", "forget", "punch", "allocate", "truncate", "setxattr", "getxattr",
// "size", "writebehind", "writeback", "readdir", "statfs", "lock") and the name.
// It may wait; its error becomes the call's, which then does nothing. nil ends
// that. It may be set at any time; a call that has begun is still told to the
// fn of before.
func (f *FS) Before(fn func(op, name string) error) {
	if fn == nil {
		f.hook.Store(nil)
		return
	}
	f.hook.Store(&fn)
}

// Hooked says whether somebody is called before each call.
func (f *FS) Hooked() bool { return f.hook.Load() != nil }

// before runs the hook. It returns with the mutex held if err is nil.
func (f *FS) before(op, name string) error {
	if fn := f.hook.Load(); fn != nil {
		if err := (*fn)(op, name); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	f.mu.Lock()
	if f.off {
		f.mu.Unlock()
		return &fs.PathError{Op: op, Path: name, Err: ErrPower}
	}
	return nil
}

// syncing counts a sync and cuts the power if it is the one: now, or after
// do if the choice falls so.
func (f *FS) syncing(op, name string, do func()) error {
	f.syncs++
	if f.cutAt > 0 && f.syncs >= f.cutAt {
		if f.keep() {
			do()
		}
		f.cut()
		return &fs.PathError{Op: op, Path: name, Err: ErrPower}
	}
	do()
	return nil
}

func fail(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

func (f *FS) lookup(name string) (*dir, string, *inode) {
	name = filepath.Clean(name)
	d := f.dirs[filepath.Dir(name)]
	if d == nil || name == "/" {
		return d, filepath.Base(name), nil
	}
	return d, filepath.Base(name), d.names[filepath.Base(name)]
}

// Open implements vfs.FS.
func (f *FS) Open(name string) (vfs.File, error) {
	if err := f.before("open", name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	_, _, i := f.lookup(name)
	switch {
	case i == nil:
		return nil, fail("open", name, fs.ErrNotExist)
	case i.isDir:
		return nil, fail("open", name, syscall.EISDIR)
	}
	i.opens++
	return &file{fs: f, i: i, name: name, told: i.failures}, nil
}

func (f *FS) newInode(op, name string) (*inode, error) {
	if f.inodesMax > 0 && f.inodes >= f.inodesMax {
		return nil, fail(op, name, syscall.ENOSPC)
	}
	f.inodes++
	return &inode{pages: map[int64]*page{}, xattr: map[string]string{}}, nil
}

// Create implements vfs.FS.
func (f *FS) Create(name string) (vfs.File, error) {
	if err := f.before("create", name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	d, base, i := f.lookup(name)
	if d == nil {
		return nil, fail("create", name, fs.ErrNotExist)
	}
	if i != nil {
		return nil, fail("create", name, fs.ErrExist)
	}
	i, err := f.newInode("create", name)
	if err != nil {
		return nil, err
	}
	i.links, i.opens = 1, 1
	d.do(map[string]*inode{base: i})
	return &file{fs: f, i: i, name: name}, nil
}

// CreateTemp implements vfs.FS.
func (f *FS) CreateTemp(name string) (vfs.File, error) {
	if err := f.before("create", name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if f.dirs[filepath.Clean(name)] == nil {
		return nil, fail("create", name, fs.ErrNotExist)
	}
	i, err := f.newInode("create", name)
	if err != nil {
		return nil, err
	}
	i.opens = 1
	return &file{fs: f, i: i, name: name}, nil
}

// Link implements vfs.FS.
func (f *FS) Link(v vfs.File, name string) error {
	if err := f.before("link", name); err != nil {
		return err
	}
	defer f.mu.Unlock()
	d, base, i := f.lookup(name)
	if d == nil {
		return fail("link", name, fs.ErrNotExist)
	}
	if i != nil {
		return fail("link", name, fs.ErrExist)
	}
	h := v.(*file)
	h.i.links++
	h.name = name
	d.do(map[string]*inode{base: h.i})
	return nil
}

// Mkdir implements vfs.FS.
func (f *FS) Mkdir(name string) error {
	if err := f.before("mkdir", name); err != nil {
		return err
	}
	defer f.mu.Unlock()
	d, base, i := f.lookup(name)
	if d == nil {
		return fail("mkdir", name, fs.ErrNotExist)
	}
	if i != nil {
		return fail("mkdir", name, fs.ErrExist)
	}
	i, err := f.newInode("mkdir", name)
	if err != nil {
		return err
	}
	i.isDir = true
	d.do(map[string]*inode{base: i})
	f.dirs[filepath.Clean(name)] = newDir()
	return nil
}

// Remove implements vfs.FS.
func (f *FS) Remove(name string) error {
	if err := f.before("remove", name); err != nil {
		return err
	}
	defer f.mu.Unlock()
	d, base, i := f.lookup(name)
	if i == nil {
		return fail("remove", name, fs.ErrNotExist)
	}
	if i.isDir {
		if len(f.dirs[filepath.Clean(name)].names) > 0 {
			return fail("remove", name, syscall.ENOTEMPTY)
		}
		delete(f.dirs, filepath.Clean(name))
	}
	d.do(map[string]*inode{base: nil})
	i.links--
	f.collect(i)
	return nil
}

// collect gives back the space of a file that nobody can reach.
func (f *FS) collect(i *inode) {
	if i.links > 0 || i.opens > 0 {
		return
	}
	f.inodes--
	for _, p := range i.pages {
		if !p.hole {
			f.used -= pageSize
			p.hole = true
		}
	}
}

// Rename implements vfs.FS, within one directory.
func (f *FS) Rename(old, new string) error {
	if err := f.before("rename", old); err != nil {
		return err
	}
	defer f.mu.Unlock()
	d, from, i := f.lookup(old)
	e, to, j := f.lookup(new)
	if i == nil || e != d {
		return fail("rename", old, fs.ErrNotExist)
	}
	d.do(map[string]*inode{from: nil, to: i})
	if j != nil {
		j.links--
		f.collect(j)
	}
	return nil
}

// ReadDir implements vfs.FS.
func (f *FS) ReadDir(name string) ([]string, error) {
	if err := f.before("readdir", name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	d := f.dirs[filepath.Clean(name)]
	if d == nil {
		return nil, fail("readdir", name, fs.ErrNotExist)
	}
	return sortedKeys(d.names), nil
}

// SyncDir implements vfs.FS.
func (f *FS) SyncDir(name string) error {
	if err := f.before("syncdir", name); err != nil {
		return err
	}
	defer f.mu.Unlock()
	d := f.dirs[filepath.Clean(name)]
	if d == nil {
		return fail("syncdir", name, fs.ErrNotExist)
	}
	return f.syncing("syncdir", name, d.sync)
}

// SyncFS implements vfs.FS.
func (f *FS) SyncFS(name string) error {
	if err := f.before("syncfs", name); err != nil {
		return err
	}
	defer f.mu.Unlock()
	return f.syncing("syncfs", name, func() {
		for _, d := range f.dirs {
			for _, i := range d.names {
				i.syncAll()
			}
			d.sync()
		}
	})
}

// Statfs implements vfs.FS.
func (f *FS) Statfs(name string) (vfs.Stat, error) {
	if err := f.before("statfs", name); err != nil {
		return vfs.Stat{}, err
	}
	defer f.mu.Unlock()
	st := vfs.Stat{Total: 1 << 40}
	if f.capacity > 0 {
		st.Total = f.capacity
	}
	st.Free = max(0, st.Total-f.used)
	if f.inodesMax > 0 {
		st.Inodes, st.InodesFree = f.inodesMax, max(0, f.inodesMax-f.inodes)
	}
	return st, nil
}

// Lock implements vfs.FS.
func (f *FS) Lock(name string) (io.Closer, error) {
	if err := f.before("lock", name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	if f.locks[name] {
		return nil, fail("lock", name, syscall.EWOULDBLOCK)
	}
	f.locks[name] = true
	return unlocker(func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.locks, name)
		return nil
	}), nil
}

type unlocker func() error

func (u unlocker) Close() error { return u() }

// Flip changes one bit of a file, past all syncs: rot.
func (f *FS) Flip(name string, bit int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _, i := f.lookup(name)
	if i == nil || bit/8 >= i.size {
		return fmt.Errorf("flip bit %d of %s: %w", bit, name, fs.ErrNotExist)
	}
	p := i.page(f, bit/8/pageSize)
	at, mask := bit/8%pageSize, byte(1)<<(bit%8)
	p.data[at] ^= mask
	if p.old != nil {
		p.old[at] ^= mask
	}
	return nil
}

// Files lists all files' names and sizes.
func (f *FS) Files() map[string]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := map[string]int64{}
	for path, d := range f.dirs {
		for n, i := range d.names {
			if !i.isDir {
				list[filepath.Join(path, n)] = i.size
			}
		}
	}
	return list
}
