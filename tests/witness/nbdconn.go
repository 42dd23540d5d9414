package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Numbers of the NBD specification (doc/proto.md): all that a client of simple replies needs.
const (
	magicGreeting = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption   = 0x49484156454f5054 // "IHAVEOPT"
	magicReply    = 0x0003e889045565a9
	magicRequest  = 0x25609513
	magicAnswer   = 0x67446698

	optGo       = 7
	repAck      = 1
	repInfo     = 3
	repErrorBit = 1 << 31

	cmdRead  = 0
	cmdWrite = 1
	cmdFlush = 3
)

const handshakeMax = 20 * time.Second

// errLost wraps whatever ended a connection, as opposed to an error that the server answered.
var errLost = errors.New("connection lost")

// nbdConn is one connection in transmission phase. Requests may be issued from any goroutine.
type nbdConn struct {
	c    net.Conn
	size uint64

	mu      sync.Mutex // guards what is below; held while a request is written, never while waiting
	next    uint64
	pending map[uint64]*call
	lost    error
}

type call struct {
	into []byte // where a read's data goes
	done chan error
}

// dialNBD connects to "unix:PATH" or "HOST:PORT" and negotiates the export.
func dialNBD(target, export string) (*nbdConn, error) {
	network, address := "tcp", target
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		network, address = "unix", path
	}
	c, err := net.DialTimeout(network, address, 3*time.Second)
	if err != nil {
		return nil, err
	}
	n := &nbdConn{c: c, pending: map[uint64]*call{}}
	_ = c.SetDeadline(time.Now().Add(handshakeMax))
	r := bufio.NewReaderSize(c, 256<<10)
	if err := n.handshake(r, export); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: export %q: %w", target, export, err)
	}
	_ = c.SetDeadline(time.Time{})
	go n.receive(r)
	return n, nil
}

func (n *nbdConn) handshake(r io.Reader, export string) error {
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(r, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.Magic != magicGreeting || hello.Option != magicOption || hello.Flags&1 == 0 {
		return fmt.Errorf("not a fixed newstyle NBD server")
	}
	msg := binary.BigEndian.AppendUint32(nil, uint32(hello.Flags&3))
	msg = binary.BigEndian.AppendUint64(msg, magicOption)
	msg = binary.BigEndian.AppendUint32(msg, optGo)
	msg = binary.BigEndian.AppendUint32(msg, uint32(6+len(export)))
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(export)))
	msg = append(msg, export...)
	msg = binary.BigEndian.AppendUint16(msg, 0)
	if _, err := n.c.Write(msg); err != nil {
		return err
	}
	for {
		var rep struct {
			Magic        uint64
			Option, Type uint32
			Length       uint32
		}
		if err := binary.Read(r, binary.BigEndian, &rep); err != nil {
			return err
		}
		if rep.Magic != magicReply || rep.Length > 64<<10 {
			return fmt.Errorf("bad option reply")
		}
		data := make([]byte, rep.Length)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		switch {
		case rep.Type&repErrorBit != 0:
			return fmt.Errorf("refused (%d): %s", rep.Type&^repErrorBit, data)
		case rep.Type == repInfo && len(data) >= 12 && binary.BigEndian.Uint16(data) == 0:
			n.size = binary.BigEndian.Uint64(data[2:])
		case rep.Type == repAck:
			return nil
		}
	}
}

// receive matches answers to calls until the connection ends.
func (n *nbdConn) receive(r io.Reader) {
	var head [16]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			n.fail(err)
			return
		}
		if binary.BigEndian.Uint32(head[:]) != magicAnswer {
			n.fail(fmt.Errorf("bad reply magic"))
			return
		}
		code, cookie := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:])
		n.mu.Lock()
		c := n.pending[cookie]
		delete(n.pending, cookie)
		n.mu.Unlock()
		if c == nil {
			n.fail(fmt.Errorf("a reply to no request (cookie %d): answered twice?", cookie))
			return
		}
		if code != 0 {
			if err := syscall.Errno(code); err == syscall.ESHUTDOWN { // so a server says goodbye: other connections may serve
				c.done <- fmt.Errorf("%w: the server answered %w", errLost, err)
			} else {
				c.done <- fmt.Errorf("the server answered %w", err)
			}
			continue
		}
		if _, err := io.ReadFull(r, c.into); err != nil {
			c.done <- fmt.Errorf("%w: %v", errLost, err)
			n.fail(err)
			return
		}
		c.done <- nil
	}
}

// fail ends the connection and every call that waits on it.
func (n *nbdConn) fail(err error) {
	n.c.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost == nil {
		n.lost = fmt.Errorf("%w: %v", errLost, err)
	}
	for cookie, c := range n.pending {
		delete(n.pending, cookie)
		c.done <- n.lost
	}
}

// do sends one request and waits for its answer.
func (n *nbdConn) do(cmd uint16, offset uint64, payload, into []byte, length uint32) error {
	c := &call{into: into, done: make(chan error, 1)}
	n.mu.Lock()
	if n.lost != nil {
		defer n.mu.Unlock()
		return n.lost
	}
	n.next++
	n.pending[n.next] = c
	msg := make([]byte, 0, 28+len(payload))
	msg = binary.BigEndian.AppendUint32(msg, magicRequest)
	msg = binary.BigEndian.AppendUint16(msg, 0)
	msg = binary.BigEndian.AppendUint16(msg, cmd)
	msg = binary.BigEndian.AppendUint64(msg, n.next)
	msg = binary.BigEndian.AppendUint64(msg, offset)
	msg = binary.BigEndian.AppendUint32(msg, length)
	_, err := n.c.Write(append(msg, payload...))
	n.mu.Unlock()
	if err != nil {
		n.fail(err)
	}
	return <-c.done
}

func (n *nbdConn) read(off uint64, into []byte) error {
	return n.do(cmdRead, off, nil, into, uint32(len(into)))
}
func (n *nbdConn) write(off uint64, data []byte) error {
	return n.do(cmdWrite, off, data, nil, uint32(len(data)))
}
func (n *nbdConn) flush() error { return n.do(cmdFlush, 0, nil, nil, 0) }
