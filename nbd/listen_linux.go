package nbd

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bindPrivately binds a socket that nobody but the owner can connect to: on Linux the file gets the mode that the descriptor has,
// so that there is no moment in which the umask decides.
func bindPrivately(path string) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		if e := rc.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// Whoever replaces a socket holds the lock for a moment. But anybody may take it who may read the directory: he must not keep a server from starting without a word.
const (
	lockTimeout = time.Second
	lockPause   = 10 * time.Millisecond
)

// lockDir takes the lock of a directory, which needs no file of its own.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockTimeout); ; time.Sleep(lockPause) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR && err != unix.EWOULDBLOCK || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s, which another process holds: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// listenFDsStart is the first descriptor that systemd passes (sd_listen_fds(3)).
const listenFDsStart = 3

// SystemdListeners returns the sockets that systemd passed to this process (LISTEN_PID, LISTEN_FDS), none if there are none. It
// clears the variables, so that child processes don't take them for theirs.
func SystemdListeners() ([]net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("LISTEN_FDS=%q is no number", fds)
	}
	var list []net.Listener
	for fd := listenFDsStart; fd < listenFDsStart+n; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "socket from systemd")
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			for _, l := range list {
				l.Close()
			}
			return nil, fmt.Errorf("socket %d from systemd: %w", fd, err)
		}
		list = append(list, l)
	}
	return list, nil
}
