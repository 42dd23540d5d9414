package certs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// DefaultDir is where servers look for their certificates.
const DefaultDir = "/etc/sheepdog/tls"

// Flags are the flags of a program that serves NBD by TCP. Unix sockets are guarded by their file modes and need none of this.
func Flags(prefix string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: prefix + "tls", Value: "off", Usage: "TLS for NBD clients by TCP: off, allow or require"},
		&cli.StringFlag{Name: prefix + "tls-dir", Value: DefaultDir, Usage: "`DIR` with ca-cert.pem, server-cert.pem and server-key.pem, as sheep tls init makes it"},
		&cli.BoolFlag{Name: prefix + "tls-verify", Usage: "let in only clients with a certificate that ca-cert.pem vouches for"},
		&cli.StringFlag{Name: prefix + "tls-access", Usage: "`FILE` that lists which client (by the name in its certificate) may open which exports; read again when it changes"},
		&cli.BoolFlag{Name: prefix + "insecure", Usage: "serve clients without TLS also at addresses that other machines reach"},
	}
}

// Security is what these flags ask for.
type Security struct {
	Mode     nbd.TLSMode
	Insecure bool
	dir      string
	verify   bool
	access   string // the list's file
	limited  bool   // there is one
	prefix   string
}

// FromFlags reads the flags. Errors of wording wrap ErrUsage.
func FromFlags(c *cli.Context, prefix string) (*Security, error) {
	s := &Security{dir: c.String(prefix + "tls-dir"), verify: c.Bool(prefix + "tls-verify"), Insecure: c.Bool(prefix + "insecure"), prefix: prefix}
	switch mode := c.String(prefix + "tls"); mode {
	case "off":
		s.Mode = nbd.TLSOff
	case "allow":
		s.Mode = nbd.TLSAllowed
	case "require":
		s.Mode = nbd.TLSRequired
	default:
		return nil, fmt.Errorf("%w --%stls '%s': use off, allow or require", ErrUsage, prefix, mode)
	}
	if s.Mode == nbd.TLSOff {
		for _, name := range []string{"tls-dir", "tls-verify", "tls-access"} {
			if c.IsSet(prefix + name) {
				return nil, fmt.Errorf("%w --%s%s: it goes with --%[2]stls allow or require", ErrUsage, prefix, name)
			}
		}
	}
	if c.IsSet(prefix + "tls-access") { // also where it is empty: whoever says it wants access to be limited
		s.access, s.limited = c.String(prefix+"tls-access"), true
		if _, err := s.readAccess(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Security) readAccess() (*Access, error) {
	access, err := ReadAccess(s.access)
	if err != nil {
		return nil, err
	}
	if name := access.named(); name != "" && !s.verify {
		return nil, fmt.Errorf("%w --%stls-access: it names %s, and without --%[2]stls-verify nobody's certificate is asked for", ErrUsage, s.prefix, name)
	}
	return access, nil
}

// ErrUsage begins the text of errors in the wording of flags.
var ErrUsage = errors.New("Invalid")

// Check refuses an address that other machines reach, unless there is TLS or somebody said that it may be.
func (s *Security) Check(ctx context.Context, address string) error {
	if s.Mode == nbd.TLSRequired || s.Insecure {
		return nil
	}
	local, err := loopback(ctx, address)
	if err != nil {
		return fmt.Errorf("%w NBD address '%s': %w", ErrUsage, address, err)
	}
	if local {
		return nil
	}
	return fmt.Errorf("%w NBD address '%s': other machines reach it, and could read and write every disk without TLS; say --%stls require "+
		"(sheep tls init makes what that needs), or --%[3]sinsecure if that is meant", ErrUsage, address, s.prefix)
}

// loopback says whether an address is this machine's alone: all that its name stands for must be.
func loopback(ctx context.Context, address string) (bool, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.Trim(address, "[]")
	}
	if host == "" {
		return false, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for _, ip := range ips {
		if !ip.Unmap().IsLoopback() {
			return false, nil
		}
	}
	return len(ips) > 0, err
}

// Apply completes the configuration of the server behind TCP listeners. Certificates and the list of who may open what are read again when they change; who is
// connected stays.
func (s *Security) Apply(cfg nbd.Config, log *slog.Logger) (nbd.Config, error) {
	cfg.TLSMode = s.Mode
	if s.Mode != nbd.TLSOff {
		t, err := ServerConfig(s.dir, s.verify, log)
		if err != nil {
			return cfg, err
		}
		cfg.TLS = t
	}
	if s.limited {
		l, err := newLatest("list of who may open what", []string{s.access}, log, s.readAccess)
		if err != nil {
			return cfg, err
		}
		cfg.Authorize = func(p nbd.Peer, export string) error { return l.now().authorize(p, export) }
	}
	return cfg, nil
}
