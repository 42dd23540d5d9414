// Package memnet is a network in memory for simulations: hosts that listen and dial by address, and faults between any two of them. Under
// testing/synctest its connections block durably, so that virtual time passes.
//
// It behaves as TCP does: bytes arrive in order or not at all; while a direction is cut they wait (retransmission) and arrive after it heals; a host that
// is killed resets its connections if the reset can get through, otherwise its peers hear nothing. A host whose process is paused (SIGSTOP) neither reads,
// writes, dials nor accepts; its kernel still takes what arrives. A connection that is reset loses what was under way in it.
package memnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Net is a network. The zero value is not ready; use New.
type Net struct {
	mu        sync.Mutex
	listeners map[string]*listener
	conns     map[*conn]struct{}
	cut       map[[2]string]bool // from, to
	paused    map[string]bool
	latency   func(from, to string) time.Duration
	wake      *sync.Cond // what is cut or paused changed
}

// New makes a network.
func New() *Net {
	n := &Net{listeners: map[string]*listener{}, conns: map[*conn]struct{}{}, cut: map[[2]string]bool{}, paused: map[string]bool{}}
	n.wake = sync.NewCond(&n.mu)
	n.latency = func(string, string) time.Duration { return 50 * time.Microsecond }
	return n
}

// Latency sets how long bytes take from one host to another.
func (n *Net) Latency(f func(from, to string) time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = f
}

// Cut stops everything from one host to another; the other direction goes on.
func (n *Net) Cut(from, to string) { n.set(from, to, true) }

// Heal lets it flow again.
func (n *Net) Heal(from, to string) { n.set(from, to, false) }

func (n *Net) set(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = cut
	n.changed()
}

// HealAll lets everything flow.
func (n *Net) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.changed()
}

// Pause stops the process of a host, as SIGSTOP does: it gets and sends nothing until Resume.
func (n *Net) Pause(host string) { n.pause(host, true) }

// Resume lets it go on.
func (n *Net) Resume(host string) { n.pause(host, false) }

func (n *Net) pause(host string, paused bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused[host] = paused
	n.changed()
}

// Reset breaks all connections between two hosts; what was under way in them is lost.
func (n *Net) Reset(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.host == a && c.peerHost == b || c.host == b && c.peerHost == a {
			c.reset, c.in, c.inBytes = true, nil, 0
		}
	}
	n.changed()
}

// Kill ends all connections and listeners of a host, as the kernel does for a process that died.
func (n *Net) Kill(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.paused, host)
	for addr, l := range n.listeners {
		if hostOf(addr) == host {
			l.closed = true
			l.wake.Broadcast()
			delete(n.listeners, addr)
		}
	}
	for c := range n.conns {
		if c.host == host {
			c.closeLocked(syscall.ECONNRESET)
		}
	}
	n.changed()
}

// changed wakes everybody: what is cut or who is there is different. mu is held.
func (n *Net) changed() {
	n.wake.Broadcast()
	for _, l := range n.listeners {
		l.wake.Broadcast()
	}
	for c := range n.conns {
		c.wake.Broadcast()
	}
}

func hostOf(addr string) string {
	h, _, _ := strings.Cut(addr, ":")
	return h
}

// Host is one host's view of the network.
type Host struct {
	n    *Net
	name string
}

// Host returns the view of the host with this name; its addresses are name:port.
func (n *Net) Host(name string) *Host { return &Host{n, name} }

// Listen listens on an address of this host.
func (h *Host) Listen(addr string) (net.Listener, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.n.listeners[addr] != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, syscall.EADDRINUSE)
	}
	l := &listener{n: h.n, addr: addr, wake: sync.NewCond(&h.n.mu)}
	h.n.listeners[addr] = l
	return l, nil
}

// Dial connects to an address.
func (h *Host) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	n := h.n
	deadline := time.Now().Add(timeout)
	to := hostOf(addr)
	n.mu.Lock()
	lat := n.latency(h.name, to)
	n.mu.Unlock()
	time.Sleep(lat)
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.cut[[2]string{h.name, to}] || n.cut[[2]string{to, h.name}] || n.paused[h.name] {
		if !n.waitUntil(n.wake, deadline) {
			return nil, fmt.Errorf("dial %s: %w", addr, os.ErrDeadlineExceeded)
		}
	}
	l := n.listeners[addr]
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
	}
	a := &conn{n: n, host: h.name, peerHost: to, local: h.name + ":0", remote: addr}
	b := &conn{n: n, host: to, peerHost: h.name, local: addr, remote: h.name + ":0"}
	a.peer, b.peer = b, a
	a.wake, b.wake = sync.NewCond(&n.mu), sync.NewCond(&n.mu)
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	l.queue = append(l.queue, b)
	l.wake.Broadcast()
	return a, nil
}

// waitUntil waits for a change, at most until t; false when t has come. mu is held.
func (n *Net) waitUntil(wake *sync.Cond, t time.Time) bool {
	if !t.IsZero() {
		d := time.Until(t)
		if d <= 0 {
			return false
		}
		timer := time.AfterFunc(d, func() {
			n.mu.Lock()
			wake.Broadcast()
			n.mu.Unlock()
		})
		defer timer.Stop()
	}
	wake.Wait()
	return true
}

type listener struct {
	n      *Net
	addr   string
	wake   *sync.Cond // its own: of hundreds of hosts only one is dialled
	queue  []*conn
	closed bool
}

func (l *listener) Accept() (net.Conn, error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for len(l.queue) == 0 || l.n.paused[hostOf(l.addr)] {
		if l.closed {
			return nil, net.ErrClosed
		}
		l.wake.Wait()
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if !l.closed {
		l.closed = true
		if l.n.listeners[l.addr] == l {
			delete(l.n.listeners, l.addr)
		}
		l.wake.Broadcast()
	}
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.addr) }

type addr string

func (a addr) Network() string { return "mem" }
func (a addr) String() string  { return string(a) }

// windowBytes is what a connection holds for a reader that does not read.
const windowBytes = 4 << 20

type packet struct {
	b  []byte
	at time.Time // when it arrives, if nothing is cut
}

type conn struct {
	n              *Net
	peer           *conn
	host, peerHost string
	local, remote  string
	wake           *sync.Cond // something of this end changed

	in      []packet // what the peer sent
	inBytes int
	reset   bool  // by the network
	err     error // closed here
	peerErr error // what the peer's end tells us, once it can get through
	rd, wd  time.Time
}

func (c *conn) Read(b []byte) (int, error) {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case c.err != nil:
			return 0, net.ErrClosed
		case n.paused[c.host]:
			c.wake.Wait()
			continue
		case c.reset:
			return 0, syscall.ECONNRESET
		}
		open := !n.cut[[2]string{c.peerHost, c.host}]
		var next time.Time
		if open && len(c.in) > 0 {
			p := &c.in[0]
			if d := time.Until(p.at); d <= 0 {
				k := copy(b, p.b)
				p.b = p.b[k:]
				c.inBytes -= k
				if len(p.b) == 0 {
					c.in = c.in[1:]
				}
				c.peer.wake.Broadcast()
				return k, nil
			}
			next = p.at
		}
		if open && len(c.in) == 0 && c.peerErr != nil && !n.paused[c.peerHost] {
			return 0, c.peerErr
		}
		if !c.rd.IsZero() && (next.IsZero() || c.rd.Before(next)) {
			next = c.rd
		}
		if !n.waitUntil(c.wake, next) && !c.rd.IsZero() && !time.Now().Before(c.rd) {
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (c *conn) Write(b []byte) (int, error) {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for c.err == nil && (n.paused[c.host] || c.peer.inBytes >= windowBytes && !c.gone()) {
		until := c.wd
		if n.paused[c.host] {
			until = time.Time{}
		}
		if !n.waitUntil(c.wake, until) {
			return 0, os.ErrDeadlineExceeded
		}
	}
	switch {
	case c.err != nil:
		return 0, net.ErrClosed
	case c.reset:
		return 0, syscall.ECONNRESET
	case c.gone():
		return 0, syscall.EPIPE
	case c.peer.err != nil: // by a process that is paused: not closed yet
		return len(b), nil
	}
	at := time.Now().Add(n.latency(c.host, c.peerHost))
	c.peer.in = append(c.peer.in, packet{append([]byte(nil), b...), at})
	c.peer.inBytes += len(b)
	c.peer.wake.Broadcast()
	return len(b), nil
}

// gone says that the other end is closed, or broken.
func (c *conn) gone() bool { return c.reset || c.peer.err != nil && !c.n.paused[c.peerHost] }

func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.closeLocked(io.EOF)
	return nil
}

// closeLocked ends this side; the peer learns why when it can hear us.
func (c *conn) closeLocked(why error) {
	if c.err != nil {
		return
	}
	c.err = errors.New("closed")
	c.peer.peerErr = why
	c.wake.Broadcast()
	c.peer.wake.Broadcast()
	delete(c.n.conns, c)
}

func (c *conn) LocalAddr() net.Addr  { return addr(c.local) }
func (c *conn) RemoteAddr() net.Addr { return addr(c.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.rd = t
	c.wake.Broadcast()
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.wd = t
	c.wake.Broadcast()
	return nil
}
