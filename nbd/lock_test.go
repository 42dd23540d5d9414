package nbd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAnybodyHoldsUpAServer: whoever may read the socket's directory (/run, /tmp, /run/sheepdog are 0755 or more) may take its flock, and a starting server waits for that without end and without a word.
func TestAnybodyHoldsUpAServer(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir) // read-only: no right to write is needed
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		l, err := ListenUnix(UnixSocket{Path: filepath.Join(dir, "s")})
		if err == nil {
			l.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("the error does not say what is locked: %v", err)
		}
	case <-time.After(20 * lockTimeout):
		t.Error("ListenUnix waits for a lock that a stranger holds")
	}
	f.Close()
}
