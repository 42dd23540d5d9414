package objstore

import (
	"encoding/binary"
	"fmt"
)

// A position in the journal: generation of the segment and offset in it.
// Generations are never used twice, so positions order all records ever
// written on this disk.
type pos uint64

func makePos(gen uint32, off int64) pos { return pos(uint64(gen)<<32 | uint64(off)) }
func (p pos) gen() uint32               { return uint32(p >> 32) }
func (p pos) off() int64                { return int64(uint32(p)) }
func (p pos) String() string            { return fmt.Sprintf("%d+%d", p.gen(), p.off()) }

// recordKind says what a record of the journal is. On disk: append only.
type recordKind uint8

const (
	recStart recordKind = 1 // first in a segment
	recMark  recordKind = 2 // first in a batch behind a sync
	recEntry recordKind = 3 // an entry; a write's data follow the head
	recLarge recordKind = 4 // a write whose data are in the object's file
	// 5 was an install whose image had no runs
	recDelete    recordKind = 6  // an object goes (resync)
	recSyncing   recordKind = 7  // the group's content is a mixture from here
	recSynced    recordKind = 8  // it is whole again, and this is its last number
	recTerms     recordKind = 9  // the group's term history is this
	recDropGroup recordKind = 10 // everything of the group goes
	recInstall   recordKind = 11 // an object becomes exactly this (resync)

	recKindEnd = 12
)

// record is the frame around whatever the journal holds.
//
//	 0  crc      u32   CRC-32C of bytes 4..headLen, seeded with the segment's
//	                   generation and the record's offset (rule 5): what a
//	                   recycled segment held before never looks valid
//	 4  headLen  u32   frame, body and padding; a multiple of 16
//	 8  dataLen  u32   bytes that follow the head, covered by the body's checksums
//	12  group    u32
//	16  kind     u8 | zero u8×3
//	20  bodyLen  u32
//	24  body
//
// Records start at multiples of 16 and do not cross segments.
type record struct {
	kind    recordKind
	group   GroupID
	body    []byte
	headLen int
	dataLen int
}

const (
	frameSize   = 24
	recordAlign = 16
)

func alignUp(n, to int64) int64 { return (n + to - 1) &^ (to - 1) }

// frameLen is the length of a head with a body of n bytes.
func frameLen(n int) int { return int(alignUp(int64(frameSize+n), recordAlign)) }

// beginFrame appends an empty frame; the body is appended next, then
// endFrame closes what began at at.
func beginFrame(b []byte) []byte {
	return append(b, make([]byte, frameSize)...)
}

func endFrame(b []byte, at int, kind recordKind, group GroupID, dataLen int, gen uint32, off int64) []byte {
	body := len(b) - at - frameSize
	for (len(b)-at)%recordAlign != 0 {
		b = append(b, 0)
	}
	h := b[at:]
	binary.LittleEndian.PutUint32(h[4:], uint32(len(h)))
	binary.LittleEndian.PutUint32(h[8:], uint32(dataLen))
	binary.LittleEndian.PutUint32(h[12:], uint32(group))
	h[16] = byte(kind)
	binary.LittleEndian.PutUint32(h[20:], uint32(body))
	binary.LittleEndian.PutUint32(h, recordSum(h, gen, off))
	return b
}

func recordSum(head []byte, gen uint32, off int64) uint32 {
	// Multiplied so that neighbouring seeds differ in many bits.
	seed := gen*0x9e3779b1 ^ uint32(off)*0x85ebca6b
	if bugUnseeded.active() {
		seed = 0
	}
	return crcUpdate(seed, head[4:])
}

// parseRecord reads the record at offset off of a segment's bytes. ok is
// false where there is none, for whatever reason.
func parseRecord(seg []byte, gen uint32, off int64) (r record, ok bool) {
	if off < 0 || off%recordAlign != 0 || off+frameSize > int64(len(seg)) {
		return r, false
	}
	h := seg[off:]
	headLen := int64(binary.LittleEndian.Uint32(h[4:]))
	dataLen := int64(binary.LittleEndian.Uint32(h[8:]))
	bodyLen := int64(binary.LittleEndian.Uint32(h[20:]))
	if headLen < frameSize || headLen%recordAlign != 0 || dataLen%recordAlign != 0 ||
		headLen+dataLen > int64(len(h)) || bodyLen > headLen-frameSize {
		return r, false
	}
	h = h[:headLen]
	if binary.LittleEndian.Uint32(h) != recordSum(h, gen, off) {
		return r, false
	}
	if h[16] == 0 || h[16] >= recKindEnd {
		return r, false
	}
	return record{
		kind: recordKind(h[16]), group: GroupID(binary.LittleEndian.Uint32(h[12:])),
		body: h[frameSize : frameSize+bodyLen], headLen: int(headLen), dataLen: int(dataLen),
	}, true
}

// A batch mark is the body of recStart and recMark.
//
//	 0  magic    u32 "SJ01"
//	 4  gen      u32   generation of this segment (the seed, in clear)
//	 8  prevEnd  u64   position where the records before this batch end
//	16  durable  u64   everything before this position was durable when this was written
//	24  segBytes u64
type batchMark struct {
	gen      uint32
	prevEnd  pos
	durable  pos
	segBytes int64
}

const (
	markMagic = 0x31304a53
	markSize  = 32
)

func (m batchMark) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, markMagic)
	b = binary.LittleEndian.AppendUint32(b, m.gen)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.prevEnd))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.durable))
	return binary.LittleEndian.AppendUint64(b, uint64(m.segBytes))
}

func parseMark(b []byte) (m batchMark, ok bool) {
	if len(b) != markSize || binary.LittleEndian.Uint32(b) != markMagic {
		return m, false
	}
	return batchMark{
		gen:      binary.LittleEndian.Uint32(b[4:]),
		prevEnd:  pos(binary.LittleEndian.Uint64(b[8:])),
		durable:  pos(binary.LittleEndian.Uint64(b[16:])),
		segBytes: int64(binary.LittleEndian.Uint64(b[24:])),
	}, true
}
