package wire

import "fmt"

// Kind is what a frame asks or answers. Codes are append-only.
type Kind uint8

// An answer has the kind of what it answers, with KindAnswer set.
const KindAnswer Kind = 0x80

const (
	// A client's requests to a primary (Group, Term; From: the client's connection epoch).
	KindHello   Kind = 1 // first on a client's connection: ClientHello. Supersedes the client's older connections (R15)
	KindRead    Kind = 2 // IO → data
	KindWrite   Kind = 3 // IO, data → Number
	KindZero    Kind = 4 // IO → Number
	KindTrim    Kind = 5 // IO → Number
	KindFlush   Kind = 6 // IO (Vid, SessGen) → nothing
	KindExtents Kind = 7 // IO → list of Extent
	KindRelay   Kind = 8 // R18: any of the above, wrapped: Relay, data → the same answer

	// A primary to a replica (Group, Term; From, To: incarnations).
	KindAppend   Kind = 20 // Append, data; answered by KindAcks
	KindAcks     Kind = 21 // list of Ack; a replica to a primary, unasked
	KindCommits  Kind = 22 // list of Commit: how far groups are committed
	KindSync     Kind = 23 // make all you have of the group durable → nothing
	KindActivate Kind = 24 // a new primary makes its term known → Position
	KindPing     Kind = 25 // → nothing

	// Resync, a primary to a replica (Group, Term; From, To).
	KindSyncStart Kind = 30 // → Position with term starts; Flags 1: mark the replica as being resynced, meta: Number the stream begins after
	KindUnitList  Kind = 31 // UnitList → list of UnitVersion; Flags 1: more follows
	KindUnitGet   Kind = 32 // key → objstore unit
	KindCopyData  Kind = 33 // CopyData, data
	KindCopyEnd   Kind = 34 // CopyEnd: install
	KindCopyDrop  Kind = 35 // key: delete the object
	KindSyncEnd   Kind = 36 // SyncEnd: make all durable, clear the mark
	KindVerify    Kind = 37 // key → objstore unit, after reading every block of it; meta begins with the number of bad blocks (4 bytes)
	KindOnce      Kind = 38 // list of OnceDone: all that the primary knows of such changes → nothing

	// A replica to the primary, for itself.
	KindFetch Kind = 40 // repair: Fetch → data, the version it belongs to

	// A replica to the primary.
	KindRotten Kind = 41 // a scrub found this block of ours bad (Fetch; block ^0: the object's tables; ^0-1: the whole disk failed): number it again → nothing

	// Control: any node to any node, sheep-nbd to any node.
	KindPropose Kind = 60 // JSON state.Command → JSON state.Result; a node that does not lead passes it on
	KindRenew   Kind = 61 // lease: Renew → Grant
	KindWatch   Kind = 62 // from index → KindMap or KindCommand, unasked, until the connection ends
	KindMap     Kind = 63 // JSON state.Map
	KindCommand Kind = 64 // index, JSON state.Command
	KindExited  Kind = 65 // a guardian: Member that exited
	KindClosed  Kind = 66 // a primary to the leader: Closed report of a snapshot (R22)
	KindKeep    Kind = 67 // a client program keeps its sessions alive: client id
	KindJoin    Kind = 68 // a node asks to be admitted to raft: JSON
	KindWho     Kind = 69 // who are you: → JSON identity
)

var kindNames = map[Kind]string{
	KindHello: "hello", KindRead: "read", KindWrite: "write", KindZero: "zero", KindTrim: "trim", KindFlush: "flush", KindExtents: "extents",
	KindRelay: "relay", KindAppend: "append", KindAcks: "acks", KindCommits: "commits", KindSync: "sync", KindActivate: "activate", KindPing: "ping",
	KindSyncStart: "sync-start", KindUnitList: "unit-list", KindUnitGet: "unit-get", KindCopyData: "copy-data", KindCopyEnd: "copy-end",
	KindCopyDrop: "copy-drop", KindSyncEnd: "sync-end", KindVerify: "verify", KindOnce: "once", KindFetch: "fetch", KindRotten: "rotten", KindPropose: "propose", KindRenew: "renew", KindWatch: "watch",
	KindMap: "map", KindCommand: "command", KindExited: "exited", KindClosed: "closed", KindKeep: "keep", KindJoin: "join", KindWho: "who",
}

func (k Kind) String() string {
	name, ok := kindNames[k&^KindAnswer]
	if !ok {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	if k&KindAnswer != 0 {
		return name + " answer"
	}
	return name
}

// Status is the outcome in an answer.
type Status uint16

const (
	StatusOK         Status = 0
	StatusNotPrimary Status = 1  // ask whoever the map at index Moved says; the answer's meta is Moved
	StatusOldTerm    Status = 2  // a newer term is known: Header.Term
	StatusWrongInc   Status = 3  // From or To names an incarnation that is not current (R5)
	StatusBehind     Status = 4  // the one asked has not applied what the request needs; try again soon
	StatusFenced     Status = 5  // the session's generation is over (R14): do not try again
	StatusNoSpace    Status = 6  // ENOSPC
	StatusReadOnly   Status = 7  // the vid is frozen or deleted at map index Moved
	StatusBad        Status = 8  // EIO: no good copy of a block
	StatusInvalid    Status = 9  // the request makes no sense; Meta is a sentence
	StatusGap        Status = 10 // a replica lacks entries before this one
	StatusBusy       Status = 11 // too much waits here already; try again
	StatusFailed     Status = 12 // EIO of a disk or an internal fault; Meta is a sentence
	StatusOldConn    Status = 13 // a newer connection of this client is known (R15)
	StatusGone       Status = 14 // missing: the thing named is not here
)

var statusNames = [...]string{"ok", "not primary", "old term", "wrong incarnation", "behind", "fenced", "no space", "read-only", "bad block",
	"invalid", "gap", "busy", "failed", "superseded connection", "gone"}

func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status %d", uint16(s))
}
