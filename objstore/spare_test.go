package objstore

import (
	"testing"
	"time"
)

// TestSpareSlots: what an overwrite left free is kept for the next one and given back when the object rests; what a trim left free is given
// back at once.
func TestSpareSlots(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Logger: quiet(), ReserveBytes: -1, CheckpointInterval: time.Hour, ScrubBytesPerSecond: -1} // the scrub gives spare slots back, too
	s := openNew(t, cfg)
	g := s.Group(1)
	key := MakeKey(1, 0)
	lsn := uint64(0)
	write := func() {
		lsn++
		e := Entry{Kind: KindWrite, Number: Number{1, lsn}, Vid: 1, Gen: 1, Key: key, Count: 512, Data: fill(lsn, 512)}
		e.SumData()
		if err := g.Stage(&e); err != nil {
			t.Fatal(err)
		}
	}
	settle := func() {
		t.Helper()
		if err := s.SyncWait(); err != nil {
			t.Fatal(err)
		}
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		write()
		settle()
	}
	if n := s.Metrics().BlocksPunched; n != 0 {
		t.Errorf("%d blocks punched between overwrites, want none", n)
	}
	s.spares.mu.Lock()
	for o := range s.spares.objects {
		s.spares.objects[o] = time.Now().Add(-2 * time.Hour)
	}
	s.spares.mu.Unlock()
	s.giveBackSpares()
	if n := s.Metrics().BlocksPunched; n < 512 {
		t.Errorf("%d blocks punched at rest, want the 512 spare ones", n)
	}
	if n := s.spares.n.Load(); n != 0 {
		t.Errorf("%d objects keep spare slots", n)
	}
	before := s.Metrics().BlocksPunched
	lsn++
	e := Entry{Kind: KindTrim, Number: Number{1, lsn}, Vid: 1, Gen: 1, Key: key, Count: 256}
	if err := g.Stage(&e); err != nil {
		t.Fatal(err)
	}
	settle()
	if n := s.Metrics().BlocksPunched - before; n < 256 {
		t.Errorf("a trim gave %d blocks back, want 256", n)
	}
}
