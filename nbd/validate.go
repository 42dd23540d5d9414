package nbd

import (
	"encoding/binary"
	"syscall"
)

// header is a request as it stands on the wire, big-endian.
//
//	compact   | magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 |
//	extended  | magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 8 |
type header struct {
	magic          uint32
	flags, cmd     uint16
	cookie, offset uint64
	length         uint64
}

func parseHeader(b []byte, mode replyMode) header {
	h := header{
		magic:  binary.BigEndian.Uint32(b),
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		offset: binary.BigEndian.Uint64(b[16:]),
	}
	if mode == extendedReplies {
		h.length = binary.BigEndian.Uint64(b[24:])
	} else {
		h.length = uint64(binary.BigEndian.Uint32(b[24:]))
	}
	return h
}

// payload is how many bytes follow the header: only a write has any, and with extended headers whatever says so.
func (h *header) payload(mode replyMode) uint64 {
	if h.cmd == cmdWrite || mode == extendedReplies && h.flags&cmdFlagPayloadLen != 0 {
		return h.length
	}
	return 0
}

// terms are what a connection was told, and what its requests are held to.
type terms struct {
	mode     replyMode
	flags    uint16 // transmission flags
	size     uint64
	minBlock uint64
	maxBlock uint64 // of one read or write
	contexts []metaContext
}

func (t *terms) offers(flag uint16) bool { return t.flags&flag == flag }

// refusal is an error with the sentence that the client gets.
type refusal struct {
	errno syscall.Errno
	text  string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.errno }

// The refusals. They are values so that refusing allocates nothing.
var (
	errUnknownCommand = &refusal{syscall.EINVAL, "unknown command, or one that this export does not offer"}
	errFlags          = &refusal{syscall.EINVAL, "a command flag that this command or this connection does not know"}
	errReadOnly       = &refusal{syscall.EPERM, "the export is read-only"}
	errReadBounds     = &refusal{syscall.EINVAL, "the range ends beyond the export"}
	errWriteBounds    = &refusal{syscall.ENOSPC, "the range ends beyond the export"}
	errFlushRange     = &refusal{syscall.EINVAL, "a flush has no offset and no length"}
	errTooLong        = &refusal{syscall.EINVAL, "the request is longer than the maximum block size"}
	errTooLongDF      = &refusal{syscall.EOVERFLOW, "the read is too long for one chunk"}
	errAlignment      = &refusal{syscall.EINVAL, "offset or length is no multiple of the minimum block size"}
	errNoContext      = &refusal{syscall.EINVAL, "no metadata context was selected"}
	errEmptyStatus    = &refusal{syscall.EINVAL, "a block status request of no bytes"}
	errStatusPayload  = &refusal{syscall.EINVAL, "the list of metadata contexts is malformed or unknown"}
	errDraining       = &refusal{syscall.ESHUTDOWN, "the server is shutting down"}
)

// rule is what one command asks of its request.
type rule struct {
	need   uint16 // transmission flag without which the command is unknown
	flags  uint16 // command flags that are allowed, besides FUA
	writes bool   // refused on a read-only export, and ENOSPC beyond the end
	data   bool   // moves Length bytes, so Length is bounded
}

var rules = [...]rule{
	cmdRead:        {flags: cmdFlagDF, data: true},
	cmdWrite:       {writes: true, data: true, flags: cmdFlagPayloadLen},
	cmdFlush:       {need: flagSendFlush},
	cmdTrim:        {need: flagSendTrim, writes: true},
	cmdCache:       {need: flagSendCache},
	cmdWriteZeroes: {need: flagSendWriteZeroes, flags: cmdFlagNoHole | cmdFlagFastZero, writes: true},
	cmdBlockStatus: {flags: cmdFlagReqOne | cmdFlagPayloadLen},
}

// validate holds each refusal. What it lets pass a Device may trust.
func (t *terms) validate(h *header) *refusal {
	if int(h.cmd) >= len(rules) || h.cmd == cmdDisc {
		return errUnknownCommand
	}
	ru := &rules[h.cmd]
	if ru.writes && t.offers(flagReadOnly) {
		return errReadOnly
	}
	if !t.offers(ru.need) {
		return errUnknownCommand
	}
	if h.flags&^t.allowed(ru) != 0 {
		return errFlags
	}
	switch h.cmd {
	case cmdFlush:
		if h.offset != 0 || h.length != 0 {
			return errFlushRange
		}
		return nil
	case cmdBlockStatus:
		if len(t.contexts) == 0 {
			return errNoContext
		}
		if h.length == 0 {
			return errEmptyStatus
		}
	}
	if ru.data && h.length > t.maxBlock {
		if h.flags&cmdFlagDF != 0 {
			return errTooLongDF
		}
		return errTooLong
	}
	if h.offset > t.size || h.length > t.size-h.offset {
		if ru.writes && h.cmd != cmdTrim {
			return errWriteBounds
		}
		return errReadBounds
	}
	if (h.offset|h.length)&(t.minBlock-1) != 0 {
		return errAlignment
	}
	return nil
}

// allowed is the command flags that this connection may use with a command.
func (t *terms) allowed(ru *rule) uint16 {
	f := ru.flags
	if t.offers(flagSendFUA) {
		f |= cmdFlagFUA // on every command, says the specification
	}
	if !t.offers(flagSendDF) {
		f &^= cmdFlagDF
	}
	if !t.offers(flagSendFastZero) {
		f &^= cmdFlagFastZero
	}
	if t.mode != extendedReplies {
		f &^= cmdFlagPayloadLen
	}
	return f
}
