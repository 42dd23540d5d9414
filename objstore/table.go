package objstore

import (
	"encoding/binary"
)

// A cell says what a version has for one block and where. In memory at may
// point into the journal; on disk it never does.
//
//	at   kind in the top three bits; slot of the object's file, or address
//	     in the journal, below
//	sum  CRC-32C of the block's bytes
type cell struct{ at, sum uint32 }

const (
	cellAbsent  = 0 << 29
	cellZero    = 1 << 29
	cellBad     = 2 << 29
	cellSlot    = 3 << 29
	cellJournal = 4 << 29

	cellKind  = 7 << 29
	cellValue = 1<<29 - 1
)

func (c cell) kind() uint32  { return c.at & cellKind }
func (c cell) value() uint32 { return c.at & cellValue }

func (c cell) state() State {
	switch c.kind() {
	case cellAbsent:
		return Absent
	case cellZero:
		return Zero
	case cellSlot, cellJournal:
		return Present
	}
	return Bad
}

// The object's file is an array of 4 KiB slots:
//
//	slot 0                  header
//	slot 1280*k ...         chunk k: 1 slot that is nobody's but the header's,
//	                        table place A (3 slots), table place B (3 slots),
//	                        a hole, and from slot 256 of it on 1024 data slots
//
// A version's table lives in the two places of one chunk, by turns; data may
// lie in any chunk. What was never written is a hole.
//
// Data starts at a whole MiB, so that large writes lie in the page cache in
// large folios (a write of 128 KiB in one, not in six: 4 to 6 % more a second) and
// on the disk as the guest aligned them.
const (
	tableSlots  = 3
	tableBytes  = tableSlots * BlockSize
	firstTable  = 1
	firstData   = 256
	chunkSlots  = firstData + BlocksPerObject
	slotsMax    = cellValue
	chunksMax   = 1 << 17
	headerBytes = 64
)

func tableSlot(chunk int, side uint8) uint32 {
	return uint32(chunk*chunkSlots + firstTable + int(side)*tableSlots)
}

// dataSlot is the n-th data slot of a chunk; the slot of block n of a fresh
// object (rule 3).
func dataSlot(chunk, n int) uint32 {
	return uint32(chunk*chunkSlots + firstData + n)
}

// slotPlace is the inverse of dataSlot; ok is false for other slots.
func slotPlace(slot uint32) (chunk, n int, ok bool) {
	chunk, n = int(slot)/chunkSlots, int(slot)%chunkSlots-firstData
	return chunk, n, n >= 0 && chunk < chunksMax
}

// tableHead is a table without its cells, as it stands in a place.
//
//	  0  magic    u32 "SOT1"
//	  4  crc      u32   CRC-32C of bytes 8 to the end of the cells
//	  8  kind     u8    1 table, 2 free: no version lives in this chunk
//	            zero u8×3
//	 12  chunk    u32
//	 16  key      u64
//	 24  birth    u64   the file's, so that no other file's table is taken for this one's
//	 32  checkpoint u64 that wrote it: the greater of two places counts, unless
//	                    the catalog says that this checkpoint never finished
//	 40  gen      u64
//	 48  term     u64   version: the last entry that changed the table
//	 56  lsn      u64
//	 64  vid      u32
//	 68  zero     u8×60
//	128  cells    1024 × { at u32, crc u32 }
type tableHead struct {
	free       bool
	chunk      int
	key        Key
	birth      uint64
	checkpoint uint64
	vid        Vid
	gen        uint64
	version    Number
}

const (
	tableMagic    = 0x31544f53
	tableHeadSize = 128
	tableUsed     = tableHeadSize + 8*BlocksPerObject
	freeMarkBytes = tableHeadSize
)

// encode writes the head and, for a table, the cells to b, which is zeroed
// up to what it returns.
func (h *tableHead) encode(b []byte, cells *[BlocksPerObject]cell) []byte {
	b = b[:tableBytes]
	if h.free {
		b = b[:BlockSize]
	}
	clear(b)
	binary.LittleEndian.PutUint32(b, tableMagic)
	b[8] = 1
	if h.free {
		b[8] = 2
	}
	binary.LittleEndian.PutUint32(b[12:], uint32(h.chunk))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.key))
	binary.LittleEndian.PutUint64(b[24:], h.birth)
	binary.LittleEndian.PutUint64(b[32:], h.checkpoint)
	binary.LittleEndian.PutUint64(b[40:], h.gen)
	binary.LittleEndian.PutUint64(b[48:], h.version.Term)
	binary.LittleEndian.PutUint64(b[56:], h.version.LSN)
	binary.LittleEndian.PutUint32(b[64:], h.vid)
	used := freeMarkBytes
	if !h.free {
		used = tableUsed
		for i, c := range cells {
			at := tableHeadSize + 8*i
			binary.LittleEndian.PutUint32(b[at:], c.at)
			binary.LittleEndian.PutUint32(b[at+4:], c.sum)
		}
	}
	binary.LittleEndian.PutUint32(b[4:], Checksum(b[8:used]))
	return b
}

// placeState is what a look at a table place finds.
type placeState uint8

const (
	placeBlank   placeState = iota // never written
	placeDamaged                   // torn or rotten
	placeFree                      // a free mark
	placeTable
)

// parseTable decodes a place; cells is filled for a table if not nil.
func parseTable(b []byte, cells *[BlocksPerObject]cell) (h tableHead, st placeState) {
	if len(b) < tableHeadSize || allZero(b[:tableHeadSize]) {
		return h, placeBlank
	}
	if binary.LittleEndian.Uint32(b) != tableMagic {
		return h, placeDamaged
	}
	used := tableUsed
	h.free = b[8] == 2
	if h.free {
		used = freeMarkBytes
	}
	if len(b) < used || b[8] == 0 || b[8] > 2 || Checksum(b[8:used]) != binary.LittleEndian.Uint32(b[4:]) {
		return h, placeDamaged
	}
	h = tableHead{
		free:       h.free,
		chunk:      int(binary.LittleEndian.Uint32(b[12:])),
		key:        Key(binary.LittleEndian.Uint64(b[16:])),
		birth:      binary.LittleEndian.Uint64(b[24:]),
		checkpoint: binary.LittleEndian.Uint64(b[32:]),
		gen:        binary.LittleEndian.Uint64(b[40:]),
		version:    Number{binary.LittleEndian.Uint64(b[48:]), binary.LittleEndian.Uint64(b[56:])},
		vid:        binary.LittleEndian.Uint32(b[64:]),
	}
	if h.free {
		return h, placeFree
	}
	for i := range BlocksPerObject {
		at := tableHeadSize + 8*i
		c := cell{binary.LittleEndian.Uint32(b[at:]), binary.LittleEndian.Uint32(b[at+4:])}
		if !c.validOnDisk() {
			return h, placeDamaged
		}
		if cells != nil {
			cells[i] = c
		}
	}
	return h, placeTable
}

func (c cell) validOnDisk() bool {
	switch c.kind() {
	case cellAbsent, cellZero, cellBad:
		return c.value() == 0
	case cellSlot:
		_, _, ok := slotPlace(c.value())
		return ok
	}
	return false
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// fileHeader is slot 0 of an object's file.
//
//	 0  magic  "SHEEPOBJ"
//	 8  format u32 = 2 | crc u32 of the other bytes of the header
//	16  key    u64
//	24  birth  u64   made of the position of the journal at creation
//	32  group  u32 | zero
type fileHeader struct {
	key   Key
	birth uint64
	group GroupID
}

const (
	fileMagic  = "SHEEPOBJ"
	fileFormat = 2
)

func (h fileHeader) encode() []byte {
	b := make([]byte, BlockSize)
	copy(b, fileMagic)
	binary.LittleEndian.PutUint32(b[8:], fileFormat)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.key))
	binary.LittleEndian.PutUint64(b[24:], h.birth)
	binary.LittleEndian.PutUint32(b[32:], uint32(h.group))
	binary.LittleEndian.PutUint32(b[12:], h.sum(b))
	return b
}

func (h fileHeader) sum(b []byte) uint32 {
	return crcUpdate(Checksum(b[:12]), b[16:headerBytes])
}

func parseFileHeader(b []byte) (h fileHeader, ok bool) {
	if len(b) < headerBytes || string(b[:8]) != fileMagic ||
		binary.LittleEndian.Uint32(b[8:]) != fileFormat ||
		binary.LittleEndian.Uint32(b[12:]) != h.sum(b) {
		return h, false
	}
	return fileHeader{
		key:   Key(binary.LittleEndian.Uint64(b[16:])),
		birth: binary.LittleEndian.Uint64(b[24:]),
		group: GroupID(binary.LittleEndian.Uint32(b[32:])),
	}, true
}
