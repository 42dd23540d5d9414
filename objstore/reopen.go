package objstore

import "slices"

// What becomes of the journal after a replay: it goes on, or begins anew.

// mayKeep says that the journal can go on as it is: all of it was taken, from
// a cut on, its segments are as they are wanted now, and one is free.
func (r *replay) mayKeep(segs []*oldSegment) bool {
	if (r.odd || r.lost || len(r.stopped) > 0) && !bugOddKept.active() || r.cut == 0 || r.s.j.segBytes != r.s.cfg.SegmentBytes {
		return false
	}
	usable := 0
	for _, g := range segs {
		switch {
		case r.s.usable(g):
			usable++
		case slices.Contains(r.segs, g):
			return false
		}
	}
	return usable >= journalSegsMin && usable > len(r.segs)
}

// usable says that a segment is one that the configuration asks for. Another
// size has one that was being made when the process died.
func (s *Store) usable(g *oldSegment) bool {
	return g.size == s.cfg.SegmentBytes && g.index < s.cfg.segments()
}

// keepJournal has the journal go on behind the end of the chain, in a fresh
// segment: behind the end there may be remains of batches that never became
// whole, which must not follow a new one. The segment's first record is
// synced before anything else happens, so that its generation, which names
// the files that are made from now on, is never given again. What the chain
// consists of has been read from the disk, so it is durable.
func (s *Store) keepJournal(r *replay, segs []*oldSegment) error {
	j := s.j
	for _, g := range r.segs {
		j.live = append(j.live, &g.segment)
	}
	for _, g := range segs {
		switch {
		case !s.usable(g):
			j.segs[g.index].Store(nil)
			if err := s.removeSegment(g); err != nil {
				return err
			}
		case !slices.Contains(r.segs, g):
			j.free = append(j.free, &g.segment)
		}
	}
	j.made.Store(int64(len(j.live) + len(j.free)))
	j.base, j.nextGen = r.end, r.nextGen
	j.written.Store(uint64(r.end))
	j.durable.Store(uint64(r.end))
	s.cutAt.Store(uint64(s.cutDone))
	j.mu.Lock()
	j.nextSegment()
	j.mu.Unlock()
	s.wantCheckpoint(len(s.dropping) > 0)
	return s.syncNow()
}

func (s *Store) removeSegment(g *oldSegment) error {
	g.f.Close()
	return s.fs.Remove(segmentName(s.cfg.Dir, g.index))
}

// freshJournal begins anew with the segments that there are.
func (s *Store) freshJournal(segs []*oldSegment, gen uint32) error {
	count := s.cfg.segments()
	j := newJournal(s, s.cfg.SegmentBytes, count)
	j.base, j.nextGen = makePos(gen, 0), gen
	j.written.Store(uint64(j.base))
	j.durable.Store(uint64(j.base))
	s.j = j
	for _, g := range segs {
		if s.usable(g) {
			j.segs[g.index].Store(&g.segment)
			j.free = append(j.free, &g.segment)
			continue
		}
		if err := s.removeSegment(g); err != nil {
			return err
		}
	}
	for i := 0; len(j.free) < journalSegsMin; i++ {
		if j.segs[i].Load() != nil {
			continue
		}
		seg, err := createSegment(s.fs, s.cfg.Dir, i, j.segBytes)
		if err != nil {
			return err
		}
		j.segs[i].Store(seg)
		j.free = append(j.free, seg)
	}
	j.made.Store(int64(len(j.free)))
	return nil
}
