package objstore

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
)

// TestHealedBehindTheCut: an object whose file was lost is copied again from elsewhere while a checkpoint is under way. The record that makes it whole is behind
// the cut and may be lost with the power, so the catalog must not say yet that it is whole: what the lost file had would be read as zeros.
func TestHealedBehindTheCut(t *testing.T) {
	for _, mode := range []string{"batch appended", "catalog written anew"} {
		t.Run(mode, func(t *testing.T) {
			sim, cfg, s := simStore(t, nil)
			key, other, vid := MakeKey(5, 7), MakeKey(5, 8), []VidGen{{5, 100}}
			g := s.Group(1)
			data := fill(1, 4)
			stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, First: 3, Data: data})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			// The object's file is lost (fsck took it).
			name := s.objectName(g.objects[key])
			if err := sim.Remove(name); err != nil {
				t.Fatal(err)
			}
			sim.SyncDir(name[:strings.LastIndex(name, "/")])
			s = after(t, cfg, sim)
			g = s.Group(1)
			stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, First: 100, Data: fill(2, 1)})
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			err := g.Read(key, vid, 3, 1, make([]byte, BlockSize), nil, false)
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("read of a damaged object: %v", err)
			}
			// Another object is dirty; while the checkpoint writes it the damaged one is copied again from elsewhere.
			stage(t, g, Entry{Kind: KindWrite, Key: other, Vid: 5, Gen: 100, Data: fill(3, 1)})
			if mode != "batch appended" {
				s.cat.base = -catalogSlack // as if it had grown
			}
			var once atomic.Bool
			sim.Before(func(op, name string) error {
				if (op == "write" || op == "link") && strings.Contains(name, other.String()) {
					if !once.Swap(true) {
						c, err := g.NewCopy(key)
						if err != nil {
							t.Error(err)
							return nil
						}
						u := &Unit{Key: key, Version: Number{1, 2}, Versions: []UnitVersion{{Vid: 5, Gen: 100}}}
						put := func(first int, d []byte) {
							for i := range len(d) / BlockSize {
								b := d[i*BlockSize:][:BlockSize]
								if err := c.Put(5, first+i, []uint32{Checksum(b)}, b); err != nil {
									t.Error(err)
								}
								u.Versions[0].Blocks = append(u.Versions[0].Blocks, UnitBlock{uint16(first + i), Present, Checksum(b)})
							}
						}
						put(3, data)
						put(100, fill(2, 1))
						if err := c.Install(u); err != nil {
							t.Error(err)
						}
					}
				}
				return nil
			})
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			sim.Before(nil)
			if !once.Load() {
				t.Fatal("nothing was copied beside the checkpoint")
			}
			wantRead(t, g, key, vid, 3, data)
			cut := sim.Cut()
			abandonStore(s)
			s = after(t, cfg, cut)
			g = s.Group(1)
			got := make([]byte, len(data))
			err = g.Read(key, vid, 3, 4, got, nil, false)
			if err == nil && !bytes.Equal(got, data) {
				t.Fatalf("wrong data without an error (zeros: %v)", allZero(got))
			}
		})
	}
}

// TestCopyWhoseFileIsLost: blocks that were put to a file that is lost meanwhile are not installed.
func TestCopyWhoseFileIsLost(t *testing.T) {
	sim, _, s := simStore(t, func(c *Config) { c.OpenFilesMax = 1 })
	key, g := MakeKey(5, 7), s.Group(1)
	c, err := g.NewCopy(key)
	if err != nil {
		t.Fatal(err)
	}
	d := fill(1, 2)
	u := &Unit{Key: key, Version: Number{1, 1}, Versions: []UnitVersion{{Vid: 5, Gen: 100}}}
	for i := range 2 {
		b := d[i*BlockSize:][:BlockSize]
		u.Versions[0].Blocks = append(u.Versions[0].Blocks, UnitBlock{uint16(i), Present, Checksum(b)})
	}
	if err := c.Put(5, 0, []uint32{Checksum(d[:BlockSize])}, d[:BlockSize]); err != nil {
		t.Fatal(err)
	}
	if err := c.Sync(); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	f := c.o.file
	g.mu.Unlock()
	f.used.Store(false)
	if !s.closeFile(f) {
		t.Fatal("not closed")
	}
	if err := sim.Remove(s.objectName(c.o)); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(5, 1, []uint32{Checksum(d[BlockSize:])}, d[BlockSize:]); err != nil {
		t.Fatal(err)
	}
	err = c.Install(u)
	if !errors.Is(err, ErrStale) {
		t.Errorf("installed with blocks of a file that is lost: %v", err)
	}
	c.Abort()
}

// TestVersionOfADamagedObject: an entry that changes nothing that is left of a damaged object counts: who has its number has what the object was.
func TestVersionOfADamagedObject(t *testing.T) {
	sim, cfg, s := simStore(t, nil)
	key, g := MakeKey(5, 7), s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, Data: fill(1, 4)})
	name := s.objectName(g.objects[key])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sim.Remove(name); err != nil {
		t.Fatal(err)
	}
	s = after(t, cfg, sim)
	g = s.Group(1)
	stage(t, g, Entry{Kind: KindTrim, Key: key, Vid: 5, Gen: 100, First: 1, Count: 1})
	for _, when := range []string{"at once", "after a restart", "after a checkpoint and a restart"} {
		if v := g.VersionOf(key); v != g.Last() {
			t.Errorf("%s: version %v, the last entry is %v", when, v, g.Last())
		}
		if err := g.Read(key, []VidGen{{5, 100}}, 0, 1, make([]byte, BlockSize), nil, false); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", when, err)
		}
		if when == "after a restart" {
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		abandonStore(s)
		s = after(t, cfg, sim)
		g = s.Group(1)
	}
}

// TestInstallOver: an object that an entry changed since is not made what it was before, nor deleted.
func TestInstallOver(t *testing.T) {
	_, _, s := simStore(t, nil)
	key, g := MakeKey(5, 7), s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, Data: fill(1, 1)})
	was := g.VersionOf(key)
	u, err := g.Unit(key)
	if err != nil {
		t.Fatal(err)
	}
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, Data: fill(2, 1)})
	c, err := g.NewCopy(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Put(5, 0, []uint32{Checksum(fill(1, 1))}, fill(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := c.InstallOver(u, was); !errors.Is(err, ErrStale) {
		t.Errorf("installed over what is newer: %v", err)
	}
	if err := g.DeleteObjectAt(key, was); !errors.Is(err, ErrStale) {
		t.Errorf("deleted what is newer: %v", err)
	}
	wantRead(t, g, key, []VidGen{{5, 100}}, 0, fill(2, 1))
	if err := c.InstallOver(u, g.VersionOf(key)); err != nil {
		t.Error(err)
	}
	wantRead(t, g, key, []VidGen{{5, 100}}, 0, fill(1, 1))
	if err := g.DeleteObjectAt(key, g.VersionOf(key)); err != nil {
		t.Error(err)
	}
	if g.Has(key, 5) {
		t.Error("it is still there")
	}
}
