package replica

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// compareRest is between two rounds, and while there is nothing to compare.
const compareRest = 30 * time.Second

// compareTables is the part of the scrub that a disk cannot do alone (STORE.md rule 14): slowly, and for ever, the tables of every object of the groups we are primary of
// are compared on all in-sync replicas (invariant 11). It takes as long for an object as the scrub does, by the same setting. What differs is reported, not mended: which
// replica is right only a person can say.
func (e *Engine) compareTables() {
	for {
		e.eachGroup(func(g *group) {
			if e.ctx.Err() == nil {
				e.compareGroup(g)
			}
		})
		if !e.rest(compareRest) {
			return
		}
	}
}

// rest waits; false when the engine ends.
func (e *Engine) rest(d time.Duration) bool {
	select {
	case <-e.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// compareGroup compares one group's objects, as long as we stay its primary.
func (e *Engine) compareGroup(g *group) {
	g.mu.Lock()
	ok := g.role == serving && len(g.members) > 0
	c := &check{e: e, g: g, p: &CheckProgress{}, st: g.st, store: g.store, granted: g.granted, tables: true}
	term := g.term
	members := g.inSyncMembers()
	g.mu.Unlock()
	rate := e.agreed().Settings.ScrubSpeed
	if !ok || rate <= 0 {
		return
	}
	var keys []objstore.Key
	if c.st.Objects(0, func(o objstore.ObjectInfo) bool { keys = append(keys, o.Key); return true }) != nil {
		return
	}
	for _, key := range keys {
		c.p.Findings, c.p.Bytes = nil, 0
		same, err := c.quick(key, members, term)
		for try := 1; err == nil && !same; try++ {
			c.p.Findings = nil
			if err = c.object(e.ctx, key, members, term); len(c.p.Findings) == 0 || try == differTries {
				break
			}
			if !e.rest(checkPause) {
				return
			}
		}
		if err != nil {
			return // the group moved on; the next round has it
		}
		e.Stats.Compared.Add(1)
		if len(c.p.Findings) > 0 {
			e.Stats.Differ.Add(1)
			e.log.Error("replicas differ: `sheep cluster check` says more", "group", g.id, "object", key.String(), "finding", c.p.Findings[0])
		}
		if !e.rest(time.Duration(float64(max(c.p.Bytes, objstore.BlockSize)) / float64(rate) * float64(time.Second))) {
			return
		}
	}
}

// quick compares without stopping writes: equal is equal, anything else is looked at again at a quiet moment.
func (c *check) quick(key objstore.Key, members []*member, term uint64) (same bool, err error) {
	mine, err := c.st.Unit(key)
	if errors.Is(err, objstore.ErrDamaged) {
		return true, nil // the scrub's affair
	}
	if err != nil {
		return false, err
	}
	c.count(mine)
	want := unitBytes(mine)
	for _, m := range members {
		theirs, err := c.unitOf(c.e.ctx, m, key, term)
		if err != nil || !bytes.Equal(theirs, want) {
			return false, err
		}
	}
	return true, nil
}

// unitOf asks a replica for its object's tables; nil: it has none.
func (c *check) unitOf(ctx context.Context, m *member, key objstore.Key, term uint64) ([]byte, error) {
	var meta [8]byte
	wireKey(meta[:], key)
	h := wire.Header{Kind: wire.KindUnitGet, Group: uint32(c.g.id), Term: term, From: c.e.self().Inc, To: m.Inc}
	a, err := c.e.ask(ctx, m.p, h, meta[:], nil, nil)
	if a.status == wire.StatusGone {
		return nil, nil
	}
	return a.meta, err
}

// inSyncMembers are the other members of the set. mu is held.
func (g *group) inSyncMembers() []*member {
	var list []*member
	for _, m := range g.members {
		if m.inSync {
			list = append(list, m)
		}
	}
	return list
}
