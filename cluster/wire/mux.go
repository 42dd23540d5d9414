package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The first four bytes of a connection to a node's port say what it is for. HTTP is told by its methods.
const (
	PrefaceFrames = "SDF1" // frames follow
	PrefaceRaft   = "SDR1" // raft's own protocol follows
)

// helloDeadline bounds how long a connection may take to say what it is for.
const helloDeadline = 10 * time.Second

// Mux shares one port among protocols.
type Mux struct {
	l    net.Listener
	mu   sync.Mutex
	subs map[string]*subListener
	done chan struct{}
}

// NewMux serves l once Serve runs.
func NewMux(l net.Listener) *Mux {
	return &Mux{l: l, subs: map[string]*subListener{}, done: make(chan struct{})}
}

// Listen returns the listener of connections that begin with preface, which is consumed; preface "" means every other, whose bytes are
// all still there. To be called before Serve.
func (m *Mux) Listen(preface string) net.Listener {
	s := &subListener{m: m, conns: make(chan net.Conn), closed: make(chan struct{})}
	m.subs[preface] = s
	return s
}

// Serve accepts until the listener is closed.
func (m *Mux) Serve() error {
	for {
		nc, err := m.l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) { // out of descriptors, a reset before accept: the next may do
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept on %s: %w", m.l.Addr(), err)
		}
		go m.hello(nc)
	}
}

// hello reads the preface and hands the connection over.
func (m *Mux) hello(nc net.Conn) {
	var first [4]byte
	nc.SetReadDeadline(time.Now().Add(helloDeadline))
	if _, err := io.ReadFull(nc, first[:]); err != nil {
		nc.Close()
		return
	}
	nc.SetReadDeadline(time.Time{})
	s := m.subs[string(first[:])]
	if s == nil {
		if s = m.subs[""]; s == nil {
			nc.Close()
			return
		}
		nc = &prefixed{Conn: nc, rest: first[:]}
	}
	select {
	case s.conns <- nc:
	case <-s.closed:
		nc.Close()
	case <-m.done:
		nc.Close()
	}
}

// Close stops accepting and ends all listeners.
func (m *Mux) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return nil
	default:
	}
	close(m.done)
	return m.l.Close()
}

type subListener struct {
	m      *Mux
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (s *subListener) Accept() (net.Conn, error) {
	select {
	case nc := <-s.conns:
		return nc, nil
	case <-s.closed:
		return nil, net.ErrClosed
	case <-s.m.done:
		return nil, net.ErrClosed
	}
}

// Close ends this listener; the port and the others go on.
func (s *subListener) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *subListener) Addr() net.Addr { return s.m.l.Addr() }

// prefixed gives back bytes that were read ahead.
type prefixed struct {
	net.Conn
	rest []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		p.rest = p.rest[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// Network is how a node reaches others: TCP, or memory in a simulation.
type Network interface {
	Dial(addr string, timeout time.Duration) (net.Conn, error)
	Listen(addr string) (net.Listener, error)
}

// TCP is the Network of the real world. From, if set, is the local address that connections come from.
type TCP struct{ From string }

func (t TCP) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout, KeepAlive: 5 * time.Second}
	if t.From != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(t.From)}
	}
	return d.Dial("tcp", addr)
}

func (t TCP) Listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

// DialFrames opens a connection for frames. Start it.
func DialFrames(n Network, addr string, timeout time.Duration, h Handler) (*Conn, error) {
	nc, err := n.Dial(addr, timeout)
	if err != nil {
		return nil, err
	}
	if _, err := nc.Write([]byte(PrefaceFrames)); err != nil {
		nc.Close()
		return nil, err
	}
	return NewConn(nc, h), nil
}
