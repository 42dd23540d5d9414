package objstore

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// tableRot is a disk on which tables rot while memory has them whole.
type tableRot struct {
	vfs.FS
	on *atomic.Bool
}

type tableRotFile struct {
	vfs.File
	fs tableRot
}

func (r tableRot) Open(name string) (vfs.File, error) {
	f, err := r.FS.Open(name)
	if err != nil || !strings.Contains(name, "/obj/") {
		return f, err
	}
	return tableRotFile{f, r}, nil
}

// ReadDirect sees the disk, where tables have rotted; ReadAt sees the page cache.
func (f tableRotFile) ReadDirect(b []byte, off int64) (int, error) {
	n, err := f.File.ReadDirect(b, off)
	for i := range b[:n] {
		if at := off + int64(i); f.fs.on.Load() && at >= BlockSize && at < firstData*BlockSize {
			b[i] ^= 1
		}
	}
	return n, err
}

// TestRule14TablesFromTheDisk: a scrub reads tables, as blocks, from the disk.
func TestRule14TablesFromTheDisk(t *testing.T) {
	var on atomic.Bool
	_, cfg, s := simStore(t, func(c *Config) { c.ScrubBytesPerSecond = -1; c.FS = tableRot{c.FS, &on} })
	key := MakeKey(5, 7)
	g := s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, Data: fill(1, 4)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, cfg)
	g = s.Group(1)
	wantRead(t, g, key, []VidGen{{5, 100}}, 0, fill(1, 4))
	on.Store(true)
	s.scrubObject(g.objects[key])
	if s.m.scrubBad.Load() == 0 {
		t.Error("a table is rotten on the disk, whole in the page cache, and the scrub found nothing")
	}
}
