package objstore

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// journal appends records to segments. What is staged lies in chunks, each
// the image of a piece of a segment; a commit writes all chunks that wait
// with one pwrite each, and whoever commits commits for all.
type journal struct {
	s        *Store
	segs     []atomic.Pointer[segment] // by index; never shrinks, files stay open
	segBytes int64

	written atomic.Uint64 // pos: everything before it is in the files
	durable atomic.Uint64 // pos: everything before it is synced
	made    atomic.Int64  // segments that there are

	mu        sync.Mutex // guards what follows
	changed   *sync.Cond // a commit ended, room appeared, or the disk failed
	cur       *segment
	base      pos    // the end before there is a cur
	end       int64  // where the next record goes in cur
	sealed    bool   // the next record starts a batch on a fresh 4 KiB
	cut       pos    // a checkpoint takes what is before it
	cutNumber uint64 // that checkpoint; 0: none is under way
	nextGen   uint32
	live      []*segment // in order of generation; cur is the last
	free      []*segment
	pending   []*chunk
	pendingN  int64
	writing   []*chunk
	spare     []*chunk // the slice that pending uses next
	pool      []*chunk
	unsynced  []*segment // written since the last sync began
	building  bool       // a segment is being made, or the segmenter was asked for one

}

// chunk is the image of seg[off:off+len(b)].
type chunk struct {
	seg *segment
	off int64
	b   []byte
}

const (
	chunkBytes = 1 << 20
	chunksKept = 16
)

// errNoRoom asks the caller to let go of its locks, wait for a segment and
// try again.
var errNoRoom = errors.New("journal has no free segment")

func newJournal(s *Store, segBytes int64, segsMax int) *journal {
	j := &journal{s: s, segBytes: segBytes, segs: make([]atomic.Pointer[segment], segsMax)}
	j.changed = sync.NewCond(&j.mu)
	return j
}

// physical is the address that a table cell in memory keeps, in units of
// recordAlign.
func (j *journal) physical(seg *segment, off int64) uint32 {
	return uint32((int64(seg.index)*j.segBytes + off) / recordAlign)
}

func (j *journal) locate(at uint32) (*segment, int64) {
	b := int64(at) * recordAlign
	i := b / j.segBytes
	if i >= int64(len(j.segs)) {
		return nil, 0
	}
	return j.segs[i].Load(), b % j.segBytes
}

// room makes sure that n bytes fit behind end, in a fresh segment if need
// be, and that a batch that has to start fresh does. Holds mu.
func (j *journal) room(n int64) error {
	overhead := int64(frameLen(markSize))
	need := n
	at := j.end
	if j.sealed {
		at = alignUp(at, BlockSize)
		need += overhead
	}
	if j.cur != nil && at+need <= j.segBytes {
		if j.sealed {
			j.beginBatch(at, recMark)
		}
		return nil
	}
	if n+overhead > j.segBytes {
		return syscall.EMSGSIZE
	}
	if len(j.free) == 0 {
		return errNoRoom
	}
	j.nextSegment()
	j.s.wantCheckpoint(false)
	return nil
}

// nextSegment goes on in a free segment. Holds mu.
func (j *journal) nextSegment() {
	prevEnd := j.endPos()
	j.cur = j.free[0]
	j.free = j.free[1:]
	j.cur.gen = j.nextGen
	j.nextGen++
	j.live = append(j.live, j.cur)
	j.end = 0
	j.beginBatchAfter(prevEnd, 0, recStart)
	if len(j.free) == 0 {
		j.s.wakeSegmenter()
	}
}

func (j *journal) endNow() pos {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.endPos()
}

// full says that there is no segment behind the current one before a checkpoint
// has freed one.
func (j *journal) full() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.free) == 0 && !j.mayGrow()
}

// sinceCut is how much of the journal the next checkpoint has to take.
func (j *journal) sinceCut(cut pos) (n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, g := range j.live {
		if g.gen < cut.gen() {
			continue
		}
		n += j.segBytes
		if g == j.cur {
			n += j.end - j.segBytes
		}
		if g.gen == cut.gen() {
			n -= cut.off()
		}
	}
	return n
}

func (j *journal) endPos() pos {
	if j.cur == nil {
		return j.base
	}
	return makePos(j.cur.gen, j.end)
}

func (j *journal) beginBatch(at int64, kind recordKind) { j.beginBatchAfter(j.endPos(), at, kind) }

func (j *journal) beginBatchAfter(prevEnd pos, at int64, kind recordKind) {
	c := j.newChunk(at, 0)
	b := beginFrame(c.b)
	b = batchMark{gen: j.cur.gen, prevEnd: prevEnd, durable: pos(j.durable.Load()), segBytes: j.segBytes}.append(b)
	c.b = endFrame(b, 0, kind, 0, 0, j.cur.gen, at)
	j.end = at + int64(len(c.b))
	j.pendingN += int64(len(c.b))
	j.sealed = false
}

func (j *journal) newChunk(off int64, size int) *chunk {
	var c *chunk
	usual := int(min(chunkBytes, j.segBytes))
	if n := len(j.pool); n > 0 && size <= usual {
		c, j.pool = j.pool[n-1], j.pool[:n-1]
	} else {
		c = &chunk{b: make([]byte, 0, max(size, usual))}
	}
	c.seg, c.off, c.b = j.cur, off, c.b[:0]
	j.pending = append(j.pending, c)
	return c
}

// tail is the chunk that ends at end and has room for n more bytes.
func (j *journal) tail(n int) *chunk {
	if k := len(j.pending); k > 0 {
		c := j.pending[k-1]
		if c.seg == j.cur && c.off+int64(len(c.b)) == j.end && cap(c.b)-len(c.b) >= n {
			return c
		}
	}
	return j.newChunk(j.end, n)
}

// place says where a record went.
type place struct {
	pos       pos
	data      uint32 // physical address of its data
	cut       pos    // of the checkpoint that was under way
	cutNumber uint64
}

// appendEntry stages an entry's record, for a small write with its data.
func (j *journal) appendEntry(group GroupID, e *Entry) (place, error) {
	n := frameLen(e.HeadSize()) + e.DataLen()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.room(int64(n)); err != nil {
		return place{}, err
	}
	c := j.tail(n)
	at := len(c.b)
	off := j.end
	b := e.AppendHead(beginFrame(c.b))
	b = endFrame(b, at, recEntry, group, e.DataLen(), j.cur.gen, off)
	data := j.physical(j.cur, off+int64(len(b)-at))
	if e.Kind == KindWrite {
		b = append(b, e.Data...)
	}
	return j.appended(c, b, at, off, data), nil
}

// appendBody stages a record that has no data.
func (j *journal) appendBody(kind recordKind, group GroupID, body []byte) (place, error) {
	n := frameLen(len(body))
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.room(int64(n)); err != nil {
		return place{}, err
	}
	c := j.tail(n)
	at := len(c.b)
	off := j.end
	b := append(beginFrame(c.b), body...)
	b = endFrame(b, at, kind, group, 0, j.cur.gen, off)
	return j.appended(c, b, at, off, 0), nil
}

func (j *journal) appended(c *chunk, b []byte, at int, off int64, data uint32) place {
	n := int64(len(b) - at)
	c.b = b
	j.end += n
	j.pendingN += n
	return place{pos: makePos(j.cur.gen, off), data: data, cut: j.cut, cutNumber: j.cutNumber}
}

// commit writes everything staged before the call, and whatever else waits.
func (j *journal) commit() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	target := j.endPos()
	for pos(j.written.Load()) < target {
		if err := j.s.Err(); err != nil {
			return err
		}
		if j.writing != nil {
			j.changed.Wait()
			continue
		}
		if err := j.writePending(); err != nil {
			return err
		}
	}
	return nil
}

// writePending holds mu except while it writes.
func (j *journal) writePending() error {
	chunks, upto := j.pending, j.endPos()
	n := j.pendingN
	j.pending, j.spare, j.writing, j.pendingN = j.spare, nil, chunks, 0
	j.mu.Unlock()
	var err error
	for _, c := range chunks {
		if _, err = c.seg.f.WriteAt(c.b, c.off); err != nil {
			err = j.s.fail("write journal", err)
			break
		}
	}
	j.s.m.commits.Add(1)
	j.s.m.journalBytes.Add(n)
	j.s.addDirty(n)
	j.mu.Lock()
	j.writing = nil
	if err == nil {
		j.written.Store(uint64(upto))
		for _, c := range chunks {
			if k := len(j.unsynced); k == 0 || j.unsynced[k-1] != c.seg {
				j.unsynced = append(j.unsynced, c.seg)
			}
			if cap(c.b) == int(min(chunkBytes, j.segBytes)) && len(j.pool) < chunksKept {
				j.pool = append(j.pool, c)
			}
		}
		j.spare = chunks[:0]
	}
	j.changed.Broadcast()
	return err
}

// seal makes the next record start a batch of its own and says where the
// records before it end.
func (j *journal) seal() pos {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.sealLocked()
}

func (j *journal) sealLocked() pos {
	p := j.endPos()
	if p > pos(j.durable.Load()) && !bugNoFreshBatch.active() {
		j.sealed = true
	}
	return p
}

// settled says that nothing before p is needed from the journal's memory: it is
// synced, or a checkpoint has it. A segment that is used again says so, and a
// replay from before the checkpoint that freed it is noticed.
func (j *journal) settled(p pos) {
	for d := j.durable.Load(); uint64(p) > d; d = j.durable.Load() {
		if j.durable.CompareAndSwap(d, uint64(p)) {
			return
		}
	}
}

// takeUnsynced hands the segments that a sync has to cover to the syncer.
func (j *journal) takeUnsynced() []*segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := j.unsynced
	j.unsynced = nil
	return u
}

// beginCut fixes what checkpoint number n takes.
func (j *journal) beginCut(n uint64) pos {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cut, j.cutNumber = j.sealLocked(), n
	return j.cut
}

func (j *journal) endCut() {
	j.mu.Lock()
	j.cutNumber, j.cut = 0, 0
	j.mu.Unlock()
}

// retire gives back the segments that hold only records before p.
func (j *journal) retire(p pos) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.live) > 1 && j.live[0].gen < p.gen() {
		j.free = append(j.free, j.live[0])
		j.live = j.live[1:]
	}
	j.changed.Broadcast()
}

// liveBytes is what replay would have to read.
func (j *journal) liveBytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.live) == 0 {
		return 0
	}
	return int64(len(j.live)-1)*j.segBytes + j.end
}

// waitRoom blocks until a segment is free: a bound at which writers wait. It asks for a new one first, and where there may be no more, for a
// checkpoint.
func (j *journal) waitRoom() error {
	start := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	defer func() { j.s.m.journalWait.Add(int64(time.Since(start))) }()
	asked := false
	for len(j.free) == 0 {
		if err := j.s.Err(); err != nil {
			return err
		}
		if !j.building {
			if !asked && j.mayGrow() {
				asked, j.building = true, true // until the segmenter has been there
				j.s.wakeSegmenter()
			} else {
				j.s.wantCheckpoint(true)
			}
		}
		j.changed.Wait()
	}
	return nil
}

// mayGrow says whether the bound allows another segment. Holds mu.
func (j *journal) mayGrow() bool {
	for i := range j.segs {
		if j.segs[i].Load() == nil {
			return true
		}
	}
	return false
}

// copyPending copies from what is staged and not yet in the file.
func (j *journal) copyPending(seg *segment, off int64, dst []byte) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if makePos(seg.gen, off) < pos(j.written.Load()) {
		return false // written meanwhile
	}
	n := 0
	for _, list := range [2][]*chunk{j.writing, j.pending} {
		for _, c := range list {
			want := off + int64(n)
			if c.seg == seg && c.off <= want && want < c.off+int64(len(c.b)) {
				n += copy(dst[n:], c.b[want-c.off:])
				if n == len(dst) {
					return true
				}
			}
		}
	}
	return false
}

// read reads journaled bytes, from wherever they are now.
func (j *journal) read(at uint32, dst []byte, nowait bool) error {
	seg, off := j.locate(at)
	if seg == nil {
		return ErrFormat
	}
	if j.copyPending(seg, off, dst) {
		return nil
	}
	var err error
	if nowait {
		_, err = seg.f.ReadNowait(dst, off)
	} else {
		_, err = seg.f.ReadAt(dst, off)
	}
	return err
}

func (j *journal) pendingBytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pendingN
}
