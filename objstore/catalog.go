package objstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// The catalog is what a checkpoint commits: with one synced write all tables
// it wrote count, and the journal before its cut does not any more. It is a
// file of batches, each a checkpoint's, each starting on a multiple of 4 KiB;
// the first one says everything, the others what changed.
//
//	 0  magic      u32 "SCT1"
//	 4  crc        u32   CRC-32C of bytes 8..len, seeded with the batch's offset
//	 8  len        u64   header and records; zeros up to the next 4 KiB follow
//	16  checkpoint u64
//	24  cut        u64   position in the journal; replay starts there
//	32  flags      u32   1: says everything
//	36  zero       u32
//	40  records
const (
	catalogMagic  = 0x31544353
	catalogHeader = 40
	catalogAll    = 1
)

// Records of the catalog. All are multiples of 8 bytes long.
const (
	catObject     = 1
	catObjectGone = 2
	catGroup      = 3
	catGroupGone  = 4

	catObjectSize = 56
	catGoneSize   = 16
	catGroupSize  = 40
	catUsageSize  = 48
)

// objectRecord:
//
//	kind u8 | flags u8 (1 damaged) | zero u16 | group u32
//	key u64 | term u64 | lsn u64 | checkpoint u64 | birth u64
//	sum u32 | zero u32
type objectRecord struct {
	group      GroupID
	key        Key
	version    Number
	checkpoint uint64
	birth      uint64
	sum        uint32
	damaged    bool
}

func (r objectRecord) append(b []byte) []byte {
	flags := byte(0)
	if r.damaged {
		flags = 1
	}
	b = append(b, catObject, flags, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.group))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.key))
	b = binary.LittleEndian.AppendUint64(b, r.version.Term)
	b = binary.LittleEndian.AppendUint64(b, r.version.LSN)
	b = binary.LittleEndian.AppendUint64(b, r.checkpoint)
	b = binary.LittleEndian.AppendUint64(b, r.birth)
	b = binary.LittleEndian.AppendUint32(b, r.sum)
	return append(b, 0, 0, 0, 0)
}

func appendGone(b []byte, kind byte, group GroupID, key Key) []byte {
	b = append(b, kind, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(group))
	return binary.LittleEndian.AppendUint64(b, uint64(key))
}

// appendRecord appends the group's state:
//
//	kind u8 | flags u8 (1 syncing, 2 any number next, 4 miscounted) | terms u16 | group u32
//	term u64 | lsn u64 | usages u32 | zero u32 | zero u64
//	{ term u64 | lsn u64 } × terms
//	{ vid u32 | zero u32 | gen, objects, present, zero, bad u64 } × usages
//
// Holds mu.
func (g *Group) appendRecord(b []byte) []byte {
	flags := byte(0)
	if g.syncing {
		flags |= 1
	}
	if g.anyNext {
		flags |= 2
	}
	if g.miscounted {
		flags |= 4
	}
	used := 0
	for vid, u := range g.usage {
		if u.Objects <= 0 {
			delete(g.usage, vid)
			continue
		}
		used++
	}
	b = append(b, catGroup, flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(g.terms)))
	b = binary.LittleEndian.AppendUint32(b, uint32(g.id))
	b = binary.LittleEndian.AppendUint64(b, g.last.Term)
	b = binary.LittleEndian.AppendUint64(b, g.last.LSN)
	b = binary.LittleEndian.AppendUint32(b, uint32(used))
	b = append(b, make([]byte, 12)...)
	for _, t := range g.terms {
		b = binary.LittleEndian.AppendUint64(b, t.Term)
		b = binary.LittleEndian.AppendUint64(b, t.LSN)
	}
	for vid, u := range g.usage {
		b = binary.LittleEndian.AppendUint32(b, vid)
		b = append(b, 0, 0, 0, 0)
		for _, v := range [...]uint64{u.Gen, uint64(u.Objects), uint64(u.Present), uint64(u.Zero), uint64(u.Bad)} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	return b
}

// catalogBatch is a decoded header.
type catalogBatch struct {
	checkpoint uint64
	cut        pos
	all        bool
	records    []byte
	len        int64 // with the padding
}

func beginBatch(checkpoint uint64, cut pos, all bool) []byte {
	b := make([]byte, catalogHeader)
	binary.LittleEndian.PutUint32(b, catalogMagic)
	binary.LittleEndian.PutUint64(b[16:], checkpoint)
	binary.LittleEndian.PutUint64(b[24:], uint64(cut))
	if all {
		binary.LittleEndian.PutUint32(b[32:], catalogAll)
	}
	return b
}

func endBatch(b []byte, off int64) []byte {
	binary.LittleEndian.PutUint64(b[8:], uint64(len(b)))
	binary.LittleEndian.PutUint32(b[4:], crcUpdate(uint32(off/BlockSize), b[8:]))
	return append(b, make([]byte, alignUp(int64(len(b)), BlockSize)-int64(len(b)))...)
}

func parseBatch(b []byte, off int64) (h catalogBatch, ok bool) {
	if off+catalogHeader > int64(len(b)) {
		return h, false
	}
	b = b[off:]
	n := binary.LittleEndian.Uint64(b[8:])
	if binary.LittleEndian.Uint32(b) != catalogMagic || n < catalogHeader || n > uint64(len(b)) {
		return h, false
	}
	if crcUpdate(uint32(off/BlockSize), b[8:n]) != binary.LittleEndian.Uint32(b[4:]) {
		return h, false
	}
	return catalogBatch{
		checkpoint: binary.LittleEndian.Uint64(b[16:]),
		cut:        pos(binary.LittleEndian.Uint64(b[24:])),
		all:        binary.LittleEndian.Uint32(b[32:])&catalogAll != 0,
		records:    b[catalogHeader:n],
		len:        alignUp(int64(n), BlockSize),
	}, true
}

// catalog is the open file.
type catalog struct {
	f       vfs.File
	end     int64 // where the next batch goes
	base    int64 // size of the first batch
	objects int   // that the whole catalog would list, for the decision to write it anew
}

func (s *Store) catalogName() string { return filepath.Join(s.cfg.Dir, "catalog") }

// errCatalog is a catalog in which something before the last batch is
// damaged, or that is not there.
var errCatalog = errors.New("catalog is damaged")

// readCatalog returns the catalog's valid batches. What follows the last
// valid one is a batch whose checkpoint never finished.
func readCatalog(f vfs.File) (list []catalogBatch, end int64, err error) {
	n, err := f.Size()
	if err != nil {
		return nil, 0, err
	}
	b := alignedBuffer(int(alignUp(n, BlockSize)))
	k, err := f.ReadDirect(b, 0) // after a sync that failed, memory may have what the disk has not
	if err != nil && err != io.EOF {
		return nil, 0, err
	}
	b = b[:min(int64(k), n)]
	for {
		h, ok := parseBatch(b, end)
		if !ok {
			break
		}
		if k := len(list); (k == 0) != h.all || k > 0 && h.checkpoint <= list[k-1].checkpoint {
			return list, end, fmt.Errorf("batch at %d is out of order: %w", end, errCatalog)
		}
		list = append(list, h)
		end += h.len
	}
	if len(list) == 0 {
		return nil, 0, fmt.Errorf("no first batch: %w", errCatalog)
	}
	for off := end + BlockSize; off < n; off += BlockSize {
		if h, ok := parseBatch(b, off); ok && h.checkpoint > list[len(list)-1].checkpoint {
			return list, end, fmt.Errorf("bytes %d to %d: %w", end, off, errCatalog)
		}
	}
	return list, end, nil
}

// loadCatalog fills the store from the catalog.
func (s *Store) loadCatalog() error {
	f, err := s.fs.Open(s.catalogName())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: missing: %w", s.catalogName(), errCatalog)
	}
	if err != nil {
		return err
	}
	list, end, err := readCatalog(f)
	for _, h := range list {
		if err == nil {
			err = s.takeBatch(h)
		}
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("read %s: %w", s.catalogName(), err)
	}
	last := list[len(list)-1]
	s.cat = catalog{f: f, end: end, base: list[0].len}
	s.checkpointDone, s.cutDone = last.checkpoint, last.cut
	return nil
}

// takeBatch applies a batch's records. They passed a checksum: what does not
// parse was written by something else than this program.
func (s *Store) takeBatch(h catalogBatch) error {
	for b := h.records; len(b) > 0; {
		n, err := s.takeRecord(b)
		if err != nil {
			return fmt.Errorf("checkpoint %d: %w", h.checkpoint, err)
		}
		b = b[n:]
	}
	return nil
}

func (s *Store) takeRecord(b []byte) (int, error) {
	if len(b) < catGoneSize {
		return 0, ErrFormat
	}
	id := GroupID(binary.LittleEndian.Uint32(b[4:]))
	key := Key(binary.LittleEndian.Uint64(b[8:]))
	switch b[0] {
	case catObject:
		if len(b) < catObjectSize {
			return 0, ErrFormat
		}
		g := s.groupLocked(id)
		o := g.objects[key]
		if o == nil {
			o = &object{g: g, key: key}
			g.objects[key] = o
		}
		o.version = Number{binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])}
		o.checkpoint = binary.LittleEndian.Uint64(b[32:])
		o.birth = binary.LittleEndian.Uint64(b[40:])
		o.sum = binary.LittleEndian.Uint32(b[48:])
		o.known = b[1]&1 != 0
		if damaged := b[1]&1 != 0; damaged != o.damaged {
			o.damaged = damaged
			if damaged {
				g.suspects++
			} else {
				g.suspects--
			}
		}
		return catObjectSize, nil
	case catObjectGone:
		g := s.groupLocked(id)
		if o := g.objects[key]; o != nil && o.damaged {
			g.suspects--
		}
		delete(g.objects, key)
		return catGoneSize, nil
	case catGroup:
		return s.groupLocked(id).takeState(b)
	case catGroupGone:
		delete(s.groups, id)
		return catGoneSize, nil
	}
	return 0, ErrFormat
}

// takeState is appendRecord's inverse.
func (g *Group) takeState(b []byte) (int, error) {
	if len(b) < catGroupSize {
		return 0, ErrFormat
	}
	terms := int(binary.LittleEndian.Uint16(b[2:]))
	used := int(binary.LittleEndian.Uint32(b[24:]))
	n := catGroupSize + 16*terms + catUsageSize*used
	if len(b) < n {
		return 0, ErrFormat
	}
	g.syncing, g.anyNext, g.miscounted = b[1]&1 != 0, b[1]&2 != 0, b[1]&4 != 0
	g.last = Number{binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
	g.terms = nil
	at := catGroupSize
	for range terms {
		g.terms = append(g.terms, Number{binary.LittleEndian.Uint64(b[at:]), binary.LittleEndian.Uint64(b[at+8:])})
		at += 16
	}
	g.usage = make(map[Vid]*Usage, used)
	for range used {
		g.usage[binary.LittleEndian.Uint32(b[at:])] = &Usage{
			Gen:     binary.LittleEndian.Uint64(b[at+8:]),
			Objects: int64(binary.LittleEndian.Uint64(b[at+16:])),
			Present: int64(binary.LittleEndian.Uint64(b[at+24:])),
			Zero:    int64(binary.LittleEndian.Uint64(b[at+32:])),
			Bad:     int64(binary.LittleEndian.Uint64(b[at+40:])),
		}
		at += catUsageSize
	}
	return n, nil
}

// commitCatalog makes a checkpoint's batch durable. That is the checkpoint.
func (s *Store) commitCatalog(b []byte) error {
	c := &s.cat
	b = endBatch(b, c.end)
	if _, err := c.f.WriteAt(b, c.end); err != nil {
		return err
	}
	if err := c.f.Datasync(); err != nil {
		return s.fail("sync catalog", err)
	}
	c.end += int64(len(b))
	return nil
}

// replaceCatalog puts a new first batch in the catalog's place.
func (s *Store) replaceCatalog(b []byte) error {
	tmp := s.catalogName() + ".new"
	s.fs.Remove(tmp)
	f, err := s.fs.Create(tmp)
	if err != nil {
		return err
	}
	b = endBatch(b, 0)
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = s.fs.Rename(tmp, s.catalogName())
	}
	if err != nil {
		f.Close()
		s.fs.Remove(tmp)
		return err
	}
	if err := s.fs.SyncDir(s.cfg.Dir); err != nil {
		f.Close()
		return s.fail("sync catalog's name", err)
	}
	if s.cat.f != nil {
		s.cat.f.Close()
	}
	s.cat = catalog{f: f, end: int64(len(b)), base: int64(len(b))}
	return nil
}
