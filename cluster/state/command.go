package state

import "time"

// Command is one raft entry. Exactly one of the pointers is set. All that Apply needs is in it: the clock (Time), the proposer's
// random choices, and what the leader knew of leases (R6); Apply adds nothing.
type Command struct {
	ID   string    `json:"id"`   // unique; a command applied before is answered with its first outcome
	Time time.Time `json:"time"` // proposer's wall clock: for people only, nothing is decided by it except LostAt/Since displays

	Format     *Format     `json:"format,omitempty"`
	Register   *Register   `json:"register,omitempty"`
	Ended      *Ended      `json:"ended,omitempty"`
	InService  *InService  `json:"inService,omitempty"`
	Resume     *Resume     `json:"resume,omitempty"`
	Sync       *SyncChange `json:"sync,omitempty"`
	Recovered  *Recovered  `json:"recovered,omitempty"`
	NodeOut    *NodeOut    `json:"nodeOut,omitempty"`
	Disks      *Disks      `json:"disks,omitempty"`
	Set        *Set        `json:"set,omitempty"`
	Shutdown   *Shutdown   `json:"shutdown,omitempty"`
	AddPool    *AddPool    `json:"addPool,omitempty"`
	CreateVDI  *CreateVDI  `json:"createVDI,omitempty"`
	DeleteVDI  *DeleteVDI  `json:"deleteVDI,omitempty"`
	CloseVDI   *CloseVDI   `json:"closeVDI,omitempty"`
	FreezeVDI  *FreezeVDI  `json:"freezeVDI,omitempty"`
	AbortClose *AbortClose `json:"abortClose,omitempty"`
	CloneVDI   *CloneVDI   `json:"cloneVDI,omitempty"`
	Rollback   *Rollback   `json:"rollback,omitempty"`
	ResizeVDI  *ResizeVDI  `json:"resizeVDI,omitempty"`
	Collected  *Collected  `json:"collected,omitempty"`
	OpenSess   *OpenSess   `json:"openSess,omitempty"`
	CloseSess  *CloseSess  `json:"closeSess,omitempty"`
	Replayed   *Replayed   `json:"replayed,omitempty"`
	Unlock     *Unlock     `json:"unlock,omitempty"`
	Force      *Force      `json:"force,omitempty"`
}

// Result is what Apply says of a command: given to whoever proposed it.
type Result struct {
	Index uint64   `json:"index"`
	Code  Code     `json:"code"` // 0: done
	Error string   `json:"error,omitempty"`
	Node  NodeID   `json:"node,omitempty"` // Register
	Vid   uint32   `json:"vid,omitempty"`  // CreateVDI, CloneVDI, Rollback, FreezeVDI (the new working vid), CloseVDI
	Sess  *Session `json:"sess,omitempty"`
}

// CommandResult remembers an outcome for a proposer that asks again.
type CommandResult struct {
	ID     string `json:"id"`
	At     int64  `json:"at,omitempty"` // the command's time, Unix milliseconds
	Result Result `json:"result"`
}

// Code says why a command was refused.
type Code uint8

const (
	OK          Code = iota
	Stale            // compare-and-set failed: the state moved on; look again
	Exists           // name or tag exists
	Missing          // no such VDI, snapshot, node, session
	Invalid          // the command makes no sense (bad size, bad name)
	Unformatted      // the cluster is not formatted
	Formatted        // it already is
	Busy             // in use: held by another client, a snapshot is being taken
	Wrong            // node of another cluster, unknown incarnation, duplicate identity
	TooFew           // R10: the set would fall below min-copies while that many of its members may return
)

// Format makes the cluster out of the nodes registered with raft so far.
type Format struct {
	Cluster   string `json:"cluster"`
	Copies    int    `json:"copies"`
	MinCopies int    `json:"minCopies"` // 0: default (1 for 1 or 2 copies, else 2)
	PGs       int    `json:"pgs"`       // 0: default 2048
	Force     bool   `json:"force"`     // format again: every VDI is lost. Groups begin anew; Cluster must be a new identity
}

// Register makes a node, or a node's new incarnation, known (R5, R6).
type Register struct {
	UUID, Addr, Gossip, NBD, Zone string
	VNodes                        int
	Disk                          uint64
	Disks                         []Disk `json:",omitempty"`
	Cluster                       string // "" for a fresh directory; otherwise must be this cluster's
	PrevInc                       uint64 // what the directory remembers as its incarnation before Inc
	// History is what else the directory remembers. The node's last incarnation as this map knows it must be PrevInc or in here, else
	// the directory is an older copy, or another's, and is refused (R5). (The directory may well know more than the map: incarnations
	// it made durable and could not register.)
	History []uint64 `json:",omitempty"`
	Inc     uint64
	Boot    string   // boot id. Same boot and the directory's lock held prove that the previous incarnation is dead (R8)
	Leased  []Member // who else had a lease when the leader wrote this
}

// Ended says that incarnation Inc of a node is surely gone: its lease ran out, or its guardian saw it exit (R8).
type Ended struct {
	Members []Member // who ended
	Leased  []Member // who had a lease
	Why     string
	IfDown  bool // only those that have not come into service: they have had no lease
}

// InService says that members hold leases (first lease of an incarnation): Node.Up, a new epoch.
type InService struct {
	Members []Member
	Leased  []Member
}

// Resume lets sets go on all of whose members restarted (R6, R7).
type Resume struct {
	Groups []GroupTerm
	Leased []Member
}

// GroupTerm names a group at a term, for compare-and-set.
type GroupTerm struct {
	Group GroupID
	Term  uint64
}

// SyncChange is a primary's proposal to change in-sync sets, or to hand groups over. Compare-and-set on the term, group by group:
// those that moved on are skipped (Result.Code is Stale only if all were).
type SyncChange struct {
	By      Member // the primary that proposes
	Changes []SetChange
	Leased  []Member // filled in by the leader
}

// SetChange changes one group.
type SetChange struct {
	Group  GroupID
	Term   uint64
	Add    []Member // now in sync (R11)
	Remove []Member // missed something (R10), or no longer in Target and replaced
	// To hands the primary's role to this in-sync member; NoNode: keep it. A primary that names itself only takes a new term: so it gives
	// up an older proposal whose outcome it could not learn (R9).
	To NodeID
	// NoCopy says that neither the primary nor any member that answers has a copy any more (Group.NoCopy). Nothing else is changed with it.
	NoCopy bool `json:",omitempty"`
}

// Recovered says how far a resumed set recovered (R17).
type Recovered struct {
	By     Member
	Groups []GroupRecovered
}

type GroupRecovered struct {
	Group GroupID
	Term  uint64
	LSN   uint64
}

// NodeOut gives a node's groups to others (Out), takes that back, drains, or removes it.
type NodeOut struct {
	Node   NodeID
	Out    bool
	Drain  bool
	Remove bool
	IfDown bool // refused if the node is in service when this is applied: it came back meanwhile
}

// Disks says which disks a node stores on from now on.
type Disks struct {
	By    Member
	Disks []Disk
}

// Set changes a setting by the name `cluster set` uses.
type Set struct{ Key, Value string }

// Shutdown marks the cluster as being stopped on purpose (true) or started again.
type Shutdown struct{ Down bool }

// AddPool makes placement groups for another redundancy.
type AddPool struct{ Copies, MinCopies, PGs int }

type CreateVDI struct {
	Name   string
	Size   uint64
	Copies int // 0: the default pool's
	Shared bool
}

// DeleteVDI marks a VDI or one snapshot deleted. A frozen VDI that others stand on only loses its name and tag.
type DeleteVDI struct {
	Name  string
	Snap  string // tag or number; "": the working VDI
	Force bool   // also when a client holds it (its session is fenced)
}

// CloseVDI begins a snapshot (R22). Result.Index is the closing id.
type CloseVDI struct{ Name, Tag string }

// FreezeVDI ends it: every group of the pool reported, at these terms, that all writes to the vid are durable.
type FreezeVDI struct {
	Vid     uint32
	Closing uint64
	Terms   []uint64 // by index in the pool; Stale if one moved on
}

// AbortClose gives a snapshot up.
type AbortClose struct {
	Vid     uint32
	Closing uint64
	Why     string
}

type CloneVDI struct{ Name, Snap, New string }

// Rollback has a working VDI begin again as one of its snapshots. Busy while somebody has it open: what that one holds in memory is of the VDI as it was.
type Rollback struct{ Name, Snap string }
type ResizeVDI struct {
	Name string
	Size uint64
}

// Collected says that groups hold nothing of a deleted vid any more (R24).
type Collected struct {
	Vid    uint32
	Gen    uint64
	Groups []GroupID
}

// OpenSess opens a VDI for writing (R14). Busy while another live client holds it, unless Shared.
type OpenSess struct {
	Name   string
	Client string
	Holder Member
	Owner  string
}

// CloseSess ends a session: that of a number, or whatever the command of an ID to open one was granted. If that was not decided yet it never will be.
type CloseSess struct {
	ID   uint64
	Open string
}

// Replayed is a client's word that up to map index Index nothing is lost any more of what it was answered in a session (Session.Replayed).
type Replayed struct {
	Sess  uint64
	Index uint64
}

// Unlock ends every session of a VDI and raises its generation.
type Unlock struct{ Name string }

// Force makes groups go on with an older or smaller set, or with nothing where the last copies went with their disks (`cluster recover force`).
type Force struct {
	Groups []GroupTerm
	Leased []Member
}
