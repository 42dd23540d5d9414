package nbd

import (
	"math"
	"sync"
	"sync/atomic"
)

// budget bounds the payload bytes that all connections of a Server hold at one time, in the manner of a switch that
// shares its buffer memory among ports (dynamic thresholds, Choudhury and Hahne 1998): the less is free, the less a connection may hold and still
// take more. Theirs is a share of what is free. But what a client that never reads has taken stays taken, and each of those that come after it
// would take its share of the rest: after some twenty nothing would be left. With free²/4total, k of them leave 4total/(k+4), and
// those that work go on.
type budget struct {
	total int64
	free  atomic.Int64
	least atomic.Int64 // the least that any of those who wait needs to be free

	mu      sync.Mutex
	waiting map[*Conn]int64 // what each needs to be free
}

// smallCost is always admitted to a connection that holds nothing, so that nobody starves, whatever others hold.
const smallCost = 64<<10 + requestCost

func newBudget(total int64) *budget {
	b := &budget{total: total, waiting: make(map[*Conn]int64)}
	b.free.Store(total)
	b.least.Store(math.MaxInt64)
	return b
}

// firstLeaves is the part of the total that a large request leaves free, where it is its connection's only one.
const firstLeaves = 32

// need is how much must be free for a connection that holds some bytes to get n more.
func (b *budget) need(held, n int64) int64 {
	switch {
	case held == 0 && n <= smallCost:
		return math.MinInt64
	case held == 0:
		return min(n+b.total/firstLeaves, b.total)
	}
	return int64(2 * math.Sqrt(float64(b.total)*float64(held+n)))
}

// take tries to get n bytes for a connection that holds some already.
func (b *budget) take(held, n int64) bool {
	if b.free.Load() < b.need(held, n) {
		return false
	}
	b.free.Add(-n) // a race may take a little more than is free, once for each connection
	return true
}

// give returns n bytes, and wakes those for whom there is enough now. It wakes nobody in vain: with a hundred who wait, that would
// cost more than the requests.
func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	if free := b.free.Add(n); free >= b.least.Load() {
		b.wake(free)
	}
}

func (b *budget) wake(free int64) {
	b.mu.Lock()
	for c, need := range b.waiting {
		if need <= free {
			delete(b.waiting, c)
			c.wakeReader()
		}
	}
	b.update()
	b.mu.Unlock()
}

// await has c woken as soon as it can have n bytes. The caller tries take once more after this and before it sleeps.
func (b *budget) await(c *Conn, held, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	needed := b.need(held, n)
	old, waits := b.waiting[c]
	b.waiting[c] = needed
	if waits && old == b.least.Load() && needed > old {
		b.update()
	} else if needed < b.least.Load() {
		b.least.Store(needed)
	}
}

func (b *budget) forget(c *Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old, waits := b.waiting[c]; waits {
		delete(b.waiting, c)
		if old == b.least.Load() {
			b.update()
		}
	}
}

func (b *budget) update() {
	least := int64(math.MaxInt64)
	for _, need := range b.waiting {
		least = min(least, need)
	}
	b.least.Store(least)
}
