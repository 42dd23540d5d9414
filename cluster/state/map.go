package state

import "time"

// NodeID numbers a node. Given by the state machine at registration, from 0, never reused.
type NodeID uint32

// NoNode stands where no node is meant.
const NoNode NodeID = ^NodeID(0)

// GroupID numbers a placement group: pool<<16 | index within the pool.
type GroupID uint32

// Member is one incarnation of a node (R5): what in-sync sets, primaries and leases name.
type Member struct {
	Node NodeID `json:"node"`
	Inc  uint64 `json:"inc"`
}

// Map is the agreed state: everything that raft decides. A *Map handed out is never changed again;
// Apply returns a new one that shares what stayed the same.
type Map struct {
	Index uint64 `json:"index"` // raft index of the last command applied

	Cluster  string     `json:"cluster"` // identity of this cluster, "" before format
	Created  time.Time  `json:"created"`
	Epoch    uint64     `json:"epoch"` // rises with every change of the nodes in service
	Epochs   []Epoch    `json:"epochs"`
	Settings Settings   `json:"settings"`
	Pools    []*Pool    `json:"pools"`
	Nodes    []*Node    `json:"nodes"` // ordered by ID; removed nodes stay, marked
	Groups   []*Group   `json:"groups"`
	VDIs     []*VDI     `json:"vdis"` // ordered by Vid
	ShutDown bool       `json:"shutDown"`
	NextNode NodeID     `json:"nextNode"`
	NextSess uint64     `json:"nextSess"`
	Sessions []*Session `json:"sessions"` // live write sessions, ordered by ID
	Recent   recent     `json:"recent"`   // outcomes of the newest commands, for proposals whose outcome was unknown

	// FirstTerm is what new groups begin with: 1, and above every older term once the cluster was formatted again, so that
	// nothing that is still under way from before can pass for current.
	FirstTerm uint64 `json:"firstTerm"`

	starts []int  // derived: where each pool's groups begin in Groups, and where the last pool's end
	dir    *index // derived: the VDI directory by vid, by name and by parent
}

// Epoch records who was in service from a moment on.
type Epoch struct {
	Epoch uint64    `json:"epoch"`
	Time  time.Time `json:"time"`
	Nodes []NodeID  `json:"nodes"`
}

// Settings are the values `cluster set` changes at run time.
type Settings struct {
	RebuildAfter  time.Duration `json:"rebuildAfter"`  // down this long becomes out; default 10 min
	ResumeWait    time.Duration `json:"resumeWait"`    // R6: how long a set whose members all restarted waits for those not back; default 30 s
	RecoverySpeed int64         `json:"recoverySpeed"` // most that resync takes per node, bytes per second; 0: default 100 MiB/s
	RecoveryFloor int64         `json:"recoveryFloor"` // what resync always gets, bytes per second; 0: default 10 MiB/s
	ScrubSpeed    int64         `json:"scrubSpeed"`    // most that a scrub takes per disk, bytes per second; 0: default 10 MiB/s
	ScrubFloor    int64         `json:"scrubFloor"`    // what a scrub always gets, bytes per second and disk; 0: default 1 MiB/s
	CollectSpeed  int64         `json:"collectSpeed"`  // objects per second and node that the collector frees; 0: default 4096
}

// Pool is one redundancy and the placement groups that have it.
type Pool struct {
	ID        uint16 `json:"id"`
	Copies    int    `json:"copies"`
	MinCopies int    `json:"minCopies"`
	PGs       int    `json:"pgs"` // a power of two
}

// Node is one storage node or gateway (VNodes == 0).
type Node struct {
	ID       NodeID    `json:"id"`
	UUID     string    `json:"uuid"` // of its directory; also its raft server ID
	Addr     string    `json:"addr"` // host:port that peers dial
	Gossip   string    `json:"gossip"`
	NBD      string    `json:"nbd"`
	Zone     string    `json:"zone"`            // "" : the node is a zone of its own
	VNodes   int       `json:"vnodes"`          // weight
	Disk     uint64    `json:"disk"`            // bytes of all its disks
	Disks    []Disk    `json:"disks,omitempty"` // those that it stores on now (STORE.md rule 21)
	Inc      uint64    `json:"inc"`             // its current incarnation; 0 before the first
	Boot     string    `json:"boot"`            // boot id of its machine at registration
	Up       bool      `json:"up"`              // in service: the current incarnation had a lease as far as the leader knew
	Ended    bool      `json:"ended"`           // the current incarnation is over for good: it gets no lease again, the node registers a new one
	Since    time.Time `json:"since"`           // of Up's last change
	Out      bool      `json:"out"`             // its groups are given to others (rebuild-after passed, drained or removed)
	Draining bool      `json:"draining"`
	Removed  bool      `json:"removed"`
}

// Disk is one of a node's, by the identity that lies on it. A disk belongs to one node.
type Disk struct {
	UUID  string `json:"uuid"`
	Bytes uint64 `json:"bytes"`
}

// Group is one placement group (PG).
type Group struct {
	ID      GroupID  `json:"id"`
	Term    uint64   `json:"term"`    // rises with every change of InSync or Primary
	Target  []NodeID `json:"target"`  // who shall hold it, preferred primary first
	InSync  []Member `json:"inSync"`  // who has every acknowledged write
	Primary Member   `json:"primary"` // Node == NoNode: none
	// Granted is the term at which Primary got the role. While it stays, the primary goes on under new terms without activating again.
	Granted uint64 `json:"granted"`
	// Back names, for members of InSync whose incarnation ended while no other member was in service, the incarnation
	// that returned (R6). The set resumes when all have, or after Settings.ResumeWait.
	Back []Member `json:"back,omitempty"`
	// LostAt is when the last member in service ended; zero while one is.
	LostAt time.Time `json:"lostAt"`
	// NoCopy is the term under which the primary said that it has nothing of the group, and no member that answers has: their disks failed. It counts while Term is the
	// same; the group waits until such a member is back, or for Force.
	NoCopy uint64 `json:"noCopy,omitempty"`
	// Forced is the term that Force gave last. Its primary serves what there is, even nothing.
	Forced uint64 `json:"forced,omitempty"`
	// Resumes counts the times the set went on after all its members had restarted, or by force (R17).
	Resumes   uint64 `json:"resumes"`
	ResumedAt uint64 `json:"resumedAt,omitempty"` // map index of the last of them
	// Recovered is the last number that survived resume number RecoveredAt; a client sends what lies beyond again.
	Recovered   uint64 `json:"recovered"`
	RecoveredAt uint64 `json:"recoveredAt"`
}

// Lost says that nobody who answers has a copy of the group any more.
func (g *Group) Lost() bool { return g.NoCopy == g.Term }

// VDIState is what may be done with a VDI.
type VDIState uint8

const (
	Working VDIState = iota // written through its name
	Closing                 // a snapshot is being taken: new writes are parked (R22)
	Frozen                  // a snapshot: read-only for ever
	Deleted                 // nobody may open it; the collector frees what no living VDI sees
)

// VDI is one entry of the directory: a working VDI or a snapshot.
type VDI struct {
	Vid      uint32    `json:"vid"`
	Gen      uint64    `json:"gen"` // raft index of its creation (rule 11)
	Name     string    `json:"name"`
	Tag      string    `json:"tag"`    // of a snapshot
	SnapID   uint32    `json:"snapID"` // 1, 2, … of a snapshot; 0 of a working VDI
	State    VDIState  `json:"state"`
	Size     uint64    `json:"size"`    // bytes
	Parent   uint32    `json:"parent"`  // vid beneath, 0: none
	Root     uint32    `json:"root"`    // of the family: the first half of every object key
	RootGen  uint64    `json:"rootGen"` // generation of the family (Gen of the root when the family began)
	Disk     uint64    `json:"disk"`    // raft index of the creation, or the cloning, of the disk that this is, or was, a state of
	Pool     uint16    `json:"pool"`
	Created  time.Time `json:"created"`
	Frozen   time.Time `json:"frozen"`
	Shared   bool      `json:"shared"`  // several writers at once
	Next     uint32    `json:"next"`    // of a frozen VDI: the working vid that took its name over, 0: none
	Closing  uint64    `json:"closing"` // id (raft index) of the snapshot being taken
	CloseTag string    `json:"closeTag"`
	LastSnap uint32    `json:"lastSnap"`          // of a working VDI: the number its newest snapshot got; numbers are not given twice
	SessGen  uint64    `json:"sessGen"`           // current session generation (R14)
	SessFor  string    `json:"sessFor,omitempty"` // the client that it was granted to; "": to nobody, it only fences. Not kept of a shared VDI
	// Collected marks, for a Deleted VDI, the groups that reported it collected (R24), as a bitmap by index in the pool.
	Collected []byte `json:"collected,omitempty"`
}

// Identity tells what was opened by a name from whatever else has that name before or after it. A snapshot is itself for as long as it lives; a working VDI
// is the same disk before and after snapshots of it, though its vid and generation are others, and another one when it was deleted and made anew.
func (v *VDI) Identity() uint64 {
	if v.SnapID != 0 {
		return v.Gen
	}
	return v.Disk
}

// Session is a client's right to write one VDI (R14).
type Session struct {
	ID     uint64 `json:"id"`
	Vid    uint32 `json:"vid"`    // the working vid now; follows snapshots
	Gen    uint64 `json:"gen"`    // the VDI's SessGen it was granted with
	Client string `json:"client"` // who: unique per client process
	Holder Member `json:"holder"` // the node whose lease it lives under (NoNode: kept alive by renewals)
	Owner  string `json:"owner"`  // for people: host:port or program
	// Replayed is the map index up to which the client has sent again, and made durable, what groups that resumed had lost of what it was answered (R17).
	Replayed uint64    `json:"replayed,omitempty"`
	Since    time.Time `json:"since"`
}
