package client

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// session is this client's right to write one VDI (R14), or a reader's view of one, and all that has to be remembered between
// its requests. All Disks of one working VDI in a process share one: so they are coherent, and a flush on any covers all.
//
//	open ──▶ live ──(last Disk closed)──▶ unused ──(all is flushed)──▶ ending ──▶ dead    (CloseSess)
//	         │ ▲ ◀──(opened again)────────┘ (flushes; not bounded in time: what it retains would be lost with it, R17)
//	         ▼ │ granted again, and nobody else wrote in between
//	        lapsed ──▶ dead    (somebody took the VDI over, or it was deleted: every request fails)
type session struct {
	c        *Client
	name     string // as it was opened, for messages and for opening again
	writer   bool   // has a session with raft; otherwise only reads
	snap     bool   // of a snapshot: never follows its name
	shared   bool   // other clients may write the VDI too
	root     uint32
	pool     *state.Pool
	identity uint64 // of the disk, or of the snapshot (state.VDI)

	ident  atomic.Pointer[ident]
	dead   atomic.Pointer[error]
	groups []atomicGroup // by index in the pool; nil: never written, nothing to remember
	lossy  atomic.Bool   // lost is not empty
	gone   chan struct{} // closed when a writer's session is dead and out of the books

	mu         sync.Mutex // guards what follows
	refs       int        // Disks
	closes     uint64     // Disks closed, counted
	lingers    bool       // flushed behind, after a Close whose flush failed
	ending     bool       // all is flushed, and nobody may come any more
	renewing   bool       // the lapsed session is being opened again
	waiting    pieceList  // for that
	throttled  pieceList  // writes that wait until less is retained
	over       overlap    // changes under way, by block (R15)
	acks       uint64     // acknowledged changes, counted
	kept       int64      // bytes retained
	sgAll      []*sgroup  // all of groups
	covered    uint64     // objects, from the first, whose groups are all in sgAll
	dirty      []*sgroup  // with something to flush, those of the round under way not included
	inherit    bool       // the next flush covers predecessors (R17); set until the first flush
	round      *round     // the flush under way
	joining    *round     // those who came after it began
	frozenAt   uint64     // map index of the last snapshot that was taken while it had lapsed
	frozenAcks uint64     // acks then
	lost       []lostRange
	lostFlush  error // the next flush says this
}

// ident is what requests say of the VDI. It changes when a snapshot gives the name a new vid, with a resize, and when a lapsed session is opened again.
type ident struct {
	vid     uint32
	gen     uint64 // of the vid
	sess    uint64 // session number; 0: a reader
	sessGen uint64
	size    uint64
	index   uint64 // of the map that says so: a primary must have applied it
}

// sgroup is what a session knows of one placement group that it writes to. Its session's mu guards it.
type sgroup struct {
	id  state.GroupID
	idx int
	// resumes is the count of Group.Resumes up to which everything acknowledged is there. A map that says more means: hold everything back
	// until what was lost is sent again (R17). Written with mu held, read without.
	resumes     atomic.Uint64
	resumedTerm uint64 // of the map that said so first: answers to requests of older terms don't count any more

	sent    []uint64  // shared VDI: changes that were sent and have no answer yet, by the numbers that name them, rising
	keep    retained  // acknowledged, not flushed
	inherit bool      // what predecessors wrote is not flushed yet
	isDirty bool      // in the session's list, or in the round under way
	held    pieceList // wait for the resending
	replay  *replay   // the resending
}

type atomicGroup = atomic.Pointer[sgroup]

// localEpoch is the epoch of requests that don't travel through a connection.
const localEpoch = 1

// deadErr is why requests can only fail, nil while they may succeed.
func (s *session) deadErr() error {
	if e := s.dead.Load(); e != nil {
		return *e
	}
	return nil
}

// sgroup is what is known of a group, nil if nothing.
func (s *session) sgroup(idx int) *sgroup { return s.groups[idx].Load() }

// getGroup makes the entry of a group when it is written for the first time. mu is held.
func (s *session) getGroup(g *state.Group) *sgroup {
	idx := g.ID.Index()
	if sg := s.groups[idx].Load(); sg != nil {
		return sg
	}
	sg := &sgroup{id: g.ID, idx: idx}
	sg.resumes.Store(g.Resumes)
	s.sgAll = append(s.sgAll, sg)
	s.groups[idx].Store(sg)
	return sg
}

// submit lets a new piece go as far as it can.
func (s *session) submit(p *piece, b *wire.Batch) {
	if !p.changes() {
		s.c.dispatch(p, b)
		return
	}
	s.mu.Lock()
	if s.c.Stats.Retained.Load() >= 2*s.c.cfg.RetainBytesMax && p.req.Flags&wire.FlagFUA == 0 && s.kept > 0 && s.deadErr() == nil {
		s.throttled.push(p)
		s.c.Stats.Throttled.Add(1)
		s.mu.Unlock()
		s.c.wakeTender()
		return
	}
	free := s.over.add(p)
	s.mu.Unlock()
	if free {
		s.c.dispatch(p, b)
	} else {
		s.c.Stats.Waits.Add(1)
	}
}

// unthrottle lets writes go on that waited for memory.
func (s *session) unthrottle(b *wire.Batch) {
	s.mu.Lock()
	list := s.throttled.take()
	s.mu.Unlock()
	s.c.Stats.Throttled.Add(-int64(list.n))
	for p := list.pop(); p != nil; p = list.pop() {
		s.submit(p, b)
	}
}

// kill makes every request from now on fail with err, and those that wait.
func (s *session) kill(err error, b *wire.Batch) {
	if !s.dead.CompareAndSwap(nil, &err) {
		return
	}
	s.c.forget(s)
	s.mu.Lock()
	lists := []pieceList{s.waiting.take(), s.throttled.take()}
	s.c.Stats.Throttled.Add(-int64(lists[1].n))
	for _, sg := range s.sgAll {
		lists = append(lists, sg.held.take())
		sg.replay = nil
		s.account(-sg.keep.drop())
		sg.inherit = false
	}
	s.mu.Unlock()
	close(s.gone)
	for i := range lists {
		for p := lists[i].pop(); p != nil; p = lists[i].pop() {
			s.c.settle(p, err, b)
		}
	}
	s.c.lookAgain() // a snapshot may wait for its word
}

// follow takes from a newer map what concerns the session. It runs in the tender only.
func (s *session) follow(m *state.Map, b *wire.Batch) {
	if s.deadErr() != nil {
		return
	}
	old := s.ident.Load()
	now := *old
	s.followGroups(m, b)
	if m.Index < old.index {
		return // of before the session was granted: the tender looked just before
	}
	if s.writer {
		ses := m.Session(old.sess)
		if ses == nil || ses.Gen != old.sessGen {
			s.lapse()
			return
		}
		now.vid = ses.Vid
	}
	v := m.VDI(now.vid)
	if !s.writer && !s.snap { // whatever snapshots were taken, and deleted, meanwhile
		v = m.Working(s.name)
	}
	if v == nil || v.State == state.Deleted || v.Identity() != s.identity {
		s.kill(fmt.Errorf("%s was deleted: %w", s.name, syscall.EIO), b)
		return
	}
	now.vid, now.gen, now.size = v.Vid, v.Gen, v.Size
	if now != *old {
		now.index = m.Index
		s.ident.Store(&now)
	}
}

// followGroups looks which groups resumed.
func (s *session) followGroups(m *state.Map, b *wire.Batch) {
	s.mu.Lock()
	groups := s.sgAll
	s.mu.Unlock()
	for _, sg := range groups {
		if g := m.Group(sg.id); g != nil && g.Resumes != sg.resumes.Load() {
			s.resume(sg, b)
		}
	}
}
