package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// repair answers a read that met a bad block of ours: the block comes from an in-sync replica, is written again on all as an ordered entry of the
// group (STORE.md rule 12), and the read is done anew. Bad on all: the read fails (invariant 8). mu is held.
func (g *group) repair(r *wire.Request, v *view, bad *objstore.BlockError) {
	g.e.log.Warn("bad block", "group", g.id, "error", bad)
	g.e.wg.Go(func() {
		g.e.readers <- struct{}{}
		err := g.heal(bad)
		<-g.e.readers
		var b wire.Batch
		g.mu.Lock()
		switch {
		case errors.Is(err, errLater): // another is primary, or will be, or the set without who does not answer
			g.refuse(r, wire.StatusBehind, &b)
		case err != nil:
			g.e.log.Error("repair", "group", g.id, "object", bad.Key.String(), "block", bad.Block, "error", err)
			r.Message = bad.Error()
			g.refuse(r, wire.StatusBad, &b)
		default:
			g.again(r, &b)
		}
		g.mu.Unlock()
		b.End()
	})
}

// errLater says that a repair was not possible now, which says nothing of the other copies.
var errLater = errors.New("not now")

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

// heal gets a good copy of a bad block and numbers it as an entry.
func (g *group) heal(bad *objstore.BlockError) error {
	m := fetchMeta{bad.Key, bad.Vid, uint32(bad.Block)}
	g.mu.Lock()
	members := append([]*member(nil), g.members...)
	term, granted := g.term, g.granted
	before, err := g.st.Unit(bad.Key)
	g.mu.Unlock()
	if errors.Is(err, objstore.ErrDamaged) {
		return g.healObject(bad.Key, granted)
	}
	if err != nil {
		return err
	}
	var got []byte
	silent := false
	for _, x := range members {
		if !x.inSync {
			continue
		}
		h := wire.Header{Kind: wire.KindFetch, Group: uint32(g.id), Term: term, From: g.e.self().Inc, To: x.Inc}
		a, err := g.e.ask(g.e.ctx, x.p, h, m.append(nil), nil)
		if want, ok := unitBlock(before, bad); err == nil && ok && len(a.data) == objstore.BlockSize && (want.State == objstore.Bad || objstore.Checksum(a.data) == want.CRC) {
			got = a.data
			break
		}
		if err != nil && a.status == wire.StatusOK || a.status == wire.StatusBehind || a.status == wire.StatusOldTerm {
			silent = true
		}
		g.e.log.Warn("no good copy there", "group", g.id, "node", x.Node, "error", err)
	}
	switch {
	case got == nil && silent:
		return fmt.Errorf("a replica did not say whether it has a good copy: %w", errLater)
	case got == nil:
		return errors.New("no replica has a good copy")
	}
	return g.rewrite(bad, before, got, granted)
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
	for i := 0; g.copying[bad.Key] > 0 && i < 5000; i++ { // a copy of it is being made: it must not miss this
		g.mu.Unlock()
		time.Sleep(time.Millisecond)
		g.mu.Lock()
	}
	if g.role != serving || g.granted != granted || g.copying[bad.Key] > 0 {
		en.free()
		return fmt.Errorf("the group moved on meanwhile: %w", errLater)
	}
	now, err := g.st.Unit(bad.Key)
	if err != nil || g.role != serving || g.granted != granted || g.uncommitted(bad.Key, bad.Block, 1, 0) != 0 || !sameBlock(before, now, bad, en.CRCs[0]) {
		en.free()
		return err // it changed meanwhile: the read looks again
	}
	if !g.number(en, nil, &b) {
		return errors.New("no room for the repaired block")
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
	members := append([]*member(nil), g.members...)
	st, store := g.st, g.store
	g.mu.Unlock()
	err := errors.New("no other replica is in sync")
	for _, x := range members {
		if !x.inSync {
			continue
		}
		r.x = x
		if err = r.fetchObject(st, key); err == nil {
			g.e.Stats.Repaired.Add(1)
			return store.Commit()
		}
		g.e.log.Warn("copy a damaged object from there", "group", g.id, "object", key.String(), "node", x.Node, "error", err)
	}
	return err
}

// fetchObject makes our object what the replica's is.
func (r *resync) fetchObject(st *objstore.Group, key objstore.Key) error {
	var keyMeta [8]byte
	wireKey(keyMeta[:], key)
	a, err := r.call(wire.KindUnitGet, 0, keyMeta[:], nil)
	if a.status == wire.StatusGone {
		return st.DeleteObject(key)
	}
	if err != nil {
		return err
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
		var a reply
		if a, err = r.call(wire.KindFetch, 0, m.append(nil), nil); err == nil {
			err = cp.Put(vb.vid, int(vb.block), []uint32{crc}, a.data)
		}
	})
	if err != nil {
		return err
	}
	return cp.Install(u)
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
		if h.Status = statusOf(err); err == nil {
			data = buf.B
		} else {
			meta = []byte(err.Error())
		}
		c.Send(&h, meta, data, buf)
		c.Flush()
	})
}
