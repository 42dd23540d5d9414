package admin

import (
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// Status is the cluster in a few words and numbers.
type Status struct {
	State   string    `json:"state"` // running, degraded, waiting, unformatted, joining, shutting down
	Text    string    `json:"text"`  // the whole line, as `cluster info` prints it
	Cluster string    `json:"cluster,omitempty"`
	Created time.Time `json:"created,omitzero"`
	Index   uint64    `json:"index"`
	Epoch   uint64    `json:"epoch"`
	Epochs  []Epoch   `json:"epochs"` // newest first
	Pools   []Pool    `json:"pools"`
	Health  Health    `json:"health"`
	Leader  string    `json:"leader,omitempty"` // address of the raft leader, as this node knows it
	Moving  Progress  `json:"moving"`           // nodes that are being brought up to date, together
	Fault   string    `json:"fault,omitempty"`  // something this answer lacks, and why

	Settings state.Settings `json:"settings"`
	Disks    []DiskTrouble  `json:"disks,omitempty"` // those that are full, near full or failed
}

// DiskTrouble is a disk that a person should look after.
type DiskTrouble struct {
	Node  string `json:"node"` // address
	Path  string `json:"path"`
	State string `json:"state"` // full, near full, failed
	Avail uint64 `json:"avail"`
	Size  uint64 `json:"size"`
	Fault string `json:"fault,omitempty"`
}

// Epoch is one line of history: who was in service from then on.
type Epoch struct {
	Epoch uint64    `json:"epoch"`
	Time  time.Time `json:"time"`
	Nodes []string  `json:"nodes"` // host:port:vnodes
}

// Pool is one redundancy.
type Pool struct {
	ID        uint16 `json:"id"`
	Copies    int    `json:"copies"`
	MinCopies int    `json:"minCopies"`
	Groups    int    `json:"groups"`
}

// Node is what one node says of itself, joined with what the map says of it.
type Node struct {
	ID          state.NodeID `json:"id"`
	UUID        string       `json:"uuid,omitempty"`
	Host        string       `json:"host"`
	Port        int          `json:"port"`
	NBD         string       `json:"nbd,omitempty"`
	Zone        string       `json:"zone,omitempty"`
	VNodes      int          `json:"vnodes"`
	State       string       `json:"state"` // up, down, out, draining; unformatted: met, but not yet part of a cluster
	Since       time.Time    `json:"since,omitzero"`
	Incarnation uint64       `json:"incarnation,string"` // a string: JSON numbers end at 2^53 for many readers
	Primaries   int          `json:"primaries"`          // groups it is primary of
	InSync      int          `json:"inSync"`             // groups it is in the set of
	Target      int          `json:"target"`             // groups it shall hold
	Self        *Self        `json:"self,omitempty"`     // its own words; absent if it did not answer
	Fault       string       `json:"fault,omitempty"`    // why it did not
}

// Self is what only the node itself knows.
type Self struct {
	Pid        int               `json:"pid"`
	Version    string            `json:"version"`
	Started    time.Time         `json:"started"`
	Leader     bool              `json:"leader"` // leads raft
	Voter      bool              `json:"voter"`  // votes in raft
	Lease      bool              `json:"lease"`  // holds its lease now
	Index      uint64            `json:"index"`  // applied
	Disks      []Disk            `json:"disks"`
	CopyPerSec uint64            `json:"copyPerSec"`         // bytes a second that it copies to others to bring them up to date
	Counters   map[string]uint64 `json:"counters,omitempty"` // see /metrics
	Rot        Rot               `json:"rot"`
	Goroutines int               `json:"goroutines"`
}

// Disk is one data directory.
type Disk struct {
	ID    string `json:"id"`
	Path  string `json:"path"`
	Size  uint64 `json:"size"`
	Used  uint64 `json:"used"`
	Avail uint64 `json:"avail"`
	Fault string `json:"fault,omitempty"` // it failed, with why
	Full  bool   `json:"full,omitempty"`  // writes get ENOSPC
	Near  bool   `json:"near,omitempty"`  // it will be full soon: less than a sixteenth is left, or it is
	// Inodes that are left; negative where the file system does not count them.
	Inodes int64 `json:"inodes"`
	// State: ok, near full, full, filling (new, its groups are being moved to it), removing, failed.
	State  string `json:"state"`
	Note   string `json:"note,omitempty"`  // why it does not get on
	Groups int    `json:"groups"`          // whose copies it holds
	Total  int    `json:"total,omitempty"` // removing: that it held when that began
	Scrub  Scrub  `json:"scrub"`
}

// Scrub says how far the slow check of everything on a disk is.
type Scrub struct {
	PerSec    int64     `json:"perSec"` // bytes a second it may take; 0 or less: off
	Started   time.Time `json:"started,omitzero"`
	Rounds    int64     `json:"rounds"`           // whole ones since the start
	LastRound int       `json:"lastRound"`        // seconds that the last one took
	LastEnd   time.Time `json:"lastEnd,omitzero"` // when it was over; this process's or an earlier one's
	Blocks    int64     `json:"blocks"`           // read since the start
	Bad       int64     `json:"bad"`              // of them
}

// Rot is what became, since the start, of what the scrub found on a node's disks.
type Rot struct {
	Repaired     uint64 `json:"repaired"`     // from another replica
	Unrepairable uint64 `json:"unrepairable"` // no replica has it whole
	Compared     uint64 `json:"compared"`     // objects that this node, as their primary, compared on all replicas
	Differ       uint64 `json:"differ"`       // those that were not equal
}

// Space sums a node's disks.
func (s *Self) Space() (size, used, avail uint64) {
	for _, d := range s.Disks {
		size, used, avail = size+d.Size, used+d.Used, avail+d.Avail
	}
	return size, used, avail
}

// DiskRequest is the body of /v1/disk/add and /v1/disk/remove.
type DiskRequest struct {
	Disk string `json:"disk"` // its directory; to remove it its id will do
}

// Usage is what VDIs hold, by vid, each counted once (not once per copy).
type Usage map[uint32]uint64

// FormatRequest is the body of /v1/format.
type FormatRequest struct {
	Copies    int  `json:"copies"`
	MinCopies int  `json:"minCopies"`
	PGs       int  `json:"pgs"`
	Force     bool `json:"force"` // also when it is formatted: every VDI is lost
	Few       bool `json:"few"`   // also when there are fewer nodes than copies
}

// CheckRequest says what to check.
type CheckRequest struct {
	Groups []uint32 `json:"groups,omitempty"` // none: all
}

// CheckEvent is one line of /v1/check.
type CheckEvent struct {
	Node    state.NodeID `json:"node"`
	Groups  int          `json:"groups"` // checked by that node so far
	Total   int          `json:"total"`  // groups it has to check
	Objects uint64       `json:"objects"`
	Checked []uint32     `json:"checked,omitempty"` // groups compared since the node's last line
	Finding string       `json:"finding,omitempty"` // something is not as it should be
	Error   string       `json:"error,omitempty"`   // the check itself could not go on there
	End     bool         `json:"end,omitempty"`     // the last line, or this node's last in the whole
}
