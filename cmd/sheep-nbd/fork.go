package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// A Go program cannot fork; --fork starts the program again, in a session of its own, with this variable set to the descriptor of a pipe, and
// waits until "ready" comes through it or the child has ended. Sockets from systemd keep their places before the pipe.
const (
	forkedVariable = "SHEEP_NBD_FORKED"
	readyWord      = "ready"
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
	sockets := passedSockets()
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%d", forkedVariable, firstPassed+len(sockets)))
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.ExtraFiles = append(sockets, w)
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

// firstPassed is the first descriptor that systemd passes (sd_listen_fds(3)), as Go does to a child.
const firstPassed = 3

// passedSockets are the sockets that systemd passed to this process.
func passedSockets() (list []*os.File) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		os.Unsetenv("LISTEN_FDS") // somebody else's
		return nil
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS")) // a bad number is for the child to complain of
	for fd := range n {
		list = append(list, os.NewFile(uintptr(firstPassed+fd), "socket from systemd"))
	}
	return list
}

// systemdListeners are the sockets that systemd passed to this process, or to the one that started it in the background.
func systemdListeners() ([]net.Listener, error) {
	if forked() && os.Getenv("LISTEN_FDS") != "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	return nbd.SystemdListeners()
}

// ready tells the service manager and the parent that clients can connect, and lets go of the parent's terminal.
func ready() error {
	notifySystemd("READY=1")
	if !forked() {
		return nil
	}
	fd, err := strconv.Atoi(os.Getenv(forkedVariable))
	if err != nil {
		return fmt.Errorf("%s is no descriptor: %w", forkedVariable, err)
	}
	pipe := os.NewFile(uintptr(fd), "pipe to the parent")
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
