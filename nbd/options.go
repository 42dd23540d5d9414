package nbd

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// payloadReader takes an option's data apart. After the first mistake bad is set and everything reads as zero.
type payloadReader struct {
	b   []byte
	bad bool
}

func (p *payloadReader) take(n uint64) []byte {
	if p.bad || n > uint64(len(p.b)) {
		p.bad = true
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

func (p *payloadReader) uint16() uint16 {
	if b := p.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (p *payloadReader) uint32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// text reads a string with its length in front.
func (p *payloadReader) text() string {
	s := string(p.take(uint64(p.uint32())))
	if !validString(s) {
		p.bad = true
	}
	return s
}

func validString(s string) bool {
	return len(s) <= stringMax && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// end returns whether all was well and nothing is left.
func (p *payloadReader) end() bool { return !p.bad && len(p.b) == 0 }

// lookup describes an export to this client: the one path of INFO, GO, EXPORT_NAME and the metadata options, so that
// they can't disagree. A hidden export looks as if it didn't exist.
func (h *handshake) lookup(name string) (ExportInfo, error) {
	if auth := h.srv.cfg.Authorize; auth != nil {
		if err := auth(h.peer, name); err != nil {
			return ExportInfo{}, err
		}
	}
	ctx, cancel := context.WithTimeout(h.backendContext(), h.srv.cfg.OpenTimeout)
	defer cancel()
	begun := time.Now()
	info, err := h.srv.backend.Info(ctx, name)
	late := h.extend(time.Since(begun)) // the client's clock stands still while the backend looks
	if err = cmp.Or(err, late); err != nil {
		return info, err
	}
	if err := h.hidden(info); err != nil {
		return info, err
	}
	return info, info.check(name, uint32(h.srv.cfg.MaxPayload))
}

// errNeedTLS is for exports that exist for clients with TLS only.
var errNeedTLS = errors.New("this export requires TLS")

func (h *handshake) hidden(info ExportInfo) error {
	if info.TLSOnly && h.peer.TLS == nil {
		return errNeedTLS
	}
	return nil
}

// failLookup answers an option about an export that this client can't have. Without TLS on a server that has it, unknown
// exports and those that need TLS look the same, so that nobody can find out which there are.
func (h *handshake) failLookup(id uint32, name string, err error) error {
	code := optionError(err)
	text := err.Error()
	switch {
	case errors.Is(err, errNeedTLS), code == repErrUnknown && h.srv.cfg.TLSMode == TLSAllowed && h.peer.TLS == nil:
		code, text = repErrTLSReqd, errNeedTLS.Error()
	case code == repErrUnknown:
		text = fmt.Sprintf("export %q does not exist", clip(name))
	}
	return h.fail(id, code, text)
}

// list answers LIST.
func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		return h.fail(optList, repErrInvalid, "LIST has no data")
	}
	select {
	case h.srv.lists <- struct{}{}:
		defer func() { <-h.srv.lists }()
	case <-time.After(time.Until(h.until) / 2):
		return h.fail(optList, repErrPlatform, "too many clients ask for the list")
	case <-h.ctx.Done():
		return errAbandoned
	}
	ctx, cancel := context.WithTimeout(h.backendContext(), h.srv.cfg.OpenTimeout)
	defer cancel()
	begun := time.Now()
	exports, err := h.srv.backend.List(ctx)
	if late := h.extend(time.Since(begun)); late != nil {
		return late
	}
	if err != nil {
		return h.fail(optList, optionError(err), err.Error())
	}
	// Who does not take it keeps others from theirs.
	if at := time.Now().Add(listTime); at.Before(h.until) {
		_ = h.raw.SetDeadline(at)
		defer func() { _ = h.extend(0) }()
	}
	for _, e := range exports {
		if h.hidden(e) != nil || !validString(e.Name) {
			continue
		}
		if auth := h.srv.cfg.Authorize; auth != nil && auth(h.peer, e.Name) != nil {
			continue
		}
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(e.Name)))
		desc := e.Description
		if !validString(desc) {
			desc = ""
		}
		h.put(optList, repServer, n[:], []byte(e.Name), []byte(desc))
		if len(h.reply) > optionMax {
			if err := h.send(); err != nil {
				return err
			}
		}
	}
	return h.ack(optList)
}

// infoRequest is the data of INFO and GO.
//
//	| name length 4 | name | count 2 | information type 2 ... |
type infoRequest struct {
	name  string
	wants [4]bool // by information type
}

func parseInfo(data []byte) (q infoRequest, ok bool) {
	p := payloadReader{b: data}
	q.name = p.text()
	for n := p.uint16(); n > 0 && !p.bad; n-- {
		if t := p.uint16(); int(t) < len(q.wants) {
			q.wants[t] = true
		}
	}
	return q, p.end()
}

// info answers INFO and GO: they differ only in what follows.
func (h *handshake) info(id uint32, data []byte) (*Conn, error) {
	q, ok := parseInfo(data)
	if !ok {
		return nil, h.fail(id, repErrInvalid, "malformed name or list of information types")
	}
	info, err := h.lookup(q.name)
	if err != nil {
		return nil, h.failLookup(id, q.name, err)
	}
	if id == optInfo {
		h.describe(id, &q, &info)
		return nil, h.ack(id)
	}
	dev, info, cancel, err := h.open(q.name)
	if err != nil {
		return nil, h.failLookup(id, q.name, err)
	}
	h.describe(id, &q, &info)
	h.put(id, repAck)
	return h.begin(q.name, dev, info, cancel), nil
}

// describe gathers the information replies.
func (h *handshake) describe(id uint32, q *infoRequest, e *ExportInfo) {
	h.putInfo(id, protocol.NegotiationReplyInfo{Type: infoExport, Size: e.Size, TransmissionFlags: e.transmissionFlags(h.mode)}, "")
	if q.wants[infoName] {
		h.putInfo(id, protocol.NegotiationReplyNameHeader{Type: infoName}, e.Name)
	}
	if q.wants[infoDescription] && e.Description != "" && validString(e.Description) {
		h.putInfo(id, protocol.NegotiationReplyDescriptionHeader{Type: infoDescription}, e.Description)
	}
	if q.wants[infoBlockSize] || e.MinBlock > 1 || e.MaxBlock < 32<<20 {
		h.putInfo(id, protocol.NegotiationReplyBlockSize{
			Type: infoBlockSize, MinimumBlockSize: e.MinBlock, PreferredBlockSize: e.PreferredBlock, MaximumBlockSize: e.MaxBlock,
		}, "")
	}
}

func (h *handshake) putInfo(id uint32, head any, text string) {
	b, _ := binary.Append(nil, binary.BigEndian, head)
	h.put(id, repInfo, b, []byte(text))
}

// exportName answers EXPORT_NAME, which knows no errors: whatever goes wrong ends the connection.
//
//	server   | size 8 | flags 2 | 124 zeros, unless both agreed to leave them out |
func (h *handshake) exportName(data []byte) (*Conn, error) {
	name := string(data)
	if !validString(name) {
		return nil, &protocolError{"EXPORT_NAME with a malformed name"}
	}
	if _, err := h.lookup(name); err != nil {
		return nil, fmt.Errorf("EXPORT_NAME %q: %w", clip(name), err)
	}
	dev, info, cancel, err := h.open(name)
	if err != nil {
		return nil, fmt.Errorf("EXPORT_NAME %q: %w", clip(name), err)
	}
	h.reply = binary.BigEndian.AppendUint64(h.reply, info.Size)
	h.reply = binary.BigEndian.AppendUint16(h.reply, info.transmissionFlags(h.mode))
	if !h.noZeroes {
		h.reply = append(h.reply, make([]byte, 124)...)
	}
	return h.begin(name, dev, info, cancel), nil
}

// open opens the export, within a session that the server has room for. The client's clock stands still meanwhile.
func (h *handshake) open(name string) (Device, ExportInfo, context.CancelFunc, error) {
	if err := h.srv.graves.refuse(name, h.srv.cfg.MaxBytes); err != nil {
		return nil, ExportInfo{}, nil, err
	}
	if err := h.srv.reserve(h); err != nil {
		return nil, ExportInfo{}, nil, err
	}
	ctx, cancel := context.WithCancel(h.backendContext())
	timer, begun := time.AfterFunc(h.srv.cfg.OpenTimeout, cancel), time.Now()
	dev, info, err := h.srv.backend.Open(ctx, name)
	late := h.extend(time.Since(begun)) // also for the reply that says why not
	if !timer.Stop() && err == nil && ctx.Err() != nil {
		_ = dev.Close()
		err = fmt.Errorf("opening export %q took longer than %v", clip(name), h.srv.cfg.OpenTimeout)
	}
	if err == nil {
		if err = info.check(name, uint32(h.srv.cfg.MaxPayload)); err == nil {
			err = late
		}
		if err != nil {
			_ = dev.Close()
		}
	}
	if err != nil {
		cancel()
		h.srv.unreserve(h)
		if !errors.Is(err, fs.ErrNotExist) {
			h.log.Info("nbd export was not opened", "export", clip(name), "err", err)
		}
		return nil, info, nil, err
	}
	return dev, info, cancel, nil
}

// begin makes the connection that the transmission phase runs on, and sends the gathered reply that begins it. Requests that
// the client sent along with its option are in the buffer already.
func (h *handshake) begin(name string, dev Device, info ExportInfo, cancel context.CancelFunc) *Conn {
	c := newConn(h.srv, h.nc, h.peer, h.log.With("export", clip(info.Name)))
	c.name, c.asked, c.dev, c.blockStatus = info.Name, name, dev, info.BlockStatus
	c.preparer, _ = dev.(Preparer)
	c.waiter, _ = dev.(Waiter)
	if d, ok := dev.(Sharer); ok {
		c.reads = &sharing{c: c, dev: d}
	}
	c.cancel = func() { cancel(); h.cancel() }
	c.terms = terms{
		mode: h.mode, flags: info.transmissionFlags(h.mode), size: info.Size,
		minBlock: uint64(info.MinBlock), maxBlock: uint64(info.MaxBlock),
	}
	if h.mode != simpleReplies && h.metaExport == name {
		c.terms.contexts = h.contexts
	}
	c.in.size, c.in.stalled = h.srv.cfg.ReadBuffer, c.stall
	if n := h.rd.Buffered(); n > 0 {
		space, _ := c.in.space()
		n, _ = h.rd.Read(space[:n])
		c.in.w = n
	}
	c.arrived = time.Now()
	c.tr = newTransport(h.nc)
	h.srv.enter(h, c) // before the client can know, so that it never finds itself missing
	if h.gone.Load() {
		c.drain()
	}
	if err := h.send(); err != nil {
		c.die(err)
		return c
	}
	c.readUntil(time.Time{})
	c.writeUntil(time.Time{})
	c.log.Debug("nbd export opened", "size", info.Size, "mode", int(h.mode))
	return c
}
