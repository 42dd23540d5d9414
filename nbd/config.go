package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// TLSMode says what a server does about TLS; the names in the specification are NOTLS, SELECTIVETLS and FORCEDTLS.
type TLSMode int

const (
	TLSOff      TLSMode = iota // STARTTLS is refused
	TLSAllowed                 // clients choose; exports that are TLSOnly are hidden from those without
	TLSRequired                // nothing is answered before TLS
)

// Config is everything that can be set. The zero value is usable; a zero field means its default.
type Config struct {
	TLS     *tls.Config // needed unless TLSMode is TLSOff; ClientAuth and ClientCAs are honoured
	TLSMode TLSMode

	Logger *slog.Logger // default: silent

	// Authorize, if set, is asked before an export is listed, described or opened. An error hides the export from lists, and
	// answers requests for it (with fs.ErrPermission in the chain: "not allowed").
	Authorize func(peer Peer, export string) error

	HandshakeTimeout time.Duration // for all that a client has to send before transmission, TLS included; default 10 s
	OpenTimeout      time.Duration // for Backend.Open; default 30 s
	StallTimeout     time.Duration // a client that takes no reply, or stops in mid-request (or sends less than 256 KiB of a long one), for so long is cut off; default 2 min
	DrainTimeout     time.Duration // at Shutdown: how long a connection is still answered (with ESHUTDOWN); default 50 ms
	// QuietDrain has a connection end at Shutdown when what is in flight is answered: a request that comes later gets no answer instead of ESHUTDOWN. For servers
	// that come back, or have others beside them: QEMU and the kernel hand ESHUTDOWN on to the guest as an I/O error, a closed connection they replace.
	QuietDrain bool

	MaxHalfOpen  int   // connections in the handshake; beyond it the oldest one is closed; default 128
	MaxSessions  int   // connections in transmission; default 10000
	MaxOptions   int   // options in one handshake; default 128
	MaxRequests  int   // requests in flight on one connection; default 1024
	MaxPayload   int   // bytes of one read or write; a power of two from 32 MiB to 64 MiB; default 64 MiB
	MaxConnBytes int64 // bytes of payloads, and of answers to BLOCK_STATUS, in flight on one connection; default 64 MiB; one request always fits
	MaxBytes     int64 // such bytes in flight in all; default 1 GiB; each connection may have one small request beyond it. The less of it is free, the less one may have
	ReadBuffer   int   // bytes that one read(2) takes, at most; default 128 KiB; held only while there is something in it
	SocketBuffer int   // bytes asked for in the kernel, each way; default 1 MiB; -1 leaves what the system has

	// Observe, if set, is told of each answered request: NBD error code 0 for success, and the time from its arrival until
	// its reply was written. It is called from many goroutines and must be fast.
	Observe func(op Op, length uint64, took time.Duration, code uint32)

	// Quiet, if set, says whether the process has been asked for nothing by others than its NBD clients since the last call: a reader spins for its
	// client (see the package's doc) only where nobody else waits for a processor. Connections call it at the same time.
	Quiet func() bool
}

// complete fills in defaults and refuses what makes no sense.
func (c *Config) complete() error {
	def(&c.HandshakeTimeout, 10*time.Second)
	def(&c.OpenTimeout, 30*time.Second)
	def(&c.StallTimeout, 2*time.Minute)
	def(&c.DrainTimeout, 50*time.Millisecond)
	def(&c.MaxHalfOpen, 128)
	def(&c.MaxSessions, 10000)
	def(&c.MaxOptions, 128)
	def(&c.MaxRequests, 1024)
	def(&c.MaxPayload, 64<<20)
	def(&c.MaxConnBytes, 64<<20)
	def(&c.MaxBytes, 1<<30)
	def(&c.ReadBuffer, 128<<10)
	def(&c.SocketBuffer, 1<<20)
	def(&c.Logger, slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 1})))
	switch {
	case c.TLSMode < TLSOff || c.TLSMode > TLSRequired:
		return fmt.Errorf("nbd: unknown TLS mode %d", c.TLSMode)
	case c.TLSMode != TLSOff && c.TLS == nil:
		return errors.New("nbd: TLS is wanted, but Config.TLS is not set")
	case c.HandshakeTimeout < 0 || c.OpenTimeout < 0 || c.StallTimeout < 0 || c.DrainTimeout < 0:
		return errors.New("nbd: a timeout is negative")
	case c.MaxHalfOpen < 0 || c.MaxSessions < 0 || c.MaxOptions < 0 || c.MaxRequests < 0 || c.MaxConnBytes < 0 || c.MaxBytes < 0:
		return errors.New("nbd: a bound is negative")
	case c.MaxPayload < 32<<20 || c.MaxPayload > 64<<20 || c.MaxPayload&(c.MaxPayload-1) != 0:
		return fmt.Errorf("nbd: MaxPayload %d is not 32 or 64 MiB", c.MaxPayload)
	case c.MaxBytes < int64(c.MaxPayload)+requestCost:
		return fmt.Errorf("nbd: MaxBytes %d has no room for one request of MaxPayload", c.MaxBytes)
	case c.ReadBuffer < 4096 || c.ReadBuffer > 1<<20:
		return fmt.Errorf("nbd: ReadBuffer %d is not between 4 KiB and 1 MiB", c.ReadBuffer)
	}
	return nil
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
