package objstore

import (
	"sync"
	"sync/atomic"
	"time"
)

// Spare slots: those that an overwrite leaves free are what the next overwrite needs. To give them back at every checkpoint has the
// file system free and allocate the same bytes again and again, which was a third of what a sequential overwrite cost. So an object keeps as
// many as it took since its last checkpoint, and gives them back when it rests.

// spareObjectsMax bounds the objects that keep spare slots, and so what they keep: 4 GiB if each is overwritten whole.
const spareObjectsMax = 1024

type spares struct {
	n       atomic.Int64 // how many there are
	mu      sync.Mutex
	objects map[*object]time.Time // when each last kept some
}

// keepSpare notes that an object has spare slots; false if it may not keep them. Called with the group's mutex held.
func (s *Store) keepSpare(o *object) bool {
	p := &s.spares
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.objects[o]; !ok && len(p.objects) >= spareObjectsMax {
		return false
	}
	if p.objects == nil {
		p.objects = map[*object]time.Time{}
	}
	p.objects[o] = time.Now()
	p.n.Store(int64(len(p.objects)))
	return true
}

// giveBackSpares punches the spare slots of objects that have rested for a checkpoint's interval, or of all when space is scarce.
func (s *Store) giveBackSpares() {
	p := &s.spares
	if p.n.Load() == 0 || s.Err() != nil {
		return
	}
	all := s.Space().NearFull
	var list []*object
	p.mu.Lock()
	for o, at := range p.objects {
		if all || time.Since(at) >= s.cfg.CheckpointInterval {
			list = append(list, o)
		}
	}
	p.mu.Unlock()
	for _, o := range list {
		if s.Err() != nil || s.closing.Load() {
			return
		}
		if !s.giveBackSpare(o) {
			continue // it is being written: next time
		}
		p.mu.Lock()
		delete(p.objects, o)
		p.n.Store(int64(len(p.objects)))
		p.mu.Unlock()
	}
}

// giveBackSpare says whether an object has no spare slots any more. One whose table left memory meanwhile is left to the scrub.
func (s *Store) giveBackSpare(o *object) bool {
	g := o.g
	g.mu.Lock()
	if g.objects[o.key] != o || o.t == nil || !o.exists() {
		g.mu.Unlock()
		return true
	}
	o.t.pins++
	g.mu.Unlock()
	done := s.punchFree(o)
	g.mu.Lock()
	o.t.pins--
	g.mu.Unlock()
	return done
}
