package nbd

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newTransport chooses the fast way where the connection is a socket of the kernel.
func newTransport(nc net.Conn) transport {
	switch s := nc.(type) {
	case *net.TCPConn:
		if rc, err := s.SyscallConn(); err == nil {
			return newSocketTransport(nc, rc)
		}
	case *net.UnixConn:
		if rc, err := s.SyscallConn(); err == nil {
			return newSocketTransport(nc, rc)
		}
	}
	return newPlainTransport(nc)
}

// iovMax is the kernel's limit for one writev (UIO_MAXIOV).
const iovMax = 1024

// socketTransport reads and writes the socket's descriptor itself: one system call takes what has arrived, another sends
// many replies from where they lie, and a full socket is noticed instead of waited for. The callbacks are kept as
// values because a fresh closure for each call would be an allocation.
type socketTransport struct {
	nc net.Conn
	rc syscall.RawConn

	onRead, onTryRead func(fd uintptr) bool // the reader's
	in                intake
	while             time.Duration
	riov              [2]unix.Iovec
	rn                int
	rerr              error

	onTry, onWrite func(fd uintptr) bool // the writer's, whoever it is
	onAsk          func(fd uintptr)
	iov            []unix.Iovec
	wn             int
	werr           error
	unread         int32 // bytes
}

func newSocketTransport(nc net.Conn, rc syscall.RawConn) *socketTransport {
	t := &socketTransport{nc: nc, rc: rc}
	t.onRead, t.onTryRead = t.readable, t.tryReadable
	t.onTry = func(fd uintptr) bool { t.writev(fd); return true }
	t.onWrite = func(fd uintptr) bool { t.writev(fd); return t.werr != errAgain }
	t.onAsk = func(fd uintptr) {
		t.unread = 0
		_, _, _ = unix.RawSyscall(unix.SYS_IOCTL, fd, unix.TIOCINQ, uintptr(unsafe.Pointer(&t.unread)))
	}
	return t
}

func (t *socketTransport) read(in intake) (int, error) {
	t.in, t.rn, t.rerr = in, 0, nil
	if err := t.rc.Read(t.onRead); err != nil {
		return 0, err
	}
	return t.rn, t.rerr
}

func (t *socketTransport) tryRead(in intake, while time.Duration) (int, error) {
	t.in, t.rn, t.rerr, t.while = in, 0, nil, while
	if err := t.rc.Read(t.onTryRead); err != nil {
		return 0, err
	}
	return t.rn, t.rerr
}

// The descriptor never blocks, so its calls are raw: the scheduler need not know of them. (It would take the processor away from
// a goroutine that copies 128 KiB for longer than 20 µs.)

// Where nothing is there the reader sleeps, if it is not one that looks a few times more (spin.go). To yield (sched_yield) until more comes was tried: on two cores
// with anything else to do it cost a third of the speed of large writes and more, because the kernel takes the rest of the time slice.

func (t *socketTransport) readable(fd uintptr) bool {
	if t.readv(fd); t.rerr == errAgain {
		t.in.idle()
		return false
	}
	return true
}

func (t *socketTransport) tryReadable(fd uintptr) bool {
	if t.while == 0 {
		t.readv(fd)
		return true
	}
	next := spinLook
	for start := time.Now(); ; {
		d := time.Since(start)
		if d < next {
			continue
		}
		if t.readv(fd); t.rerr != errAgain || d >= t.while {
			return true
		}
		next = d + spinLook
	}
}

// readv reads once.
func (t *socketTransport) readv(fd uintptr) {
	a, b := t.in.space()
	for {
		var n uintptr
		var errno syscall.Errno
		if len(b) == 0 {
			n, _, errno = unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(a))), uintptr(len(a)))
		} else {
			t.riov[0].Base, t.riov[1].Base = unsafe.SliceData(a), unsafe.SliceData(b)
			t.riov[0].SetLen(len(a))
			t.riov[1].SetLen(len(b))
			n, _, errno = unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&t.riov)), 2)
		}
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			t.rerr = errAgain
		case errno != 0:
			t.rerr = os.NewSyscallError("read", errno)
		case n == 0:
			t.rerr = io.EOF
		default:
			t.rn, t.rerr = int(n), nil
		}
		return
	}
}

func (t *socketTransport) arrived() bool {
	return t.rc.Control(t.onAsk) == nil && t.unread > 0
}

func (t *socketTransport) left() (gone bool) {
	return t.rc.Control(func(fd uintptr) { gone = hungUp(fd) }) == nil && gone
}

// hungUp says whether the peer of a socket has ended its side: POLLRDHUP comes with the end of what it sent, before that was read.
func hungUp(fd uintptr) bool {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP}
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(new(unix.Timespec))), 0, 0, 0)
	return errno == 0 && p.Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

func peerLeft(nc net.Conn) (gone bool) {
	s, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := s.SyscallConn()
	return err == nil && rc.Control(func(fd uintptr) { gone = hungUp(fd) }) == nil && gone
}

func (t *socketTransport) tryWrite(bufs [][]byte) (int, error) {
	t.load(bufs)
	if err := t.rc.Write(t.onTry); err != nil {
		return 0, err
	}
	clear(t.iov)
	return t.wn, t.werr
}

func (t *socketTransport) write(bufs [][]byte) (int, error) {
	t.load(bufs)
	if err := t.rc.Write(t.onWrite); err != nil {
		return 0, err
	}
	clear(t.iov)
	return t.wn, t.werr
}

func (t *socketTransport) load(bufs [][]byte) {
	t.iov, t.wn, t.werr = t.iov[:0], 0, nil
	for _, b := range bufs {
		if len(t.iov) == iovMax {
			break
		}
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		t.iov = append(t.iov, v)
	}
}

func (t *socketTransport) writev(fd uintptr) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.iov))), uintptr(len(t.iov)))
		switch errno {
		case 0:
			t.wn, t.werr = int(n), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			t.werr = errAgain
		default:
			t.werr = os.NewSyscallError("writev", errno)
		}
		return
	}
}

func (t *socketTransport) setReadDeadline(at time.Time) error  { return t.nc.SetReadDeadline(at) }
func (t *socketTransport) setWriteDeadline(at time.Time) error { return t.nc.SetWriteDeadline(at) }
func (t *socketTransport) close() error                        { return t.nc.Close() }

// tune prepares a socket: no delays, room for a few large requests, and an end to peers that vanished.
func tune(nc net.Conn, buffer int, stall time.Duration) {
	switch s := nc.(type) {
	case *net.TCPConn:
		_ = s.SetNoDelay(true)
		_ = s.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: stall / 2, Interval: stall / 8, Count: 4})
		if rc, err := s.SyscallConn(); err == nil {
			_ = rc.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stall.Milliseconds()))
			})
		}
	case *net.UnixConn:
		if buffer > 0 {
			_ = s.SetReadBuffer(buffer)
			_ = s.SetWriteBuffer(buffer)
		}
	}
}
