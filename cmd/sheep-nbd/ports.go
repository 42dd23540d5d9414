package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/certs"
	"github.com/sheepdog-go/sheepdog/nbd"
)

// parseSecurity checks the flags about TLS.
func parseSecurity(c *cli.Context, o *options) (err error) {
	o.security, err = certs.FromFlags(c, "")
	if err == nil && o.socket.Path == "" && !o.device.wanted {
		err = o.security.Check(c.Context, o.bind)
	}
	if err == nil && (o.socket.Path != "" || o.device.wanted) && (o.security.Mode != nbd.TLSOff || o.security.Insecure) {
		return usageError{errors.New("TLS is for -b HOST: a unix socket is guarded by its mode")}
	}
	if errors.Is(err, certs.ErrUsage) {
		return usageError{err}
	}
	return err
}

// ports are the listeners, each with the server behind it: one for TCP, with TLS as the flags say, and one for unix sockets, which their modes guard.
type ports struct {
	list       []net.Listener
	tcp, local *nbd.Server
}

// openPorts opens the sockets that systemd passed, or else the one that the flags ask for.
func openPorts(ctx context.Context, o *options, b nbd.Backend, log *slog.Logger) (*ports, error) {
	cfg := nbd.Config{Logger: log, QuietDrain: true, HandshakeTimeout: o.shaking}
	local, err := nbd.NewServer(cfg, b)
	if err != nil {
		return nil, err
	}
	if cfg, err = o.security.Apply(cfg, log); err != nil {
		return nil, err
	}
	tcp, err := nbd.NewServer(cfg, b)
	if err != nil {
		return nil, err
	}
	p := &ports{tcp: tcp, local: local}
	if p.list, err = systemdListeners(); err != nil {
		return nil, err
	}
	for _, l := range p.list {
		if l.Addr().Network() == "unix" {
			continue
		}
		if err := o.security.Check(ctx, l.Addr().String()); err != nil {
			p.close()
			return nil, fmt.Errorf("socket from systemd: %w", err)
		}
	}
	if len(p.list) > 0 {
		return p, nil
	}
	l, err := listen(o)
	if err != nil {
		return nil, err
	}
	p.list = []net.Listener{l}
	return p, nil
}

// listen opens the socket that the flags ask for.
func listen(o *options) (net.Listener, error) {
	if o.socket.Path != "" {
		return nbd.ListenUnix(o.socket)
	}
	l, err := net.Listen("tcp", o.bind)
	if err != nil {
		return nil, fmt.Errorf("listen for NBD clients: %w", err)
	}
	return l, nil
}

func (p *ports) close() {
	for _, l := range p.list {
		l.Close()
	}
}

// serve serves all of them; the first that ends is told.
func (p *ports) serve() <-chan error {
	served := make(chan error, len(p.list))
	for _, l := range p.list {
		server := p.tcp
		if l.Addr().Network() == "unix" {
			server = p.local
		}
		go func() { served <- server.Serve(l) }()
	}
	return served
}

// shutdown drains.
func (p *ports) shutdown(ctx context.Context) error {
	local := make(chan error, 1)
	go func() { local <- p.local.Shutdown(ctx) }()
	return errors.Join(p.tcp.Shutdown(ctx), <-local)
}
