package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// UnixSocket says how a unix socket is made.
type UnixSocket struct {
	Path string
	Mode fs.FileMode // default 0600
	UID  int         // owner; -1 or 0 leaves it
	GID  int         // group; -1 or 0 leaves it
}

// pathMax is how long the path of a unix socket may be, in bytes (unix(7): sun_path, and the NUL at its end).
const pathMax = 107

// ListenUnix listens on a unix socket. A socket file that a dead process left behind is replaced; one that somebody listens on is
// refused, and so is anything that is no socket. Nobody whom Mode excludes can connect at any moment (on Linux; elsewhere the umask counts until the
// mode is set). Closing the listener removes the file, if it is still the same one.
func ListenUnix(u UnixSocket) (net.Listener, error) {
	if u.Mode == 0 {
		u.Mode = 0o600
	}
	if len(u.Path) > pathMax {
		return nil, fmt.Errorf("listen on %s: a path of %d bytes, and a unix socket's may have %d", u.Path, len(u.Path), pathMax)
	}
	if strings.HasPrefix(u.Path, "@") {
		u.Path = "./" + u.Path // package net takes it for a name of the abstract namespace
	}
	unlock, err := lockDir(filepath.Dir(u.Path))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", u.Path, err)
	}
	defer unlock() // two starting servers must not remove each other's new socket
	if err := removeStale(u.Path); err != nil {
		return nil, err
	}
	old, err := bindPrivately(u.Path)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err // it says the path, too
		}
		return nil, fmt.Errorf("listen on %s: %w", u.Path, err)
	}
	l := &unixListener{UnixListener: old, path: u.Path}
	l.SetUnlinkOnClose(false)
	if l.file, err = os.Lstat(u.Path); err == nil {
		err = own(u)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", u.Path, err)
	}
	return l, nil
}

func own(u UnixSocket) error {
	if u.UID > 0 || u.GID > 0 {
		uid, gid := -1, -1
		if u.UID > 0 {
			uid = u.UID
		}
		if u.GID > 0 {
			gid = u.GID
		}
		if err := os.Chown(u.Path, uid, gid); err != nil {
			return err
		}
	}
	return os.Chmod(u.Path, u.Mode)
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("listen on %s: a file that is no socket is in the way: %w", path, fs.ErrExist)
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("listen on %s: another server is listening there: %w", path, syscall.EADDRINUSE)
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the stale socket: %w", err)
		}
		return nil
	}
	return fmt.Errorf("listen on %s: cannot tell whether the socket there is in use: %w", path, err)
}

// unixListener removes its own file, and nobody else's.
type unixListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
	once sync.Once
}

func (l *unixListener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && l.file != nil && os.SameFile(now, l.file) {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}
