package nbd

import (
	"sync"
	"sync/atomic"
)

// budget bounds the payload bytes that all connections of a Server hold at one time, in the manner of a switch that
// shares its buffer memory among ports (dynamic thresholds, Choudhury and Hahne 1998): a connection may take more only while it
// holds less than half of what is free. So clients that never read their replies can together never take the last
// byte, and those that work go on.
type budget struct {
	free    atomic.Int64
	waiting atomic.Int32

	mu    sync.Mutex
	conns map[*Conn]struct{} // those that wait
}

// smallCost is always admitted to a connection that holds nothing, so that nobody starves, whatever others hold.
const smallCost = 64 << 10

func newBudget(total int64) *budget {
	b := &budget{conns: make(map[*Conn]struct{})}
	b.free.Store(total)
	return b
}

// take tries to get n bytes for a connection that holds some already.
func (b *budget) take(held, n int64) bool {
	if held == 0 && n <= smallCost {
		b.free.Add(-n)
		return true
	}
	free := b.free.Load()
	if held == 0 && n <= free || held+n <= free/2 {
		b.free.Add(-n) // a race may take a little more than is free, once for each connection
		return true
	}
	return false
}

func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	b.free.Add(n)
	if b.waiting.Load() > 0 {
		b.wakeAll()
	}
}

// await has c woken at the next give. The caller tries take once more after this and before it sleeps.
func (b *budget) await(c *Conn) {
	b.mu.Lock()
	b.conns[c] = struct{}{}
	b.waiting.Store(int32(len(b.conns)))
	b.mu.Unlock()
}

func (b *budget) forget(c *Conn) {
	b.mu.Lock()
	delete(b.conns, c)
	b.waiting.Store(int32(len(b.conns)))
	b.mu.Unlock()
}

func (b *budget) wakeAll() {
	b.mu.Lock()
	for c := range b.conns {
		c.wakeReader()
	}
	clear(b.conns)
	b.waiting.Store(0)
	b.mu.Unlock()
}
