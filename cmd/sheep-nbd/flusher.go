package main

import (
	"log/slog"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// becomeFlusher tells the kernel that block I/O goes through this process (prctl(2), PR_SET_IO_FLUSHER): when it needs memory, the kernel must not get
// that by waiting for writes to the very device that waits for us. The mark is a thread's own, and is inherited by threads and programs that it starts;
// the Go runtime has several threads by now, so the program starts itself once more, in the same process. Without the right to do so it goes on unmarked.
func becomeFlusher(log *slog.Logger) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if on, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || on == 1 {
		return
	}
	exe, err := os.Executable()
	if err == nil {
		err = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
	}
	if err == nil {
		err = syscall.Exec(exe, os.Args, os.Environ())
	}
	log.Warn("not marked as the one through whom a disk's I/O goes: under a shortage of memory the device may hang", "err", err)
}
