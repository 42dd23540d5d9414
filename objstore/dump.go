package objstore

import (
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
)

// Dump explains a stopped store in words: whose it is, what each group has
// and how far it is.
func Dump(cfg Config, w io.Writer) error {
	s, unlock, err := openOffline(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.loadCatalog(); err != nil {
		return err
	}
	fmt.Fprintf(w, "cluster %s\ndisk %s\nnode %s\n", s.id.Cluster, s.id.Disk, s.id.Node)
	fmt.Fprintf(w, "checkpoint %d, journal replays from %v\n", s.checkpointDone, s.cutDone)
	for _, id := range s.Groups() {
		g := s.groups[id]
		fmt.Fprintf(w, "group %x: %d objects, last entry %v", uint32(id), len(g.objects), g.last)
		if g.syncing {
			fmt.Fprint(w, ", being resynced")
		}
		if g.suspects > 0 {
			fmt.Fprintf(w, ", %d damaged objects", g.suspects)
		}
		fmt.Fprintln(w)
		vids := make([]Vid, 0, len(g.usage))
		for v := range g.usage {
			vids = append(vids, v)
		}
		slices.Sort(vids)
		for _, v := range vids {
			u := g.usage[v]
			fmt.Fprintf(w, "  vid %06x generation %d: %d objects, %d blocks, %d zero, %d bad\n", v, u.Gen, u.Objects, u.Present, u.Zero, u.Bad)
		}
	}
	return nil
}

// DumpObject explains one object of a stopped store in words, as the last
// checkpoint left it. What the journal has beyond that is said, not shown.
func DumpObject(cfg Config, key Key, w io.Writer) error {
	s, unlock, err := openOffline(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.loadCatalog(); err != nil {
		return err
	}
	found := false
	for _, id := range s.Groups() {
		if o := s.groups[id].objects[key]; o != nil {
			found = true
			if err := s.dumpObject(o, w); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("object %v: %w", key, fs.ErrNotExist)
	}
	return nil
}

func (s *Store) dumpObject(o *object, w io.Writer) error {
	rel, _ := filepath.Rel(s.cfg.Dir, s.objectName(o))
	fmt.Fprintf(w, "object %v: object %d of the family of vid %06x\n", o.key, o.key.Index(), o.key.Root())
	fmt.Fprintf(w, "  file %s, group %x, version %v, written by checkpoint %d\n", rel, uint32(o.g.id), o.version, o.checkpoint)
	if o.damaged {
		fmt.Fprintln(w, "  damaged: to be copied again from another replica")
	}
	t, keys, err := s.readTables(o, o.checkpoint, o.birth, false)
	if err != nil {
		return err
	}
	if t == nil {
		fmt.Fprintln(w, "  the file is lost, or its header is damaged")
		return nil
	}
	if sumOf(keys) != o.sum {
		fmt.Fprintln(w, "  a block table is damaged: what follows is not all, or not the newest")
	}
	f, err := s.acquire(o, false)
	if err != nil {
		return err
	}
	defer f.release()
	buf := make([]byte, BlockSize)
	for _, v := range t.list {
		fmt.Fprintf(w, "  vid %06x generation %d, changed by %v, table in chunk %d\n", v.vid, v.gen, v.version, v.chunk)
		for b := 0; b < BlocksPerObject; {
			c := v.cells[b]
			n := 1
			for b+n < BlocksPerObject && v.cells[b+n].kind() == c.kind() &&
				(c.kind() != cellSlot || v.cells[b+n].value() == c.value()+uint32(n)) {
				n++
			}
			if c.kind() != cellAbsent {
				fmt.Fprintf(w, "    blocks %d to %d: %s\n", b, b+n-1, s.dumpRun(f, v, b, n, buf))
			}
			b += n
		}
	}
	return nil
}

func (s *Store) dumpRun(f *objFile, v *table, b, n int, buf []byte) string {
	c := v.cells[b]
	if c.kind() != cellSlot {
		return c.state().String()
	}
	bad := 0
	for k := range n {
		if _, err := f.f.ReadAt(buf, int64(c.value()+uint32(k))*BlockSize); err != nil || Checksum(buf) != v.cells[b+k].sum {
			bad++
		}
	}
	text := fmt.Sprintf("in slots %d to %d", c.value(), c.value()+uint32(n)-1)
	if bad > 0 {
		text += fmt.Sprintf(", %d of them BAD", bad)
	}
	return text
}
