package objstore

import (
	"encoding/binary"
	"fmt"
)

// EntryKind says what an entry does. The numbers are on disk and on the
// wire: append only.
type EntryKind uint8

const (
	KindNoop   EntryKind = 0 // takes a number, changes nothing
	KindWrite  EntryKind = 1 // blocks get bytes
	KindZero   EntryKind = 2 // blocks become Zero
	KindTrim   EntryKind = 3 // blocks become Absent; only where the version has no ancestor
	KindFree   EntryKind = 4 // blocks of version Vid become Absent: the collector's
	KindMerge  EntryKind = 5 // what Into lacks moves there from Vid, then Vid goes
	KindDelete EntryKind = 6 // version Vid goes; the file goes with the last one
	KindBad    EntryKind = 7 // blocks are marked bad

	kindEnd = 8
)

var kindNames = [kindEnd]string{"noop", "write", "zero", "trim", "free", "merge", "delete", "bad"}

func (k EntryKind) String() string {
	if k < kindEnd {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Entry is one ordered operation of a group. It looks the same on the wire,
// in the journal and in replay; only its head is encoded here, the data
// follow wherever the carrier puts them.
//
//	 0  format  u8 = 1      | kind u8 | first u16 | count u16 | zero u16
//	 8  term    u64
//	16  lsn     u64
//	24  key     u64
//	32  vid     u32 | into u32
//	40  gen     u64
//	48  intoGen u64
//	56  zero    u32
//	60  crc     u32        CRC-32C of bytes 0..60 and of all that follows in the head
//	64  CRC-32C u32 × count, in a write only
//
// All numbers are little-endian.
type Entry struct {
	Number  Number
	Kind    EntryKind
	Key     Key
	Vid     Vid
	Gen     uint64
	Into    Vid
	IntoGen uint64
	First   uint16
	Count   uint16
	CRCs    []uint32 // of a write's blocks
	Data    []byte   // of a write; Count blocks
}

const (
	entryFormat   = 1
	entryHeadSize = 64

	// EntryHeadMax bounds what AppendHead appends.
	EntryHeadMax = entryHeadSize + 4*BlocksPerObject
)

// HeadSize is how much AppendHead appends.
func (e *Entry) HeadSize() int {
	if e.Kind == KindWrite {
		return entryHeadSize + 4*len(e.CRCs)
	}
	return entryHeadSize
}

// DataLen is how many bytes of data belong to the entry.
func (e *Entry) DataLen() int {
	if e.Kind == KindWrite {
		return int(e.Count) * BlockSize
	}
	return 0
}

// AppendHead appends the encoded head to dst.
func (e *Entry) AppendHead(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, entryFormat, byte(e.Kind))
	dst = binary.LittleEndian.AppendUint16(dst, e.First)
	dst = binary.LittleEndian.AppendUint16(dst, e.Count)
	dst = append(dst, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, e.Number.Term)
	dst = binary.LittleEndian.AppendUint64(dst, e.Number.LSN)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Key))
	dst = binary.LittleEndian.AppendUint32(dst, e.Vid)
	dst = binary.LittleEndian.AppendUint32(dst, e.Into)
	dst = binary.LittleEndian.AppendUint64(dst, e.Gen)
	dst = binary.LittleEndian.AppendUint64(dst, e.IntoGen)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	if e.Kind == KindWrite {
		for _, c := range e.CRCs {
			dst = binary.LittleEndian.AppendUint32(dst, c)
		}
	}
	binary.LittleEndian.PutUint32(dst[at+60:], headSum(dst[at:]))
	return dst
}

func headSum(head []byte) uint32 {
	return crcUpdate(Checksum(head[:60]), head[entryHeadSize:])
}

// ParseHead decodes a head and says how long it is. The entry has no data
// yet. Whatever it accepts passes Validate.
func ParseHead(b []byte) (e Entry, n int, err error) {
	n, err = e.ParseHead(b)
	return e, n, err
}

// ParseHead is the same into an entry whose CRCs slice is used again, so
// that a loop over messages allocates nothing.
func (e *Entry) ParseHead(b []byte) (n int, err error) {
	if len(b) < entryHeadSize {
		return 0, fmt.Errorf("entry head: %d bytes: %w", len(b), ErrFormat)
	}
	if b[0] != entryFormat {
		return 0, fmt.Errorf("entry head: format %d is unknown: %w", b[0], ErrFormat)
	}
	crcs := e.CRCs[:0]
	*e = Entry{
		Kind:    EntryKind(b[1]),
		First:   binary.LittleEndian.Uint16(b[2:]),
		Count:   binary.LittleEndian.Uint16(b[4:]),
		Number:  Number{binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])},
		Key:     Key(binary.LittleEndian.Uint64(b[24:])),
		Vid:     binary.LittleEndian.Uint32(b[32:]),
		Into:    binary.LittleEndian.Uint32(b[36:]),
		Gen:     binary.LittleEndian.Uint64(b[40:]),
		IntoGen: binary.LittleEndian.Uint64(b[48:]),
		CRCs:    crcs,
	}
	n = entryHeadSize
	if e.Kind == KindWrite {
		n += 4 * int(e.Count)
	}
	if e.Count > BlocksPerObject || len(b) < n {
		return 0, fmt.Errorf("entry head: %d blocks in %d bytes: %w", e.Count, len(b), ErrFormat)
	}
	if sum := binary.LittleEndian.Uint32(b[60:]); sum != headSum(b[:n]) {
		return 0, fmt.Errorf("entry head: %w", ErrChecksum)
	}
	if binary.LittleEndian.Uint16(b[6:]) != 0 || binary.LittleEndian.Uint32(b[56:]) != 0 {
		return 0, fmt.Errorf("entry head: reserved bytes are not zero: %w", ErrFormat)
	}
	for at := entryHeadSize; at < n; at += 4 {
		e.CRCs = append(e.CRCs, binary.LittleEndian.Uint32(b[at:]))
	}
	return n, e.Validate()
}

// Validate holds every refusal of an entry that does not depend on what the
// store has; data are not looked at.
func (e *Entry) Validate() error {
	first, count := int(e.First), int(e.Count)
	blocks := e.Kind != KindNoop && e.Kind != KindMerge && e.Kind != KindDelete
	switch {
	case e.Kind >= kindEnd:
		return fmt.Errorf("entry %v: %v is unknown: %w", e.Number, e.Kind, ErrFormat)
	case blocks && (count == 0 || first+count > BlocksPerObject):
		return fmt.Errorf("entry %v: blocks %d+%d: %w", e.Number, first, count, ErrFormat)
	case !blocks && (first != 0 || count != 0):
		return fmt.Errorf("entry %v: %v has no blocks: %w", e.Number, e.Kind, ErrFormat)
	case e.Kind == KindWrite && len(e.CRCs) != count:
		return fmt.Errorf("entry %v: %d checksums for %d blocks: %w", e.Number, len(e.CRCs), count, ErrFormat)
	case e.Kind != KindNoop && (e.Vid == 0 || e.Vid > vidMax):
		return fmt.Errorf("entry %v: vid %x: %w", e.Number, e.Vid, ErrFormat)
	case e.Kind == KindMerge && (e.Into == 0 || e.Into > vidMax || e.Into == e.Vid):
		return fmt.Errorf("entry %v: merge %06x into %06x: %w", e.Number, e.Vid, e.Into, ErrFormat)
	case e.Kind != KindNoop && e.Key.Root() > vidMax:
		return fmt.Errorf("entry %v: key %v: %w", e.Number, e.Key, ErrFormat)
	}
	return nil
}

const vidMax = 1<<24 - 1

// VerifyData checks a write's data against its checksums.
func (e *Entry) VerifyData() error {
	if len(e.Data) != e.DataLen() {
		return fmt.Errorf("entry %v: %d bytes of data, want %d: %w", e.Number, len(e.Data), e.DataLen(), ErrFormat)
	}
	if e.Kind != KindWrite {
		return nil
	}
	for i, c := range e.CRCs {
		if Checksum(e.Data[i*BlockSize:(i+1)*BlockSize]) != c {
			return fmt.Errorf("entry %v: object %v block %d: %w", e.Number, e.Key, int(e.First)+i, ErrChecksum)
		}
	}
	return nil
}

// SumData fills CRCs from Data: what a primary does once for everybody.
func (e *Entry) SumData() {
	e.CRCs = e.CRCs[:0]
	for at := 0; at < len(e.Data); at += BlockSize {
		e.CRCs = append(e.CRCs, Checksum(e.Data[at:at+BlockSize]))
	}
}
