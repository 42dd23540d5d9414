package wire

import (
	"encoding/binary"
	"errors"
)

// errShort says that a meta is not as long as its kind needs.
var errShort = errors.New("meta is too short for its kind")

var le = binary.LittleEndian

// ClientHello begins a client's connection (R15): at most one connection per client and primary is served; a higher epoch supersedes.
type ClientHello struct {
	Client string // unique per client process
	Epoch  uint64
}

func (m *ClientHello) Append(b []byte) []byte {
	b = le.AppendUint64(b, m.Epoch)
	return append(b, m.Client...)
}

func (m *ClientHello) Parse(b []byte) error {
	if len(b) < 9 || len(b) > 8+256 {
		return errShort
	}
	m.Epoch, m.Client = le.Uint64(b), string(b[8:])
	return nil
}

// Flags of IO requests, in Header.Flags.
const (
	FlagFUA   = 1 // durable on every in-sync replica before the answer
	FlagAgain = 2 // of a change: it was answered before, and lost since (R17)
	FlagMore  = 1 // KindUnitList answers: more follows
)

// IO is what a client asks of an object: KindRead, KindWrite, KindZero, KindTrim, KindFlush, KindExtents.
//
//	 0         8         16   20   24         32   36    40     48         72
//	┌─────────┬─────────┬────┬────┬──────────┬────┬─────┬──────┬──────────┬────────┐
//	│ key     │ gen     │ vid│ off│ sess gen │ len│ sum │ index│ once     │ crcs … │
//	└─────────┴─────────┴────┴────┴──────────┴────┴─────┴──────┴──────────┴────────┘
type IO struct {
	Key     uint64 // root<<32 | object index
	Gen     uint64 // of the vid (STORE.md rule 11)
	Vid     uint32
	Off     uint32 // bytes within the object
	SessGen uint64 // R14; 0: a reader without a session
	Len     uint32 // bytes
	Sum     uint32 // KindWrite whose range is not whole blocks: CRC-32C of the data
	Index   uint64 // map index this was made under: the primary waits until it has applied it
	Once    Once   // changes of a shared VDI
	CRCs    []byte // KindWrite of whole blocks: 4 bytes each, CRC-32C of each 4 KiB
}

const ioBytes = 48 + onceBytes

// Once names a change of a VDI that several may write, so that it is done once, however often it is sent (invariant 7). Zero: the VDI has one writer, whose
// changes may be done again as long as they are not answered.
//
//	 0         8         16        24
//	┌─────────┬─────────┬─────────┐
//	│ sess    │ seq     │ low     │
//	└─────────┴─────────┴─────────┘
type Once struct {
	Sess uint64 // number of the session it was first sent in
	Seq  uint64 // unique within the session, and rising
	Low  uint64 // the session has an answer to all changes of this group before this one, and sends none of them again
}

const onceBytes = 24

func (m *Once) Append(b []byte) []byte {
	return le.AppendUint64(le.AppendUint64(le.AppendUint64(b, m.Sess), m.Seq), m.Low)
}

func parseOnce(b []byte) Once { return Once{le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])} }

func (m *IO) Append(b []byte) []byte {
	b = le.AppendUint64(b, m.Key)
	b = le.AppendUint64(b, m.Gen)
	b = le.AppendUint32(b, m.Vid)
	b = le.AppendUint32(b, m.Off)
	b = le.AppendUint64(b, m.SessGen)
	b = le.AppendUint32(b, m.Len)
	b = le.AppendUint32(b, m.Sum)
	b = le.AppendUint64(b, m.Index)
	b = m.Once.Append(b)
	return append(b, m.CRCs...)
}

func (m *IO) Parse(b []byte) error {
	if len(b) < ioBytes || (len(b)-ioBytes)%4 != 0 {
		return errShort
	}
	*m = IO{Key: le.Uint64(b), Gen: le.Uint64(b[8:]), Vid: le.Uint32(b[16:]), Off: le.Uint32(b[20:]), SessGen: le.Uint64(b[24:]),
		Len: le.Uint32(b[32:]), Sum: le.Uint32(b[36:]), Index: le.Uint64(b[40:]), Once: parseOnce(b[48:]), CRCs: b[ioBytes:]}
	return nil
}

// Done answers a write: its number (R17), and the map index at which that holds.
type Done struct{ Term, LSN, Index uint64 }

func (m *Done) Append(b []byte) []byte {
	b = le.AppendUint64(b, m.Term)
	b = le.AppendUint64(b, m.LSN)
	return le.AppendUint64(b, m.Index)
}

func (m *Done) Parse(b []byte) error {
	if len(b) != 24 {
		return errShort
	}
	*m = Done{le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])}
	return nil
}

// Moved answers with StatusNotPrimary, StatusReadOnly, StatusFenced: look again at a map of at least this index.
type Moved struct{ Index uint64 }

func (m *Moved) Append(b []byte) []byte { return le.AppendUint64(b, m.Index) }

func (m *Moved) Parse(b []byte) error {
	if len(b) != 8 {
		return errShort
	}
	m.Index = le.Uint64(b)
	return nil
}

// Extent is a run of blocks of one kind, in the answer to KindExtents.
type Extent struct {
	Blocks uint32
	State  uint8  // objstore.State
	Vid    uint32 // whose it is
}

const extentBytes = 9

func (m *Extent) Append(b []byte) []byte {
	b = le.AppendUint32(b, m.Blocks)
	b = append(b, m.State)
	return le.AppendUint32(b, m.Vid)
}

// EachExtent calls f for every extent in b.
func EachExtent(b []byte, f func(Extent)) error {
	if len(b)%extentBytes != 0 {
		return errShort
	}
	for ; len(b) > 0; b = b[extentBytes:] {
		f(Extent{le.Uint32(b), b[4], le.Uint32(b[5:])})
	}
	return nil
}

// Relay wraps a client's request for a primary that the client cannot reach itself (R18).
type Relay struct {
	Kind   Kind
	Client string
	Epoch  uint64
	Meta   []byte
}

func (m *Relay) Append(b []byte) []byte {
	b = append(b, byte(m.Kind), byte(len(m.Client)))
	b = append(b, m.Client...)
	b = le.AppendUint64(b, m.Epoch)
	return append(b, m.Meta...)
}

func (m *Relay) Parse(b []byte) error {
	if len(b) < 2 || len(b) < 2+int(b[1])+8 {
		return errShort
	}
	n := 2 + int(b[1])
	*m = Relay{Kind: Kind(b[0]), Client: string(b[2:n]), Epoch: le.Uint64(b[n:]), Meta: b[n+8:]}
	return nil
}

// Append begins the meta of KindAppend; the entry's head (objstore's format) follows, its data is the frame's.
type Append struct {
	Commit uint64 // how far the primary knows the group committed
	Once   Once   // of the request that the entry is of
	Part   Part   // which of its entries
}

// Part says which of a request's entries one is: their count before it, and PartLast.
type Part uint8

const PartLast Part = 0x80

const appendBytes = 8 + onceBytes + 1

func (m *Append) Append(b []byte) []byte {
	return append(m.Once.Append(le.AppendUint64(b, m.Commit)), byte(m.Part))
}

// Parse returns the entry's head.
func (m *Append) Parse(b []byte) (head []byte, err error) {
	if len(b) < appendBytes {
		return nil, errShort
	}
	*m = Append{le.Uint64(b), parseOnce(b[8:]), Part(b[appendBytes-1])}
	return b[appendBytes:], nil
}

// GroupPos names a position in a group: in KindAcks the last entry the replica has, in KindCommits the last committed.
type GroupPos struct {
	Group uint32
	Term  uint64
	LSN   uint64
}

const groupPosBytes = 20

func (m *GroupPos) Append(b []byte) []byte {
	b = le.AppendUint32(b, m.Group)
	b = le.AppendUint64(b, m.Term)
	return le.AppendUint64(b, m.LSN)
}

// Credit is a replica's promise (STORE.md rule 19): bytes that one of its disks can still take. Disk numbers disks within one process of the node.
type Credit struct {
	Bytes uint64
	Disk  uint32
}

const creditBytes = 12

// AppendAcks begins the meta of KindAcks with the credit of the disk that the groups in it are on.
func AppendAcks(b []byte, c Credit) []byte {
	return le.AppendUint32(le.AppendUint64(b, c.Bytes), c.Disk)
}

// ParseAcks splits the meta of KindAcks.
func ParseAcks(b []byte) (c Credit, list []byte, err error) {
	if len(b) < creditBytes {
		return c, nil, errShort
	}
	return Credit{le.Uint64(b), le.Uint32(b[8:])}, b[creditBytes:], nil
}

// EachGroupPos calls f for every position in b.
func EachGroupPos(b []byte, f func(GroupPos)) error {
	if len(b)%groupPosBytes != 0 {
		return errShort
	}
	for ; len(b) > 0; b = b[groupPosBytes:] {
		f(GroupPos{le.Uint32(b), le.Uint64(b[4:]), le.Uint64(b[12:])})
	}
	return nil
}

// Number is a (term, lsn) on the wire.
type Number struct{ Term, LSN uint64 }

func (m *Number) Append(b []byte) []byte { return le.AppendUint64(le.AppendUint64(b, m.Term), m.LSN) }

// Position says where a replica stands: the answer to KindActivate and KindSyncStart.
type Position struct {
	Last    Number
	Commit  uint64
	Syncing bool // it is a mixture
	Lost    bool // it went with a disk: what there is is nothing, or a mixture that nobody finished
	Credit  Credit
	Terms   []Number // first number of each term, oldest first
}

func (m *Position) Append(b []byte) []byte {
	b = m.Last.Append(b)
	b = le.AppendUint64(b, m.Commit)
	b = AppendAcks(b, m.Credit)
	s := byte(0)
	if m.Syncing {
		s = 1
	}
	if m.Lost {
		s |= 2
	}
	b = append(b, s)
	for i := range m.Terms {
		b = m.Terms[i].Append(b)
	}
	return b
}

func (m *Position) Parse(b []byte) error {
	const head = 24 + creditBytes + 1
	if len(b) < head || (len(b)-head)%16 != 0 {
		return errShort
	}
	credit, _, _ := ParseAcks(b[24:])
	*m = Position{Last: Number{le.Uint64(b), le.Uint64(b[8:])}, Commit: le.Uint64(b[16:]), Credit: credit, Syncing: b[head-1]&1 != 0, Lost: b[head-1]&2 != 0}
	m.Terms = ParseNumbers(b[head:])
	return nil
}

// ParseNumbers decodes numbers of 16 bytes each; an odd rest is ignored.
func ParseNumbers(b []byte) []Number {
	var list []Number
	for ; len(b) >= 16; b = b[16:] {
		list = append(list, Number{le.Uint64(b), le.Uint64(b[8:])})
	}
	return list
}

// UnitVersion is an object and the number of the last entry that changed it.
type UnitVersion struct {
	Key     uint64
	Version Number
}

const unitVersionBytes = 24

func (m *UnitVersion) Append(b []byte) []byte { return m.Version.Append(le.AppendUint64(b, m.Key)) }

// EachUnitVersion calls f for every object in b.
func EachUnitVersion(b []byte, f func(UnitVersion)) error {
	if len(b)%unitVersionBytes != 0 {
		return errShort
	}
	for ; len(b) > 0; b = b[unitVersionBytes:] {
		f(UnitVersion{le.Uint64(b), Number{le.Uint64(b[8:]), le.Uint64(b[16:])}})
	}
	return nil
}

// CopyItem is one block of KindCopyData; the frame's data holds the blocks in the same order.
type CopyItem struct {
	Vid   uint32
	Block uint16
	CRC   uint32
}

const copyItemBytes = 10

// AppendCopyData begins the meta of KindCopyData.
func AppendCopyData(b []byte, key uint64) []byte { return le.AppendUint64(b, key) }

func (m *CopyItem) Append(b []byte) []byte {
	b = le.AppendUint32(b, m.Vid)
	b = le.AppendUint16(b, m.Block)
	return le.AppendUint32(b, m.CRC)
}

// EachCopyItem splits the meta of KindCopyData.
func EachCopyItem(b []byte, f func(CopyItem) error) (key uint64, err error) {
	if len(b) < 8 || (len(b)-8)%copyItemBytes != 0 {
		return 0, errShort
	}
	key = le.Uint64(b)
	for b = b[8:]; len(b) > 0; b = b[copyItemBytes:] {
		if err := f(CopyItem{le.Uint32(b), le.Uint16(b[4:]), le.Uint32(b[6:])}); err != nil {
			return key, err
		}
	}
	return key, nil
}

// SyncEnd ends a resync: the last number of the primary's stream and its term history.
type SyncEnd struct {
	Last  Number
	Terms []Number
}

func (m *SyncEnd) Append(b []byte) []byte {
	b = m.Last.Append(b)
	for i := range m.Terms {
		b = m.Terms[i].Append(b)
	}
	return b
}

func (m *SyncEnd) Parse(b []byte) error {
	if len(b) < 16 || len(b)%16 != 0 {
		return errShort
	}
	list := ParseNumbers(b)
	m.Last, m.Terms = list[0], list[1:]
	return nil
}

// OnceDone is a change of a shared VDI that is numbered, and that its client may send again: what a replica has to know that did not see its entries.
type OnceDone struct {
	Once        // Low: the highest known of the session
	LSN  uint64 // of its last entry
	// Part of that entry.
	Part Part
}

const onceDoneBytes = onceBytes + 9

func (m *OnceDone) Append(b []byte) []byte {
	return append(le.AppendUint64(m.Once.Append(b), m.LSN), byte(m.Part))
}

// EachOnceDone calls f for every change in b.
func EachOnceDone(b []byte, f func(OnceDone)) error {
	if len(b)%onceDoneBytes != 0 {
		return errShort
	}
	for ; len(b) > 0; b = b[onceDoneBytes:] {
		f(OnceDone{parseOnce(b), le.Uint64(b[onceBytes:]), Part(b[onceDoneBytes-1])})
	}
	return nil
}
