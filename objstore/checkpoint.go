package objstore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"syscall"
	"time"
)

// A checkpoint moves the net effect of the journal's records before a cut
// into the object files (rule 6):
//
//	cut       everything staged before it, and nothing behind it, is taken
//	write     by object: journaled blocks to free slots, then tables to the
//	          places that do not count
//	sync      those files
//	commit    one synced write to the catalog: now the new tables count
//	finish    cells point to slots, superseded slots are free, segments too
//
// A crash before the commit leaves everything as the last checkpoint had it,
// and the journal from its cut on; a crash after it needs nothing of the
// journal before the cut. So the journal need not be synced first.

// plan is one object's part of a running checkpoint.
type plan struct {
	o     *object
	snap  *snapshot
	moved []moved
	file  *objFile // held
}

// moved is a run of journaled blocks and the slots they are copied to.
type moved struct {
	table, block int
	run          slotRun
	from         []cell // what the blocks' cells were
}

// wantCheckpoint wakes the checkpointer.
func (s *Store) wantCheckpoint(now bool) {
	if now {
		s.checkpointNow.Store(true)
		poke(s.checkpointHurry)
	}
	poke(s.checkpointKick)
}

// Checkpoint empties the journal as of now.
func (s *Store) Checkpoint() error {
	return s.checkpointSoon()
}

// checkpointSoon is for whoever waits: neither this checkpoint nor one that is
// under way rests.
func (s *Store) checkpointSoon() error {
	s.checkpointWaits.Add(1)
	defer s.checkpointWaits.Add(-1)
	poke(s.checkpointHurry)
	return s.checkpoint()
}

// checkpointLoop is the checkpointer goroutine.
func (s *Store) checkpointLoop() {
	defer s.wg.Done()
	timer := time.NewTicker(s.cfg.CheckpointInterval)
	defer timer.Stop()
	for {
		due, run := false, s.checkpoint
		select {
		case <-s.stop:
			return
		case <-timer.C:
			due = s.j.endNow() != pos(s.cutAt.Load()) // else nothing has happened since the last one
		case <-s.checkpointKick:
			if due = s.checkpointNow.Swap(false); due {
				run = s.checkpointSoon
			} else {
				due = s.journalHeavy()
			}
		}
		s.giveBackSpares()
		if !due || s.Err() != nil {
			continue
		}
		if err := run(); err != nil && s.Err() == nil {
			s.log.Warn("checkpoint", "error", err)
			s.waitAfterFailure()
			s.wantCheckpoint(true)
		}
		timer.Reset(s.cfg.CheckpointInterval)
		poke(s.checkpointKick) // more than starts a checkpoint may have changed beside this one
		s.makeReserve()
	}
}

// checkpointRetry is how long a checkpoint that found no space rests.
const checkpointRetry = 200 * time.Millisecond

func (s *Store) waitAfterFailure() {
	t := time.NewTimer(checkpointRetry)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.stop:
	}
}

// journalHeavy says that a checkpoint is due before its time.
func (s *Store) journalHeavy() bool {
	return s.j.sinceCut(pos(s.cutAt.Load())) > s.cfg.CheckpointBytes ||
		s.largeSince.Load() > s.cfg.CheckpointBytes ||
		s.dirtyObjects.Load() > int64(s.cfg.CheckpointObjects)
}

// errBlocksLost has a checkpoint begin anew.
var errBlocksLost = errors.New("journaled blocks are bad")

// checkpoint runs one; only one at a time.
func (s *Store) checkpoint() error {
	s.checkpointLock.Lock()
	defer s.checkpointLock.Unlock()
	for {
		if err := s.tryCheckpoint(); !errors.Is(err, errBlocksLost) {
			return err
		}
	}
}

func (s *Store) tryCheckpoint() error {
	if err := s.Err(); err != nil {
		return err
	}
	start := time.Now()
	n := s.checkpointNext
	s.checkpointNext++
	s.cutAll.Store(s.cat.end > 2*s.cat.base+catalogSlack)
	cut := s.j.beginCut(n)
	s.largeSince.Store(0)
	groups, dropped := s.takeCuts(n, cut)
	s.j.endCut()
	s.cutAt.Store(uint64(cut))

	plans, err := s.writeCheckpoint(n, cut, groups, dropped)
	if err != nil {
		s.abortCheckpoint(groups, plans)
		s.cutAt.Store(uint64(s.cutDone))
		return fmt.Errorf("checkpoint %d: %w", n, err)
	}
	s.checkpointDone, s.cutDone = n, cut
	s.finishCheckpoint(n, cut, plans)
	s.finishDropped(dropped)
	s.j.settled(cut)
	s.j.retire(cut)
	s.cacheShrink(nil)
	s.spaceChanged()
	s.m.checkpoints.Add(1)
	s.m.checkpointTime.Add(int64(time.Since(start)))
	return nil
}

// catalogSlack is how much a catalog grows before it is written anew.
const catalogSlack = 4 << 20

// cutGroup is a group as a checkpoint takes it.
type cutGroup struct {
	g       *Group
	state   []byte
	objects []*object
}

// takeCuts freezes every group that a writer has not frozen already.
func (s *Store) takeCuts(n uint64, cut pos) (list []cutGroup, dropped []droppedGroup) {
	s.groupsMu.Lock()
	all := make([]*Group, 0, len(s.groups)+len(s.dropping))
	for _, g := range s.groups {
		all = append(all, g)
	}
	for _, d := range s.dropping {
		all = append(all, d.g)
	}
	s.groupsMu.Unlock()
	for _, g := range all {
		g.mu.Lock()
		if g.dropped && g.droppedAt < cut {
			dropped = append(dropped, droppedGroup{g, g.droppedAt})
			g.mu.Unlock()
			continue
		}
		if g.cutNumber < n {
			g.takeCut(n)
		}
		if g.cutState != nil || g.cutObjects != nil {
			list = append(list, cutGroup{g, g.cutState, g.cutObjects})
			g.cutState, g.cutObjects = nil, nil
		}
		g.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b cutGroup) int { return cmp.Compare(a.g.id, b.g.id) })
	return list, dropped
}

// writeCheckpoint does all I/O up to and with the commit.
func (s *Store) writeCheckpoint(n uint64, cut pos, groups []cutGroup, dropped []droppedGroup) ([]*plan, error) {
	var plans []*plan
	for _, c := range groups {
		slices.SortFunc(c.objects, func(a, b *object) int { return cmp.Compare(a.key, b.key) })
		for _, o := range c.objects {
			plans = append(plans, &plan{o: o})
		}
	}
	// Segments are given back at the end: nothing staged for them may still wait.
	if err := s.j.commit(); err != nil {
		return plans, err
	}
	if bugRetireEarly.active() {
		s.j.retire(cut)
	}
	if err := s.writePlans(n, cut, plans); err != nil {
		return plans, err
	}
	if s.blocksLost {
		s.blocksLost = false
		return plans, errBlocksLost
	}
	if err := s.Err(); err != nil { // of a sync beside this: what it lost is not to be committed
		return plans, err
	}
	return plans, s.withReserve(func() error { return s.commitPlans(n, cut, groups, dropped, plans) })
}

// A wave is what a checkpoint has written and not yet synced. It is bounded so
// that a flush beside it never waits for a flood (rule 6), and smaller where
// there is time to rest behind it.
const (
	waveBytes  = 16 << 20
	aheadBytes = 4 << 20
	// While the store opens nobody flushes, and a node that comes back waits for
	// this. It is bounded so that a slow disk is not taken for one that hangs.
	openWaveBytes = 256 << 20
)

func (s *Store) waveMax(p *pace) int {
	switch {
	case s.opening:
		return openWaveBytes
	case s.ahead(p):
		return aheadBytes
	}
	return waveBytes
}

func (s *Store) writePlans(n uint64, cut pos, plans []*plan) error {
	p := &pace{began: time.Now(), cut: cut, plans: len(plans)}
	for p.done < len(plans) {
		began := time.Now()
		if err := s.writeWave(n, p, plans); err != nil {
			return err
		}
		if s.blocksLost { // it begins anew
			return nil
		}
		if p.done < len(plans) {
			s.rest(p, time.Since(began))
		}
		if err := s.Err(); err != nil {
			return err
		}
	}
	return nil
}

// writeWave writes and syncs one wave of what is left.
func (s *Store) writeWave(n uint64, at *pace, plans []*plan) error {
	var wave []*plan
	for bytes, most := 0, s.waveMax(at); at.done < len(plans) && bytes < most && len(wave) < max(1, s.cfg.OpenFilesMax/2); at.done++ {
		p := plans[at.done]
		if err := s.withReserve(func() error { return s.writePlan(n, p) }); err != nil {
			return err
		}
		wave = append(wave, p)
		bytes += p.bytes()
	}
	return s.syncPlans(wave)
}

// withReserve does it once more with the reserve's space if there was none.
func (s *Store) withReserve(do func() error) error {
	err := do()
	if err != nil && errors.Is(err, syscall.ENOSPC) && s.giveUpReserve() {
		err = do()
	}
	return err
}

func (p *plan) bytes() int {
	n := len(p.snap.tables) * tableBytes
	for _, m := range p.moved {
		n += len(m.from) * BlockSize
	}
	return n
}

// syncPlans makes a wave durable and lets go of its files.
func (s *Store) syncPlans(wave []*plan) error {
	s.sync.mu.Lock()
	dirs := maps.Clone(s.sync.dirs) // a flush beside this one needs them as well,
	maps.Copy(dirs, s.sync.names)   // and one under way may not have come to them yet
	s.sync.mu.Unlock()
	files := map[*objFile]struct{}{}
	if bugCommitEarly.active() {
		for _, p := range wave {
			p.letGo()
		}
		return nil
	}
	for _, p := range wave {
		if p.file != nil {
			files[p.file] = struct{}{}
		}
	}
	if err := s.syncSet(nil, files, dirs); err != nil {
		return s.fail("sync checkpoint", err)
	}
	for _, p := range wave {
		p.letGo()
	}
	return nil
}

func (p *plan) letGo() {
	if p.file != nil {
		p.file.release()
		p.file = nil
	}
}

// writePlan writes an object's journaled blocks and changed tables.
func (s *Store) writePlan(n uint64, p *plan) error {
	p.begin()
	snap := p.snap
	if len(snap.tables) == 0 && len(snap.marks) == 0 {
		return nil
	}
	var err error
	if p.file == nil {
		if p.file, err = s.acquireForWrite(p.o); err != nil {
			return s.writeError("open object "+p.o.key.String(), err)
		}
		p.noteDamage()
	}
	for i := range p.moved {
		if err := s.moveBlocks(p, &p.moved[i]); err != nil {
			return err
		}
	}
	buf := s.tableBuf[:]
	head := tableHead{key: p.o.key, birth: p.o.fileBirth(), checkpoint: n}
	for i := range snap.tables {
		c := &snap.tables[i]
		head.chunk, head.vid, head.gen, head.version, head.free = c.at.chunk, c.vid, c.gen, c.version, false
		if err := s.writePlace(p, c.at, head.encode(buf, c.cells)); err != nil {
			return err
		}
		snap.keys[c.at.chunk].checkpoint = n
	}
	for _, at := range snap.marks {
		head.chunk, head.vid, head.gen, head.version, head.free = at.chunk, 0, 0, Number{}, true
		if err := s.writePlace(p, at, head.encode(buf, nil)); err != nil {
			return err
		}
	}
	return nil
}

// noteDamage has the catalog know of damage that was found since the cut.
func (p *plan) noteDamage() {
	p.o.g.mu.Lock()
	defer p.o.g.mu.Unlock()
	p.snap.damaged = p.snap.damaged || p.o.damaged
}

func (o *object) fileBirth() uint64 {
	o.g.mu.Lock()
	defer o.g.mu.Unlock()
	return o.birth
}

func (s *Store) writePlace(p *plan, at tablePlace, b []byte) error {
	if _, err := p.file.f.WriteAt(b, int64(tableSlot(at.chunk, at.side))*BlockSize); err != nil {
		return s.writeError("write table of object "+p.o.key.String(), err)
	}
	return nil
}

// begin takes the snapshot, if no writer had to, and slots for what is in
// the journal. It may be called again after an error.
func (p *plan) begin() {
	if p.snap != nil {
		return
	}
	g := p.o.g
	g.mu.Lock()
	defer g.mu.Unlock()
	t := p.o.t
	if t.snap == nil {
		t.snap = p.o.snapshot()
	}
	p.snap, t.snap, t.cut, t.plan = t.snap, nil, false, true
	for i := range p.snap.tables {
		p.takeSlots(i)
	}
}

// takeSlots finds the runs of journaled blocks in a table and gives them
// slots, in the copy; the live table follows when the checkpoint is durable.
func (p *plan) takeSlots(i int) {
	c := &p.snap.tables[i]
	var buf [4]slotRun
	for b := 0; b < BlocksPerObject; {
		n := 0
		for b+n < BlocksPerObject && c.cells[b+n].kind() == cellJournal {
			n++
		}
		if n == 0 {
			b++
			continue
		}
		for _, r := range p.o.t.alloc(c.at.chunk, b, n, buf[:0]) {
			m := moved{table: i, block: b, run: r, from: slices.Clone(c.cells[b : b+int(r.n)])}
			p.moved = append(p.moved, m)
			p.o.t.writtenSmall(r)
			for k := range int(r.n) {
				c.cells[b+k].at = cellSlot | (r.slot + uint32(k))
			}
			b += int(r.n)
		}
	}
}

// journalReads is how often a journaled block is tried before it counts as
// bad.
const journalReads = 3

func (s *Store) readJournaled(c cell, b []byte) (err error) {
	for range journalReads {
		if err = s.j.read(c.value(), b, false); err == nil {
			if Checksum(b) == c.sum {
				return nil
			}
			err = ErrChecksum
		}
	}
	return err
}

// lostBlock marks a journaled block that cannot be read any more as bad. The
// checkpoint begins anew then: bad bytes are never spread, and the counters
// at its cut have to agree with its tables.
func (s *Store) lostBlock(p *plan, m *moved, k int, err error) {
	s.m.badBlocks.Add(1)
	s.log.Error("journaled block is bad", "object", p.o.key, "block", m.block+k, "error", err)
	s.blocksLost = true
	g := p.o.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if v := p.o.t.holder(p.snap.tables[m.table].t, m.block+k, m.from[k]); v != nil {
		p.o.touch()
		g.changed = true
		p.o.set(v, m.block+k, cell{at: cellBad}, 0)
		v.changed = true
	}
}

// moveBlocks copies a run from the journal to its slots.
func (s *Store) moveBlocks(p *plan, m *moved) error {
	if s.moveBuf == nil {
		s.moveBuf = make([]byte, 64*BlockSize)
	}
	buf := s.moveBuf
	for done := 0; done < len(m.from); {
		n := min(len(m.from)-done, len(buf)/BlockSize)
		for k := range n {
			if err := s.readJournaled(m.from[done+k], buf[k*BlockSize:(k+1)*BlockSize]); err != nil {
				s.lostBlock(p, m, done+k, err)
			}
		}
		if _, err := p.file.f.WriteAt(buf[:n*BlockSize], int64(m.run.slot+uint32(done))*BlockSize); err != nil {
			return s.writeError("write object "+p.o.key.String(), err)
		}
		done += n
	}
	s.m.moved.Add(int64(len(m.from)))
	return nil
}

// commitPlans writes the catalog.
func (s *Store) commitPlans(n uint64, cut pos, groups []cutGroup, dropped []droppedGroup, plans []*plan) error {
	for _, p := range plans {
		if bugUnlinkEarly.active() && p.snap.gone {
			s.fs.Remove(s.objectName(p.o))
		}
	}
	all := s.cutAll.Load()
	b := beginBatch(n, cut, all)
	for _, d := range dropped {
		if !all {
			b = appendGone(b, catGroupGone, d.g.id, 0)
		}
	}
	for _, c := range groups {
		b = append(b, c.state...)
	}
	for _, p := range plans {
		switch {
		case !p.snap.gone:
			b = p.record(n).append(b)
		case !all:
			b = appendGone(b, catObjectGone, p.o.g.id, p.o.key)
		}
	}
	var err error
	if all {
		err = s.replaceCatalog(s.appendOthers(b, groups, plans))
	} else {
		err = s.commitCatalog(b)
	}
	if err != nil {
		return s.writeError("write catalog", err)
	}
	return nil
}

func (p *plan) record(n uint64) objectRecord {
	return objectRecord{
		group: p.o.g.id, key: p.o.key, version: p.snap.version, checkpoint: n,
		birth: p.o.fileBirth(), sum: sumOf(p.snap.keys), damaged: p.snap.damaged,
	}
}

// appendOthers appends the objects that this checkpoint does not write.
func (s *Store) appendOthers(b []byte, groups []cutGroup, plans []*plan) []byte {
	planned := make(map[*object]bool, len(plans))
	for _, p := range plans {
		planned[p.o] = true
	}
	for _, c := range groups {
		c.g.mu.Lock()
		for _, o := range c.g.objects {
			if planned[o] || o.checkpoint == 0 {
				continue
			}
			// What made a damaged object whole is behind the cut, and may be lost.
			r := objectRecord{group: c.g.id, key: o.key, version: o.version, checkpoint: o.checkpoint, birth: o.birth, sum: o.sum, damaged: o.damaged || o.known}
			if o.t != nil {
				r.version = o.t.durable
			}
			b = r.append(b)
		}
		c.g.mu.Unlock()
	}
	return b
}

// finishCheckpoint makes memory follow what is durable now.
func (s *Store) finishCheckpoint(n uint64, cut pos, plans []*plan) {
	spare := !s.Space().NearFull
	for _, p := range plans {
		punch := p.finish(n, cut, spare)
		if p.snap.gone {
			s.removeGone(p.o)
		} else if len(punch) > 0 {
			s.punch(p.o, punch)
		}
		p.snap.free()
	}
}

// punchMin is the shortest run that is given back to the file system by a
// checkpoint; shorter ones are used again first, and given back when idle.
const punchMin = 16

// finish returns what is to be punched: what became free, but for what the object may keep to be overwritten again.
func (p *plan) finish(n uint64, cut pos, maySpare bool) (punch []slotRun) {
	o, snap := p.o, p.snap
	g := o.g
	g.mu.Lock()
	defer g.mu.Unlock()
	t := o.t
	t.plan = false
	for i := range p.moved {
		p.settle(&p.moved[i])
	}
	for i := range snap.tables {
		c := &snap.tables[i]
		t.chunks[c.at.chunk].wrote(c.at.side, true, snap.keys[c.at.chunk])
	}
	for _, at := range snap.marks {
		t.chunks[at.chunk].wrote(at.side, false, tableKey{})
	}
	o.checkpoint, o.sum, t.durable, o.known = n, sumOf(snap.keys), snap.version, snap.damaged
	if snap.gone {
		o.checkpoint = 0
	}
	spare := t.taken
	t.taken = 0
	for _, r := range t.release(cut, nil) {
		if r.n < punchMin || snap.gone {
			continue
		}
		if maySpare && int(r.n) <= spare && g.s.keepSpare(o) {
			spare -= int(r.n)
			continue
		}
		for k := range r.n {
			t.markUsed(r.slot + k) // until it is punched
		}
		punch = append(punch, r)
	}
	if len(punch) > 0 {
		t.pins++
	}
	if !t.dirty {
		g.s.dirtyObjects.Add(-1)
	}
	return punch
}

func (c *chunkState) wrote(side uint8, live bool, key tableKey) {
	c.stale = c.stale && !c.held // where neither place counted, the other one may be stale, too
	c.side, c.held, c.live, c.key = side, true, live, key
}

// settle has the live tables' cells point to the slots a run was copied to.
// A block that was written again since leaves a slot that nobody needs.
func (p *plan) settle(m *moved) {
	t := p.o.t
	end := p.o.g.s.j.endNow()
	for k, from := range m.from {
		b, slot := m.block+k, m.run.slot+uint32(k)
		to := p.snap.tables[m.table].cells[b]
		v := t.holder(p.snap.tables[m.table].t, b, from)
		if v == nil {
			t.freeLater(slot, end-1) // the record that superseded it is before the end
			continue
		}
		p.o.count(v, v.cells[b], -1)
		v.cells[b] = to
		p.o.count(v, to, 1)
	}
}

// holder is the version that has the journaled cell for a block: the one it
// was in at the cut, unless a merge moved it since.
func (t *tables) holder(was *table, block int, from cell) *table {
	if was.cells[block] == from && t.find(was.vid) == was {
		return was
	}
	for _, v := range t.list {
		if v.cells[block] == from {
			return v
		}
	}
	return nil
}

// removeGone removes an object without versions, unless it came back.
func (s *Store) removeGone(o *object) {
	g := o.g
	stripe := s.stripe(o.key)
	stripe.Lock()
	defer stripe.Unlock()
	g.mu.Lock()
	if o.exists() || o.t.dirty || o.t.plan || o.t.pins > 0 {
		if !o.exists() && !o.t.dirty { // somebody still works on it: ask again next time
			o.touch()
			g.changed = true
		}
		g.mu.Unlock()
		return
	}
	f := o.file
	if f != nil && f.refs.Load() > 0 {
		o.touch()
		g.changed = true
		g.mu.Unlock()
		return
	}
	hadFile := o.birth != 0
	delete(g.objects, o.key)
	s.cacheRemove(o)
	o.file = nil
	g.mu.Unlock()
	if f != nil {
		s.dropOpen(f)
		f.f.Close()
	}
	if !hadFile {
		return
	}
	if err := s.fs.Remove(s.objectName(o)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("remove object's file", "object", o.key, "error", err)
	}
	s.m.removed.Add(1)
	s.spaceChanged()
}

// punch gives runs of free slots back to the file system, then lets them be
// used again. The caller has pinned the object.
func (s *Store) punch(o *object, runs []slotRun) {
	f, err := s.acquire(o, false)
	if err == nil {
		for _, r := range runs {
			if bugNeverPunched.active() {
				break
			}
			if err = f.f.Punch(int64(r.slot)*BlockSize, int64(r.n)*BlockSize); err != nil {
				break
			}
			s.m.punched.Add(int64(r.n))
		}
		f.release()
	}
	if err != nil {
		s.log.Debug("punch", "object", o.key, "error", err)
	}
	o.g.mu.Lock()
	o.t.freeRuns(runs)
	o.t.pins--
	o.g.mu.Unlock()
	s.spaceChanged()
}

// abortCheckpoint leaves everything to the next one.
func (s *Store) abortCheckpoint(groups []cutGroup, plans []*plan) {
	for _, p := range plans {
		p.letGo()
		p.abort()
	}
	for _, c := range groups {
		c.g.mu.Lock()
		c.g.changed = true
		c.g.mu.Unlock()
	}
}

func (p *plan) abort() {
	o := p.o
	o.g.mu.Lock()
	defer o.g.mu.Unlock()
	t := o.t
	snap := p.snap
	if snap == nil {
		snap, t.snap = t.snap, nil
	}
	for _, m := range p.moved {
		t.freeRuns([]slotRun{m.run})
	}
	if snap != nil {
		for _, c := range snap.tables {
			c.t.changed = true
			t.chunks[c.at.chunk].stale = true
		}
		for _, at := range snap.marks {
			t.chunks[at.chunk].stale = true
		}
		snap.free()
	}
	t.cut, t.plan = false, false
	if t.dirty {
		return
	}
	t.dirty = true
	o.g.dirty = append(o.g.dirty, o)
}
