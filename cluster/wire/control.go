package wire

import "encoding/json"

// Flags of control frames, in Header.Flags.
const (
	// FlagPassedOn says that a node passed this on to whom it takes for the leader: if that is wrong, say so (StatusNotPrimary)
	// instead of passing it on again.
	FlagPassedOn = 1
	// FlagInvite makes a KindJoin an invitation: a blank node is told which cluster to belong to.
	FlagInvite = 2
)

// Renew asks the raft leader for a lease (R12). The same message carries the voter's word on its raft term: an echo of the newest stamp
// that the leader's answers showed it.
//
//	0      4         12      20            28      36     44        52
//	┌──────┬─────────┬───────┬─────────────┬───────┬──────┬─────────┐
//	│ node │ inc     │ asked │ stamp term  │ stamp │ term │ applied │
//	└──────┴─────────┴───────┴─────────────┴───────┴──────┴─────────┘
type Renew struct {
	Node      uint32
	Inc       uint64 // 0: it is not registered, asks for nothing, and says what Stamp, Term and Applied do
	Asked     int64  // the asker's own clock when it asked; the grant repeats it, and the lease runs from it (R13). With Inc 0 the incarnation that it comes after
	StampTerm uint64 // raft term of the leader whose stamp this echoes
	Stamp     int64  // newest stamp seen of that leader; 0: none yet
	Term      uint64 // the asker's raft term, read after Stamp was
	Applied   uint64 // raft index it has applied
}

const renewBytes = 52

func (m *Renew) Append(b []byte) []byte {
	b = le.AppendUint32(b, m.Node)
	b = le.AppendUint64(b, m.Inc)
	b = le.AppendUint64(b, uint64(m.Asked))
	b = le.AppendUint64(b, m.StampTerm)
	b = le.AppendUint64(b, uint64(m.Stamp))
	b = le.AppendUint64(b, m.Term)
	return le.AppendUint64(b, m.Applied)
}

func (m *Renew) Parse(b []byte) error {
	if len(b) != renewBytes {
		return errShort
	}
	*m = Renew{le.Uint32(b), le.Uint64(b[4:]), int64(le.Uint64(b[12:])), le.Uint64(b[20:]), int64(le.Uint64(b[28:])),
		le.Uint64(b[36:]), le.Uint64(b[44:])}
	return nil
}

// Grant answers Renew. Status NotPrimary: not the leader; Behind: leads, but has not applied its barrier yet; WrongInc: not the node's
// current incarnation, or one that was removed.
type Grant struct {
	Term    uint64 // the leader's
	Stamp   int64  // its clock: to be echoed
	Granted int64  // the newest Asked that a lease is granted for; 0: none
	Index   uint64 // raft index to have applied before using it
}

const grantBytes = 32

func (m *Grant) Append(b []byte) []byte {
	b = le.AppendUint64(b, m.Term)
	b = le.AppendUint64(b, uint64(m.Stamp))
	b = le.AppendUint64(b, uint64(m.Granted))
	return le.AppendUint64(b, m.Index)
}

func (m *Grant) Parse(b []byte) error {
	if len(b) != grantBytes {
		return errShort
	}
	*m = Grant{le.Uint64(b), int64(le.Uint64(b[8:])), int64(le.Uint64(b[16:])), le.Uint64(b[24:])}
	return nil
}

// Exited is a guardian's word that an incarnation is gone (R8).
type Exited struct {
	Node uint32
	Inc  uint64
}

func (m *Exited) Append(b []byte) []byte {
	b = le.AppendUint32(b, m.Node)
	return le.AppendUint64(b, m.Inc)
}

func (m *Exited) Parse(b []byte) error {
	if len(b) != 12 {
		return errShort
	}
	*m = Exited{le.Uint32(b), le.Uint64(b[4:])}
	return nil
}

// ClosedReport is a primary's word that, for these groups at these terms, every write to a closing vid is durable (R22).
//
//	0     4         12
//	┌─────┬─────────┬─────────────────┐
//	│ vid │ closing │ (group, term) … │
//	└─────┴─────────┴─────────────────┘
type ClosedReport struct {
	Vid     uint32
	Closing uint64
	Groups  []ClosedGroup
}

// ClosedGroup is one group of a ClosedReport.
type ClosedGroup struct {
	Group uint32
	Term  uint64
}

func (m *ClosedReport) Append(b []byte) []byte {
	b = le.AppendUint32(b, m.Vid)
	b = le.AppendUint64(b, m.Closing)
	for _, g := range m.Groups {
		b = le.AppendUint32(b, g.Group)
		b = le.AppendUint64(b, g.Term)
	}
	return b
}

func (m *ClosedReport) Parse(b []byte) error {
	if len(b) < 12 || (len(b)-12)%12 != 0 {
		return errShort
	}
	*m = ClosedReport{Vid: le.Uint32(b), Closing: le.Uint64(b[4:]), Groups: make([]ClosedGroup, 0, (len(b)-12)/12)}
	for b = b[12:]; len(b) > 0; b = b[12:] {
		m.Groups = append(m.Groups, ClosedGroup{le.Uint32(b), le.Uint64(b[4:])})
	}
	return nil
}

// AppendCommand makes the meta of KindCommand: the raft index and the encoded command, to be applied to the map before it.
func AppendCommand(b []byte, index uint64, cmd []byte) []byte {
	return append(le.AppendUint64(b, index), cmd...)
}

// ParseCommand splits the meta of KindCommand. cmd lies in b.
func ParseCommand(b []byte) (index uint64, cmd []byte, err error) {
	if len(b) < 8 {
		return 0, nil, errShort
	}
	return le.Uint64(b), b[8:], nil
}

// Who is a node's answer to KindWho, and what a KindJoin says of the one who asks.
type Who struct {
	UUID    string `json:"uuid"`
	Addr    string `json:"addr"`              // host:port that peers dial
	Cluster string `json:"cluster,omitempty"` // "": belongs to none yet
	Leader  string `json:"leader,omitempty"`  // address of the raft leader as far as it knows
	Node    uint32 `json:"node"`              // its number, if registered
	Inc     uint64 `json:"inc,omitempty"`     // its incarnation; 0: not registered yet
	Index   uint64 `json:"index,omitempty"`   // of its map
	Lead    bool   `json:"lead,omitempty"`    // it leads
}

// whoBytesMax bounds what is parsed of a stranger's word on itself.
const whoBytesMax = 4096

func (m *Who) Append(b []byte) []byte {
	j, err := json.Marshal(m)
	if err != nil { // strings and numbers always marshal
		panic(err)
	}
	return append(b, j...)
}

func (m *Who) Parse(b []byte) error {
	if len(b) > whoBytesMax {
		return errShort
	}
	return json.Unmarshal(b, m)
}
