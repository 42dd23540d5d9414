package objstore

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// verify checks everything that must hold of a store's memory while nothing
// is under way: counters, slots, flags.
func verify(t testing.TB, s *Store) {
	t.Helper()
	if err := verifyStore(s); err != nil {
		t.Fatal(err)
	}
}

func verifyStore(s *Store) error {
	s.checkpointLock.Lock()
	defer s.checkpointLock.Unlock()
	var unplaced, dirty, tables int64
	all := slices.Collect(maps.Values(s.groups))
	for _, d := range s.dropping { // they count until a checkpoint has taken the drop
		all = append(all, d.g)
	}
	for _, g := range all {
		g.mu.Lock()
		defer g.mu.Unlock()
		inDirty := map[*object]bool{}
		for _, o := range g.dirty {
			inDirty[o] = true
		}
		for _, o := range g.objects {
			if o.t == nil {
				continue
			}
			n, err := o.verify()
			if err != nil {
				return fmt.Errorf("group %d object %v: %w", g.id, o.key, err)
			}
			if o.t.dirty != inDirty[o] {
				return fmt.Errorf("group %d object %v: dirty %v, listed %v", g.id, o.key, o.t.dirty, inDirty[o])
			}
			unplaced += int64(n)
			tables += int64(len(o.t.list))
			if o.t.dirty {
				dirty++
			}
		}
	}
	if unplaced != s.unplaced.Load() || dirty != s.dirtyObjects.Load() || tables != s.tableCount.Load() {
		return fmt.Errorf("counted %d unplaced %d dirty %d tables, kept %d %d %d",
			unplaced, dirty, tables, s.unplaced.Load(), s.dirtyObjects.Load(), s.tableCount.Load())
	}
	return nil
}

func (o *object) verify() (unplaced int, err error) {
	owner := map[uint32]string{}
	for _, l := range o.t.later {
		for k := range l.n {
			owner[l.slot+k] = "later"
		}
	}
	for _, v := range o.t.list {
		if o.t.chunks[v.chunk].owner != v {
			return 0, fmt.Errorf("vid %06x is not its chunk's owner", v.vid)
		}
		for b, c := range v.cells {
			switch c.kind() {
			case cellJournal:
				unplaced++
			case cellSlot:
				if was := owner[c.value()]; was != "" {
					return 0, fmt.Errorf("slot %d of vid %06x block %d is also %s", c.value(), v.vid, b, was)
				}
				owner[c.value()] = fmt.Sprintf("vid %06x block %d", v.vid, b)
				if !o.t.isUsed(c.value()) {
					return 0, fmt.Errorf("slot %d of vid %06x block %d counts as free", c.value(), v.vid, b)
				}
			}
		}
	}
	if unplaced != o.t.unplaced {
		return 0, fmt.Errorf("%d blocks unplaced, kept %d", unplaced, o.t.unplaced)
	}
	used := 0
	for k := range o.t.used {
		for n := range BlocksPerObject {
			if o.t.isUsed(dataSlot(k, n)) {
				used++
			}
		}
	}
	if o.t.pins == 0 && used != len(owner) {
		return 0, fmt.Errorf("%d slots used, %d known", used, len(owner))
	}
	return unplaced, nil
}
