package nbd

import (
	"encoding/binary"
	"math"
)

// replyMode is how a connection's replies look: what the client negotiated, each including the one before.
type replyMode uint8

const (
	simpleReplies replyMode = iota
	structuredReplies
	extendedReplies
)

// Replies on the wire, big-endian.
//
//	simple      | magic 4 | error 4 | cookie 8 | data, if a read succeeded
//	structured  | magic 4 | flags 2 | type 2 | cookie 8 | length 4 | payload              one or more chunks
//	extended    | magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 8 | payload   one or more chunks
//
//	payloads    none          -
//	            offset-data   | offset 8 | data
//	            offset-hole   | offset 8 | length 4
//	            block-status  | context 4 | (length 4 | flags 4)...
//	            block-status-ext | context 4 | count 4 | (length 8 | flags 8)...
//	            error         | error 4 | text length 2 | text

// errorTextMax bounds the sentence that goes with an error, well below the 4096 of the specification.
const errorTextMax = 512

// holeMin is the shortest run of zeros that is worth a chunk of its own, and holesMax how many runs a reply may be cut into.
const (
	holeMin  = 4096
	holesMax = 64
)

// encode builds the reply in r.head and r.frags.
func (r *Request) encode(mode replyMode, minBlock uint64, err error) {
	r.head, r.frags, r.data = r.head[:0], r.frags[:0], false
	r.code = errorCode(err, r.FastZero)
	switch {
	case r.code != codeOK && mode == simpleReplies:
		r.simple(r.code)
	case r.code != codeOK:
		text := clipTo(err.Error(), errorTextMax)
		r.chunk(mode, chunkFlagDone, chunkError, 6+len(text))
		r.head = binary.BigEndian.AppendUint32(r.head, r.code)
		r.head = binary.BigEndian.AppendUint16(r.head, uint16(len(text)))
		r.head = append(r.head, text...)
	case r.Op == OpRead && mode == simpleReplies:
		r.fillHoles()
		r.simple(codeOK)
		r.data = true
	case r.Op == OpRead && len(r.Data) > 0:
		r.dataChunks(mode)
	case r.Op == OpBlockStatus:
		r.statusChunks(mode, minBlock)
	case mode == extendedReplies || r.Op == OpRead:
		r.chunk(mode, chunkFlagDone, chunkNone, 0)
	default:
		r.simple(codeOK)
	}
}

func (r *Request) simple(code uint32) {
	r.head = binary.BigEndian.AppendUint32(r.head, magicSimpleReply)
	r.head = binary.BigEndian.AppendUint32(r.head, code)
	r.head = binary.BigEndian.AppendUint64(r.head, r.cookie)
}

func (r *Request) chunk(mode replyMode, flags, kind uint16, length int) {
	magic := magicChunk
	if mode == extendedReplies {
		magic = magicExtendedReply
	}
	b := binary.BigEndian.AppendUint32(r.head, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	if mode == extendedReplies {
		b = binary.BigEndian.AppendUint64(b, r.Offset)
		b = binary.BigEndian.AppendUint64(b, uint64(length))
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(length))
	}
	r.head = b
}

// fillHoles makes zeros of what the Device only said to be zeros.
func (r *Request) fillHoles() {
	for _, h := range r.holes {
		clear(r.Data[h.off : h.off+h.len])
	}
	r.holes = r.holes[:0]
}

// dataChunks answers a read. The data is complete, so nothing can go wrong any more and the last chunk may say DONE.
func (r *Request) dataChunks(mode replyMode) {
	r.data = true
	kept := r.holes[:0]
	for _, h := range r.holes {
		if r.flags&cmdFlagDF != 0 || h.len < holeMin || len(kept) == holesMax {
			clear(r.Data[h.off : h.off+h.len])
			continue
		}
		kept = append(kept, h)
	}
	r.holes = kept
	if len(kept) == 0 {
		r.chunk(mode, chunkFlagDone, chunkOffsetData, 8+len(r.Data))
		r.head = binary.BigEndian.AppendUint64(r.head, r.Offset)
		return
	}
	pos, from := 0, 0 // pos in Data, from in head
	part := func(n int) {
		if n == 0 {
			return
		}
		r.chunk(mode, doneIf(pos+n == len(r.Data)), chunkOffsetData, 8+n)
		r.head = binary.BigEndian.AppendUint64(r.head, r.Offset+uint64(pos))
		r.frags = append(r.frags, frag{len(r.head) - from, pos, n})
		pos, from = pos+n, len(r.head)
	}
	for _, h := range kept {
		part(h.off - pos)
		pos += h.len
		r.chunk(mode, doneIf(pos == len(r.Data)), chunkOffsetHole, 12)
		r.head = binary.BigEndian.AppendUint64(r.head, r.Offset+uint64(h.off))
		r.head = binary.BigEndian.AppendUint32(r.head, uint32(h.len))
	}
	part(len(r.Data) - pos)
	if from < len(r.head) {
		r.frags = append(r.frags, frag{head: len(r.head) - from})
	}
}

func doneIf(last bool) uint16 {
	if last {
		return chunkFlagDone
	}
	return 0
}

// statusChunks answers a BLOCK_STATUS: one chunk for each context.
func (r *Request) statusChunks(mode replyMode, minBlock uint64) {
	lenMax := uint64(math.MaxUint32)
	if mode == extendedReplies {
		lenMax = math.MaxInt64
	}
	for i := range r.extents {
		l := &r.extents[i]
		l.align(minBlock, lenMax, r.Length)
		if r.ReqOne {
			l.list = l.list[:1]
		}
		done := doneIf(i == len(r.extents)-1)
		if mode == extendedReplies {
			r.chunk(mode, done, chunkBlockStatusExt, 8+16*len(l.list))
			r.head = binary.BigEndian.AppendUint32(r.head, r.contexts[i].id)
			r.head = binary.BigEndian.AppendUint32(r.head, uint32(len(l.list)))
			for _, e := range l.list {
				r.head = binary.BigEndian.AppendUint64(r.head, e.len)
				r.head = binary.BigEndian.AppendUint64(r.head, e.flags)
			}
			continue
		}
		r.chunk(mode, done, chunkBlockStatus, 4+8*len(l.list))
		r.head = binary.BigEndian.AppendUint32(r.head, r.contexts[i].id)
		for _, e := range l.list {
			r.head = binary.BigEndian.AppendUint32(r.head, uint32(e.len))
			r.head = binary.BigEndian.AppendUint32(r.head, uint32(e.flags))
		}
	}
}
