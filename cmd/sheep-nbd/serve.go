package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

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
	d := &disks{w, c}
	name, snap := vdi.SplitName(o.target)
	if _, m, err := c.Lookup(ctx, name, snap); err != nil {
		d.close()
		if !m.Formatted() {
			err = state.ErrUnformatted
		}
		return nil, fmt.Errorf("open VDI %s: %w", o.target, err)
	}
	return d, nil
}

// writePid writes the process id, whole or not at all, and returns what removes it.
func writePid(file string) (remove func(), err error) {
	if file == "" {
		return func() {}, nil
	}
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".new")
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("write the pid file: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		os.Remove(tmp)
		return nil, fmt.Errorf("write the pid file: %w", err)
	}
	return func() { os.Remove(file) }, nil
}
