package objstore

import "sync"

// tableCache keeps the tables of objects at rest under their bound, by a
// clock over all objects that have theirs in memory.
type tableCache struct {
	mu    sync.Mutex // taken after a group's
	clock []*object
	hand  int
}

// tableCost is what a version's table takes in memory.
const tableCost = BlocksPerObject*8 + 128

func (s *Store) cacheGrew(tables int) { s.tableCount.Add(int64(tables)) }

func (s *Store) cacheAdd(o *object) {
	c := &s.cache
	c.mu.Lock()
	o.t.at = len(c.clock)
	c.clock = append(c.clock, o)
	c.mu.Unlock()
	if n := len(o.t.list); n > 0 {
		s.cacheGrew(n)
	}
}

// cacheRemove holds the object's group.
func (s *Store) cacheRemove(o *object) {
	c := &s.cache
	c.mu.Lock()
	last := c.clock[len(c.clock)-1]
	c.clock[o.t.at], last.t.at = last, o.t.at
	c.clock = c.clock[:len(c.clock)-1]
	c.mu.Unlock()
	s.cacheGrew(-len(o.t.list))
}

// cacheShrink drops tables that were not used lately until the bound holds.
// keep was loaded for somebody and stays. It holds no lock when called.
func (s *Store) cacheShrink(keep *object) {
	c := &s.cache
	c.mu.Lock()
	tries := 2 * len(c.clock)
	c.mu.Unlock()
	for ; tries > 0 && s.tableCount.Load()*tableCost > s.cfg.TableCacheBytes; tries-- {
		c.mu.Lock()
		if len(c.clock) == 0 {
			c.mu.Unlock()
			return
		}
		c.hand = (c.hand + 1) % len(c.clock)
		o := c.clock[c.hand]
		c.mu.Unlock()
		if o == keep {
			continue
		}
		o.g.mu.Lock()
		if o.t != nil && o.t.recent {
			o.t.recent = false
		} else if o.t != nil && !o.t.busy() && len(o.t.list) > 0 && !o.damaged {
			s.cacheRemove(o)
			o.t = nil
		}
		o.g.mu.Unlock()
	}
}
