package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/vdi"
)

// stopTimeout bounds the end: answers under way, the last flush, giving the VDI back.
const stopTimeout = 20 * time.Second

// serve runs until the last client leaves, or a signal ends it.
func serve(ctx context.Context, o *options) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return usageError{fmt.Errorf("invalid log level '%s': use debug, info, warn or error", o.level)}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if o.device.wanted {
		return serveDevice(ctx, o, log)
	}
	disks, err := connect(ctx, o, log)
	if err != nil {
		return err
	}
	defer disks.close()
	backend := newCounted(vdi.NewBackend(disks.client, vdi.BackendOptions{ReadOnly: o.readOnly, Only: o.target, As: o.export, Description: o.describe}), o.clients)
	p, err := openPorts(ctx, o, backend, log)
	if err != nil {
		return err
	}
	removePid, err := writePid(o.pidFile)
	if err != nil {
		p.close()
		return err
	}
	defer removePid()
	served := p.serve()
	if err := ready(); err != nil {
		return err
	}
	err = until(ctx, o, backend, served)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(err, p.shutdown(end))
}

// until waits for what ends it: a signal, a broken listener, or the last client's leaving.
func until(ctx context.Context, o *options, backend *counted, served <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return err
		case <-backend.left:
			if !o.stay {
				return nil
			}
		}
	}
}

// disks is the cluster as this program sees it.
type disks struct {
	watcher *client.Watcher
	client  *client.Client
	vdi     *state.VDI // what the target names, as it was found
}

func (d *disks) close() {
	d.client.Close()
	d.watcher.Close()
}

// connect finds the cluster and the VDI in it.
func connect(ctx context.Context, o *options, log *slog.Logger) (*disks, error) {
	host, _ := os.Hostname()
	owner := fmt.Sprintf("sheep-nbd %d on %s", os.Getpid(), host)
	id := fmt.Sprintf("sheep-nbd-%d-%x", os.Getpid(), time.Now().UnixNano())
	wait, cancel := context.WithTimeoutCause(ctx, o.connect, fmt.Errorf("none within %v; is a sheep daemon running there? Name others with -a", o.connect))
	defer cancel()
	w, err := client.Watch(wait, client.WatchConfig{Nodes: o.nodes, Net: wire.TCP{}, ID: id, Logger: log})
	if err != nil {
		return nil, connectError{err}
	}
	c, err := client.New(client.Config{Maps: w, Net: wire.TCP{}, Propose: w.Propose, Latest: w.Latest, ID: id, Owner: owner, Logger: log})
	if err != nil {
		w.Close()
		return nil, err
	}
	name, snap := vdi.SplitName(o.target)
	v, m, err := c.Lookup(ctx, name, snap)
	d := &disks{w, c, v}
	if err != nil {
		d.close()
		if !m.Formatted() {
			err = state.ErrUnformatted
		}
		return nil, fmt.Errorf("open VDI %s: %w", o.target, err)
	}
	return d, nil
}

// writePid writes the process id, whole or not at all, and returns what removes it. The file of a process that lives is refused: it holds the file's lock.
func writePid(file string) (remove func(), err error) {
	if file == "" {
		return func() {}, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the pid file: %w", err)
		}
	}()
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for tries := 100; ; tries-- { // two that start must not both take it; each has the lock for a moment
		if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || tries == 0 {
			return nil, fmt.Errorf("lock %s, which another process holds: %w", dir.Name(), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := checkPid(file); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return nil, err
	}
	tmp := f.Name()
	if err = f.Chmod(0o644); err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		f.Close()
		os.Remove(tmp)
		return nil, err
	}
	return func() {
		mine, err := f.Stat()
		if now, e := os.Lstat(file); err == nil && e == nil && os.SameFile(mine, now) {
			os.Remove(file)
		}
		f.Close()
	}, nil
}

// checkPid refuses the pid file of a process that lives, and what is no file.
func checkPid(file string) error {
	st, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		return fmt.Errorf("%s is that of process %s, which runs", file, bytes.TrimSpace(pid))
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", file, err)
	}
	return nil
}
