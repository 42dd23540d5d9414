package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Go program cannot fork; --fork starts the program again, in a session of its own, with this variable set and a pipe as descriptor 3, and
// waits until "ready" comes through it or the child has ended.
const (
	forkedVariable  = "SHEEP_NBD_FORKED"
	readyDescriptor = 3
	readyWord       = "ready"
)

func forked() bool { return os.Getenv(forkedVariable) != "" }

// forkAndWait is what the parent does.
func forkAndWait(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program to start it in the background: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe to the background process: %w", err)
	}
	defer r.Close()
	child := exec.Command(exe, os.Args[1:]...)
	child.Args[0] = os.Args[0] // systemd spares, at the very end, who calls itself @...
	child.Env = append(slices.Clone(os.Environ()), forkedVariable+"=1")
	child.Stderr = os.Stderr
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start the background process: %w", err)
	}
	w.Close()
	stop := context.AfterFunc(ctx, func() { child.Process.Signal(unix.SIGTERM) })
	defer stop()
	said, _ := io.ReadAll(io.LimitReader(r, int64(len(readyWord))))
	if string(said) == readyWord {
		return child.Process.Release()
	}
	var exit *exec.ExitError
	if err := child.Wait(); errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode()) // it has said why
	}
	return errors.New("the background process ended before clients could connect")
}

// ready tells the service manager and the parent that clients can connect, and lets go of the parent's terminal.
func ready() error {
	notifySystemd("READY=1")
	if !forked() {
		return nil
	}
	pipe := os.NewFile(readyDescriptor, "pipe to the parent")
	if _, err := pipe.WriteString(readyWord); err != nil {
		return fmt.Errorf("tell the parent process: %w", err)
	}
	pipe.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("let go of the terminal: %w", err)
		}
	}
	return nil
}
