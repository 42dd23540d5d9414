package objstore

import (
	"fmt"
	"hash/crc32"
)

// Sizes that are part of the on-disk format and of the wire.
const (
	BlockSize       = 4096
	BlocksPerObject = 1024
	ObjectSize      = BlockSize * BlocksPerObject
)

// GroupID is a placement group.
type GroupID uint32

// Vid is the 24-bit number of a virtual disk or of one of its snapshots.
type Vid = uint32

// Key names an object: 4 MiB of a VDI family, with every version of it.
type Key uint64

// MakeKey composes a key of the family's root vid and the index of the
// object in the disk.
func MakeKey(root Vid, index uint32) Key { return Key(uint64(root)<<32 | uint64(index)) }

// Root is the first vid of the family.
func (k Key) Root() Vid { return Vid(k >> 32) }

// Index is the object's place in the disk, in units of ObjectSize.
func (k Key) Index() uint32 { return uint32(k) }

// String is the key as the object's file is named.
func (k Key) String() string { return fmt.Sprintf("%016x", uint64(k)) }

// Number is the place of an entry in its group's order. LSNs run without
// gaps; the term says which primary gave the number (R1).
type Number struct{ Term, LSN uint64 }

// Less orders entries of one group.
func (n Number) Less(m Number) bool {
	return n.LSN < m.LSN || n.LSN == m.LSN && n.Term < m.Term
}

// IsZero says that no entry has been numbered yet.
func (n Number) IsZero() bool { return n == Number{} }

func (n Number) String() string { return fmt.Sprintf("%d.%d", n.Term, n.LSN) }

// VidGen is a vid in one of its lives: vids are reused, generations are not
// (rule 11).
type VidGen struct {
	Vid Vid
	Gen uint64
}

// State is what one version of an object says about one block.
type State uint8

const (
	Absent  State = iota // nothing: look at the ancestor
	Zero                 // reads as zeros, hides the ancestor
	Present              // has its own bytes
	Bad                  // had bytes that are lost; only a full write heals it
)

func (s State) String() string {
	switch s {
	case Absent:
		return "absent"
	case Zero:
		return "zero"
	case Present:
		return "present"
	case Bad:
		return "bad"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// ObjectInfo is one line of Group.Objects.
type ObjectInfo struct {
	Key     Key
	Version Number // of the last entry that changed it (rule 10)
	Damaged bool   // a table is lost: the object has to be copied again
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crcUpdate(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// Checksum is the CRC-32C that travels with every block.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
