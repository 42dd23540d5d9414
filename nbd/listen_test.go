package nbd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 12, 34
	}
	l, err := ListenUnix(UnixSocket{Path: path, Mode: 0o660, UID: uid, GID: gid})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	} else if of := st.Sys().(*syscall.Stat_t); int(of.Uid) != uid || int(of.Gid) != gid {
		t.Errorf("owner %d:%d, wanted %d:%d", of.Uid, of.Gid, uid, gid)
	}
	if _, err := ListenUnix(UnixSocket{Path: path}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
		t.Errorf("a live socket: %v", err)
	}
	if _, err := net.Dial("unix", path); err != nil {
		t.Errorf("and now it is dead: %v", err)
	}
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket outlives its listener: %v", err)
	}
	if err := l.Close(); err == nil {
		t.Log("closed twice without an error")
	}
}

func TestListenUnixReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close() // like a process that was killed
	l, err := ListenUnix(UnixSocket{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	// Somebody replaces the file: closing must not remove theirs.
	os.Remove(path)
	other, err := ListenUnix(UnixSocket{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("closing a listener removed another's socket: %v", err)
	} else {
		c.Close()
	}
}

func TestListenUnixLeavesOtherFilesAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "data")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(UnixSocket{Path: path}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file in the way: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file is gone")
	}
	for _, bad := range []string{filepath.Join(dir, "none", "s"), filepath.Join(dir, strings.Repeat("long", 40))} {
		if _, err := ListenUnix(UnixSocket{Path: bad}); err == nil {
			t.Errorf("%s works", bad)
		}
	}
}

// TestListenUnixPath: what is too long is said to be, and a name that begins with @ is a file like any other.
func TestListenUnixPath(t *testing.T) {
	t.Chdir(t.TempDir())
	long := strings.Repeat("x", pathMax+1)
	if _, err := ListenUnix(UnixSocket{Path: long}); err == nil || !strings.Contains(err.Error(), "a path of 108 bytes") {
		t.Errorf("a long path: %v", err)
	}
	l, err := ListenUnix(UnixSocket{Path: long[1:]})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if l, err = ListenUnix(UnixSocket{Path: "@s"}); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("unix", "./@s"); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	l.Close()
	if _, err := os.Stat("./@s"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket outlives its listener: %v", err)
	}
}

func TestSystemdListeners(t *testing.T) {
	if l, err := SystemdListeners(); len(l) != 0 || err != nil {
		t.Errorf("without systemd: %v, %v", l, err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), "NBD_TEST_SERVE=systemd")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}()
	out := tool(t, "nbdinfo", "--size", "nbd+unix:///?socket="+path)
	if strings.TrimSpace(out) != "268435456" {
		t.Errorf("size %s", out)
	}
}
