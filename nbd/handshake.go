package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// The handshake (proto.md, "Fixed newstyle negotiation"), big-endian:
//
//	server   | "NBDMAGIC" 8 | "IHAVEOPT" 8 | flags 2 |
//	client   | flags 4 |
//	client   | "IHAVEOPT" 8 | option 4 | length 4 | data |            again and again
//	server   | 0x3e889045565a9 8 | option 4 | type 4 | length 4 | data |   one or more for each
//
// An option is read whole before it is looked at, so that refusing one never loses the place in the stream.

// optionMax bounds one option: room for SET_META_CONTEXT with a dozen of the longest names. Whoever sends more is cut off.
const optionMax = 64 << 10

var (
	errTooMany   = &refusal{syscall.EBUSY, "the server has as many connections as it may have"}
	errAbandoned = errors.New("the handshake was cut off")
)

// handshake is a connection before its transmission phase.
type handshake struct {
	srv      *Server
	log      *slog.Logger
	raw      net.Conn // as accepted
	nc       net.Conn // raw, or TLS on top of it
	rd       *bufio.Reader
	peer     Peer
	ctx      context.Context
	cancel   context.CancelFunc
	gone     atomic.Bool
	until    time.Time // the client's time is over
	reserved bool      // holds one of the server's sessions; guarded by Server.mu

	fixed    bool // the client speaks fixed newstyle
	noZeroes bool

	// What was negotiated. STARTTLS resets it: an attacker may have said it.
	mode       replyMode
	metaExport string
	contexts   []metaContext

	reply []byte // replies gathered for one write
}

func newHandshake(s *Server, nc net.Conn) *handshake {
	h := &handshake{srv: s, raw: nc, nc: nc, rd: bufio.NewReaderSize(nc, 4096), peer: Peer{Addr: nc.RemoteAddr()}}
	h.ctx, h.cancel = context.WithCancel(s.ctx)
	h.log = s.log.With("client", addrString(h.peer.Addr))
	return h
}

func addrString(a net.Addr) string {
	if a == nil || a.String() == "" || a.String() == "@" {
		return "local"
	}
	return a.String()
}

// abandon ends a handshake from outside.
func (h *handshake) abandon() {
	h.gone.Store(true)
	h.cancel()
	_ = h.raw.SetDeadline(past)
}

// deadline gives the client its time; it is an absolute date for everything it has to send.
func (h *handshake) deadline() error {
	h.until = time.Now()
	return h.extend(h.srv.cfg.HandshakeTimeout)
}

// extend makes the client's time longer.
func (h *handshake) extend(by time.Duration) error {
	h.until = h.until.Add(by)
	err := h.raw.SetDeadline(h.until)
	if h.gone.Load() {
		return errAbandoned
	}
	return err
}

// run leads the client through the options. The Conn is nil if it did not come to a transmission phase.
func (h *handshake) run() (*Conn, error) {
	if err := h.deadline(); err != nil {
		return nil, err
	}
	if err := h.greet(); err != nil {
		return nil, err
	}
	for range h.srv.cfg.MaxOptions {
		id, data, err := h.readOption()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, nil // an ordinary end, wherever it comes
			}
			return nil, err
		}
		c, err := h.option(id, data)
		if c != nil || err != nil {
			return c, err
		}
	}
	return nil, &protocolError{fmt.Sprintf("more than %d options", h.srv.cfg.MaxOptions)}
}

func (h *handshake) greet() error {
	hello, err := binary.Append(nil, binary.BigEndian, protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  protocol.NEGOTIATION_MAGIC_OLDSTYLE,
		OptionMagic:    protocol.NEGOTIATION_MAGIC_OPTION,
		HandshakeFlags: flagFixedNewstyle | flagNoZeroes,
	})
	if err != nil {
		return err
	}
	if _, err := h.nc.Write(hello); err != nil {
		return fmt.Errorf("sending the greeting: %w", err)
	}
	var b [4]byte
	if _, err := io.ReadFull(h.rd, b[:]); err != nil {
		return fmt.Errorf("reading the client's flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^(clientFixedNewstyle|clientNoZeroes) != 0 {
		return &protocolError{fmt.Sprintf("client flags %#x", flags)}
	}
	h.fixed = flags&clientFixedNewstyle != 0
	h.noZeroes = flags&clientNoZeroes != 0
	return nil
}

func (h *handshake) readOption() (id uint32, data []byte, err error) {
	var b [16]byte
	if _, err := io.ReadFull(h.rd, b[:]); err != nil {
		return 0, nil, fmt.Errorf("reading an option: %w", err)
	}
	var o protocol.NegotiationOptionHeader
	if _, err := binary.Decode(b[:], binary.BigEndian, &o); err != nil {
		return 0, nil, err
	}
	if o.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return 0, nil, &protocolError{fmt.Sprintf("option magic %#x", o.OptionMagic)}
	}
	if o.Length > optionMax {
		return 0, nil, &protocolError{fmt.Sprintf("option %d of %d bytes", o.ID, o.Length)}
	}
	data = make([]byte, o.Length)
	if _, err := io.ReadFull(h.rd, data); err != nil {
		return 0, nil, fmt.Errorf("reading option %d: %w", o.ID, err)
	}
	return o.ID, data, nil
}

// option answers one option. A Conn means that the transmission phase begins, an error that the connection ends.
func (h *handshake) option(id uint32, data []byte) (*Conn, error) {
	if !h.fixed && id != optExportName {
		return nil, &protocolError{fmt.Sprintf("option %d without fixed newstyle", id)}
	}
	if h.needTLS() && id != optStartTLS && id != optAbort {
		if id == optExportName {
			return nil, errors.New("EXPORT_NAME without TLS, which is required")
		}
		return nil, h.fail(id, repErrTLSReqd, "this server requires TLS")
	}
	switch id {
	case optExportName:
		return h.exportName(data)
	case optAbort:
		return nil, h.abort()
	case optList:
		return nil, h.list(data)
	case optStartTLS:
		return nil, h.startTLS(data)
	case optInfo, optGo:
		return h.info(id, data)
	case optStructuredReply, optExtendedHeaders:
		return nil, h.widen(id, data)
	case optListMetaContext, optSetMetaContext:
		return nil, h.metaContext(id, data)
	}
	return nil, h.fail(id, repErrUnsup, "unknown option")
}

func (h *handshake) needTLS() bool {
	return h.srv.cfg.TLSMode == TLSRequired && h.peer.TLS == nil
}

// abort says goodbye. The client may be gone already, which is no error.
func (h *handshake) abort() error {
	_ = h.ack(optAbort)
	if t, ok := h.nc.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite() // with TLS this sends close_notify
	}
	_, _ = io.CopyN(io.Discard, h.raw, optionMax) // closing over unread bytes would be a reset, which may overtake the ACK
	return errDisconnect
}

// widen negotiates structured replies and extended headers, of which the latter include the former.
func (h *handshake) widen(id uint32, data []byte) error {
	mode := structuredReplies
	if id == optExtendedHeaders {
		mode = extendedReplies
	}
	switch {
	case len(data) != 0:
		return h.fail(id, repErrInvalid, "this option has no data")
	case mode == h.mode:
		return h.fail(id, repErrInvalid, "this was negotiated already")
	case mode < h.mode:
		return h.fail(id, repErrExtHeaderReqd, "extended headers were negotiated already")
	}
	h.mode = mode
	return h.ack(id)
}

// put gathers an option reply, and send sends what was gathered.
func (h *handshake) put(id, kind uint32, parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	h.reply, _ = binary.Append(h.reply, binary.BigEndian, protocol.NegotiationReplyHeader{
		ReplyMagic: protocol.NEGOTIATION_MAGIC_REPLY, ID: id, Type: kind, Length: uint32(n),
	})
	for _, p := range parts {
		h.reply = append(h.reply, p...)
	}
}

func (h *handshake) send() error {
	_, err := h.nc.Write(h.reply)
	h.reply = h.reply[:0]
	if err != nil {
		return fmt.Errorf("sending an option reply: %w", err)
	}
	return nil
}

func (h *handshake) ack(id uint32) error {
	h.put(id, repAck)
	return h.send()
}

// fail answers an option with an error and its sentence; what was gathered goes with it.
func (h *handshake) fail(id, kind uint32, text string) error {
	h.put(id, kind, []byte(clipTo(text, errorTextMax)))
	return h.send()
}

// backendContext is what the Backend is called with: it knows the client.
func (h *handshake) backendContext() context.Context {
	return context.WithValue(h.ctx, peerKey{}, h.peer)
}
