package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// CheckProgress is where a check of the groups this node is primary of has got.
type CheckProgress struct {
	Groups, GroupsDone int
	Objects            int64
	Bytes              int64    // read and verified, on all replicas
	Checked            []uint32 `json:",omitempty"` // groups that were compared since the last report
	Findings           []string `json:",omitempty"` // new since the last report
}

// checkTries is how often a group is begun anew that changes its set, or its disk, while it is compared; checkPause is between.
const (
	checkTries = 25
	checkPause = 200 * time.Millisecond

	differTries = 5 // how often replicas must be found to differ
)

// errMoved says that another node has to check the group.
var errMoved = errors.New("not its primary any more")

// Check compares every object of every group this node is primary of (of those named in only, if any) on all in-sync replicas, versions and bytes (invariant 11), and
// reports as it goes. A group that gets another primary meanwhile is left to that one: it is in no report.
// Writes go on meanwhile: an object that changes is compared again when it is quiet.
func (e *Engine) Check(ctx context.Context, only []uint32, report func(CheckProgress)) error {
	var p CheckProgress
	var list []*group
	e.eachGroup(func(g *group) {
		g.mu.Lock()
		if g.role == serving && (len(only) == 0 || slices.Contains(only, uint32(g.id))) {
			list = append(list, g)
		}
		g.mu.Unlock()
	})
	p.Groups = len(list)
	for _, g := range list {
		err := g.compare(ctx, &p)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errMoved):
			p.Groups--
			continue
		case err != nil:
			p.Findings = append(p.Findings, fmt.Sprintf("group %d was not checked: %v", g.id, err))
		}
		p.GroupsDone++
		p.Checked = append(p.Checked, uint32(g.id))
		report(p)
		p.Checked, p.Findings = nil, nil
	}
	return nil
}

// compare checks one group, again if it changes meanwhile.
func (g *group) compare(ctx context.Context, p *CheckProgress) error {
	for try := 1; ; try++ {
		q := *p
		c := &check{e: g.e, g: g, p: &q}
		err := c.run(ctx)
		// One that just left the set may know that before us, and have given its copy up.
		if again := c.differ && try < differTries; err == nil && !again || try == checkTries || errors.Is(err, errMoved) {
			if !errors.Is(err, errMoved) {
				*p = q
			}
			return err
		}
		select {
		case <-time.After(checkPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type check struct {
	e       *Engine
	g       *group
	p       *CheckProgress
	st      *objstore.Group
	store   *objstore.Store
	granted uint64
	tables  bool // compare tables only, read no block
	differ  bool // two replicas do
}

// run compares one group.
func (c *check) run(ctx context.Context) error {
	g := c.g
	g.mu.Lock()
	if g.role != serving {
		g.mu.Unlock()
		return errMoved
	}
	members := g.inSyncMembers()
	term, st := g.term, g.st
	c.st, c.store, c.granted = g.st, g.store, g.granted
	g.mu.Unlock()
	keys := map[objstore.Key]struct{}{}
	if err := st.Objects(0, func(o objstore.ObjectInfo) bool { keys[o.Key] = struct{}{}; return true }); err != nil {
		return err
	}
	for _, m := range members {
		r := &resync{e: c.e, g: g, x: m, j: newJoiner(ctx), granted: c.granted}
		theirs, err := r.listTheirs(0)
		r.j.end()
		if err != nil {
			return err
		}
		for key := range theirs {
			keys[key] = struct{}{}
		}
	}
	for key := range keys {
		if err := c.object(ctx, key, members, term); err != nil {
			return err
		}
		c.p.Objects++
	}
	return nil
}

// object compares one object on all replicas, at a moment when nothing of it is under way.
func (c *check) object(ctx context.Context, key objstore.Key, members []*member, term uint64) error {
	g := c.g
	r := &resync{e: c.e, g: g, j: newJoiner(ctx), granted: c.granted}
	defer r.j.end()
	if err := r.quiet(key); err != nil {
		return err
	}
	defer r.loud(key)
	if c.tables {
		return c.objectTables(ctx, key, members, term)
	}
	bad, mine, err := verifyUnit(c.store, c.st, key)
	if errors.Is(err, objstore.ErrDamaged) {
		c.p.Findings = append(c.p.Findings, fmt.Sprintf("object %v (group %d): its tables are lost on node %d", key, g.id, c.e.self().Node))
		return nil
	}
	if err != nil {
		return err
	}
	want := unitBytes(mine)
	c.note(key, c.e.self().Node, bad)
	c.count(mine)
	var keyMeta [8]byte
	wireKey(keyMeta[:], key)
	for _, m := range members {
		a, err := c.e.ask(ctx, m.p, wire.Header{Kind: wire.KindVerify, Group: uint32(g.id), Term: term, From: c.e.self().Inc, To: m.Inc}, keyMeta[:], nil, nil)
		if err != nil {
			return err
		}
		if len(a.meta) < 4 {
			return fmt.Errorf("node %d: short answer", m.Node)
		}
		c.note(key, m.Node, int(binary.LittleEndian.Uint32(a.meta)))
		c.count(mine)
		if !bytes.Equal(a.meta[4:], want) {
			if err := c.same(term); err != nil {
				return err
			}
			c.differ = true
			c.p.Findings = append(c.p.Findings, fmt.Sprintf("object %v (group %d): node %d and node %d differ", key, g.id, c.e.self().Node, m.Node))
		}
	}
	return nil
}

// objectTables compares one object's tables while nothing of it is under way.
func (c *check) objectTables(ctx context.Context, key objstore.Key, members []*member, term uint64) error {
	mine, err := c.st.Unit(key)
	if err != nil {
		return err
	}
	for _, m := range members {
		theirs, err := c.unitOf(ctx, m, key, term)
		if err != nil {
			return err
		}
		if !bytes.Equal(theirs, unitBytes(mine)) {
			if err := c.same(term); err != nil {
				return err
			}
			c.differ = true
			c.p.Findings = append(c.p.Findings, fmt.Sprintf("object %v (group %d): node %d and node %d differ", key, c.g.id, c.e.self().Node, m.Node))
		}
	}
	return nil
}

// same says whether the group is what it was when its members were listed. One that left the set since may not know, and answers with what it had then.
func (c *check) same(term uint64) error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.g.role != serving || c.g.term != term {
		return errors.New("its set changed meanwhile")
	}
	return nil
}

func (c *check) note(key objstore.Key, node state.NodeID, bad int) {
	if bad > 0 {
		c.p.Findings = append(c.p.Findings, fmt.Sprintf("object %v (group %d): %d bad blocks on node %d", key, c.g.id, bad, node))
	}
}

func (c *check) count(u *objstore.Unit) {
	if u != nil {
		eachPresent(u, func(versionBlock, uint32) { c.p.Bytes += objstore.BlockSize })
	}
}

func unitBytes(u *objstore.Unit) []byte {
	if u == nil || len(u.Versions) == 0 {
		return nil
	}
	return u.Append(nil)
}

// verifyUnit reads every block of an object.
func verifyUnit(store *objstore.Store, st *objstore.Group, key objstore.Key) (bad int, u *objstore.Unit, err error) {
	if err := store.Commit(); err != nil {
		return 0, nil, err
	}
	if u, err = st.Unit(key); err != nil || u == nil {
		return 0, nil, err
	}
	if len(u.Versions) == 0 {
		return 0, nil, nil
	}
	var block [objstore.BlockSize]byte
	for _, v := range u.Versions {
		for _, bl := range v.Blocks {
			switch bl.State {
			case objstore.Bad:
				bad++
			case objstore.Present:
				err := st.ReadSlotOf(key, v.Vid, int(bl.Block), block[:])
				var be *objstore.BlockError
				if errors.As(err, &be) {
					bad++
				} else if err != nil {
					return bad, u, err
				}
			}
		}
	}
	return bad, u, nil
}
