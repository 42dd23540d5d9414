package nbd

import (
	"fmt"
	"sync"
	"syscall"
	"time"
)

// A client that left, whose requests wait in the Device (a cluster that stands still), may come again and again, and leave as much behind each time. What those hold is no part of the
// budget, which is for clients that are there: the clients of other exports would wait for it. It has a bound of its own: an export is not opened again while its dead hold too much.

// leftEvery is how often a reader that waits for budget looks whether its client is still there.
const leftEvery = time.Second

// The dead of one export may hold 1/deadOfOne of the budget's total when it is opened once more, those of all exports 1/deadOfAll.
const (
	deadOfOne = 16
	deadOfAll = 2
)

// graves counts the bytes that the requests of dead connections hold, by export.
type graves struct {
	mu  sync.Mutex // guards what follows
	all int64
	of  map[string]int64
}

func (g *graves) add(export string, n int64) {
	if n == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.of == nil {
		g.of = make(map[string]int64)
	}
	g.all += n
	if g.of[export] += n; g.of[export] == 0 {
		delete(g.of, export)
	}
}

// refuse says why an export can't be opened once more.
func (g *graves) refuse(export string, total int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.of[export]; n > total/deadOfOne || n > 0 && g.all > total/deadOfAll {
		return fmt.Errorf("export %q: %d bytes of requests of clients that left are still under way: %w", clip(export), n, syscall.EBUSY)
	}
	return nil
}

// bury takes what a connection holds whose client has left out of the budget.
func (c *Conn) bury() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buried {
		return
	}
	c.buried = true
	c.srv.graves.add(c.asked, c.held)
	c.srv.budget.give(c.held)
}

// giveBack returns bytes that the connection held. Under mu.
func (c *Conn) giveBack(n int64) {
	c.held -= n
	if c.buried {
		c.srv.graves.add(c.asked, -n)
	} else {
		c.srv.budget.give(n)
	}
}
