package objstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
)

// Replay brings back what the journal has beyond the last checkpoint. It
// walks the records from the checkpoint's cut, each where the one before it
// ends, each segment where the one before it says. Where the chain ends, what
// was promised to be durable decides (rule 5):
//
//	end below the durable mark   damage: the walk goes on at the next batch
//	                             that is whole, and every group is a mixture
//	end at or above it           the torn tail: nothing behind it was flushed
//
// And for each record, until its group has stopped:
//
//	                          below the durable mark     at or above it
//	number is not the next    group stops, a mixture     group stops
//	small write's bytes bad   block becomes Bad          group stops
//	large write's bytes bad   reads will find it         group stops
//	object's file lost        object is damaged          group stops
//	all well                  applied                    applied
//
// A group that has stopped takes nothing more, so it is at a prefix of its
// numbers (rule 9). What was not taken can never come back: if there is any
// such thing, Open ends with a checkpoint whose cut lies behind the whole
// journal, and begins a fresh one. If all was well, which it is after every
// kill, the journal goes on as it is, in a segment of its own, and the store
// is open as soon as it has been read (reopen.go).
type replay struct {
	s       *Store
	cut     pos
	segs    []*oldSegment // those that count, by generation
	nextGen uint32
	durable pos
	stopped map[GroupID]bool
	lost    bool
	odd     bool // something was not taken, or not taken as it was written
	end     pos  // of the chain
	records int
	applied int
	look    func(rec record, data []byte, p pos) // instead of applying, for Check
}

// oldSegment is a segment as Open finds it.
type oldSegment struct {
	segment
	size int64
	head batchMark
	ok   bool // head is valid, or lost and made from a batch behind it
}

// openSegments opens the journal's files.
func (s *Store) openSegments() ([]*oldSegment, error) {
	dir := filepath.Join(s.cfg.Dir, "journal")
	names, err := s.fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []*oldSegment
	for _, n := range names {
		index, ok := segmentIndex(n)
		if !ok {
			continue
		}
		f, err := s.fs.Open(filepath.Join(dir, n))
		if err != nil {
			closeSegments(list)
			return nil, err
		}
		g := &oldSegment{segment: segment{index: index, f: f}}
		list = append(list, g)
		if g.size, err = f.Size(); err != nil {
			closeSegments(list)
			return nil, err
		}
		b := alignedBuffer(BlockSize)
		n, err := f.ReadDirect(b, 0) // after a sync that failed, memory may have what the disk has not
		if err != nil && err != io.EOF {
			closeSegments(list)
			return nil, err
		}
		if g.head, g.ok = parseStart(b[:n]); !g.ok {
			if err := g.headFromBatches(); err != nil {
				closeSegments(list)
				return nil, err
			}
		}
		g.gen = g.head.gen
	}
	return list, nil
}

// headFromBatches makes up for a segment's first record, which never reached
// the disk or has rotted: each batch behind it says the generation as well.
// Where the records before the segment end stays unknown, so the segment counts
// as one behind damage, or as a part of the torn tail.
func (g *oldSegment) headFromBatches() error {
	b, err := g.read(true, nil)
	if err != nil {
		return err
	}
	for q := int64(BlockSize); q < int64(len(b)); q += BlockSize {
		if m, ok := parseBatchMark(b, q, recMark); ok && m.gen >= g.head.gen {
			g.head, g.ok = batchMark{gen: m.gen, durable: max(g.head.durable, m.durable)}, true
		}
	}
	return nil
}

func closeSegments(list []*oldSegment) {
	for _, g := range list {
		g.f.Close()
	}
}

// parseStart reads a segment's first record.
func parseStart(b []byte) (m batchMark, ok bool) { return parseBatchMark(b, 0, recStart) }

// parseBatchMark reads a batch's first record, whose seed is in its body.
func parseBatchMark(b []byte, off int64, kind recordKind) (m batchMark, ok bool) {
	if off+frameSize+markSize > int64(len(b)) {
		return m, false
	}
	gen := binary.LittleEndian.Uint32(b[off+frameSize+4:])
	r, ok := parseRecord(b, gen, off)
	if !ok || r.kind != kind {
		return m, false
	}
	m, ok = parseMark(r.body)
	return m, ok && m.gen == gen
}

func newReplay(s *Store, segs []*oldSegment) *replay {
	r := &replay{s: s, cut: s.cutDone, end: s.cutDone, stopped: map[GroupID]bool{}}
	seen := r.cut.gen()
	for _, g := range segs {
		if g.ok {
			seen = max(seen, g.gen)
			if g.gen >= r.cut.gen() {
				r.segs = append(r.segs, g)
			}
		}
	}
	// Since the cut each segment was used once at the most. Which of them were
	// used since the last one that can be seen is not known: the first sector of
	// a segment may be lost while others are not.
	r.nextGen = seen + uint32(len(segs)) + 1
	slices.SortFunc(r.segs, func(a, b *oldSegment) int { return cmp.Compare(a.gen, b.gen) })
	return r
}

func (s *Store) replay(segs []*oldSegment) error {
	r := newReplay(s, segs)
	size, count := int64(BlockSize), s.cfg.segments() // what wrote them may have been configured otherwise
	for _, g := range segs {
		size, count = max(size, g.size), max(count, g.index+1)
	}
	s.j = newJournal(s, size, count)
	for _, g := range segs {
		s.j.segs[g.index].Store(&g.segment)
	}
	s.j.base = makePos(r.nextGen, 0)
	s.j.written.Store(uint64(s.j.base))
	s.checkpointNext = s.checkpointDone + 1
	s.replaying = true
	err := r.run()
	s.replaying = false
	if err != nil {
		return err
	}
	r.report()
	if r.mayKeep(segs) {
		return s.keepJournal(r, segs)
	}
	s.opening = true
	err = s.checkpointSoon()
	s.opening = false
	if err != nil {
		return err
	}
	return s.freshJournal(segs, r.nextGen)
}

// run finds the durable mark and walks the chain.
func (r *replay) run() error {
	if len(r.segs) == 0 {
		return nil
	}
	tail, err := r.findDurable()
	if err != nil {
		return err
	}
	var buf []byte
	at := r.cut
	defer func() { r.end = at }()
	if at.gen() == 0 {
		at = makePos(r.segs[0].gen, 0)
	}
	for i, g := range r.segs {
		b := tail
		if i+1 < len(r.segs) {
			if b, err = g.read(g.gen >= r.durable.gen(), buf); err != nil {
				return fmt.Errorf("read journal segment %03d: %w", g.index, err)
			}
			buf = b // one for all: nothing that a record says is kept as it lies there
		}
		if i+1 < len(r.segs) && !bugEndUnknown.active() {
			b = g.upto(b, r.segs[i+1])
		}
		off := int64(0)
		if i == 0 && at.gen() == g.gen {
			off = at.off()
		} else if g.head.prevEnd != at {
			if r.odd = true; at >= r.durable {
				return nil // the tail before this segment is torn
			}
			r.damage(at)
		}
		end, resumed, err := r.walk(g, b, off)
		if err != nil {
			return err
		}
		at = makePos(g.gen, end)
		for !resumed && at < r.durable && at.off() < int64(len(b)) && r.gapIsDamage(i, at) {
			r.damage(at)
			next := r.nextBatch(g, b, at.off())
			if next < 0 {
				break
			}
			if end, _, err = r.walk(g, b, next); err != nil {
				return err
			}
			at = makePos(g.gen, end)
		}
	}
	if at < r.durable {
		r.damage(at)
	}
	return nil
}

// upto cuts a segment's bytes where the next one says that its records end.
// Behind that may be what an earlier replay did not take.
func (g *oldSegment) upto(b []byte, next *oldSegment) []byte {
	if p := next.head.prevEnd; p.gen() == g.gen && p.off() < int64(len(b)) {
		return b[:p.off()]
	}
	return b
}

// gapIsDamage says that the records do not just go on in the next segment.
func (r *replay) gapIsDamage(i int, at pos) bool {
	return i+1 >= len(r.segs) || r.segs[i+1].head.prevEnd != at
}

// nextBatch finds the next whole batch in a segment, -1 if there is none.
func (r *replay) nextBatch(g *oldSegment, b []byte, off int64) int64 {
	for q := alignUp(off+1, BlockSize); q < int64(len(b)); q += BlockSize {
		if rec, ok := parseRecord(b, g.gen, q); ok && rec.kind == recMark {
			return q
		}
	}
	return -1
}

// read reads the segment, into buf if that is large enough; if asked to from
// the disk: what no sync has covered may be in memory only, after a write-back
// that failed.
func (g *oldSegment) read(direct bool, buf []byte) ([]byte, error) {
	if int64(cap(buf)) < g.size {
		buf = alignedBuffer(int(g.size))
	}
	b := buf[:g.size]
	read := g.f.ReadAt
	if direct {
		read = g.f.ReadDirect
	}
	n, err := read(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// findDurable looks for the last mark, which is in the last segment, as marks only rise. It returns that segment's bytes.
func (r *replay) findDurable() ([]byte, error) {
	last := r.segs[len(r.segs)-1]
	r.durable = last.head.durable
	b, err := last.read(true, nil)
	if err != nil {
		return nil, fmt.Errorf("read journal segment %03d: %w", last.index, err)
	}
	for q := int64(BlockSize); q < int64(len(b)); q += BlockSize {
		if rec, ok := parseRecord(b, last.gen, q); ok && rec.kind == recMark {
			if m, ok := parseMark(rec.body); ok && m.gen == last.gen {
				r.durable = max(r.durable, m.durable)
			}
		}
	}
	if bugNoMark.active() {
		r.durable = 0
	}
	return b, nil
}

// damage notes that something which was durable cannot be read any more.
func (r *replay) damage(at pos) {
	if !r.lost {
		r.s.log.Error("journal is damaged below what was synced: all groups have to be compared with others",
			"at", at, "durable", r.durable)
	}
	r.lost = true
}

// walk takes records from off on and says where they end.
func (r *replay) walk(g *oldSegment, b []byte, off int64) (end int64, resumed bool, err error) {
	for {
		rec, ok := parseRecord(b, g.gen, off)
		if !ok {
			// A sync may lie between: then a batch starts on the next 4 KiB
			// and says that it follows.
			q := alignUp(off, BlockSize)
			if rec, ok = parseRecord(b, g.gen, q); !ok || rec.kind != recMark {
				return off, false, nil
			}
			if m, ok := parseMark(rec.body); !ok || m.prevEnd != makePos(g.gen, off) {
				return off, false, nil
			}
			off = q
		}
		data := b[off+int64(rec.headLen):][:rec.dataLen]
		if err := r.take(rec, data, g, makePos(g.gen, off)); err != nil {
			return off, false, err
		}
		off += int64(rec.headLen) + int64(rec.dataLen)
	}
}

// verdict is what becomes of a record.
type verdict uint8

const (
	verdictApply verdict = iota
	verdictSkip          // its group has stopped
	verdictStop          // its group stops here
	verdictBad           // applied, with bad blocks or a damaged object
)

// judge is the table above. broken says that the record's data do not match
// or cannot be found, gap that its number is not the next.
func judge(stopped, gap, broken, durable bool) verdict {
	switch {
	case stopped:
		return verdictSkip
	case gap:
		return verdictStop
	case broken && durable:
		return verdictBad
	case broken:
		return verdictStop
	}
	return verdictApply
}

func (r *replay) stop(g *Group, p pos, why error) {
	r.stopped[g.id] = true
	if bugGapTaken.active() {
		delete(r.stopped, g.id)
		g.anyNext, g.syncing = true, true
		defer func() { g.anyNext, g.syncing = false, false }()
	}
	level := r.s.log.Info
	if p < r.durable {
		level = r.s.log.Error
		g.syncing, g.changed = true, true
	}
	level("group stops in replay", "group", uint32(g.id), "last", g.last, "at", p, "why", why)
}

// take does what one record says. Its error is the disk's.
func (r *replay) take(rec record, data []byte, seg *oldSegment, p pos) error {
	if rec.kind == recStart || rec.kind == recMark {
		return nil
	}
	r.records++
	if r.look != nil {
		r.look(rec, data, p)
		return nil
	}
	g := r.s.groupLocked(rec.group)
	if r.stopped[g.id] {
		return nil
	}
	g.changed = true
	switch rec.kind {
	case recEntry:
		return r.takeEntry(g, rec, data, seg, p)
	case recLarge:
		return r.takeLarge(g, rec, p)
	case recInstall:
		return r.takeInstall(g, rec, p)
	case recDelete:
		return r.takeDelete(g, rec, p)
	case recSyncing:
		g.syncing, g.anyNext = true, true
	case recSynced:
		if n, ok := parseNumbers(rec.body); ok && len(n) == 1 {
			g.synced(n[0])
		}
	case recTerms:
		if n, ok := parseNumbers(rec.body); ok && len(n) <= termsKept {
			g.terms = n
		}
	case recDropGroup:
		r.s.dropInReplay(g, p)
	default:
		r.stop(g, p, ErrFormat)
		return nil
	}
	r.applied++
	return nil
}

// dropInReplay forgets a group; the checkpoint at the end takes it out of
// the catalog.
func (s *Store) dropInReplay(g *Group, p pos) {
	g.dropped, g.droppedAt = true, p
	delete(s.groups, g.id)
	s.dropping = append(s.dropping, droppedGroup{g, p})
}

// object returns the record's object with its tables, made if need be.
func (r *replay) object(g *Group, key Key, make bool) (*object, error) {
	o := g.objects[key]
	if o == nil {
		if !make {
			return nil, nil
		}
		return g.newObject(key), nil
	}
	if o.t == nil {
		if err := r.s.load(o); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (r *replay) takeEntry(g *Group, rec record, data []byte, seg *oldSegment, p pos) error {
	e, _, err := ParseHead(rec.body)
	if err != nil {
		r.stop(g, p, err)
		return nil
	}
	if err := g.next(e.Number); err != nil {
		r.stop(g, p, err)
		return nil
	}
	var o *object
	if e.Kind != KindNoop {
		if o, err = r.object(g, e.Key, e.Kind.creates()); err != nil {
			return err
		}
	}
	var bad map[int]bool
	if e.Kind == KindWrite {
		for i, sum := range e.CRCs {
			if (i+1)*BlockSize > len(data) || Checksum(data[i*BlockSize:(i+1)*BlockSize]) != sum {
				if bad == nil {
					bad = map[int]bool{}
				}
				bad[i] = true
			}
		}
	}
	if o != nil && err == nil {
		err = o.check(&e)
	}
	if err != nil {
		r.stop(g, p, err)
		return nil
	}
	if judge(false, false, len(bad) > 0, p < r.durable) == verdictStop {
		r.stop(g, p, ErrChecksum)
		return nil
	}
	g.advance(e.Number)
	r.applied++
	if o == nil {
		return nil
	}
	at := r.s.j.physical(&seg.segment, p.off()+int64(rec.headLen))
	o.touch()
	o.apply(&e, p, func(i int) uint32 {
		if bad[i] {
			return cellBad
		}
		return cellJournal | (at + uint32(i)*(BlockSize/recordAlign))
	})
	if len(bad) > 0 {
		r.odd = true
		r.s.log.Error("journaled blocks are bad", "object", e.Key, "entry", e.Number, "blocks", len(bad))
		o.clean(&e, bad)
	}
	return nil
}

// clean takes the checksum out of bad cells, which have none.
func (o *object) clean(e *Entry, bad map[int]bool) {
	if v := o.t.find(e.Vid); v != nil {
		for i := range bad {
			v.cells[int(e.First)+i] = cell{at: cellBad}
		}
	}
}

func (r *replay) takeLarge(g *Group, rec record, p pos) error {
	e, birth, runs, ok := parseLarge(rec.body)
	if !ok {
		r.stop(g, p, ErrFormat)
		return nil
	}
	if err := g.next(e.Number); err != nil {
		r.stop(g, p, err)
		return nil
	}
	o, err := r.object(g, e.Key, true)
	if err != nil {
		return err
	}
	if err := o.check(&e); err != nil {
		r.stop(g, p, err)
		return nil
	}
	broken := r.adopt(o, birth)
	if broken != nil && !isLost(broken) {
		return broken
	}
	if broken == nil && p >= r.durable && !bugLargeTrusted.active() {
		broken = r.verifySlots(o, runs, e.CRCs)
	}
	switch judge(false, false, broken != nil, p < r.durable) {
	case verdictStop:
		g.abandon(o)
		r.stop(g, p, broken)
		return nil
	case verdictBad:
		r.odd = true
		g.markDamaged(o)
	}
	o.use(runs)
	g.advance(e.Number)
	r.applied++
	o.touch()
	o.apply(&e, p, slotsOf(runs))
	r.s.grewLarge(int64(e.Count) * BlockSize)
	return nil
}

func (o *object) use(runs []slotRun) {
	for _, run := range runs {
		for k := range run.n {
			o.t.markUsed(run.slot + k)
		}
	}
}

// adopt makes sure that the object's file is the one that a record means.
func (r *replay) adopt(o *object, birth uint64) error {
	if o.damaged && o.birth != birth {
		o.birth, o.file = 0, nil // a new file took the lost one's place
	}
	if o.birth != 0 {
		if o.birth != birth {
			return fmt.Errorf("file is of birth %x, record of %x: %w", o.birth, birth, ErrDamaged)
		}
		return nil
	}
	// Since the last checkpoint the file was made, or the object came back
	// before its file went. Whatever tables it has do not count.
	o.birth = birth
	f, err := r.s.acquire(o, false)
	if err != nil {
		o.birth = 0
		return err
	}
	f.release()
	t, _, err := r.s.readTables(o, 0, birth, false)
	if err != nil || t == nil {
		return errors.Join(err, ErrDamaged)
	}
	o.t.grow(len(t.chunks))
	for k, c := range t.chunks {
		o.t.chunks[k].stale = o.t.chunks[k].stale || c.stale
	}
	return nil
}

// verifySlots reads what a record above the durable mark says was written.
// What the disk cannot read is no torn tail: it is applied, and reads will
// say so.
func (r *replay) verifySlots(o *object, runs []slotRun, sums []uint32) error {
	f, err := r.s.acquire(o, false)
	if err != nil {
		return err
	}
	defer f.release()
	i := 0
	buf := alignedBuffer(BlockSize)
	for _, run := range runs {
		for k := range run.n {
			_, err := f.f.ReadDirect(buf, int64(run.slot+k)*BlockSize) // after a sync that failed, memory may have what the disk has not
			if err == nil && Checksum(buf) != sums[i] {
				err = ErrChecksum
			}
			if err != nil && err != io.EOF && err != ErrChecksum {
				r.s.log.Error("journaled block is unreadable", "object", o.key, "slot", run.slot+k, "error", err)
				err = nil
			}
			if err != nil {
				return fmt.Errorf("object %v slot %d: %w", o.key, run.slot+k, err)
			}
			i++
		}
	}
	return nil
}

func (r *replay) takeInstall(g *Group, rec record, p pos) error {
	im, ok := parseImage(rec.body)
	if !ok {
		r.stop(g, p, ErrFormat)
		return nil
	}
	o, err := r.object(g, im.key, true)
	if err != nil {
		return err
	}
	var runs []slotRun
	var sums []uint32
	for _, v := range im.versions {
		for _, b := range v.blocks {
			if b.how == imageSlot {
				runs, sums = append(runs, slotRun{b.slot, 1}), append(sums, b.sum)
			}
		}
	}
	var broken error
	if len(runs) > 0 {
		broken = r.adopt(o, im.birth)
		if broken != nil && !isLost(broken) {
			return broken
		}
		if broken == nil && p >= r.durable {
			broken = r.verifySlots(o, runs, sums)
		}
	}
	v := judge(false, false, broken != nil, p < r.durable)
	if v == verdictStop {
		g.abandon(o)
		r.stop(g, p, broken)
		return nil
	}
	o.use(runs)
	r.applied++
	o.touch()
	o.install(&im, p)
	if v == verdictBad {
		r.odd = true
		g.markDamaged(o)
	}
	return nil
}

func (r *replay) takeDelete(g *Group, rec record, p pos) error {
	if len(rec.body) != 8 {
		r.stop(g, p, ErrFormat)
		return nil
	}
	o, err := r.object(g, Key(binary.LittleEndian.Uint64(rec.body)), false)
	if err != nil || o == nil {
		return err
	}
	r.applied++
	o.touch()
	o.clear(p)
	return nil
}

// report finishes what damage means and says what was found.
func (r *replay) report() {
	for _, g := range r.s.groups {
		if err := g.recount(); err != nil {
			r.s.log.Warn("count anew what vids use", "group", uint32(g.id), "error", err)
		}
	}
	if r.lost {
		for _, g := range r.s.groups {
			g.syncing, g.changed = true, true
		}
	}
	if r.records > 0 || r.lost {
		r.s.log.Info("journal replayed", "dir", r.s.cfg.Dir, "records", r.records, "applied", r.applied,
			"groups stopped", len(r.stopped), "damaged", r.lost)
	}
	r.s.m.replayed.Store(int64(r.applied))
}
