package consensus

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// A raft connection begins, after wire.PrefaceRaft, with a hello, answered by one byte before raft's own protocol follows:
//
//	┌─────────┬─────────────┬─────────┬──────────┬────────┐      ┌────────┐
//	│ version │ cluster len │ cluster │ node len │ node   │  ──▶ │ answer │
//	└─────────┴─────────────┴─────────┴──────────┴────────┘      └────────┘
const (
	helloVersion  = 1
	helloOK       = 'y'
	helloRefused  = 'n'
	helloDeadline = 5 * time.Second
)

// ErrRefused is a raft peer's answer when it belongs to another cluster, is another node, or has a disk that hangs.
var ErrRefused = errors.New("raft connection refused: another node or another cluster answers there")

// serverAddress is what raft calls a node's address: "uuid@host:port", so that a connection can say whom it wants.
func serverAddress(uuid, addr string) raft.ServerAddress {
	return raft.ServerAddress(uuid + "@" + addr)
}

// splitServer takes a serverAddress apart.
func splitServer(a raft.ServerAddress) (uuid, addr string) {
	uuid, addr, ok := strings.Cut(string(a), "@")
	if !ok {
		return "", string(a)
	}
	return uuid, addr
}

// stream is raft's raft.StreamLayer over a wire.Network.
type stream struct {
	l       net.Listener
	n       wire.Network
	self    string // uuid
	addr    string
	cluster func() string

	accepted chan net.Conn
	done     chan struct{}

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]struct{}
	muted bool
	ended bool
}

func newStream(l net.Listener, n wire.Network, self, addr string, cluster func() string) *stream {
	s := &stream{l: l, n: n, self: self, addr: addr, cluster: cluster, accepted: make(chan net.Conn), done: make(chan struct{}),
		conns: map[net.Conn]struct{}{}}
	go s.acceptLoop()
	return s
}

type raftAddr string

func (a raftAddr) Network() string { return "raft" }
func (a raftAddr) String() string  { return string(a) }

// Addr is what this node calls itself in raft's messages.
func (s *stream) Addr() net.Addr { return raftAddr(serverAddress(s.self, s.addr)) }

// Accept returns the next connection that was meant for this node.
func (s *stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Close ends all connections.
func (s *stream) Close() error {
	s.mu.Lock()
	ended := s.ended
	s.ended = true
	s.mu.Unlock()
	if !ended {
		close(s.done)
		s.l.Close()
		s.cut()
	}
	return nil
}

// mute cuts this node off from raft's traffic, or lets it back in.
func (s *stream) mute(on bool) {
	s.mu.Lock()
	s.muted = on
	s.mu.Unlock()
	if on {
		s.cut()
	}
}

func (s *stream) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// track keeps c to be cut; it says no when no connection is wanted now.
func (s *stream) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.muted || s.ended {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *stream) untrack(c net.Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// tracked is a connection that stream can cut.
type tracked struct {
	net.Conn
	s *stream
}

func (t tracked) Close() error {
	t.s.untrack(t.Conn)
	return t.Conn.Close()
}

func (s *stream) acceptLoop() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return // the mux is closed
		}
		go s.greet(c)
	}
}

// greet reads a hello and hands the connection to raft.
func (s *stream) greet(c net.Conn) {
	if !s.track(c) {
		c.Close()
		return
	}
	t := tracked{c, s}
	c.SetDeadline(time.Now().Add(helloDeadline))
	cluster, node, err := readHello(c)
	if err != nil {
		t.Close()
		return
	}
	if own := s.cluster(); own == "" || own != cluster || node != s.self {
		c.Write([]byte{helloRefused})
		t.Close()
		return
	}
	if _, err := c.Write([]byte{helloOK}); err != nil {
		t.Close()
		return
	}
	c.SetDeadline(time.Time{})
	select {
	case s.accepted <- t:
	case <-s.done:
		t.Close()
	}
}

func readHello(r io.Reader) (cluster, node string, err error) {
	var one [1]byte
	if _, err = io.ReadFull(r, one[:]); err != nil {
		return "", "", err
	}
	if one[0] != helloVersion {
		return "", "", fmt.Errorf("raft hello of version %d", one[0])
	}
	word := func() string {
		if err == nil {
			_, err = io.ReadFull(r, one[:])
		}
		b := make([]byte, one[0])
		if err == nil {
			_, err = io.ReadFull(r, b)
		}
		return string(b)
	}
	cluster = word()
	node = word()
	return cluster, node, err
}

func appendHello(b []byte, cluster, node string) ([]byte, error) {
	if len(cluster) > 255 || len(node) > 255 {
		return nil, fmt.Errorf("raft hello: identities of %d and %d bytes", len(cluster), len(node))
	}
	b = append(b, helloVersion, byte(len(cluster)))
	b = append(b, cluster...)
	b = append(b, byte(len(node)))
	return append(b, node...), nil
}

// Dial connects to a raft peer and makes sure that it is the one meant.
func (s *stream) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	uuid, addr := splitServer(a)
	hello, err := appendHello([]byte(wire.PrefaceRaft), s.cluster(), uuid)
	if err != nil {
		return nil, err
	}
	c, err := s.n.Dial(addr, timeout)
	if err != nil {
		return nil, err
	}
	if !s.track(c) {
		c.Close()
		return nil, fmt.Errorf("raft connection to %s: cut off while the disk here does not answer", addr)
	}
	t := tracked{c, s}
	c.SetDeadline(time.Now().Add(timeout))
	var ans [1]byte
	if _, err = c.Write(hello); err == nil {
		_, err = io.ReadFull(c, ans[:])
	}
	if err == nil && ans[0] != helloOK {
		err = ErrRefused
	}
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("raft hello to %s: %w", a, err)
	}
	c.SetDeadline(time.Time{})
	return t, nil
}
