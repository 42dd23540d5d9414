package client

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Client reads and writes the objects of VDIs for one process.
type Client struct {
	cfg Config
	log *slog.Logger

	peers   sync.Map // state.NodeID → *peer
	epochs  atomic.Uint64
	seqs    atomic.Uint64 // given to changes of shared VDIs
	now     atomic.Int64  // ticks since the start, from 1
	started time.Time
	closed  atomic.Bool
	// refollow has the tender treat the map as a new one.
	refollow atomic.Bool
	ended    chan struct{}
	wake     chan struct{}
	wg       sync.WaitGroup

	parkMu   sync.Mutex // guards what follows
	parked   pieceList
	parkOver bool // closed: nobody takes a piece out any more

	waits waits

	mu       sync.Mutex            // guards what follows
	sessions map[*session]struct{} // all that are open
	writers  map[string]*opening   // by name: at most one session each
	losses   map[string]*loss      // by name: what a session's VM has not heard, for the next one
	telling  map[uint64]struct{}   // sessions of which is being said that they replayed

	Stats Stats
}

// New makes a Client. Close it.
func New(cfg Config) (*Client, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, log: cfg.Logger, started: time.Now(), ended: make(chan struct{}), wake: make(chan struct{}, 1),
		sessions: map[*session]struct{}{}, writers: map[string]*opening{}, losses: map[string]*loss{}, telling: map[uint64]struct{}{}}
	c.epochs.Store(localEpoch)
	c.now.Store(1)
	changed, cancel := cfg.Maps.Subscribe()
	c.wg.Go(func() {
		defer cancel()
		c.tend(changed)
	})
	return c, nil
}

// ID is what primaries know this client by.
func (c *Client) ID() string { return c.cfg.ID }

// Map is the newest agreed map known here.
func (c *Client) Map() *state.Map { return c.cfg.Maps.Map() }

// Close fails whatever is under way and ends all connections. Disks should be closed before; sessions that were not end with their
// holder's lease.
func (c *Client) Close() {
	c.mu.Lock()
	was := c.closed.Swap(true)
	c.mu.Unlock()
	if was {
		return
	}
	close(c.ended)
	var b wire.Batch
	c.mu.Lock()
	list := make([]*session, 0, len(c.sessions))
	for s := range c.sessions {
		list = append(list, s)
	}
	c.mu.Unlock()
	for _, s := range list {
		s.kill(ErrClosed, &b)
	}
	c.wg.Wait()
	c.peers.Range(func(_, v any) bool {
		pieces := v.(*peer).close()
		for p := pieces.pop(); p != nil; p = pieces.pop() {
			c.settle(p, ErrClosed, &b)
		}
		return true
	})
	c.parkMu.Lock()
	pieces := c.parked.take()
	c.parkOver = true
	c.parkMu.Unlock()
	for p := pieces.pop(); p != nil; p = pieces.pop() {
		c.settle(p, ErrClosed, &b)
	}
	b.End()
}

// spawn starts a goroutine that Close waits for, unless the Client is closed. mu is held.
func (c *Client) spawn(f func()) bool {
	if c.closed.Load() {
		return false
	}
	c.wg.Go(f)
	return true
}

// wakeTender has the tender look at what waits.
func (c *Client) wakeTender() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// tend is the goroutine that brings everything that waits forward: with a newer map, after a while, when a node is silent.
func (c *Client) tend(changed <-chan struct{}) {
	every := time.NewTicker(tick)
	defer every.Stop()
	soon := time.NewTimer(time.Hour)
	defer soon.Stop()
	var seen *state.Map
	var b wire.Batch
	for {
		select {
		case <-c.ended:
			return
		case <-changed:
		case <-c.wake:
		case <-soon.C:
		case <-every.C:
			c.now.Store(1 + int64(time.Since(c.started)/tick))
			c.sayWaits(c.cfg.Maps.Map())
		}
		now := time.Now()
		m := c.cfg.Maps.Map()
		newMap := c.refollow.Swap(false) || m != seen
		seen = m
		if newMap {
			c.followMap(m, &b)
		}
		next := c.unpark(m, newMap, now, &b)
		c.lookAround(m, &b)
		b.End()
		if !next.IsZero() {
			soon.Reset(max(time.Until(next), 0))
		}
	}
}

// followMap has sessions and connections take notice of a newer map.
func (c *Client) followMap(m *state.Map, b *wire.Batch) {
	for _, s := range c.allSessions() {
		s.follow(m, b)
	}
	c.tellReplayed(m)
	c.peers.Range(func(_, v any) bool {
		v.(*peer).sweep(m, b)
		return true
	})
}

// lookAround is what time, not maps, brings about.
func (c *Client) lookAround(m *state.Map, b *wire.Batch) {
	now := c.now.Load()
	c.peers.Range(func(_, v any) bool {
		v.(*peer).look(m, now, b)
		return true
	})
	retained := c.Stats.Retained.Load()
	full, room := retained >= c.cfg.RetainBytesMax, c.Stats.Throttled.Load() > 0 && retained < 2*c.cfg.RetainBytesMax
	if !full && !room {
		return
	}
	for _, s := range c.allSessions() {
		if full {
			s.flushSelf(b)
		}
		if room { // another session's flush may have made it, and this one need not have a round to come
			s.unthrottle(b)
		}
	}
}

func (c *Client) allSessions() []*session {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*session, 0, len(c.sessions))
	for s := range c.sessions {
		list = append(list, s)
	}
	return list
}

// forget takes a session out of the books.
func (c *Client) forget(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.sessions[s]; ok {
		delete(c.sessions, s)
		c.Stats.Sessions.Add(-1)
	}
	if o := c.writers[s.name]; o != nil && o.s == s {
		delete(c.writers, s.name)
	}
}
