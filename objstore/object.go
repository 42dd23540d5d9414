package objstore

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// object is one key of a group with all its versions. At rest it is this
// struct alone; its tables are loaded when needed and dropped when clean.
// Everything in it is guarded by the group's mutex.
type object struct {
	g       *Group
	key     Key
	version Number // of the last entry that changed it (rule 10)

	// What the catalog has of it.
	checkpoint uint64 // that wrote its tables last
	birth      uint64 // of its file; 0: no file yet
	sum        uint32 // over its tables' places, so that a lost or rotten table is noticed
	damaged    bool   // a table or the file is lost: no read may trust it
	known      bool   // that is in the catalog

	t    *tables
	file *objFile
}

// objFile is an open object file. It is closed only when nobody holds it,
// and whoever wrote holds it until the write is synced (rule 8).
type objFile struct {
	syncing ioMutex
	syncErr error // guarded by syncing

	f    vfs.File
	o    *object
	refs atomic.Int32
	used atomic.Bool // since the clock hand passed
	at   int         // place in the clock; guarded by files.mu

	waiting int64 // bytes written that the write-behind was not told of; guarded by the syncer's mu
}

// tables is the part of an object that is in memory only when needed.
type tables struct {
	list   []*table
	chunks []chunkState
	used   [][chunkWords]uint64 // data slots that hold something, by chunk
	whole  []uint64             // groups of slots that no small write was put to since a large one covered them, by chunk; see pageGroup
	later  []laterFree
	taken  int // slots taken since the last checkpoint

	res *resolved // what readers found, for the chain that was asked last

	durable  Number // version in the catalog
	unplaced int    // cells that point into the journal
	pins     int    // calls that work on it without the mutex
	copies   int    // of them, Copy objects

	dirty bool      // in g.dirty: changed since the last cut
	cut   bool      // the running checkpoint takes it and has not looked yet
	snap  *snapshot // what it was at the cut, where it changed since
	plan  bool      // the running checkpoint is writing it

	recent bool // since the cache's clock hand passed
	at     int  // place in the cache's clock
}

const chunkWords = BlocksPerObject / 64

// chunkState is what is known of a chunk's two table places.
type chunkState struct {
	owner *table   // the version that lives here
	side  uint8    // the place that counts
	held  bool     // that place holds a table or a free mark
	live  bool     // a table
	stale bool     // the other place holds what a checkpoint left that never finished
	key   tableKey // of the table there
}

// tableKey is what the sum over an object's tables is made of.
type tableKey struct {
	vid        Vid
	gen        uint64
	checkpoint uint64
}

// next is the place that the next checkpoint writes.
func (c *chunkState) next() uint8 {
	if !c.held || bugTableInPlace.active() {
		return 0
	}
	return c.side ^ 1
}

// needsMark says that a dead version's table has to be covered.
func (c *chunkState) needsMark() bool { return c.owner == nil && (c.live || c.stale) }

// table is one version's blocks.
type table struct {
	vid     Vid
	gen     uint64
	version Number
	chunk   int
	changed bool // since the last cut
	u       *Usage
	cells   [BlocksPerObject]cell
}

// laterFree is a run of slots that is superseded by a record at p, and free
// when a checkpoint that took p is durable.
type laterFree struct {
	p       pos
	slot, n uint32
}

type slotRun struct{ slot, n uint32 }

func (t *tables) find(vid Vid) *table {
	for _, v := range t.list {
		if v.vid == vid {
			return v
		}
	}
	return nil
}

// add makes an empty table in a free chunk.
func (o *object) add(vid Vid, gen uint64) *table {
	t := o.t
	k := 0
	for k < len(t.chunks) && t.chunks[k].owner != nil {
		k++
	}
	t.grow(k + 1)
	v := &table{vid: vid, gen: gen, chunk: k, u: o.g.usageOf(vid, gen)}
	t.res = nil
	v.u.Objects++
	t.chunks[k].owner = v
	t.list = append(t.list, v)
	o.g.s.cacheGrew(1)
	return v
}

func (t *tables) grow(chunks int) {
	for len(t.chunks) < chunks {
		t.chunks = append(t.chunks, chunkState{})
	}
	for len(t.used) < chunks {
		t.used = append(t.used, [chunkWords]uint64{})
		t.whole = append(t.whole, 0)
	}
}

// set gives a block of a version its new cell; p is the record that did it.
func (o *object) set(v *table, block int, c cell, p pos) {
	old := v.cells[block]
	v.cells[block] = c
	if o.t.res != nil {
		o.t.res.at[block] = 0
	}
	if old.at == c.at {
		return
	}
	o.count(v, old, -1)
	o.count(v, c, 1)
	if old.kind() == cellSlot {
		if bugSlotFreeAtOnce.active() {
			o.t.free(old.value())
			return
		}
		o.t.freeLater(old.value(), p)
	}
}

func (o *object) count(v *table, c cell, d int64) {
	switch c.kind() {
	case cellZero:
		v.u.Zero += d
	case cellBad:
		v.u.Bad += d
	case cellSlot:
		v.u.Present += d
	case cellJournal:
		v.u.Present += d
		o.t.unplaced += int(d)
		o.g.s.unplaced.Add(d)
	}
}

// drop makes a version go, with what it still has.
func (o *object) drop(v *table, p pos) {
	for b := range v.cells {
		if v.cells[b].at != cellAbsent {
			o.set(v, b, cell{}, p)
		}
	}
	v.u.Objects--
	o.t.res = nil
	o.t.chunks[v.chunk].owner = nil
	for i, w := range o.t.list {
		if w == v {
			o.t.list = append(o.t.list[:i], o.t.list[i+1:]...)
			break
		}
	}
	o.g.s.cacheGrew(-1)
}

// Slots.

func (t *tables) freeLater(slot uint32, p pos) {
	if k := len(t.later); k > 0 {
		if l := &t.later[k-1]; l.p == p && l.slot+l.n == slot {
			l.n++
			return
		}
	}
	t.later = append(t.later, laterFree{p, slot, 1})
}

func (t *tables) markUsed(slot uint32) {
	if k, n, ok := slotPlace(slot); ok {
		t.grow(k + 1)
		t.used[k][n/64] |= 1 << (n % 64)
	}
}

func (t *tables) isUsed(slot uint32) bool {
	k, n, ok := slotPlace(slot)
	return ok && k < len(t.used) && t.used[k][n/64]&(1<<(n%64)) != 0
}

func (t *tables) free(slot uint32) {
	if k, n, ok := slotPlace(slot); ok && k < len(t.used) {
		t.used[k][n/64] &^= 1 << (n % 64)
	}
}

func (t *tables) freeRuns(runs []slotRun) {
	for _, r := range runs {
		for i := range r.n {
			t.free(r.slot + i)
		}
	}
}

func (t *tables) runFree(k, n, count int) bool {
	for count > 0 {
		w, b := n/64, n%64
		c := min(count, 64-b)
		mask := ^uint64(0) >> (64 - c) << b
		if t.used[k][w]&mask != 0 {
			return false
		}
		n, count = n+c, count-c
	}
	return true
}

func (t *tables) takeRun(k, n, count int, runs []slotRun) []slotRun {
	for i := n; i < n+count; i++ {
		t.used[k][i/64] |= 1 << (i % 64)
	}
	t.taken += count
	slot := dataSlot(k, n)
	if j := len(runs); j > 0 && runs[j-1].slot+runs[j-1].n == slot {
		runs[j-1].n += uint32(count)
		return runs
	}
	return append(runs, slotRun{slot, uint32(count)})
}

// alloc takes count free slots for blocks from first on: at the blocks' own
// places if some chunk has them free, so that sequential stays sequential;
// else where they fit; only then in a new chunk (rule 3).
func (t *tables) alloc(home, first, count int, runs []slotRun) []slotRun {
	t.grow(home + 1)
	if bugSlotsNotReused.active() && !t.runFree(home, first, count) {
		t.grow(len(t.used) + 1)
		return t.takeRun(len(t.used)-1, first, count, runs)
	}
	if k, ok := t.chunkFor(home, first, count); ok {
		return t.takeRun(k, first, count, runs)
	}
	if count == 1 {
		if k, n, ok := t.firstFree(); ok {
			return t.takeRun(k, n, 1, runs)
		}
	} else if got := t.gather(first, count, runs); got != nil {
		return got
	}
	k := len(t.used)
	t.grow(k + 1)
	return t.takeRun(k, first, count, runs)
}

// chunkFor finds a chunk that has the slots from first on free: one where the
// page cache has them as large writes left them, so that it need not drop
// them and get other memory; else home, else any.
func (t *tables) chunkFor(home, first, count int) (k int, ok bool) {
	groups := groupsIn(first, count)
	homeFree := t.runFree(home, first, count)
	if homeFree && groups&^t.whole[home] == 0 {
		return home, true
	}
	k, ok = home, homeFree
	for c := range t.used {
		switch {
		case !t.runFree(c, first, count):
		case groups&^t.whole[c] == 0:
			return c, true
		case !ok:
			k, ok = c, true
		}
	}
	return k, ok
}

func (t *tables) firstFree() (k, n int, ok bool) {
	for k := range t.used {
		for w, u := range t.used[k] {
			if u != ^uint64(0) {
				return k, w*64 + bits.TrailingZeros64(^u), true
			}
		}
	}
	return 0, 0, false
}

// runMin is the shortest run that a write of several blocks is cut into
// rather than making the file longer.
const runMin = 8

// gather collects free runs for a write that fits nowhere whole; nil if
// there are not enough of a decent length.
func (t *tables) gather(first, count int, runs []slotRun) []slotRun {
	type run struct{ k, n, c int }
	var found []run
	need := count
	for k := 0; k < len(t.used) && need > 0; k++ {
		for n := 0; n < BlocksPerObject && need > 0; {
			if w := t.used[k][n/64] >> (n % 64); w&1 != 0 {
				n += max(1, bits.TrailingZeros64(^w))
				continue
			}
			c := t.freeAt(slotPoint{k, n}, need)
			if c >= min(runMin, need) {
				found = append(found, run{k, n, c})
				need -= c
			}
			n += c
		}
	}
	if need > 0 {
		return nil
	}
	for _, r := range found {
		runs = t.takeRun(r.k, r.n, r.c, runs)
	}
	return runs
}

// slotPoint is a place in an object's file, by chunk and number there.
type slotPoint struct{ k, n int }

// allocFrom takes count free slots that follow each other from a place on, and leaves the place behind them: as long as there are any, then those of the next free run of a decent
// length, at last those of a new chunk.
func (t *tables) allocFrom(at *slotPoint, count int, runs []slotRun) []slotRun {
	for count > 0 {
		c := t.freeAt(*at, count)
		if c == 0 {
			*at = t.nextRun(*at)
			continue
		}
		runs = t.takeRun(at.k, at.n, c, runs)
		at.n, count = at.n+c, count-c
	}
	return runs
}

// copyChunks is how many chunks an object may have for a copy to begin another one, and not to look for free runs in those there are.
const copyChunks = 8

// copyPlace is where a copy's blocks begin: in a chunk of their own, if possible. The file system has no space for it yet, and gives it in one piece; the slots of other chunks, free
// runs of them too, lie where they came to lie when they were written first, piece by piece.
func (t *tables) copyPlace() slotPoint {
	for k := range t.used {
		if t.used[k] == [chunkWords]uint64{} {
			return slotPoint{k, 0}
		}
	}
	if k := len(t.used); k < copyChunks {
		t.grow(k + 1)
		return slotPoint{k, 0}
	}
	return t.nextRun(slotPoint{})
}

// nextRun is the next place from at on where runMin slots are free.
func (t *tables) nextRun(at slotPoint) slotPoint {
	for ; at.k < len(t.used); at = (slotPoint{at.k + 1, 0}) {
		for at.n < BlocksPerObject {
			c := t.freeAt(at, runMin)
			if c == runMin {
				return at
			}
			at.n += c + 1
		}
	}
	t.grow(at.k + 1)
	return at
}

// freeAt counts the free slots of a chunk from a place on, to at most count.
func (t *tables) freeAt(at slotPoint, count int) (c int) {
	if at.k >= len(t.used) {
		return 0
	}
	for c < count && at.n+c < BlocksPerObject && t.used[at.k][(at.n+c)/64]&(1<<((at.n+c)%64)) == 0 {
		c++
	}
	return c
}

// How slots lie in the page cache. A small write to slots that it does not have
// puts them there page by page, and there they stay so, whoever writes to them
// later: 128 KiB then cost the kernel 32 times the bookkeeping instead of once.
// What a large write is about to replace is dropped from there before.

// pageGroup is how many slots are looked at together.
const pageGroup = BlocksPerObject / 64

// groupBits are the bits of a chunk's groups from one up to another.
func groupBits(from, to int) uint64 {
	if from >= to {
		return 0
	}
	return ^uint64(0) >> (64 - (to - from)) << from
}

// groupsIn are the bits of the groups that lie whole in count slots from n on.
func groupsIn(n, count int) uint64 {
	return groupBits((n+pageGroup-1)/pageGroup, (n+count)/pageGroup)
}

// writtenSmall notes that a run is written by writes of which some may be small.
func (t *tables) writtenSmall(r slotRun) {
	k, n, _ := slotPlace(r.slot)
	t.whole[k] &^= groupBits(n/pageGroup, (n+int(r.n)-1)/pageGroup+1)
}

// writtenWhole notes that each of the runs is written by one write, and appends
// to old what of them the page cache may have page by page.
func (t *tables) writtenWhole(runs, old []slotRun) []slotRun {
	for _, r := range runs {
		k, n, _ := slotPlace(r.slot)
		whole := groupsIn(n, int(r.n))
		unsure := whole &^ t.whole[k]
		t.writtenSmall(r)
		t.whole[k] |= whole
		if unsure != 0 {
			from, to := bits.TrailingZeros64(unsure), bits.Len64(unsure)
			old = append(old, slotRun{dataSlot(k, from*pageGroup), uint32((to - from) * pageGroup)})
		}
	}
	return old
}

// release frees what checkpoints up to cut have retired and reports the
// runs, for punching.
func (t *tables) release(cut pos, freed []slotRun) []slotRun {
	kept := t.later[:0]
	for _, l := range t.later {
		if l.p >= cut {
			kept = append(kept, l)
			continue
		}
		freed = append(freed, slotRun{l.slot, l.n})
	}
	t.later = kept
	t.freeRuns(freed)
	return freed
}

// sumOf covers which table counts in which chunk. A table that rots or whose
// write the disk lost is noticed by it, instead of an older one being taken.
func sumOf(keys []tableKey) uint32 {
	var sum uint32
	var b [28]byte
	for k, v := range keys {
		if v.vid == 0 {
			continue
		}
		binary.LittleEndian.PutUint32(b[0:], uint32(k))
		binary.LittleEndian.PutUint32(b[4:], v.vid)
		binary.LittleEndian.PutUint64(b[8:], v.gen)
		binary.LittleEndian.PutUint64(b[16:], v.checkpoint)
		sum = crcUpdate(sum, b[:24])
	}
	return sum
}
