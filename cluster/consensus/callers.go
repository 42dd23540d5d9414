package consensus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// dialTimeout bounds the wait for a peer that does not answer to a connect.
const dialTimeout = time.Second

// Callers keeps one connection to each node that was asked something. Safe for concurrent use.
type Callers struct {
	net wire.Network

	mu    sync.Mutex // guards what follows
	conns map[string]*callerSlot
	ended bool
}

// callerSlot is one address. The turn is taken while it is dialled, so that many who ask share one dial.
type callerSlot struct {
	turn turn

	mu    sync.Mutex // guards what follows
	c     *wire.Caller
	ended bool
}

// NewCallers makes one that dials through n.
func NewCallers(n wire.Network) *Callers { return &Callers{net: n, conns: map[string]*callerSlot{}} }

// Do asks the node at addr and waits for the answer. A connection that ended is replaced.
func (cs *Callers) Do(ctx context.Context, addr string, h wire.Header, meta []byte) (wire.Header, []byte, error) {
	cs.mu.Lock()
	s := cs.conns[addr]
	if s == nil {
		s = &callerSlot{turn: newTurn()}
		cs.conns[addr] = s
	}
	ended := cs.ended
	cs.mu.Unlock()
	if ended {
		return wire.Header{}, nil, fmt.Errorf("%s of %s: this node is stopping", h.Kind, addr)
	}
	c, err := s.get(ctx, cs.net, addr)
	if err != nil {
		return wire.Header{}, nil, err
	}
	ans, meta, _, err := c.Do(ctx, h, meta, nil)
	return ans, meta, err
}

// open is the connection, if there is one.
func (s *callerSlot) open() *wire.Caller {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil && s.c.Err() != nil {
		s.c = nil
	}
	return s.c
}

// get returns the connection, dialling if need be. Whoever asks waits for the dial only as long as ctx allows: a leader that fell silent must not keep
// anybody from asking the next one.
func (s *callerSlot) get(ctx context.Context, n wire.Network, addr string) (*wire.Caller, error) {
	if c := s.open(); c != nil {
		return c, nil
	}
	type result struct {
		c   *wire.Caller
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := s.dial(ctx, n, addr)
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.c, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("dial %s: %w", addr, context.Cause(ctx))
	}
}

func (s *callerSlot) dial(ctx context.Context, n wire.Network, addr string) (*wire.Caller, error) {
	if err := s.turn.take(ctx); err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	defer s.turn.pass()
	if c := s.open(); c != nil {
		return c, nil
	}
	c, err := wire.DialCaller(n, addr, dialTimeout)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		c.Close()
		return nil, fmt.Errorf("dial %s: given up meanwhile", addr)
	}
	s.c = c
	return c, nil
}

// Drop ends the connection to addr: it does not answer, and what is asked next shall not wait behind it.
func (cs *Callers) Drop(addr string) {
	cs.mu.Lock()
	s := cs.conns[addr]
	delete(cs.conns, addr)
	cs.mu.Unlock()
	if s != nil {
		s.close()
	}
}

func (s *callerSlot) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.c != nil {
		s.c.Close()
	}
}

// Close ends all connections.
func (cs *Callers) Close() {
	cs.mu.Lock()
	cs.ended = true
	all := cs.conns
	cs.conns = map[string]*callerSlot{}
	cs.mu.Unlock()
	for _, s := range all {
		s.close()
	}
}
