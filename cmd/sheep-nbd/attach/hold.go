package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// holdDir has a file for each device that was ever served here. The process that serves it holds the file's lock, which ends with the process, however
// that ends. The file says in words who that is.
const holdDir = "/run/sheep-nbd"

// holder is the right to serve a device.
type holder struct{ f *os.File }

// hold takes the right.
func hold(dir string, index int, what string) (*holder, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("take %s: %w", DeviceName(index), err)
	}
	f, err := os.OpenFile(holdFile(dir, index), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("take %s: %w", DeviceName(index), err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		said, _ := os.ReadFile(f.Name())
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("take %s: it is served already, by %s", DeviceName(index), strings.TrimSpace(string(said)))
		}
		return nil, fmt.Errorf("take %s: lock %s: %w", DeviceName(index), f.Name(), err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "process %d for %s\n", os.Getpid(), what) // for people
	}
	return &holder{f}, nil
}

func holdFile(dir string, index int) string {
	return filepath.Join(dir, fmt.Sprintf("nbd%d.lock", index))
}

// release gives the right back. The file stays: removing it would race with the next one's lock.
func (h *holder) release() { h.f.Close() }

// Served says whether a process serves the device now.
func Served(index int) bool { return served(holdDir, index) }

func served(dir string, index int) bool {
	f, err := os.Open(holdFile(dir, index))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}
