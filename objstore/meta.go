package objstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// Identity says whose disk a directory is. It is written once, by Create.
type Identity struct {
	Cluster string // the cluster's id; no white space
	Disk    string // the disk's own, random
	Node    string // the node it was made for; may be empty
}

// Named values and the identity are small text files: one line that says
// what follows and its checksum, then the value.
//
//	sheepdog 2 crc32c=1a2b3c4d bytes=17
//	...

// storeFormat is that of a store as a whole: another one is refused by its identity, before anything else is looked at. (1 had data at slot 7 of an
// object's file.)
const storeFormat = 2

func encodeNamed(value []byte) []byte {
	return append(fmt.Appendf(nil, "sheepdog %d crc32c=%08x bytes=%d\n", storeFormat, Checksum(value), len(value)), value...)
}

func decodeNamed(b []byte) ([]byte, error) {
	line, value, found := bytes.Cut(b, []byte("\n"))
	var format int
	var sum uint32
	var n int
	if _, err := fmt.Sscanf(string(line), "sheepdog %d crc32c=%x bytes=%d", &format, &sum, &n); !found || err != nil {
		return nil, fmt.Errorf("first line %.40q: %w", line, ErrFormat)
	}
	if format != storeFormat {
		return nil, fmt.Errorf("format %d, this program knows %d: %w", format, storeFormat, ErrFormat)
	}
	if n != len(value) || Checksum(value) != sum || !bytes.Equal(encodeNamed(value)[:len(line)], line) {
		return nil, ErrChecksum
	}
	return value, nil
}

const namedMax = 16 << 20

func readNamed(vf vfs.FS, name string) ([]byte, error) {
	f, err := vf.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	if n > namedMax {
		return nil, fmt.Errorf("read %s: %d bytes: %w", name, n, ErrFormat)
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	v, err := decodeNamed(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return v, nil
}

// writeNamed replaces a value: after a power cut it is the old or the new.
func writeNamed(vf vfs.FS, name string, value []byte) error {
	tmp := name + ".new"
	vf.Remove(tmp)
	f, err := vf.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(encodeNamed(value), 0)
	if err == nil {
		err = f.Datasync()
	}
	f.Close()
	if err == nil {
		err = vf.Rename(tmp, name)
	}
	if err != nil {
		vf.Remove(tmp)
		return err
	}
	return vf.SyncDir(filepath.Dir(name))
}

// SetMeta sets a small durable value; it is old or new after a crash, and
// new once SetMeta returned. A nil value removes it.
func (s *Store) SetMeta(name string, value []byte) error {
	if !metaName(name) {
		return fmt.Errorf("set value %q: bad name: %w", name, ErrFormat)
	}
	if err := s.Err(); err != nil {
		return err
	}
	s.metaLock.Lock()
	defer s.metaLock.Unlock()
	path := filepath.Join(s.cfg.Dir, "epoch", name)
	var err error
	if value == nil {
		if err = s.fs.Remove(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = s.fs.SyncDir(filepath.Dir(path))
		}
	} else {
		err = writeNamed(s.fs, path, value)
	}
	if err != nil {
		return s.writeError("set value "+name, err)
	}
	return nil
}

// Meta returns a value that SetMeta set; fs.ErrNotExist if there is none.
func (s *Store) Meta(name string) ([]byte, error) {
	if !metaName(name) {
		return nil, fmt.Errorf("value %q: bad name: %w", name, ErrFormat)
	}
	return readNamed(s.fs, filepath.Join(s.cfg.Dir, "epoch", name))
}

// ReadMeta returns a value of a store that is not open, as Meta does.
func ReadMeta(cfg Config, name string) ([]byte, error) {
	vf := cfg.FS
	if vf == nil {
		vf = vfs.OS{}
	}
	if !metaName(name) {
		return nil, fmt.Errorf("value %q: bad name: %w", name, ErrFormat)
	}
	return readNamed(vf, filepath.Join(cfg.Dir, "epoch", name))
}

func metaName(name string) bool {
	return name != "" && name[0] != '.' && len(name) < 200 && !strings.ContainsAny(name, "/\x00") && !strings.HasSuffix(name, ".new")
}

func (id Identity) encode() []byte {
	return fmt.Appendf(nil, "cluster %s\ndisk %s\nnode %s\n", id.Cluster, id.Disk, id.Node)
}

func parseIdentity(b []byte) (id Identity, err error) {
	for line := range strings.Lines(string(b)) {
		word, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch word {
		case "cluster":
			id.Cluster = value
		case "disk":
			id.Disk = value
		case "node":
			id.Node = value
		default:
			return id, fmt.Errorf("identity: word %q: %w", word, ErrFormat)
		}
	}
	if id.Cluster == "" || id.Disk == "" {
		return id, fmt.Errorf("identity: incomplete: %w", ErrFormat)
	}
	return id, nil
}

// ReadIdentity says whose a directory is, without opening the store.
func ReadIdentity(cfg Config) (Identity, error) {
	vf := cfg.FS
	if vf == nil {
		vf = vfs.OS{}
	}
	return readIdentity(vf, cfg.Dir)
}

func readIdentity(vf vfs.FS, dir string) (Identity, error) {
	b, err := readNamed(vf, filepath.Join(dir, "identity"))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("%s: %w", dir, ErrNotStore)
	}
	if err != nil {
		return Identity{}, err
	}
	return parseIdentity(b)
}

const retiredName = "identity.removed"

// Retire makes a directory whose store is closed, and held nothing any more, no
// store: its identity gets another name, durably, and its journal's space is
// given back. It may be called again after a crash.
func Retire(cfg Config) error {
	vf := cfg.FS
	if vf == nil {
		vf = vfs.OS{}
	}
	err := vf.Rename(filepath.Join(cfg.Dir, "identity"), filepath.Join(cfg.Dir, retiredName))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = Retired(cfg)
	}
	if err == nil {
		err = vf.SyncDir(cfg.Dir)
	}
	if err != nil {
		return fmt.Errorf("retire store %s: %w", cfg.Dir, err)
	}
	vf.Remove(filepath.Join(cfg.Dir, "reserve"))
	names, _ := vf.ReadDir(filepath.Join(cfg.Dir, "journal"))
	for _, n := range names {
		vf.Remove(filepath.Join(cfg.Dir, "journal", n))
	}
	return nil
}

// Retired says whose store a directory was before it was retired.
func Retired(cfg Config) (Identity, error) {
	vf := cfg.FS
	if vf == nil {
		vf = vfs.OS{}
	}
	b, err := readNamed(vf, filepath.Join(cfg.Dir, retiredName))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("%s: %w", cfg.Dir, ErrNotStore)
	}
	if err != nil {
		return Identity{}, err
	}
	return parseIdentity(b)
}
