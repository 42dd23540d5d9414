package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/certs"
	"github.com/sheepdog-go/sheepdog/nbd"
)

// nbdServers are a node's two ways to the same exports: TCP, with TLS and the list of who may open what as the flags say, and unix sockets, which
// their file modes guard.
type nbdServers struct {
	tcp, local *nbd.Server
	tls        *tls.Config // of tcp; nil without
}

func newNBDServers(o *nodeOptions, cfg nbd.Config, b nbd.Backend) (s nbdServers, err error) {
	var local, tcp atomic.Bool
	if s.local, err = nbd.NewServer(besides(cfg, &local, &tcp), b); err != nil {
		return s, err
	}
	if cfg, err = o.security.Apply(cfg, cfg.Logger); err != nil {
		return s, err
	}
	s.tls = cfg.TLS
	s.tcp, err = nbd.NewServer(besides(cfg, &tcp, &local), b)
	return s, err
}

// besides is the configuration of a server that notes in asked that its clients asked for something, and is not Quiet when the other's did.
func besides(cfg nbd.Config, asked, other *atomic.Bool) nbd.Config {
	observe, quiet := cfg.Observe, cfg.Quiet
	cfg.Observe = func(op nbd.Op, length uint64, took time.Duration, code uint32) {
		if !asked.Load() {
			asked.Store(true)
		}
		observe(op, length, took, code)
	}
	cfg.Quiet = func() bool {
		return quiet() && (!other.Load() || !other.Swap(false))
	}
	return cfg
}

// metrics are those that only a node with TLS has.
func (s nbdServers) metrics() []admin.Metrics {
	if s.tls == nil {
		return nil
	}
	return []admin.Metrics{admin.CertificateExpiry(func() time.Time { return certs.NotAfter(s.tls) })}
}

// behind is the server for a listener.
func (s nbdServers) behind(l net.Listener) *nbd.Server {
	if l.Addr().Network() == "unix" {
		return s.local
	}
	return s.tcp
}

// Shutdown drains both.
func (s nbdServers) Shutdown(ctx context.Context) error {
	local := make(chan error, 1)
	go func() { local <- s.local.Shutdown(ctx) }()
	return errors.Join(s.tcp.Shutdown(ctx), <-local)
}

// listenNBD opens the ports for NBD clients: those that systemd passed, or else those that the flags name.
func (o *nodeOptions) listenNBD(ctx context.Context) (list []net.Listener, err error) {
	if _, err := o.security.Apply(nbd.Config{}, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err // before the node joins
	}
	list, err = nbd.SystemdListeners()
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		return list, o.checkPassed(ctx, list)
	}
	if o.nbd != "" {
		l, err := net.Listen("tcp", o.nbd)
		if err != nil {
			return nil, fmt.Errorf("listen for NBD clients on %s: %w", o.nbd, rootCause(err))
		}
		list = append(list, l)
	}
	if o.nbdSocket.Path != "" {
		dir, mode := filepath.Dir(o.nbdSocket.Path), fs.FileMode(0o755) // the socket has a mode of its own
		if dir == filepath.Clean(o.dirs[0]) {
			mode = 0o700 // this one is the node's
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			closeAll(list)
			return nil, err
		}
		l, err := nbd.ListenUnix(o.nbdSocket)
		if err != nil {
			closeAll(list)
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

// checkPassed refuses ports from systemd that the flags would not open.
func (o *nodeOptions) checkPassed(ctx context.Context, list []net.Listener) error {
	for _, l := range list {
		if l.Addr().Network() == "unix" {
			continue
		}
		if err := o.security.Check(ctx, l.Addr().String()); err != nil {
			closeAll(list)
			return fmt.Errorf("socket from systemd: %w", err)
		}
	}
	return nil
}

func closeAll(list []net.Listener) {
	for _, l := range list {
		l.Close()
	}
}
