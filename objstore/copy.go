package objstore

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Copy is an object being brought to what a resync source has. Blocks are
// put to free slots, where nobody sees them; Install makes the object exactly
// the unit, with one record of the journal.
//
// A Copy is used by one goroutine at a time, but for Sync, which may run
// beside anything. It ends with Install or Abort; after a failed Install it
// still has to be aborted.
type Copy struct {
	g    *Group
	o    *object
	put  map[blockID]cell
	keep map[blockID]bool
	done bool

	fresh bool      // there was no object
	birth uint64    // of the file that was put to first; guarded by the group's mutex
	next  slotPoint // behind what was put last

	// Guarded by the group's mutex.
	written, synced int64    // bytes put, and of them those that a sync has covered or will
	file            *objFile // where the others are, held; nil: there are none
}

// copyUnsyncedMax bounds what a copy leaves to its own Sync. What goes beyond
// is the next flush's, as any other write.
const copyUnsyncedMax = 8 << 20

type blockID struct {
	vid   Vid
	block uint16
}

// NewCopy begins a copy.
func (g *Group) NewCopy(key Key) (*Copy, error) {
	for {
		o, unlock, err := g.lockLoaded(key)
		if err != nil {
			return nil, err
		}
		if o == nil {
			g.mu.Lock()
			unlock = g.mu.Unlock
			if g.objects[key] != nil {
				unlock()
				continue
			}
			o = g.newObject(key)
		}
		o.t.pins++
		fresh := !o.exists()
		unlock()
		return &Copy{g: g, o: o, put: map[blockID]cell{}, keep: map[blockID]bool{}, fresh: fresh}, nil
	}
}

// Put writes consecutive blocks of a version that the unit will have, one for
// each checksum. The checksums are checked.
func (c *Copy) Put(vid Vid, first int, crcs []uint32, data []byte) error {
	if first < 0 || first+len(crcs) > BlocksPerObject || len(data) != len(crcs)*BlockSize {
		return fmt.Errorf("copy object %v block %d: %w", c.o.key, first, ErrFormat)
	}
	for i, crc := range crcs {
		if Checksum(data[i*BlockSize:(i+1)*BlockSize]) != crc {
			return fmt.Errorf("copy object %v block %d of vid %06x: %w", c.o.key, first+i, vid, ErrChecksum)
		}
	}
	if err := c.g.s.refuseWhenFull(); err != nil {
		return fmt.Errorf("copy object %v: %w", c.o.key, err)
	}
	if err := c.g.s.waitDirty(); err != nil {
		return err
	}
	runs := c.alloc(vid, first, len(crcs))
	if err := c.write(runs, data); err != nil {
		c.g.mu.Lock()
		c.o.t.freeRuns(runs)
		c.g.mu.Unlock()
		return err
	}
	slot := slotsOf(runs)
	for i, crc := range crcs {
		c.put[blockID{vid, uint16(first + i)}] = cell{slot(i), crc}
	}
	return nil
}

// alloc takes a slot for each block and gives back those of what was put there before. An object that has nothing yet gets its blocks where they belong. In others they follow each
// other, if the file has to get longer for it: what was overwritten at random has its free slots one by one, and to write and sync to these is a request to the disk for each,
// beside those that clients wait for.
func (c *Copy) alloc(vid Vid, first, count int) (runs []slotRun) {
	scarce := c.g.s.Space().NearFull
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	t := c.o.t
	for b := first; b < first+count; b++ {
		id := blockID{vid, uint16(b)}
		if old, ok := c.put[id]; ok {
			t.free(old.value())
			delete(c.put, id)
		}
		delete(c.keep, id)
	}
	if !scarce && !c.fresh {
		if len(c.put) == 0 {
			c.next = t.copyPlace()
		}
		runs = t.allocFrom(&c.next, count, nil)
	} else {
		home := t.homeOf(vid)
		for b := first; b < first+count; b++ {
			runs = t.alloc(home, b, 1, runs)
		}
	}
	for _, r := range runs {
		t.writtenSmall(r)
	}
	return runs
}

// write writes to slots and leaves it to Sync, or Install, that it becomes
// durable.
func (c *Copy) write(runs []slotRun, data []byte) error {
	s := c.g.s
	f, err := s.acquireForWrite(c.o)
	if err != nil {
		return err
	}
	defer f.release()
	if err := s.writeRuns(f, runs, data); err != nil {
		return err
	}
	c.g.mu.Lock()
	if c.file != f {
		if c.file != nil { // it was lost, and another took its place
			c.file.release()
		}
		f.refs.Add(1)
		c.file, c.synced = f, c.written
	}
	c.written += int64(len(data))
	if c.birth == 0 {
		c.birth = c.o.birth
	}
	over := c.written-c.synced > copyUnsyncedMax
	c.g.mu.Unlock()
	if over {
		c.leaveToFlush()
	}
	return nil
}

// leaveToFlush has the next sync of the store cover what is not synced yet.
func (c *Copy) leaveToFlush() {
	c.g.mu.Lock()
	f, n := c.file, c.written-c.synced
	c.file, c.synced = nil, c.written
	c.g.mu.Unlock()
	if f != nil {
		c.g.s.written(f, n)
		c.g.s.kickBehind()
		f.release()
	}
}

// Sync makes durable what was put before, so that no flush has to wait for
// it: one that came upon megabytes would hold all who write to the disk.
func (c *Copy) Sync() error {
	s := c.g.s
	c.g.mu.Lock()
	f, upTo := c.file, c.written
	if f != nil {
		f.refs.Add(1)
	}
	c.g.mu.Unlock()
	if f == nil {
		return nil
	}
	defer f.release()
	var err error
	if !bugCopyUnsynced.active() {
		err = f.sync(false)
	}
	if err != nil {
		return s.fail("sync copy of object "+c.o.key.String(), err)
	}
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	c.synced = max(c.synced, upTo) // more than upTo where a flush was to cover it meanwhile
	if c.file == f && c.synced == c.written {
		f.release()
		c.file = nil
	}
	return nil
}

// Keep says that the unit's block is the one that the object has already.
func (c *Copy) Keep(vid Vid, block int) {
	id := blockID{vid, uint16(block)}
	c.keep[id] = true
	if p, ok := c.put[id]; ok {
		delete(c.put, id)
		c.g.mu.Lock()
		c.o.t.free(p.value())
		c.g.mu.Unlock()
	}
}

// Install makes the object exactly u. Every present block of u was put or
// kept; ErrStale if a kept one is not there with u's checksum.
func (c *Copy) Install(u *Unit) error { return c.installOver(u, nil) }

// InstallOver is Install for an object that has to be at the number at which
// it was before: ErrStale if an entry changed it since, which must not be
// undone.
func (c *Copy) InstallOver(u *Unit, was Number) error { return c.installOver(u, &was) }

func (c *Copy) installOver(u *Unit, was *Number) error {
	if err := u.Validate(); err != nil {
		return err
	}
	if u.Key != c.o.key {
		return fmt.Errorf("install object %v as %v: %w", u.Key, c.o.key, ErrFormat)
	}
	c.leaveToFlush() // whatever makes the record durable makes the rest of its blocks durable too
	for {
		err := c.install(u, was)
		if err == nil {
			return c.g.recount()
		}
		if err != errNoRoom {
			return err
		}
		if err := c.g.s.j.waitRoom(); err != nil {
			return err
		}
	}
}

func (c *Copy) install(u *Unit, was *Number) error {
	g, o := c.g, c.o
	if err := g.s.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return fmt.Errorf("install object %v: group %d: %w", u.Key, g.id, ErrDropped)
	}
	if was != nil && o.version != *was {
		return fmt.Errorf("install object %v: it was at %v and is at %v: %w", u.Key, *was, o.version, ErrStale)
	}
	if len(c.put) > 0 && c.birth != o.birth {
		return fmt.Errorf("install object %v: its file was lost meanwhile: %w", u.Key, ErrStale)
	}
	im := image{key: u.Key, birth: o.birth, version: u.Version}
	for _, v := range u.Versions {
		iv := imageVersion{vid: v.Vid, gen: v.Gen}
		for _, b := range v.Blocks {
			ib, err := c.imageBlock(v, b)
			if err != nil {
				return fmt.Errorf("install object %v block %d of vid %06x: %w", u.Key, b.Block, v.Vid, err)
			}
			iv.blocks = append(iv.blocks, ib)
		}
		im.versions = append(im.versions, iv)
	}
	pl, err := g.s.j.appendBody(recInstall, g.id, im.append(nil))
	if err != nil {
		return err
	}
	g.touch(pl)
	o.touch()
	o.install(&im, pl.pos)
	used := make(map[uint32]bool, len(c.put))
	for _, iv := range im.versions {
		for _, b := range iv.blocks {
			used[b.slot] = used[b.slot] || b.how == imageSlot
		}
	}
	for _, p := range c.put {
		if !used[p.value()] {
			o.t.free(p.value())
		}
	}
	o.t.pins--
	c.done = true
	return nil
}

func (c *Copy) imageBlock(v UnitVersion, b UnitBlock) (imageBlock, error) {
	ib := imageBlock{block: b.Block, state: b.State, sum: b.CRC}
	if b.State != Present {
		return ib, nil
	}
	id := blockID{v.Vid, b.Block}
	if p, ok := c.put[id]; ok {
		if p.sum != b.CRC {
			return ib, fmt.Errorf("another block was put: %w", ErrStale)
		}
		ib.how, ib.slot = imageSlot, p.value()
		return ib, nil
	}
	t := c.o.t.find(v.Vid)
	if !c.keep[id] || t == nil || t.cells[b.Block].state() != Present || t.cells[b.Block].sum != b.CRC || c.o.damaged {
		return ib, fmt.Errorf("neither put nor there: %w", ErrStale)
	}
	ib.how = imageKeep
	return ib, nil
}

// Abort gives up a copy; nothing of it was ever seen.
func (c *Copy) Abort() {
	if c.done {
		return
	}
	c.done = true
	c.leaveToFlush()
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for _, p := range c.put {
		c.o.t.free(p.value())
	}
	c.o.t.pins--
	c.g.abandon(c.o)
}

// image is an installed object as the journal has it: a unit with slots. Blocks
// that follow each other, in slots that do too, are one run: so an object whose
// blocks lie in order may have 8,100 whole versions before its image is longer than a
// segment of 32 MiB, and one whose slots do not follow each other at all 2,000.
//
//	 0  key      u64
//	 8  birth    u64   of the object's file; 0 if no slot is named
//	16  term     u64 | lsn u64
//	32  versions u32 | zero u32
//	40  { vid u32 | runs u32 | gen u64 |
//	      { block u16 | count u16 | state u8 | how u8 | zero u16 | slot u32 |
//	        crc u32 × count, of Present blocks } × runs } × versions
type image struct {
	key      Key
	birth    uint64
	version  Number
	versions []imageVersion
}

type imageVersion struct {
	vid    Vid
	gen    uint64
	blocks []imageBlock
}

type imageBlock struct {
	block uint16
	state State
	how   uint8
	sum   uint32
	slot  uint32
}

const (
	imageNone = 0 // no bytes
	imageSlot = 1 // in the slot
	imageKeep = 2 // where the object's version has it at this point of the journal

	imageRunHead = 12
)

// follows says that b may be in the same run as a, which stands before it.
func (b imageBlock) follows(a imageBlock) bool {
	return b.block == a.block+1 && b.state == a.state && b.how == a.how && (b.how != imageSlot || b.slot == a.slot+1)
}

func (im *image) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(im.key))
	b = binary.LittleEndian.AppendUint64(b, im.birth)
	b = binary.LittleEndian.AppendUint64(b, im.version.Term)
	b = binary.LittleEndian.AppendUint64(b, im.version.LSN)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(im.versions)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	for _, v := range im.versions {
		b = binary.LittleEndian.AppendUint32(b, v.vid)
		at := len(b)
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint64(b, v.gen)
		runs := uint32(0)
		for i := 0; i < len(v.blocks); runs++ {
			k, n := v.blocks[i], 1
			for i+n < len(v.blocks) && v.blocks[i+n].follows(v.blocks[i+n-1]) {
				n++
			}
			b = binary.LittleEndian.AppendUint16(b, k.block)
			b = binary.LittleEndian.AppendUint16(b, uint16(n))
			b = append(b, byte(k.state), k.how, 0, 0)
			b = binary.LittleEndian.AppendUint32(b, k.slot)
			for _, k := range v.blocks[i : i+n] {
				if k.state == Present {
					b = binary.LittleEndian.AppendUint32(b, k.sum)
				}
			}
			i += n
		}
		binary.LittleEndian.PutUint32(b[at:], runs)
	}
	return b
}

func parseImage(b []byte) (im image, ok bool) {
	if len(b) < unitHead {
		return im, false
	}
	im.key = Key(binary.LittleEndian.Uint64(b))
	im.birth = binary.LittleEndian.Uint64(b[8:])
	im.version = Number{binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])}
	n, zero := binary.LittleEndian.Uint32(b[32:]), binary.LittleEndian.Uint32(b[36:])
	b = b[unitHead:]
	for range n {
		if len(b) < unitVersionHead {
			return im, false
		}
		v := imageVersion{vid: binary.LittleEndian.Uint32(b), gen: binary.LittleEndian.Uint64(b[8:])}
		runs := binary.LittleEndian.Uint32(b[4:])
		b = b[unitVersionHead:]
		for range runs {
			used, ok := v.parseRun(b)
			if !ok {
				return im, false
			}
			b = b[used:]
		}
		im.versions = append(im.versions, v)
	}
	return im, len(b) == 0 && zero == 0
}

// parseRun adds the run with which b begins, whose blocks come after those that are there.
func (v *imageVersion) parseRun(b []byte) (used int, ok bool) {
	if len(b) < imageRunHead {
		return 0, false
	}
	first, count := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
	k := imageBlock{block: uint16(first), state: State(b[4]), how: b[5], slot: binary.LittleEndian.Uint32(b[8:])}
	if n := len(v.blocks); n > 0 && (k.block <= v.blocks[n-1].block || k.follows(v.blocks[n-1])) {
		return 0, false
	}
	used = imageRunHead
	if k.state == Present {
		used += 4 * count
	}
	if count == 0 || first+count > BlocksPerObject || len(b) < used || k.state == Absent || k.state > Bad || b[6]|b[7] != 0 {
		return 0, false
	}
	switch {
	case k.state == Present && k.how == imageSlot:
		_, n, inChunk := slotPlace(k.slot)
		ok = inChunk && n+count <= BlocksPerObject
	case k.state == Present:
		ok = k.how == imageKeep && k.slot == 0
	default:
		ok = k.how == imageNone && k.slot == 0
	}
	if !ok {
		return 0, false
	}
	for i := range count {
		k.block = uint16(first + i)
		if k.state == Present {
			k.sum = binary.LittleEndian.Uint32(b[imageRunHead+4*i:])
		}
		v.blocks = append(v.blocks, k)
		if k.how == imageSlot {
			k.slot++
		}
	}
	return used, true
}

// install replaces all versions of the object by the image's. Holds the
// group's mutex.
func (o *object) install(im *image, p pos) {
	old := slices.Clone(o.t.list)
	o.t.res = nil
	var cells []*[BlocksPerObject]cell
	for _, iv := range im.versions {
		c := new([BlocksPerObject]cell)
		v := o.t.find(iv.vid)
		for _, b := range iv.blocks {
			switch {
			case b.state == Zero:
				c[b.block] = cell{at: cellZero}
			case b.state == Bad:
				c[b.block] = cell{at: cellBad}
			case b.how == imageSlot:
				c[b.block] = cell{cellSlot | b.slot, b.sum}
			case v != nil && v.cells[b.block].state() == Present && v.cells[b.block].sum == b.sum:
				c[b.block] = v.cells[b.block]
				o.count(v, v.cells[b.block], -1)
				v.cells[b.block] = cell{} // moved, not freed
			default: // only in replay, where the block was lost meanwhile
				c[b.block] = cell{at: cellBad}
			}
		}
		cells = append(cells, c)
	}
	for _, v := range old {
		o.drop(v, p)
	}
	for i, iv := range im.versions {
		v := o.add(iv.vid, iv.gen)
		v.version, v.changed = im.version, true
		for b, c := range cells[i] {
			if c.at != cellAbsent {
				o.set(v, b, c, p)
			}
		}
	}
	o.version = im.version
	o.heal()
}

// heal ends an object's being damaged: everything in it is new.
func (o *object) heal() {
	if o.damaged {
		o.damaged = false
		o.g.suspects--
		o.g.miscounted = true
		o.g.s.m.damaged.Add(-1)
	}
}

// DeleteObject removes an object that a resync source does not have.
func (g *Group) DeleteObject(key Key) error { return g.deleteObject(key, nil) }

// DeleteObjectAt is DeleteObject for an object that has to be at the number at
// which it was before, as InstallOver.
func (g *Group) DeleteObjectAt(key Key, was Number) error { return g.deleteObject(key, &was) }

func (g *Group) deleteObject(key Key, was *Number) error {
	for {
		o, unlock, err := g.lockLoaded(key)
		if err != nil || o == nil {
			return err
		}
		if g.dropped || !o.exists() {
			unlock()
			return nil
		}
		if was != nil && o.version != *was {
			unlock()
			return fmt.Errorf("delete object %v: it was at %v and is at %v: %w", key, *was, o.version, ErrStale)
		}
		pl, err := g.s.j.appendBody(recDelete, g.id, binary.LittleEndian.AppendUint64(nil, uint64(key)))
		if err == nil {
			g.touch(pl)
			o.touch()
			o.clear(pl.pos)
		}
		unlock()
		if err == nil {
			return g.recount()
		}
		if err != errNoRoom {
			return err
		}
		if err := g.s.j.waitRoom(); err != nil {
			return err
		}
	}
}

// clear drops all versions.
func (o *object) clear(p pos) {
	for _, v := range slices.Clone(o.t.list) {
		o.drop(v, p)
	}
	o.heal()
}
