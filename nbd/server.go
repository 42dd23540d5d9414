package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves a Backend's exports to any number of clients.
//
//	running ─► draining ─► closed
//
// draining: no new connections; requests in flight are finished, later ones get ESHUTDOWN, and each connection is closed
// as soon as its last reply is sent.
type Server struct {
	cfg     Config
	backend Backend
	budget  *budget
	log     *slog.Logger
	ctx     context.Context // ended by Close
	cancel  context.CancelFunc

	mu        sync.Mutex // guards what follows
	state     serverState
	listeners map[net.Listener]struct{}
	halfOpen  []*handshake // oldest first
	sessions  map[*Conn]struct{}
	opening   int           // sessions promised to handshakes that are at GO
	empty     chan struct{} // closed when draining and nobody is left; nil while running

	graves     graves
	relief     relief
	spinners   *spinners
	threads    atomic.Int32         // submitters with one of their own
	processors int32                // GOMAXPROCS
	sharing    atomic.Int32         // second goroutines at work
	lastRead   atomic.Pointer[Conn] // whose reader read last
	lists      chan struct{}        // a token for each client that is told the list
	company    atomic.Int64         // when another one than before did, or others than clients asked for something: nanoseconds since 1970
	failures   failureLog
}

type serverState int

const (
	running serverState = iota
	draining
	closed
)

// listsMax bounds how many lists of all exports are in memory, for clients of which none was let in yet.
const listsMax = 4

// listTime is for how long a client may take one in.
const listTime = 2 * time.Second

// NewServer checks the configuration and returns a server that is ready to Serve.
func NewServer(cfg Config, b Backend) (*Server, error) {
	if b == nil {
		return nil, errors.New("nbd: a server needs a backend")
	}
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, backend: b, log: cfg.Logger, budget: newBudget(cfg.MaxBytes),
		listeners: make(map[net.Listener]struct{}), sessions: make(map[*Conn]struct{}),
		relief: relief{calm: calmFlushes}, spinners: newSpinners(), processors: int32(runtime.GOMAXPROCS(0)),
		lists: make(chan struct{}, listsMax),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Serve accepts connections until the listener fails or the server shuts down (then it returns ErrServerClosed). It
// closes the listener. It may be called for several listeners at once.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.state != running {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for wait := time.Duration(0); ; {
		nc, err := l.Accept()
		if err == nil {
			wait = 0
			s.ServeConn(nc)
			continue
		}
		if s.ctx.Err() != nil || s.isDraining() {
			return ErrServerClosed
		}
		var ne interface{ Temporary() bool }
		if !errors.As(err, &ne) || !ne.Temporary() {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		// Out of descriptors, most likely. They come back as clients leave.
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		s.log.Warn("nbd accept failed, will try again", "listener", l.Addr().String(), "err", err)
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
		}
	}
}

// ServeConn serves one client on a connection from elsewhere, in the background. The server owns the connection.
func (s *Server) ServeConn(nc net.Conn) {
	tune(nc, s.cfg.SocketBuffer, s.cfg.StallTimeout)
	h := newHandshake(s, nc)
	s.mu.Lock()
	if s.state != running {
		s.mu.Unlock()
		nc.Close()
		return
	}
	var oldest *handshake
	if len(s.halfOpen) >= s.cfg.MaxHalfOpen {
		oldest = s.oldestHalfOpen()
	}
	s.halfOpen = append(s.halfOpen, h)
	s.mu.Unlock()
	if oldest != nil {
		oldest.abandon()
	}
	go s.run(h)
}

// run is a connection's goroutine: the handshake, then the reader of the transmission phase.
func (s *Server) run(h *handshake) {
	c, err := s.negotiate(h)
	if c == nil {
		if err != nil {
			h.log.Debug("nbd handshake ended", "err", err)
		}
		h.cancel()
		h.nc.Close()
		s.leave(h, nil)
		return
	}
	c.serve()
}

// negotiate runs the handshake. Whatever a client sends must not take the others down, so a panic in here ends
// only this connection.
func (s *Server) negotiate(h *handshake) (c *Conn, err error) {
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("nbd handshake panicked", "panic", p, "stack", string(debug.Stack()))
			c, err = nil, fmt.Errorf("panic: %v", p)
		}
	}()
	return h.run()
}

// leave forgets a connection.
func (s *Server) leave(h *handshake, c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h != nil {
		s.removeHalfOpen(h)
		if h.reserved {
			s.opening--
		}
	}
	delete(s.sessions, c)
	s.checkEmpty()
}

// oldestHalfOpen takes out the connection that has been dawdling for longest. One that waits for its export to be opened does not
// dawdle.
func (s *Server) oldestHalfOpen() *handshake {
	for i, h := range s.halfOpen {
		if !h.reserved {
			s.halfOpen = slices.Delete(s.halfOpen, i, i+1)
			return h
		}
	}
	return nil
}

func (s *Server) removeHalfOpen(h *handshake) {
	if i := slices.Index(s.halfOpen, h); i >= 0 {
		s.halfOpen = slices.Delete(s.halfOpen, i, i+1)
	}
}

func (s *Server) checkEmpty() {
	if s.empty != nil && len(s.sessions) == 0 && len(s.halfOpen) == 0 {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// reserve promises a session to a handshake that is about to open an export.
func (s *Server) reserve(h *handshake) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state != running:
		return errDraining
	case len(s.sessions)+s.opening >= s.cfg.MaxSessions:
		return errTooMany
	}
	s.opening++
	h.reserved = true
	return nil
}

func (s *Server) unreserve(h *handshake) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.reserved {
		h.reserved = false
		s.opening--
	}
}

// enter turns a handshake into a session.
func (s *Server) enter(h *handshake, c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeHalfOpen(h)
	s.opening--
	h.reserved = false
	s.sessions[c] = struct{}{}
	if s.state != running {
		c.drain()
	}
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state != running
}

// Shutdown drains: see Server. It returns when every connection is closed, or cuts off those that are left when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if s.state == running {
		s.state = draining
		s.empty = make(chan struct{})
		for l := range s.listeners {
			l.Close()
		}
		for _, h := range s.halfOpen {
			h.abandon()
		}
		for c := range s.sessions {
			c.drain()
		}
		s.checkEmpty()
	}
	empty := s.empty
	s.mu.Unlock()
	select {
	case <-empty:
		return s.Close()
	case <-ctx.Done():
		s.Close()
		return ctx.Err()
	}
}

// Close cuts every connection off. Devices are closed as soon as they have answered what they had; Close waits for
// nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = closed
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	s.cancel()
	for l := range s.listeners {
		l.Close()
	}
	for _, h := range s.halfOpen {
		h.abandon()
	}
	for c := range s.sessions {
		c.Kill()
	}
	s.checkEmpty()
	return nil
}

// Sessions lists the connections in transmission.
func (s *Server) Sessions() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Conn, 0, len(s.sessions))
	for c := range s.sessions {
		list = append(list, c)
	}
	return list
}

// Stats is what a server holds at this moment.
type Stats struct {
	Sessions, HalfOpen int
	BytesHeld          int64 // payload bytes in flight, against Config.MaxBytes
}

// Stats counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{len(s.sessions), len(s.halfOpen), s.cfg.MaxBytes - s.budget.free.Load()}
}
