package objstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// scrubber reads everything once in a while, past the page cache, so that rot
// is found before the last good copy of a block is gone (rule 14). It is slow
// on purpose, and goes on where it was after a restart.
type scrubber struct {
	rate atomic.Int64 // bytes a second; 0 or less: off
	wake chan struct{}

	mu      sync.Mutex
	group   GroupID // where it is
	key     Key
	started time.Time
	last    time.Duration // of the last whole round
	ended   time.Time     // of the last whole round, this process's or an earlier one's
}

// ScrubStatus says how far the scrub is.
type ScrubStatus struct {
	Rate      int64 // bytes a second
	Group     GroupID
	Key       Key
	Started   time.Time // of this round, over restarts
	LastRound time.Duration
	LastEnd   time.Time // of the last whole round; zero: there was none
	Rounds    int64
	Blocks    int64 // read since the store was opened
	Bad       int64
}

// SetScrubRate changes the scrub's speed in bytes a second; 0 stops it.
func (s *Store) SetScrubRate(rate int64) {
	s.scrub.rate.Store(rate)
	poke(s.scrub.wake)
}

// Scrub says how far the scrub is.
func (s *Store) Scrub() ScrubStatus {
	c := &s.scrub
	c.mu.Lock()
	defer c.mu.Unlock()
	return ScrubStatus{
		Rate: c.rate.Load(), Group: c.group, Key: c.key, Started: c.started, LastRound: c.last, LastEnd: c.ended,
		Rounds: s.m.scrubRounds.Load(), Blocks: s.m.scrubbed.Load(), Bad: s.m.scrubBad.Load(),
	}
}

const (
	scrubMeta = ".scrub"         // the file that keeps the place
	scrubSave = 64 * ObjectSize  // bytes between two notes of it
	scrubNote = time.Minute      // time between two notes of it
	scrubRest = 10 * time.Second // with nothing to do

	// A read of the disk costs as much as some dozens of its blocks: slots are read in runs, over gaps that nothing needs, of which what is written at random is full.
	scrubRun = 64 // slots in a read
	scrubGap = 4  // slots of a gap that is read over
)

// scrubLoop is the scrub's goroutine.
func (s *Store) scrubLoop() {
	defer s.wg.Done()
	s.loadScrub()
	saved, noted := int64(0), time.Now()
	defer func() {
		if err := s.Err(); saved > 0 && (err == nil || errors.Is(err, ErrClosed)) {
			s.noteScrub() // it goes on here
		}
	}()
	for {
		if s.scrub.rate.Load() <= 0 {
			if !s.scrubWait(-1) {
				return
			}
			continue
		}
		o := s.nextScrubbed()
		if o == nil {
			if saved > 0 {
				s.saveScrub()
				saved = 0
			}
			if !s.scrubWait(scrubRest) {
				return
			}
			continue
		}
		start := time.Now()
		n := s.scrubObject(o)
		if saved += n; saved > scrubSave || time.Since(noted) > scrubNote {
			s.saveScrub()
			saved, noted = 0, time.Now()
		}
		for s.scrub.rate.Load() > 0 { // as fast as it is to be now, however often that changes
			due := time.Duration(float64(max(n, BlockSize)) / float64(max(1, s.scrub.rate.Load())) * float64(time.Second))
			left := due - time.Since(start)
			if left <= 0 {
				break
			}
			if !s.scrubWait(left) {
				return
			}
		}
	}
}

// scrubWait rests, for ever if d is negative and the scrub is off; false when
// the store stops.
func (s *Store) scrubWait(d time.Duration) bool {
	var timer <-chan time.Time
	if s.scrub.rate.Load() > 0 {
		t := time.NewTimer(max(d, 0))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-s.stop:
		return false
	case <-s.failed:
		<-s.stop
		return false
	case <-s.scrub.wake:
	case <-timer:
	}
	return true
}

// nextScrubbed takes the next object in order of group and key; nil at the
// end of a round.
func (s *Store) nextScrubbed() *object {
	c := &s.scrub
	c.mu.Lock()
	id, key := c.group, c.key
	begins := c.started.IsZero()
	if begins {
		c.started = time.Now()
	}
	c.mu.Unlock()
	if begins {
		s.removeLostGroups()
	}
	if g := s.groupIfAny(id); g != nil && key != 0 { // most often it is in the same group: no need to list them all
		if o := g.objectFrom(key); o != nil {
			return c.take(id, o)
		}
	}
	for _, gid := range s.groupsFrom(id) {
		from := Key(0)
		if gid == id {
			from = key
		}
		g := s.groupIfAny(gid)
		if g == nil || !g.holds() {
			continue
		}
		if from == 0 {
			s.removeOrphans(gid, false)
		}
		if o := g.objectFrom(from); o != nil {
			return c.take(gid, o)
		}
	}
	c.mu.Lock()
	if id != 0 || key != 0 {
		s.m.scrubRounds.Add(1)
		c.last, c.ended = time.Since(c.started), time.Now()
	}
	c.group, c.key, c.started = 0, 0, time.Time{}
	c.mu.Unlock()
	return nil
}

// groupsFrom lists the groups from one on in order, also those that hold
// nothing: to ask each of thousands takes as many locks, which are in no cache.
func (s *Store) groupsFrom(id GroupID) []GroupID {
	var ids []GroupID
	s.groupsMu.RLock()
	for gid := range s.groups {
		if gid >= id {
			ids = append(ids, gid)
		}
	}
	s.groupsMu.RUnlock()
	slices.Sort(ids)
	return ids
}

// take notes that an object is the next.
func (c *scrubber) take(id GroupID, o *object) *object {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.group, c.key = id, o.key+1
	return o
}

// objectFrom is the object with the least key from key on.
func (g *Group) objectFrom(key Key) *object {
	g.mu.Lock()
	defer g.mu.Unlock()
	var best *object
	for k, o := range g.objects {
		if k >= key && o.exists() && (best == nil || k < best.key) {
			best = o
		}
	}
	return best
}

// scrubObject checks an object's tables and every block in its file, and
// gives back its free slots. It says how many bytes it read.
func (s *Store) scrubObject(o *object) (n int64) {
	g := o.g
	o2, unlock, err := g.lockLoaded(o.key)
	if err != nil || o2 != o {
		if o2 != nil {
			unlock()
		}
		return 0
	}
	type place struct {
		vid   Vid
		block int
		c     cell
	}
	var list, lost []place // lost: known to be bad, since they were copied so from a replica that could not read them
	for _, v := range o.t.list {
		for b, c := range v.cells {
			switch {
			case c.kind() == cellSlot:
				list = append(list, place{v.vid, b, c})
			case c == cell{at: cellBad}:
				lost = append(lost, place{v.vid, b, c})
			}
		}
	}
	birth, damaged := o.birth, o.damaged
	o.t.pins++
	unlock()
	if damaged {
		s.m.scrubBad.Add(1)
		s.tellBad(&BlockError{Group: g.id, Key: o.key, Err: ErrDamaged})
	}
	defer func() {
		g.mu.Lock()
		o.t.pins--
		g.mu.Unlock()
	}()
	for _, p := range lost {
		s.scrubBad(o, p.vid, p.block, p.c)
	}
	if birth == 0 {
		return 0
	}
	s.scrubTables(o)
	f, err := s.fs.Open(s.objectName(o)) // of its own: a scrub must not fill the cache of open files
	if err != nil {
		return 0
	}
	defer f.Close()
	slices.SortFunc(list, func(a, b place) int { return cmp.Compare(a.c.at, b.c.at) })
	buf := alignedBuffer(scrubRun * BlockSize)
	read := f.ReadDirect
	if bugScrubCached.active() {
		read = f.ReadAt
	}
	for at := 0; at < len(list) && s.Err() == nil; {
		first, k := list[at].c.value(), 1
		for at+k < len(list) && list[at+k].c.value()-first < scrubRun && list[at+k].c.value()-list[at+k-1].c.value() <= scrubGap+1 {
			k++
		}
		some := list[at : at+k]
		b := buf[:(some[k-1].c.value()-first+1)*BlockSize]
		_, err := read(b, int64(first)*BlockSize)
		n += int64(len(b))
		s.m.scrubbed.Add(int64(k))
		for _, p := range some {
			d := b[(p.c.value()-first)*BlockSize:][:BlockSize]
			bad := err != nil
			if bad && len(b) > BlockSize { // which of them is it, or is it one between them?
				_, err := read(d, int64(p.c.value())*BlockSize)
				bad = err != nil
			}
			if bad || Checksum(d) != p.c.sum {
				s.scrubBad(o, p.vid, p.block, p.c)
			}
		}
		at += k
	}
	s.punchFree(o)
	return n
}

// scrubBad looks at a block again, as a reader would, and tells whoever
// repairs.
func (s *Store) scrubBad(o *object, vid Vid, block int, c cell) {
	g := o.g
	g.mu.Lock()
	v := o.t.find(vid)
	same := v != nil && v.cells[block] == c
	g.mu.Unlock()
	if !same {
		return // written meanwhile
	}
	s.m.scrubBad.Add(1)
	bad := &BlockError{Group: g.id, Key: o.key, Block: block, Vid: vid, Err: ErrChecksum}
	s.log.Error("scrub found a bad block", "object", o.key, "group", uint32(g.id), "block", block, "vid", vid)
	s.tellBad(bad)
}

func (s *Store) tellBad(bad *BlockError) {
	if s.cfg.OnBad != nil {
		s.cfg.OnBad(bad)
	}
}

// scrubTables reads the tables again and compares their sum with the
// catalog's; from the disk, as blocks (rule 14).
func (s *Store) scrubTables(o *object) {
	g := o.g
	g.mu.Lock()
	want, sum, birth := o.checkpoint, o.sum, o.birth
	known := o.damaged
	g.mu.Unlock()
	if want == 0 || known {
		return
	}
	t, keys, err := s.readTables(o, want, birth, !bugScrubCached.active())
	if err != nil || t != nil && sumOf(keys) == sum {
		return
	}
	g.mu.Lock()
	again := o.checkpoint != want // a checkpoint wrote them meanwhile
	g.mu.Unlock()
	if again {
		return
	}
	s.m.scrubBad.Add(1)
	s.log.Error("scrub found a bad table", "object", o.key, "group", uint32(g.id))
	g.mu.Lock()
	// Memory has the tables whole: the next checkpoint writes them anew.
	if o.t != nil && !o.damaged {
		for k := range o.t.chunks {
			o.t.chunks[k].stale = true
		}
		o.touch()
		g.changed = true
	}
	g.mu.Unlock()
}

// punchFree gives free slots back to the file system, at 4 KiB granularity,
// if nobody is writing to the object; it says whether it did.
func (s *Store) punchFree(o *object) bool {
	g := o.g
	g.mu.Lock()
	t := o.t
	if t.dirty || t.plan || t.cut || len(t.later) > 0 || t.pins > 1 {
		g.mu.Unlock()
		return false
	}
	var runs []slotRun
	for k := range t.used {
		for n := 0; n < BlocksPerObject; {
			if t.isUsed(dataSlot(k, n)) {
				n++
				continue
			}
			c := 1
			for n+c < BlocksPerObject && !t.isUsed(dataSlot(k, n+c)) {
				c++
			}
			runs = append(runs, slotRun{dataSlot(k, n), uint32(c)})
			n += c
		}
	}
	for _, r := range runs {
		for k := range r.n {
			t.markUsed(r.slot + k) // until it is punched
		}
	}
	t.pins++
	g.mu.Unlock()
	s.punch(o, runs)
	return true
}

// The scrub's place is a small file; losing it costs a round.

func (s *Store) scrubName() string { return filepath.Join(s.cfg.Dir, "epoch", scrubMeta) }

// scrubPlace is what the file holds.
//
//	0 group u32 | 4 key u64 | 12 this round began, Unix seconds u64 | 20 the last one ended u64 | 28 and took, seconds u64
const scrubPlaceBytes = 36

func (s *Store) loadScrub() {
	b, err := readNamed(s.fs, s.scrubName())
	if err == nil && len(b) != scrubPlaceBytes {
		err = ErrFormat
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("scrub begins anew", "error", err)
		}
		return
	}
	c := &s.scrub
	c.mu.Lock()
	defer c.mu.Unlock()
	c.group, c.key = GroupID(binary.LittleEndian.Uint32(b)), Key(binary.LittleEndian.Uint64(b[4:]))
	c.started, c.ended = unixTime(b[12:]), unixTime(b[20:])
	c.last = time.Duration(min(binary.LittleEndian.Uint64(b[28:]), 1<<32)) * time.Second
}

// unixTime reads a time; 0, or one that cannot be, is none.
func unixTime(b []byte) time.Time {
	v := binary.LittleEndian.Uint64(b)
	if v == 0 || v > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(v), 0)
}

func appendUnix(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.LittleEndian.AppendUint64(b, 0)
	}
	return binary.LittleEndian.AppendUint64(b, uint64(t.Unix()))
}

func (s *Store) saveScrub() {
	if err := s.noteScrub(); err != nil {
		s.writeError("note the scrub's place", err)
	}
}

func (s *Store) noteScrub() error {
	c := &s.scrub
	c.mu.Lock()
	b := binary.LittleEndian.AppendUint32(nil, uint32(c.group))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.key))
	b = appendUnix(appendUnix(b, c.started), c.ended)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.last/time.Second))
	c.mu.Unlock()
	s.metaLock.Lock()
	defer s.metaLock.Unlock()
	return writeNamed(s.fs, s.scrubName(), b)
}

// removeOrphans removes files in a group's folder that belong to no object:
// what a crash left between a checkpoint and the removal it decided on. gone
// says that a checkpoint took the whole group out of the catalog.
func (s *Store) removeOrphans(id GroupID, gone bool) {
	names, err := s.fs.ReadDir(s.groupDir(id))
	for _, n := range names {
		v, bad := strconv.ParseUint(n, 16, 64)
		if bad != nil || len(n) != 16 {
			continue
		}
		stripe := s.stripe(Key(v))
		stripe.Lock()
		if s.isOrphan(id, Key(v), gone) {
			if !gone {
				s.log.Info("remove a file that belongs to no object", "group", uint32(id), "file", n)
			}
			err = errors.Join(err, s.fs.Remove(filepath.Join(s.groupDir(id), n)))
		}
		stripe.Unlock()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("remove files of no object", "group", uint32(id), "error", err)
	}
}

// isOrphan holds the key's stripe, so that no file can get the name meanwhile.
func (s *Store) isOrphan(id GroupID, key Key, gone bool) bool {
	s.groupsMu.RLock()
	g, dropping := s.groups[id], s.isDropping(id)
	s.groupsMu.RUnlock()
	if g == nil {
		return gone || !dropping // a drop that no checkpoint took may be undone by a power cut
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.objects[key] == nil && !g.dropped
}

// removeLostGroups removes what a crash left of groups that are not there.
func (s *Store) removeLostGroups() {
	names, err := s.fs.ReadDir(filepath.Join(s.cfg.Dir, "obj"))
	if err != nil {
		return
	}
	for _, n := range names {
		if v, err := strconv.ParseUint(n, 16, 32); err == nil && len(n) == 8 && s.groupIfAny(GroupID(v)) == nil {
			s.removeOrphans(GroupID(v), false)
		}
	}
}

// alignedBuffer is what O_DIRECT asks for.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+BlockSize)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (BlockSize - 1)
	return b[skip:][:n:n]
}
