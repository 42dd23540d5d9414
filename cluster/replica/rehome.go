package replica

import (
	"context"
	"errors"
	"fmt"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// A node moves its copy of a group from one of its disks to another without anybody else's noticing: the in-sync set stays as it is, and so does redundancy.
//
//	copying  the other disk's copy is marked as a mixture; objects whose versions differ are copied to it, again and again, while the group goes on
//	sealed   the group takes no entry; what still differs is copied, made durable, and the mark comes off
//	moved    the group goes on there; the old copy is dropped
//
// A crash leaves either one whole copy beside a mixture, which is discarded, or two whole ones: then the longer counts, and it has all that was flushed
// (STORE.md rule 21; who starts a node settles it before anything else is written).

// move is one under way. Guarded by the group's mu.
type move struct {
	to     *objstore.Store
	paused bool // no entry is taken
	off    bool // a resync wants to begin, or the copy was given up: the move is to end
}

const (
	movePasses  = 16      // over what changed meanwhile, before the group is sealed with whatever is left
	moveRestMax = 2 << 20 // bytes that may be left to copy when it is sealed
)

var (
	// ErrBusy: the group cannot be moved now, because it is being resynced or taken over; later it can.
	ErrBusy = errors.New("the group is being brought up to date")
	// ErrSourceFailed: the disk that the group should leave takes no orders any more.
	ErrSourceFailed = errors.New("the disk it is on has failed")
)

// GroupsOn lists the groups whose copies lie on a disk, or would if something were written. A copy that was left there by a move, or by a group that got another
// disk because this one failed, is not the group's any more.
func (e *Engine) GroupsOn(s *objstore.Store) []state.GroupID {
	var list []state.GroupID
	known := map[state.GroupID]bool{}
	e.eachGroup(func(g *group) {
		g.mu.Lock()
		store := g.store
		g.mu.Unlock()
		if store == s {
			list = append(list, g.id)
		}
		known[g.id] = store != nil
	})
	for _, id := range s.Groups() {
		if !known[state.GroupID(id)] {
			list = append(list, state.GroupID(id))
		}
	}
	return list
}

// Move moves our copy of a group to another disk of this node and returns when the group is served from there and the old copy is gone for good. flip is called at
// the moment from which Config.Store must answer with the new disk. On an error the group is where it was; nothing is left of the attempt that a later one, or a
// restart, does not clean up.
func (e *Engine) Move(ctx context.Context, id state.GroupID, to *objstore.Store, flip func()) error {
	g := e.group(id)
	g.mu.Lock()
	switch {
	case !g.open():
		g.mu.Unlock()
		return fmt.Errorf("move group %d: it has no disk", id)
	case g.store == to:
		g.mu.Unlock()
		return nil
	case g.move != nil || g.syncing || g.agree != nil && isTarget(g.agree.Target, g.node()) && !isMember(g.agree.InSync, g.e.self()):
		g.mu.Unlock()
		return ErrBusy // a resync comes first
	case g.store.Err() != nil:
		g.mu.Unlock()
		return ErrSourceFailed
	}
	mv := &move{to: to}
	g.move = mv
	from, src := g.store, g.st
	g.mu.Unlock()
	err := (&mover{e: e, g: g, mv: mv, from: from, src: src, flip: flip, bad: map[objstore.Key][]*objstore.BlockError{}}).run(ctx)
	if err != nil {
		return fmt.Errorf("move group %d: %w", id, err)
	}
	return nil
}

// mover does one move.
type mover struct {
	e    *Engine
	g    *group
	mv   *move
	from *objstore.Store
	src  *objstore.Group
	dst  *objstore.Group
	flip func()

	heals int                                     // bad blocks that were to be healed before they are copied
	bad   map[objstore.Key][]*objstore.BlockError // those that travel as bad
}

// moveHealsMax is how many bad blocks a move stops for.
const moveHealsMax = 256

func (m *mover) run(ctx context.Context) error {
	err := m.begin()
	if err == nil {
		err = m.follow(ctx)
	}
	if err == nil {
		err = m.seal(ctx)
	}
	if err != nil {
		m.undo()
		return err
	}
	m.g.resume()
	for _, list := range m.bad { // at once, not by the next scrub: until then a copy fewer of these is good
		for _, bad := range list {
			m.e.Rotten(bad)
		}
	}
	id := objstore.GroupID(m.g.id)
	if err := m.from.DropGroup(id); err != nil {
		m.end()
		return err
	}
	err = m.from.SyncWait()
	m.end()
	return err
}

// begin makes an empty copy there, marked as a mixture.
func (m *mover) begin() error {
	id := objstore.GroupID(m.g.id)
	if err := m.mv.to.DropGroup(id); err != nil { // of an earlier attempt
		return err
	}
	m.dst = m.mv.to.Group(id)
	return m.dst.SetSyncing()
}

// follow copies until little is left.
func (m *mover) follow(ctx context.Context) error {
	sum := 0
	for range movePasses {
		n, err := m.pass(ctx, false)
		if err != nil {
			return err
		}
		sum += n
		if n <= moveRestMax {
			break
		}
	}
	if sum == 0 {
		return nil
	}
	return m.mv.to.SyncWait() // so that sealing syncs little
}

// pass copies the objects that differ and says how many bytes that took. Sealed means that nothing changes any more.
func (m *mover) pass(ctx context.Context, sealed bool) (bytes int, err error) {
	if err := m.from.Commit(); err != nil {
		return 0, err
	}
	ours, err := versions(m.src, false)
	if err != nil {
		return 0, err
	}
	theirs, err := versions(m.dst, true)
	if err != nil {
		return 0, err
	}
	for key, v := range ours {
		if theirs[key] == v {
			continue
		}
		if err := m.going(ctx); err != nil {
			return bytes, err
		}
		n, err := m.object(key, sealed)
		bytes += n
		switch {
		case errors.Is(err, objstore.ErrStale) && !sealed: // changed while it was read: the next pass has it
			bytes += objstore.BlockSize
		case err != nil:
			return bytes, fmt.Errorf("object %v: %w", key, err)
		}
		if !sealed {
			if err := m.e.resyncer.take(ctx, n+objstore.BlockSize); err != nil {
				return bytes, err
			}
		}
	}
	for key := range theirs {
		if _, ok := ours[key]; !ok {
			if err := m.dst.DeleteObject(key); err != nil {
				return bytes, err
			}
		}
	}
	return bytes, nil
}

// versions are those of a group's objects on a disk. checked: a damaged one has none, since what is there is not what its version says.
func versions(st *objstore.Group, checked bool) (map[objstore.Key]objstore.Number, error) {
	list := map[objstore.Key]objstore.Number{}
	err := st.Objects(0, func(o objstore.ObjectInfo) bool {
		list[o.Key] = o.Version
		if checked && o.Damaged {
			list[o.Key] = objstore.Number{}
		}
		return true
	})
	return list, err
}

// object makes the object there what it is here.
func (m *mover) object(key objstore.Key, sealed bool) (bytes int, err error) {
	u, err := m.src.Unit(key)
	if err != nil {
		return 0, err // tables that are lost are healed by the scrub or by a read; then the move is tried again
	}
	if u == nil || len(u.Versions) == 0 {
		return 0, m.dst.DeleteObject(key)
	}
	delete(m.bad, key)
	there := map[versionBlock]uint32{}
	if old, err := m.dst.Unit(key); err == nil && old != nil {
		eachPresent(old, func(vb versionBlock, crc uint32) { there[vb] = crc })
	}
	cp, err := m.dst.NewCopy(key)
	if err != nil {
		return 0, err
	}
	defer cp.Abort()
	var block [objstore.BlockSize]byte
	for vi := range u.Versions {
		v := &u.Versions[vi]
		for bi := range v.Blocks {
			bl := &v.Blocks[bi]
			if bl.State != objstore.Present {
				continue
			}
			if crc, ok := there[versionBlock{v.Vid, bl.Block}]; ok && crc == bl.CRC {
				cp.Keep(v.Vid, int(bl.Block))
				continue
			}
			err := m.src.ReadSlotOf(key, v.Vid, int(bl.Block), block[:])
			var bad *objstore.BlockError
			if errors.As(err, &bad) && !sealed && m.heals < moveHealsMax {
				m.heals++
				if m.g.healRot(bad) == nil { // then the object changed, and the next pass sees the rest of that
					err = m.src.ReadSlotOf(key, v.Vid, int(bl.Block), block[:])
				}
			}
			if errors.As(err, &bad) { // it travels as bad, and is healed there as it would be here (STORE.md rule 13)
				m.e.log.Warn("bad block", "group", m.g.id, "error", bad)
				m.bad[key] = append(m.bad[key], bad)
				bl.State, bl.CRC = objstore.Bad, 0
				continue
			}
			if err == nil && objstore.Checksum(block[:]) != bl.CRC {
				err = objstore.ErrStale
			}
			if err == nil {
				err = cp.Put(v.Vid, int(bl.Block), []uint32{bl.CRC}, block[:])
			}
			if err != nil {
				return bytes, err
			}
			bytes += objstore.BlockSize
		}
	}
	if !sealed {
		if err := cp.Sync(); err != nil {
			return bytes, err
		}
	}
	return bytes, cp.Install(u)
}

// seal stops the group's entries for as long as it takes to copy the rest, make it durable and go on there.
func (m *mover) seal(ctx context.Context) error {
	g := m.g
	g.mu.Lock()
	if m.mv.off || g.st != m.src || g.syncing || g.role == activating || g.change != nil && g.change.To != state.NoNode || g.handTo != state.NoNode {
		g.mu.Unlock()
		return ErrBusy
	}
	m.mv.paused = true
	at := g.last
	g.mu.Unlock()
	if _, err := m.pass(ctx, true); err != nil {
		return err
	}
	if err := m.dst.SetTermStarts(m.src.TermStarts()); err != nil {
		return err
	}
	if err := m.dst.EndSyncing(m.src.Last()); err != nil {
		return err
	}
	if same, err := m.equal(); err != nil || !same {
		return errors.Join(err, ErrBusy)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.mv.off || g.st != m.src || g.syncing || g.last != at || !m.mv.paused {
		return ErrBusy // it was given up, or taken over, meanwhile
	}
	m.flip()
	g.store, g.st = m.mv.to, m.dst
	g.journaled = g.last
	m.mv.paused = false
	return nil
}

// equal compares once more what the group has here and there, by name and version.
func (m *mover) equal() (bool, error) {
	ours, err := versions(m.src, false)
	if err != nil {
		return false, err
	}
	theirs, err := versions(m.dst, true)
	if err != nil || len(ours) != len(theirs) {
		return false, err
	}
	for key, v := range ours {
		if theirs[key] != v {
			return false, nil
		}
	}
	return true, nil
}

// undo drops the copy there, for good, before anything else may happen to the one here.
func (m *mover) undo() {
	if m.mv.to.Err() == nil {
		if err := m.mv.to.DropGroup(objstore.GroupID(m.g.id)); err == nil {
			m.mv.to.SyncWait()
		}
	}
	m.end()
}

// end lets the group go on.
func (m *mover) end() {
	m.g.mu.Lock()
	if m.g.move == m.mv {
		m.g.move = nil
	}
	m.g.mu.Unlock()
	m.g.resume()
}

// going says why the move must end.
func (m *mover) going(ctx context.Context) error {
	m.g.mu.Lock()
	off := m.mv.off || m.g.st != m.src
	m.g.mu.Unlock()
	if off {
		return ErrBusy
	}
	return context.Cause(ctx)
}

// paused says that the group takes no entries for a moment. mu is held.
func (g *group) paused() bool { return g.move != nil && g.move.paused }

// unpause lets entries in again; the move is tried anew. mu is held.
func (g *group) unpause() {
	if g.move != nil {
		g.move.paused = false
	}
}

// holdsResync says that a resync of us has to wait until a move has ended, and ends it. mu is held.
func (g *group) holdsResync() bool {
	if g.move == nil {
		return false
	}
	g.move.off = true
	return true
}

// resume does what waited while the group was paused.
func (g *group) resume() {
	var b wire.Batch
	g.mu.Lock()
	switch g.role {
	case serving, activating:
		g.advance(&b)
		g.rerun(&b)
	case secondary:
		if g.store != nil {
			g.ack(&b)
		}
	}
	g.mu.Unlock()
	b.End()
}

// forget lets go of the group's place on disk. mu is held.
func (g *group) forget() {
	if g.move != nil {
		g.move.off = true
	}
	g.st, g.store, g.last, g.journaled, g.commit, g.durable, g.syncing = nil, nil, 0, 0, 0, 0, false
	g.once = nil
}

// tellFailed tells the primary that our disk takes nothing any more, so that it need not find out by a write. mu is held.
func (g *group) tellFailed(b *wire.Batch) {
	if g.store == nil || g.store.Err() == nil || g.agree == nil || !isMember(g.agree.InSync, g.e.self()) || g.agree.Primary.Node == state.NoNode {
		return
	}
	m := fetchMeta{block: wholeDisk}
	h := wire.Header{Kind: wire.KindRotten, Group: uint32(g.id), Term: g.agree.Term, From: g.e.self().Inc, To: g.agree.Primary.Inc}
	g.e.peer(g.agree.Primary.Node).call(&h, m.append(nil), nil, nil, callLimit, func(*wire.Frame, *wire.Batch) {}, b)
}
