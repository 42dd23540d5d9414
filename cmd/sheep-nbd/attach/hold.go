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
// that ends. The file says in words who that is, and keeps for its successor what the kernel does not tell:
//
//	process 4711 for sheepdog:.../disk
//	connections 4
//
// It is in /run, so it lives no longer than the kernel that has the device.
const holdDir = "/run/sheep-nbd"

// holder is the right to serve a device.
type holder struct {
	f *os.File

	connections int // that the device was made with; 0: not known
}

// hold takes the right.
func hold(dir string, index int) (*holder, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("take %s: %w", DeviceName(index), err)
	}
	f, err := os.OpenFile(holdFile(dir, index), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("take %s: %w", DeviceName(index), err)
	}
	who, connections := readHold(dir, index)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			if who == "" {
				who = "a process that has only just begun"
			}
			return nil, fmt.Errorf("take %s: it is served already, by %s", DeviceName(index), who)
		}
		return nil, fmt.Errorf("take %s: lock %s: %w", DeviceName(index), f.Name(), err)
	}
	return &holder{f, connections}, nil
}

// write says who serves the device, and how.
func (h *holder) write(what string, connections int) error {
	text := fmt.Sprintf("process %d for %s\nconnections %d\n", os.Getpid(), what, connections)
	if err := h.f.Truncate(0); err != nil {
		return fmt.Errorf("write %s: %w", h.f.Name(), err)
	}
	if _, err := h.f.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("write %s: %w", h.f.Name(), err)
	}
	return nil
}

func readHold(dir string, index int) (who string, connections int) {
	b, err := os.ReadFile(holdFile(dir, index))
	if err != nil {
		return "", 0
	}
	who, rest, _ := strings.Cut(string(b), "\n")
	if _, err := fmt.Sscanf(rest, "connections %d", &connections); err != nil || connections < 1 || connections > connectionsMax {
		connections = 0
	}
	return who, connections
}

func holdFile(dir string, index int) string {
	return filepath.Join(dir, fmt.Sprintf("nbd%d.lock", index))
}

// release gives the right back. The file stays: removing it would race with the next one's lock.
func (h *holder) release() { h.f.Close() }

// Served says whether a process serves the device now, and by how many connections (0: not known).
func Served(index int) (bool, int) { return served(holdDir, index) }

func served(dir string, index int) (bool, int) {
	f, err := os.Open(holdFile(dir, index))
	if err != nil {
		return false, 0
	}
	defer f.Close()
	_, connections := readHold(dir, index)
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK), connections
}
