package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// repair answers a request that met a bad block of ours: the block comes from an in-sync replica, is written again on all as an ordered entry of the
// group (STORE.md rule 12), and the request is done anew. Only what is bad on all in-sync replicas fails (invariant 8): whatever else keeps us from it says nothing of
// the other copies. mu is held.
func (g *group) repair(r *wire.Request, v *view, bad *objstore.BlockError) {
	g.e.log.Warn("bad block", "group", g.id, "error", bad)
	granted := g.granted
	g.e.wg.Go(func() {
		g.e.readers <- struct{}{}
		err := g.heal(bad)
		if errors.Is(err, errNoRoom) && r.Kind == wire.KindRead {
			err = g.readAround(r, v)
		}
		<-g.e.readers
		var b wire.Batch
		g.mu.Lock()
		switch {
		case err == nil:
			g.again(r, &b)
		case g.role != serving || g.granted != granted:
			g.refuse(r, wire.StatusNotPrimary, &b)
		case !g.e.cfg.Leased(): // invariant 4: another may have been the primary meanwhile
			g.refuse(r, wire.StatusBehind, &b)
		case errors.Is(err, errRead):
			g.answerRead(r, &b)
		case errors.Is(err, errNoRoom):
			r.Message = bad.Error()
			g.refuse(r, wire.StatusNoSpace, &b)
		case errors.Is(err, errNoCopy):
			g.e.log.Error("repair", "group", g.id, "object", bad.Key.String(), "block", bad.Block, "error", err)
			r.Message = bad.Error()
			g.refuse(r, wire.StatusBad, &b)
		case g.store.Err() != nil:
			g.fail(r, g.store.Err(), &b)
		default:
			g.e.early.say(g.e.log, "bad blocks wait for their repair", g.node(), g.id, err)
			g.refuse(r, wire.StatusBehind, &b)
		}
		g.mu.Unlock()
		b.End()
	})
}

// What a repair that did not happen says of the block.
var (
	errNoCopy = errors.New("no replica has a good copy")         // all in-sync replicas said so
	errLater  = errors.New("not now")                            // nothing, like every other error: another is primary, or does not answer, or the set is just changing
	errNoRoom = errors.New("no room to write a good copy again") // there is a good copy
	errRead   = errors.New("read from good copies")              // readAround's: the bytes are there
)

const fetchMetaBytes = 16

// fetchMeta names a block for KindFetch and KindRotten: key, vid, block.
type fetchMeta struct {
	key   objstore.Key
	vid   objstore.Vid
	block uint32
}

func (m *fetchMeta) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(m.key))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.vid))
	return binary.LittleEndian.AppendUint32(b, m.block)
}

// heal gets a good copy of a bad block and numbers it as an entry. nil says that the block is worth another look.
func (g *group) heal(bad *objstore.BlockError) error {
	g.mu.Lock()
	role, granted := g.role, g.granted
	g.mu.Unlock()
	if role != serving {
		return errLater
	}
	data, before, err := g.goodCopy(bad)
	switch {
	case errors.Is(err, objstore.ErrDamaged):
		return g.healObject(bad.Key, granted)
	case err != nil || data == nil:
		return err
	}
	return g.rewrite(bad, before, data, granted)
}

// goodCopy asks the in-sync replicas for the bytes that a block of ours should have, and returns with them the object as it was before they were asked. No bytes and no
// error: the block has become another meanwhile.
func (g *group) goodCopy(bad *objstore.BlockError) ([]byte, *objstore.Unit, error) {
	g.mu.Lock()
	st, members, term := g.st, g.inSyncMembers(), g.term
	ready := st != nil && g.uncommitted(bad.Key, bad.Block, 1, 0) == 0
	g.mu.Unlock()
	if !ready { // they may not have it yet (R16)
		return nil, nil, errLater
	}
	before, err := st.Unit(bad.Key)
	if err != nil {
		return nil, nil, err
	}
	want, ok := unitBlock(before, bad)
	if !ok {
		return nil, nil, nil
	}
	m := fetchMeta{bad.Key, bad.Vid, uint32(bad.Block)}
	var silent error
	for _, x := range members {
		h := wire.Header{Kind: wire.KindFetch, Group: uint32(g.id), Term: term, From: g.e.self().Inc, To: x.Inc}
		a, err := g.e.ask(g.e.ctx, x.p, h, m.append(nil), nil, nil)
		if err == nil && len(a.data) == objstore.BlockSize && (want.State == objstore.Bad || objstore.Checksum(a.data) == want.CRC) {
			return a.data, before, nil
		}
		if err != nil && a.status != wire.StatusBad {
			silent = err
		}
		g.e.log.Warn("no good copy there", "group", g.id, "node", x.Node, "error", err)
	}
	if silent != nil {
		return nil, nil, fmt.Errorf("a replica did not say whether it has a good copy: %w", silent)
	}
	now, err := st.Unit(bad.Key)
	if err != nil {
		return nil, nil, err
	}
	if is, ok := unitBlock(now, bad); !ok || is != want { // written meanwhile: they have what is newer than ours was
		return nil, nil, nil
	}
	return nil, nil, errNoCopy
}

// readAround reads what is good here from here and the rest from other replicas, for disks that have no room for repairs. errRead: the bytes are there.
func (g *group) readAround(r *wire.Request, v *view) error {
	first, count := blocksOf(&r.IO)
	key, chain := objstore.Key(r.IO.Key), v.chain(r.IO.Vid)
	g.mu.Lock()
	st, since, granted := g.st, g.last, g.granted
	ready := g.role == serving && g.uncommitted(key, first, count, 0) == 0
	g.mu.Unlock()
	if !ready {
		return nil
	}
	buf := wire.GetBuf(count * objstore.BlockSize)
	defer buf.Release()
	for i := range count {
		block := buf.B[i*objstore.BlockSize:][:objstore.BlockSize]
		err := st.Read(key, chain, first+i, 1, block, nil, false)
		var bad *objstore.BlockError
		if errors.As(err, &bad) {
			var data []byte
			if data, _, err = g.goodCopy(bad); err == nil && data == nil {
				return nil
			}
			copy(block, data)
		}
		if err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.role != serving || g.granted != granted || g.st != st || g.uncommitted(key, first, count, since) != 0 || g.collectible(r) {
		return nil
	}
	copy(r.Dst, buf.B[r.IO.Off%objstore.BlockSize:])
	return errRead
}

// rewrite numbers the block's bytes as an entry, unless it has become another since the object was looked at before.
func (g *group) rewrite(bad *objstore.BlockError, before *objstore.Unit, data []byte, granted uint64) error {
	d := g.e.agreed().VDI(uint32(bad.Vid))
	if d == nil {
		return fmt.Errorf("vid %06x is not in the directory", bad.Vid)
	}
	buf := wire.GetBuf(objstore.BlockSize)
	copy(buf.B, data)
	en := getEntry()
	en.Kind, en.Key, en.Vid, en.Gen, en.First, en.Count = objstore.KindWrite, bad.Key, bad.Vid, d.Gen, uint16(bad.Block), 1
	en.Data, en.owner = buf.B, buf
	en.SumData()
	var b wire.Batch
	defer b.End()
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := 0; (g.copying[bad.Key] > 0 || g.paused()) && i < 5000; i++ { // a copy of it is being made: it must not miss this
		g.mu.Unlock()
		time.Sleep(time.Millisecond)
		g.mu.Lock()
	}
	if g.role != serving || g.granted != granted || g.copying[bad.Key] > 0 || g.paused() {
		en.free()
		return fmt.Errorf("the group moved on meanwhile: %w", errLater)
	}
	now, err := g.st.Unit(bad.Key)
	if err != nil || g.role != serving || g.granted != granted || g.uncommitted(bad.Key, bad.Block, 1, 0) != 0 || !sameBlock(before, now, bad, en.CRCs[0]) {
		en.free()
		return err // it changed meanwhile: the read looks again
	}
	if err := g.take(en, nil, &b); isNoSpace(err) {
		return errNoRoom
	} else if err != nil {
		return err
	}
	g.e.Stats.Repaired.Add(1)
	return nil
}

// healObject copies an object whose tables are lost here from an in-sync replica, at a moment when nothing of it is under way: there it is at the version that
// ours was at.
func (g *group) healObject(key objstore.Key, granted uint64) error {
	r := &resync{e: g.e, g: g, j: newJoiner(g.e.ctx), granted: granted}
	defer r.j.end()
	if err := r.quiet(key); err != nil {
		return err
	}
	defer r.loud(key)
	g.mu.Lock()
	members, st, store := g.inSyncMembers(), g.st, g.store
	ready := st != nil && g.uncommitted(key, 0, objstore.BlocksPerObject, 0) == 0
	var was objstore.Number
	if st != nil {
		was = st.VersionOf(key)
	}
	live := g.granted == granted && (g.role == serving || g.role == activating)
	g.mu.Unlock()
	if !ready || !live { // a set that is too small commits nothing: they may not have it
		return errLater
	}
	result := errNoCopy
	for _, x := range members {
		r.x = x
		err := r.fetchObject(st, key, was)
		if err == nil {
			g.e.Stats.Repaired.Add(1)
			return store.Commit()
		}
		g.e.log.Warn("copy a damaged object from there", "group", g.id, "object", key.String(), "node", x.Node, "error", err)
		if !errors.Is(err, errNoCopy) {
			result = err
		}
	}
	return result
}

// fetchObject makes our object, which was at a number, what the replica's is. If it is not at that any more, we are not the primary any more for which it is quiet, and have taken an entry for
// it from another one. errNoCopy: the replica has none that is whole.
func (r *resync) fetchObject(st *objstore.Group, key objstore.Key, was objstore.Number) error {
	var keyMeta [8]byte
	wireKey(keyMeta[:], key)
	a, err := r.call(wire.KindUnitGet, 0, keyMeta[:], nil, nil)
	if a.status == wire.StatusGone {
		return st.DeleteObjectAt(key, was)
	}
	if err != nil {
		return notCopied(a, err)
	}
	u, err := objstore.ParseUnit(a.meta)
	if err != nil {
		return err
	}
	cp, err := st.NewCopy(key)
	if err != nil {
		return err
	}
	defer cp.Abort()
	eachPresent(u, func(vb versionBlock, crc uint32) {
		if err != nil {
			return
		}
		m := fetchMeta{key, vb.vid, uint32(vb.block)}
		a, asked := r.call(wire.KindFetch, 0, m.append(nil), nil, nil)
		if asked != nil {
			err = notCopied(a, asked)
			return
		}
		err = cp.Put(vb.vid, int(vb.block), []uint32{crc}, a.data)
	})
	if err != nil {
		return err
	}
	return cp.InstallOver(u, was)
}

// notCopied tells a replica that has no good copy from one that did not say.
func notCopied(a reply, err error) error {
	if a.status == wire.StatusBad {
		return fmt.Errorf("%w: %w", errNoCopy, err)
	}
	return err
}

// sameBlock says whether the block's entry is what it was, and that the bytes that were fetched are the ones it should have.
func sameBlock(before, now *objstore.Unit, bad *objstore.BlockError, crc uint32) bool {
	x, ok1 := unitBlock(before, bad)
	y, ok2 := unitBlock(now, bad)
	return ok1 && ok2 && x == y && (x.State == objstore.Bad || x.CRC == crc)
}

func unitBlock(u *objstore.Unit, bad *objstore.BlockError) (objstore.UnitBlock, bool) {
	if u != nil {
		for _, v := range u.Versions {
			for _, bl := range v.Blocks {
				if v.Vid == bad.Vid && int(bl.Block) == bad.Block {
					return bl, true
				}
			}
		}
	}
	return objstore.UnitBlock{}, false
}

// fetchBlock gives a primary our copy of a block, if it is good.
func (g *group) fetchBlock(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	s := g.admit(f, b)
	st := g.st
	g.mu.Unlock()
	if s == wire.StatusOK && len(f.Meta) != fetchMetaBytes {
		s = wire.StatusInvalid
	}
	if s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		return
	}
	h := f.Header
	key, vid, block := objstore.Key(binary.LittleEndian.Uint64(f.Meta)), objstore.Vid(binary.LittleEndian.Uint32(f.Meta[8:])), binary.LittleEndian.Uint32(f.Meta[12:])
	g.e.wg.Go(func() {
		h.Kind |= wire.KindAnswer
		buf := wire.GetBuf(objstore.BlockSize)
		defer buf.Release()
		var data, meta []byte
		err := fmt.Errorf("block %d: %w", block, objstore.ErrFormat)
		if block < objstore.BlocksPerObject {
			err = st.ReadSlotOf(key, vid, int(block), buf.B)
		}
		switch h.Status = statusOf(err); {
		case err == nil:
			data = buf.B
		case errors.Is(err, objstore.ErrStale): // an in-sync replica without the block: no copy either
			h.Status = wire.StatusBad
			fallthrough
		default:
			meta = []byte(err.Error())
		}
		c.Send(&h, meta, data, buf)
		c.Flush()
	})
}
