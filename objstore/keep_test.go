package objstore

import "testing"

// TestRule9JournalGoesOn: a store that was killed, or lost its power behind a
// sync, is open without a checkpoint, life after life, until no segment is
// free; and no file that it makes has a birth that another one had.
func TestRule9JournalGoesOn(t *testing.T) {
	sim, cfg, s := simStore(t, func(c *Config) {
		c.SegmentBytes, c.JournalBytesMax, c.CheckpointBytes = 256<<10, 4<<20, 3<<20
	})
	births := map[uint64]Key{}
	const lives, blocks = 24, 30
	kept, inRow, longest := 0, 0, 0
	for life := range lives {
		g := s.Group(1)
		for i := range blocks {
			n := g.Last().LSN + 1
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(i%4)), Vid: 1, Gen: 1, First: uint16(i), Data: pattern(n)})
		}
		key := MakeKey(2, uint32(life)) // a file of this life
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: fill(uint64(life), 32)})
		g.mu.Lock()
		birth := g.objects[key].birth
		g.mu.Unlock()
		if other, ok := births[birth]; ok {
			t.Fatalf("life %d: file of %v has the birth %x of that of %v", life, key, birth, other)
		}
		births[birth] = key
		if err := s.SyncWait(); err != nil {
			t.Fatal(err)
		}
		last := g.Last()
		if life%3 == 2 { // some that no sync covers
			stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, 0), Vid: 1, Gen: 1, First: 500, Data: fill(uint64(life), 32)})
			stage(t, g, Entry{Kind: KindZero, Key: MakeKey(1, 1), Vid: 1, Gen: 1, First: 500, Count: 3})
			if err := s.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		abandonStore(s)
		if life%3 != 0 {
			sim = sim.Cut()
			cfg.FS = sim
		}
		s = reopen(t, cfg)
		g = s.Group(1)
		if s.m.checkpoints.Load() == 0 {
			kept++
			inRow++
			longest = max(longest, inRow)
		} else {
			inRow = 0
		}
		if got := g.Last(); got.LSN < last.LSN || got.LSN > last.LSN+2 {
			t.Fatalf("life %d: at %v, flushed at %v", life, got, last)
		}
		for i := range blocks {
			wantRead(t, g, MakeKey(1, uint32(i%4)), []VidGen{{1, 1}}, i, pattern(last.LSN-uint64(blocks-i)))
		}
		for old := range life + 1 {
			wantRead(t, g, MakeKey(2, uint32(old)), []VidGen{{1, 1}}, 0, fill(uint64(old), 32))
		}
	}
	if kept < lives/2 || longest < 5 {
		t.Errorf("%d of %d openings kept the journal, at most %d in a row", kept, lives, longest)
	}
	t.Logf("%d of %d openings kept the journal, at most %d in a row", kept, lives, longest)
}
