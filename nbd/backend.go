package nbd

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/bits"
	"net"
	"strings"
	"unicode/utf8"
)

// Backend is what a Server serves: a set of named exports. Its methods are called by many connections at once.
//
// The context of each call carries the client (see [PeerFromContext]). Errors choose the reply that the client gets: one
// that is fs.ErrNotExist says "no such export"; fs.ErrPermission or syscall.EBUSY says "not allowed", with the error's
// text; any other says that the server can't, with the text.
type Backend interface {
	// List names the exports, for a client that asks what there is. Entries may leave everything but Name and
	// Description at zero (and TLSOnly, where it is used).
	List(ctx context.Context) ([]ExportInfo, error)

	// Info describes one export. It must be cheap and open nothing: clients that were not yet let in may call it.
	Info(ctx context.Context, name string) (ExportInfo, error)

	// Open opens an export for one connection. The context lives until the connection has ended, and is cancelled
	// at once when the connection breaks, so that a Device may use it to give up what nobody waits for any more: by an error
	// that is context.Canceled, of which nobody is told.
	Open(ctx context.Context, name string) (Device, ExportInfo, error)
}

// ExportInfo describes an export. The zero value of each field is the safe one.
type ExportInfo struct {
	Name        string // canonical name; the one asked for if empty
	Description string // for people
	Size        uint64 // bytes; below 2^63

	ReadOnly   bool // writes, trims and zeroes get EPERM before the Device sees them
	MultiConn  bool // flush and FUA on one connection cover the others too, and reads see their writes
	Rotational bool // a hint

	CanTrim     bool // OpTrim is understood
	CanZero     bool // OpWriteZeroes is understood, NoHole included
	CanFastZero bool // OpWriteZeroes honours FastZero
	CanCache    bool // OpCache is understood
	BlockStatus bool // OpBlockStatus is understood; otherwise the server says "data" for everything
	TLSOnly     bool // on a server with [TLSAllowed]: hidden from clients without TLS

	MinBlock       uint32 // bytes, a power of two up to 65536; 0 is 1. Requests that are not aligned to it get EINVAL
	PreferredBlock uint32 // bytes, a power of two, at least 512; 0 is 4096
	MaxBlock       uint32 // bytes, the longest read or write; 0 is the Server's MaxPayload, and it is never more

	Contexts []string // metadata contexts besides base:allocation, such as "qemu:dirty-bitmap:monday"
}

// Device is one export opened on one connection.
//
// Submit and Push are called by that connection's goroutines, one call at a time. While a call runs, the connection reads little more (the
// payloads of large writes), so neither may block for long.
type Device interface {
	// Submit starts a request. Exactly once [Request.Done] or [Request.Queue] must follow, from any goroutine, possibly
	// before Submit returns, in any order among requests. The request is valid: within the export, and with flags
	// that the export offers.
	Submit(r *Request)

	// Push says that every request which had arrived is submitted: what Submit gathered should start now.
	Push()

	// Close is called once, after the last request was answered.
	Close() error
}

// Preparer is a Device that wants to look at a large write's payload while it is in the cache of the processor which read it from the socket, to sum it, say:
// the Device's other calls for it may be another processor's.
type Preparer interface {
	// Prepare is called before Submit, in the reader's goroutine, for some of the writes, and beside calls of Submit and Push for earlier requests. It
	// leaves what it found in the request's Tag or Aux. A request that was prepared is not always submitted.
	Prepare(r *Request)
}

// Sharer is a Device whose large reads may be made by two goroutines of a connection at the same time, where there are several, and processors for both: to copy
// what is in memory takes one as long as that takes.
type Sharer interface {
	// Read is Submit and Push of one OpRead, and is called instead of them for reads of 64 KiB and more, beside all other calls and beside itself; should the request have been answered before
	// it returns, Close is called after that.
	Read(r *Request)
}

// Waiter is a Device that may have to wait, for a disk's sync, say, and would rather do that in the reader's goroutine, where that has nothing else to do, than have
// another one woken.
type Waiter interface {
	// PushLeaving is Push where the client waits for one request and for nothing else, and no other client has asked for anything for a while. What it returns, unless that is nil, is called at once and may take
	// its time; should that be long, Submit, Push and PushLeaving are called beside it, and if the request was answered, Close.
	PushLeaving() (wait func())
}

// able is a Device that is everything else too.
type able interface {
	Device
	Preparer
	Sharer
	Waiter
}

// OnClose is d, but for done, which is told how its Close went. If d is a Preparer, a Sharer and a Waiter, the result is too.
func OnClose(d Device, done func(err error)) Device {
	if a, ok := d.(able); ok {
		return &closingAble{a, done}
	}
	return &closing{d, done}
}

type closing struct {
	Device
	done func(error)
}

// Close implements Device.
func (d *closing) Close() error {
	err := d.Device.Close()
	d.done(err)
	return err
}

type closingAble struct {
	able
	done func(error)
}

// Close implements Device.
func (d *closingAble) Close() error {
	err := d.able.Close()
	d.done(err)
	return err
}

// check completes an ExportInfo with defaults and refuses one that the protocol can't express.
func (e *ExportInfo) check(asked string, maxPayload uint32) error {
	if e.Name == "" {
		e.Name = asked
	}
	if e.MinBlock == 0 {
		e.MinBlock = 1
	}
	if e.PreferredBlock == 0 {
		e.PreferredBlock = max(4096, e.MinBlock)
	}
	if e.MaxBlock == 0 || e.MaxBlock > maxPayload {
		e.MaxBlock = maxPayload
	}
	e.MaxBlock -= e.MaxBlock % e.MinBlock
	switch {
	case e.Size >= 1<<63:
		return fmt.Errorf("export %q: a size of %d bytes is beyond 2^63", clip(e.Name), e.Size)
	case bits.OnesCount32(e.MinBlock) != 1 || e.MinBlock > 1<<16:
		return fmt.Errorf("export %q: minimum block %d is no power of two up to 65536", clip(e.Name), e.MinBlock)
	case bits.OnesCount32(e.PreferredBlock) != 1 || e.PreferredBlock < max(512, e.MinBlock):
		return fmt.Errorf("export %q: preferred block %d is no power of two from %d", clip(e.Name), e.PreferredBlock, max(512, e.MinBlock))
	case e.MaxBlock < e.PreferredBlock:
		return fmt.Errorf("export %q: maximum block %d is below the preferred %d", clip(e.Name), e.MaxBlock, e.PreferredBlock)
	case len(e.Name) > stringMax || len(e.Description) > stringMax:
		return fmt.Errorf("export %q: name or description is longer than %d bytes", clip(e.Name), stringMax)
	}
	e.Size -= e.Size % uint64(e.MinBlock)
	return nil
}

// transmissionFlags is what a client of this export is told, and held to.
func (e *ExportInfo) transmissionFlags(mode replyMode) uint16 {
	f := flagHasFlags | flagSendFlush | flagSendFUA
	set := func(on bool, bit uint16) {
		if on {
			f |= bit
		}
	}
	set(e.ReadOnly, flagReadOnly)
	set(e.Rotational, flagRotational)
	set(e.MultiConn, flagCanMultiConn)
	set(e.CanTrim && !e.ReadOnly, flagSendTrim)
	set(e.CanZero && !e.ReadOnly, flagSendWriteZeroes)
	set(e.CanZero && e.CanFastZero && !e.ReadOnly, flagSendFastZero)
	set(e.CanCache, flagSendCache)
	set(mode != simpleReplies, flagSendDF)
	set(mode == extendedReplies, flagBlockStatusLoad)
	return f
}

// Peer is the client at the other end of a connection.
type Peer struct {
	Addr net.Addr
	TLS  *tls.ConnectionState // nil without TLS
}

// CommonName is the name in the client's verified certificate, or "".
func (p Peer) CommonName() string {
	if p.TLS == nil || len(p.TLS.VerifiedChains) == 0 {
		return ""
	}
	return p.TLS.PeerCertificates[0].Subject.CommonName
}

type peerKey struct{}

// PeerFromContext tells a Backend who asks.
func PeerFromContext(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// clip makes a client's or a backend's text fit for logs and error replies: short, valid, printable.
func clip(s string) string { return clipTo(s, 80) }

func clipTo(s string, n int) string {
	if len(s) > n {
		s = s[:n]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		if r, size := utf8.DecodeLastRuneInString(s); r == utf8.RuneError && size == 1 {
			s = s[:len(s)-1]
		}
		s += "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}
