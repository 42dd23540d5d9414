package objstore

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// segment is one file of the journal. It is written with zeros once, and
// then used again and again under new generations (rule 5).
type segment struct {
	index int // its number among the files; table cells in memory point by it
	f     vfs.File
	gen   uint32 // of its present use; guarded by journal.mu
}

func segmentName(dir string, index int) string {
	return filepath.Join(dir, "journal", fmt.Sprintf("%03d", index))
}

func segmentIndex(name string) (int, bool) {
	n, err := strconv.Atoi(name)
	return n, err == nil && n >= 0 && fmt.Sprintf("%03d", n) == name
}

// createSegment makes a segment of zeros, durable with its name.
func createSegment(fs vfs.FS, dir string, index int, size int64) (*segment, error) {
	name := segmentName(dir, index)
	f, err := fs.Create(name)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size && err == nil; off += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off)
	}
	if err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = fs.SyncDir(filepath.Dir(name))
	}
	if err != nil {
		f.Close()
		fs.Remove(name)
		return nil, err
	}
	return &segment{index: index, f: f}, nil
}
