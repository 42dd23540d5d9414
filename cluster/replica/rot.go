package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// What a disk's scrub finds is repaired wherever it is found (STORE.md rules 12 and 14). On the primary as a read would: the block comes from a replica. On a secondary
// the primary is asked: it numbers the block anew, with bytes that pass their checksum, and all replicas write it. So a repair is ordered like any
// other entry, and compare-and-set: what was written meanwhile stays.

const (
	rotQueueMax = 256            // findings that wait; what finds no room is found again in the next round
	wholeObject = ^uint32(0)     // in place of a block: the object's tables are lost
	wholeDisk   = ^uint32(0) - 1 // in place of a block: the disk has failed
)

// rotFindings is the queue of one engine.
type rotFindings struct {
	found chan *objstore.BlockError
}

// Rotten takes what a scrub found. It does not wait.
func (e *Engine) Rotten(bad *objstore.BlockError) {
	select {
	case e.rot.found <- bad:
	default:
	}
}

// repairRot is the goroutine that has findings repaired, one after the other.
func (e *Engine) repairRot() {
	for {
		select {
		case <-e.ctx.Done():
			return
		case bad := <-e.rot.found:
			err := e.group(state.GroupID(bad.Group)).healRot(bad)
			switch {
			case err == nil:
				e.Stats.RotRepaired.Add(1)
				e.log.Info("what the scrub found is repaired", "group", uint32(bad.Group), "object", bad.Key.String(), "block", bad.Block)
			case !errors.Is(err, errNoCopy):
				e.log.Info("what the scrub found cannot be repaired now: the next round looks again", "group", uint32(bad.Group), "object", bad.Key.String(), "why", err)
			default:
				e.Stats.RotLeft.Add(1)
				e.log.Error("what the scrub found cannot be repaired: no replica has it whole", "group", uint32(bad.Group), "object", bad.Key.String(),
					"block", bad.Block, "vid", fmt.Sprintf("%06x", bad.Vid), "error", err)
			}
		}
	}
}

// healRot repairs one finding.
func (g *group) healRot(bad *objstore.BlockError) error {
	g.mu.Lock()
	role, agree := g.role, g.agree
	g.mu.Unlock()
	switch {
	case role == serving:
		return g.heal(bad)
	case role == secondary && agree != nil && isMember(agree.InSync, g.e.self()) && agree.Primary.Node != state.NoNode:
		return g.askHeal(bad, agree)
	}
	return errLater
}

// askHeal asks the primary.
func (g *group) askHeal(bad *objstore.BlockError, agree *state.Group) error {
	m := fetchMeta{bad.Key, bad.Vid, uint32(bad.Block)}
	if errors.Is(bad, objstore.ErrDamaged) {
		m.block = wholeObject
	}
	p := g.e.peer(agree.Primary.Node)
	for i := 0; p.current() == nil && i < 40; i++ {
		p.ensure()
		select {
		case <-g.e.ctx.Done():
			return errLater
		case <-time.After(25 * time.Millisecond):
		}
	}
	h := wire.Header{Kind: wire.KindRotten, Group: uint32(g.id), Term: agree.Term, From: g.e.self().Inc, To: agree.Primary.Inc}
	a, err := g.e.ask(g.e.ctx, p, h, m.append(nil), nil, nil)
	if err != nil {
		return notCopied(a, err)
	}
	return nil
}

// rotten is a secondary's request to number a block of its again.
func (e *Engine) rotten(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	if e.agreed().Group(state.GroupID(f.Group)) == nil || len(f.Meta) != fetchMetaBytes {
		e.answer(c, f, wire.StatusInvalid, nil, b)
		return
	}
	g := e.group(state.GroupID(f.Group))
	h := f.Header
	m := fetchMeta{objstore.Key(binary.LittleEndian.Uint64(f.Meta)), objstore.Vid(binary.LittleEndian.Uint32(f.Meta[8:])), binary.LittleEndian.Uint32(f.Meta[12:])}
	e.wg.Go(func() {
		var meta []byte
		err := g.healFor(h.From, h.To, &m)
		h.Kind |= wire.KindAnswer
		switch {
		case err == nil:
			h.Status = wire.StatusOK
		case errors.Is(err, errNoCopy):
			h.Status, meta = wire.StatusBad, []byte(err.Error())
		default:
			h.Status, meta = wire.StatusBehind, []byte(err.Error())
		}
		c.Send(&h, meta, nil, nil)
		c.Flush()
	})
}

// healFor numbers a block again for the replica that says its own is bad.
func (g *group) healFor(from, to uint64, m *fetchMeta) error {
	g.mu.Lock()
	var x *member
	for _, y := range g.members {
		if y.Inc == from && y.inSync {
			x = y
		}
	}
	if g.role != serving || to != g.e.self().Inc || x == nil || g.paused() {
		g.mu.Unlock()
		return errLater
	}
	if m.block == wholeObject { // its tables are lost: it is brought up to date as a whole
		g.e.log.Warn("a replica has lost an object's tables: it is resynced", "group", g.id, "node", x.Node, "object", m.key.String())
		g.suspect(x)
		g.mu.Unlock()
		return nil
	}
	if m.block == wholeDisk {
		g.e.early.say(g.e.log, "disks of replicas have failed", x.Node, g.id, objstore.ErrDiskFailed)
		g.suspect(x)
		g.mu.Unlock()
		return nil
	}
	st, granted := g.st, g.granted
	before, err := st.Unit(m.key)
	g.mu.Unlock()
	bad := &objstore.BlockError{Group: objstore.GroupID(g.id), Key: m.key, Vid: m.vid, Block: int(m.block), Err: objstore.ErrChecksum}
	if err == nil {
		if _, ok := unitBlock(before, bad); !ok {
			return nil // it is not there any more
		}
		var block [objstore.BlockSize]byte
		if err = st.ReadSlotOf(m.key, m.vid, int(m.block), block[:]); err == nil {
			return g.rewrite(bad, before, block[:], granted)
		}
	}
	var mine *objstore.BlockError
	switch {
	case errors.Is(err, objstore.ErrStale):
		return nil // written meanwhile
	case errors.As(err, &mine): // ours is bad, too
		return g.heal(mine)
	}
	return err
}
