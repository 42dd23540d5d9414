package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// sectorBytes is the kernel device's block size: what partition tables count in.
const sectorBytes = 512

// openAgain is how often a VDI that somebody else holds is tried again: the one before us may have died a moment ago, and its session lives on for a
// few seconds.
const openAgain = 500 * time.Millisecond

// attach makes a kernel block device of a VDI: it serves NBD to itself over socket pairs, and hands the other ends to the kernel.
//
//	/dev/nbdN ── kernel ── socket pair ── nbd.Server (this process) ── cluster
//
// The device outlives this process: if it ends without having been told to detach (-d, or Ctrl-C here), requests wait in the kernel until another
// sheep-nbd -c takes the device over, or --dead-timeout has passed.
type attachment struct {
	o      *options
	index  uint32
	server *nbd.Server
	pipes  *pairListener
}

// attachDevice runs until the device is detached or a signal ends the process.
func attachDevice(ctx context.Context, o *options, server *nbd.Server, backend *counted) error {
	index, err := deviceIndex(o.attach)
	if err != nil {
		return err
	}
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.close()
	a := &attachment{o: o, index: index, server: server, pipes: newPairListener()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(a.pipes) }()
	if err := a.hand(ctx, k); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, syscall.SIGINT)
	defer signal.Stop(interrupt)
	select {
	case <-backend.left: // detached
		return nil
	case err := <-served:
		return err
	case <-interrupt: // somebody at a terminal: leave nothing behind
	case <-ctx.Done():
		select {
		case <-interrupt:
		case <-time.After(100 * time.Millisecond): // SIGTERM: the device waits for our successor
			return nil
		}
	}
	if err := k.disconnect(index); err != nil {
		return fmt.Errorf("detach %s: %w", o.attach, err)
	}
	select {
	case <-backend.left:
	case <-time.After(stopTimeout):
	}
	return nil
}

// hand opens the connections and gives them to the kernel.
func (a *attachment) hand(ctx context.Context, k *kernel) error {
	d := &device{index: a.index, backend: "sheepdog:" + a.o.target, deadTimeout: uint64(a.o.deadTimeout.Seconds())}
	var ends []*os.File
	defer func() {
		for _, f := range ends {
			f.Close() // the kernel has its own reference
		}
	}()
	for range a.o.connections {
		f, size, flags, err := a.connect(ctx)
		if err != nil {
			return err
		}
		ends = append(ends, f)
		d.sockets = append(d.sockets, int(f.Fd()))
		d.size, d.flags = size, uint64(flags)
	}
	err := k.connect(d)
	if errors.Is(err, unix.EBUSY) && sameBackend(a.index, d.backend) {
		err = k.reconfigure(d)
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("attach %s: it is in use for %s; `sheep-nbd -d %s` detaches it", a.o.attach, backendOf(a.index), a.o.attach)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.o.attach, err)
	}
	return nil
}

// connect makes one connection to our own server, past its handshake. The VDI may be held by our predecessor still: then it is tried again.
func (a *attachment) connect(ctx context.Context) (end *os.File, size uint64, flags uint16, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.o.connect)
	defer cancel()
	for {
		conn, f, err := a.pipes.dial()
		if err != nil {
			return nil, 0, 0, err
		}
		size, flags, err = handshake(conn, a.exportName())
		conn.Close() // f is the same socket
		if err == nil {
			return f, size, flags, nil
		}
		f.Close()
		if !errors.Is(err, errPolicy) {
			return nil, 0, 0, err
		}
		select {
		case <-time.After(openAgain):
		case <-ctx.Done():
			return nil, 0, 0, fmt.Errorf("open VDI %s: %w", a.o.target, err)
		}
	}
}

func (a *attachment) exportName() string {
	if a.o.export != "" {
		return a.o.export
	}
	return a.o.target
}

// detachDevice is -d.
func detachDevice(path string) error {
	index, err := deviceIndex(path)
	if err != nil {
		return err
	}
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.disconnect(index); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("detach %s: it is not attached", path)
		}
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}

// backendOf is what a device is attached to, as its owner called it.
func backendOf(index uint32) string {
	b, err := os.ReadFile(filepath.Join("/sys/block", fmt.Sprintf("nbd%d", index), "backend"))
	if err != nil {
		return "something else"
	}
	return strings.TrimSpace(string(b))
}

func sameBackend(index uint32, backend string) bool { return backendOf(index) == backend }

// pairListener is a listener whose connections are socket pairs within this process.
type pairListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPairListener() *pairListener {
	return &pairListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// dial makes a connection: its end of ours twice, as a net.Conn and as a file of the same socket.
func (l *pairListener) dial() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "nbd device"), os.NewFile(uintptr(fds[1]), "nbd server")
	defer theirs.Close()
	server, err := net.FileConn(theirs)
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	client, err := net.FileConn(ours)
	if err == nil {
		select {
		case l.conns <- server:
			return client, ours, nil
		case <-l.done:
			err = net.ErrClosed
			client.Close()
		}
	}
	ours.Close()
	server.Close()
	return nil, nil, err
}

func (l *pairListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pairListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pairListener) Addr() net.Addr { return &net.UnixAddr{Name: "socket pair", Net: "unix"} }
