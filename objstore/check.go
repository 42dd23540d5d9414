package objstore

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
)

// Problem is one thing that Check found.
type Problem struct {
	Path string // relative to the directory
	What string
}

func (p Problem) String() string { return p.Path + ": " + p.What }

// Summary is what Check looked at.
type Summary struct {
	Identity       Identity
	Groups         int
	Objects        int
	Versions       int
	Blocks         int64 // read and verified
	JournalRecords int   // that the next Open will replay
	Problems       int
}

// Check verifies a stopped store: the identity, the catalog, the journal
// beyond the last checkpoint, every object's file, tables and blocks, and the
// named values. It changes nothing. What an interrupted process left and the
// next Open clears up is no problem.
func Check(cfg Config, report func(Problem)) (Summary, error) {
	s, unlock, err := openOffline(cfg)
	if err != nil {
		return Summary{}, err
	}
	defer unlock()
	c := &checker{s: s, report: report}
	c.sum.Identity = s.id
	c.named()
	if err := s.loadCatalog(); err != nil {
		c.problem(s.catalogName(), "%v", err)
		return c.sum, nil
	}
	if err := c.journal(); err != nil {
		return c.sum, err
	}
	for _, id := range s.Groups() {
		c.group(s.groups[id])
	}
	return c.sum, nil
}

// openOffline is a store that nothing is done to, with its lock.
func openOffline(cfg Config) (*Store, func(), error) {
	s, err := begin(cfg)
	if err != nil {
		return nil, nil, err
	}
	if s.lock, err = s.takeLock(); err != nil {
		s.watch.end()
		return nil, nil, err
	}
	s.j = newJournal(s, s.cfg.SegmentBytes, 0)
	return s, func() {
		s.watch.end()
		s.closeFiles()
		s.lock.Close()
	}, nil
}

type checker struct {
	s      *Store
	sum    Summary
	report func(Problem)
	inLog  map[Key]bool // objects that the journal still changes
}

func (c *checker) problem(path, format string, args ...any) {
	c.sum.Problems++
	if rel, err := filepath.Rel(c.s.cfg.Dir, path); err == nil {
		path = rel
	}
	c.report(Problem{path, fmt.Sprintf(format, args...)})
}

func (c *checker) named() {
	dir := filepath.Join(c.s.cfg.Dir, "epoch")
	names, err := c.s.fs.ReadDir(dir)
	if err != nil {
		c.problem(dir, "%v", err)
	}
	for _, n := range names {
		if filepath.Ext(n) == ".new" {
			continue // a replacement that was not finished
		}
		if _, err := readNamed(c.s.fs, filepath.Join(dir, n)); err != nil {
			c.problem(filepath.Join(dir, n), "%v", err)
		}
	}
}

// journal walks the records that a replay would take.
func (c *checker) journal() error {
	segs, err := c.s.openSegments()
	if err != nil {
		return err
	}
	defer closeSegments(segs)
	r := newReplay(c.s, segs)
	c.inLog = map[Key]bool{}
	r.look = func(rec record, data []byte, p pos) {
		c.sum.JournalRecords++
		switch rec.kind {
		case recEntry:
			e, _, err := ParseHead(rec.body)
			e.Data = data
			if err == nil {
				c.inLog[e.Key] = true
				err = e.VerifyData()
			}
			if err != nil && p < r.durable {
				c.problem(filepath.Join(c.s.cfg.Dir, "journal"), "record at %v of group %d: %v", p, rec.group, err)
			}
		case recLarge:
			if e, birth, runs, ok := parseLarge(rec.body); ok {
				c.inLog[e.Key] = true
				if p < r.durable {
					c.large(rec.group, &e, birth, runs)
				}
			}
		}
	}
	if err := r.run(); err != nil {
		return err
	}
	if r.lost {
		c.problem(filepath.Join(c.s.cfg.Dir, "journal"), "damaged before %v, which was synced", r.durable)
	}
	return nil
}

// large verifies what a large write that was synced put into its slots: they are not used again before a checkpoint takes the record. A file that is
// not there, or another's, was removed since.
func (c *checker) large(group GroupID, e *Entry, birth uint64, runs []slotRun) {
	name := filepath.Join(c.s.groupDir(group), e.Key.String())
	f, err := c.s.fs.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	b := make([]byte, BlockSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return
	}
	if h, ok := parseFileHeader(b[:headerBytes]); !ok || h.birth != birth {
		return
	}
	slot := slotsOf(runs)
	for i := range int(e.Count) {
		s := (cell{at: slot(i)}).value()
		if _, err := f.ReadAt(b, int64(s)*BlockSize); err != nil || Checksum(b) != e.CRCs[i] {
			c.problem(name, "block %d of vid %06x in slot %d, which the journal names, is not what was written", int(e.First)+i, uint32(e.Vid), s)
		}
	}
}

func (c *checker) group(g *Group) {
	c.sum.Groups++
	keys := make([]Key, 0, len(g.objects))
	for k := range g.objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		c.object(g.objects[k])
	}
	dir := c.s.groupDir(g.id)
	names, err := c.s.fs.ReadDir(dir)
	if err != nil && !(errors.Is(err, fs.ErrNotExist) && len(keys) == 0) {
		c.problem(dir, "%v", err)
	}
	for _, n := range names {
		v, err := strconv.ParseUint(n, 16, 64)
		if g.objects[Key(v)] == nil && !c.inLog[Key(v)] && n[0] != '.' {
			if err != nil || len(n) != 16 {
				c.problem(filepath.Join(dir, n), "not an object's name")
			} // else the scrub removes it
		}
	}
}

func (c *checker) object(o *object) {
	c.sum.Objects++
	name := c.s.objectName(o)
	if o.damaged {
		c.problem(name, "known to be damaged; it has to be copied again from another replica")
	}
	t, keys, err := c.s.readTables(o, o.checkpoint, o.birth, false)
	switch {
	case err != nil:
		c.problem(name, "%v", err)
		return
	case t == nil:
		c.problem(name, "the file is lost, or its header is damaged")
		return
	case sumOf(keys) != o.sum:
		c.problem(name, "a block table is damaged")
	}
	f, err := c.s.acquire(o, false)
	if err != nil {
		c.problem(name, "%v", err)
		return
	}
	defer func() {
		f.release()
		c.s.closeFile(f)
	}()
	if v, err := f.f.GetXattr(xattrName); err != nil || v != c.s.describe(o) {
		c.problem(name, "attribute %s is %q, want %q", xattrName, v, c.s.describe(o))
	}
	buf := make([]byte, BlockSize)
	for _, v := range t.list {
		c.sum.Versions++
		for b, cl := range v.cells {
			if cl.kind() == cellBad {
				c.problem(name, "vid %06x block %d is marked bad", v.vid, b)
			}
			if cl.kind() != cellSlot {
				continue
			}
			c.sum.Blocks++
			_, err := f.f.ReadAt(buf, int64(cl.value())*BlockSize)
			if err == nil && Checksum(buf) != cl.sum {
				err = ErrChecksum
			}
			if err != nil {
				c.problem(name, "vid %06x block %d (slot %d): %v", v.vid, b, cl.value(), err)
			}
		}
	}
}
