package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

const (
	identityFormat = 1
	lockName       = "node.lock"
	epochDir       = "epoch"
	identityName   = "node.json"
	// Incarnations remembered. One that never registered is of no use to anybody; the newest that did is among the last, or somebody restarted the
	// node this often without reaching the cluster once.
	incarnationsMax  = 256
	identityBytesMax = 1 << 20
)

// identity is what a directory knows of its node, in epoch/node.json.
type identity struct {
	Format int    `json:"format"`
	UUID   string `json:"uuid"`
	// Cluster is the identity of the cluster whose raft it takes part in; "" before that.
	Cluster string `json:"cluster,omitempty"`
	// Formatted says that this cluster was formatted, as far as the node saw: its map is not nothing.
	Formatted bool `json:"formatted,omitempty"`
	// Incarnations are all that were made durable here, the newest last (R5).
	Incarnations []uint64 `json:"incarnations"`
	// Disks are the stores that were made for this node. One that is missing took what it held with it, so the node must not come back as if it were whole.
	Disks []knownDisk `json:"disks,omitempty"`
	// Gone are disks that were removed from this node. One that turns up again has nothing to say.
	Gone []string `json:"gone,omitempty"`
}

// knownDisk is a store of this node: who it is, and where it was last.
type knownDisk struct {
	UUID  string    `json:"uuid"`
	Dir   string    `json:"dir"`
	State DiskState `json:"state,omitempty"`
	Why   string    `json:"why,omitempty"` // DiskFailed: what the disk said
	// Inc is the last incarnation that the disk was told: a disk that does not know it is an older copy. 0: it was told none yet.
	Inc uint64 `json:"incarnation,omitempty"`
}

// dir is a node's first directory, locked.
type dir struct {
	path string
	fs   vfs.FS
	lock io.Closer

	mu sync.Mutex // guards id
	id identity
}

// openDir locks a directory and reads who the node is, or makes it somebody. fsys is where it is; nil is the operating system's file system.
func openDir(path string, fsys vfs.FS) (*dir, error) {
	if fsys == nil {
		fsys = vfs.OS{}
	}
	d := &dir{path: path, fs: fsys}
	err := mkdirAll(fsys, filepath.Join(path, epochDir))
	if err != nil {
		return nil, fmt.Errorf("open node directory: %w", err)
	}
	if d.lock, err = lockDir(fsys, path); err != nil {
		return nil, err
	}
	if err := d.read(); err != nil {
		d.lock.Close()
		return nil, err
	}
	return d, nil
}

func mkdirAll(fsys vfs.FS, path string) error {
	if _, ok := fsys.(vfs.OS); ok {
		return os.MkdirAll(path, 0o700)
	}
	err := fsys.Mkdir(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = mkdirAll(fsys, filepath.Dir(path)); err == nil {
			err = fsys.Mkdir(path)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return errors.Join(err, fsys.SyncDir(filepath.Dir(path)))
}

// lockDir takes the directory's lock; it is free again when the file is closed, or its process is gone.
func lockDir(fsys vfs.FS, path string) (io.Closer, error) {
	if err := mkdirAll(fsys, path); err != nil {
		return nil, fmt.Errorf("open node directory: %w", err)
	}
	l, err := fsys.Lock(filepath.Join(path, lockName))
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("directory %s is in use by another daemon", path)
	}
	if err != nil {
		return nil, fmt.Errorf("lock node directory: %w", err)
	}
	return l, nil
}

func (d *dir) close() { d.lock.Close() }

func (d *dir) file() string { return filepath.Join(d.path, epochDir, identityName) }

// read reads the identity; a directory without one gets one.
func (d *dir) read() error {
	b, err := readFile(d.fs, d.file())
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := d.fs.ReadDir(d.raft()); err == nil {
			return fmt.Errorf("directory %s has raft's log but no %s: it is not complete", d.path, filepath.Join(epochDir, identityName))
		}
		d.id = identity{Format: identityFormat, UUID: newUUID()}
		return d.write(d.id)
	}
	if err != nil {
		return fmt.Errorf("read node identity: %w", err)
	}
	id, err := parseIdentity(b)
	if err != nil {
		return fmt.Errorf("read %s: %w", d.file(), err)
	}
	d.id = id
	return nil
}

func parseIdentity(b []byte) (id identity, err error) {
	if err := json.Unmarshal(b, &id); err != nil {
		return id, err
	}
	switch {
	case id.Format != identityFormat:
		return id, fmt.Errorf("format %d, this program knows %d", id.Format, identityFormat)
	case id.UUID == "" || len(id.UUID) > 64 || len(id.Cluster) > 64:
		return id, fmt.Errorf("it names no node")
	}
	return id, nil
}

// checkLog refuses a directory that has lost raft's log: with an empty one this voter would vote again where it has voted.
func (d *dir) checkLog() error {
	if !d.get().Formatted {
		return nil
	}
	if _, err := os.Stat(filepath.Join(d.raft(), consensus.LogName)); err != nil {
		return fmt.Errorf("directory %s has lost raft's log: remove this node from the cluster and let it join anew with an empty directory (%w)", d.path, err)
	}
	return nil
}

// write replaces the identity durably: old or new after a crash.
func (d *dir) write(id identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(d.fs, d.file(), append(b, '\n')); err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	return nil
}

func readFile(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(n, identityBytesMax))
	k, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:k], err
}

func replaceFile(fsys vfs.FS, name string, b []byte) error {
	tmp := name + ".new"
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Datasync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// raft is where raft's log lies.
func (d *dir) raft() string { return filepath.Join(d.path, epochDir, "raft") }

func (d *dir) get() identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.id
	id.Incarnations, id.Disks, id.Gone = slices.Clone(id.Incarnations), slices.Clone(id.Disks), slices.Clone(id.Gone)
	return id
}

// change makes a change durable.
func (d *dir) change(f func(*identity)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.id
	id.Incarnations, id.Disks, id.Gone = slices.Clone(id.Incarnations), slices.Clone(id.Disks), slices.Clone(id.Gone)
	f(&id)
	if err := d.write(id); err != nil {
		return err
	}
	d.id = id
	return nil
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// bootID is this boot of this machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the machine's boot id: %w", err)
	}
	if len(b) < 36 {
		return "", fmt.Errorf("the machine's boot id is %q", b)
	}
	return string(b[:36]), nil
}
