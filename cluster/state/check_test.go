package state

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// apply applies a command as a cluster would, and asserts after it what must hold after every command: the numbered rules that
// concern the agreed state, and that Apply is what it says.
func apply(t rapid.TB, m *Map, cmd *Command) (*Map, Result) {
	t.Helper()
	before := written(t, m)
	line, err := EncodeCommand(cmd)
	if err != nil {
		t.Fatalf("%+v: %v", cmd, err)
	}
	next, res := m.Apply(m.Index+1, cmd)
	if !bytes.Equal(before, written(t, m)) {
		t.Fatalf("%s changed a Map that was handed out", line)
	}
	again, err := DecodeCommand(line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	read, err := DecodeMap(before)
	if err != nil {
		t.Fatalf("after %s: %v", line, err)
	}
	replayed, _ := read.Apply(m.Index+1, again)
	after := written(t, next)
	if !bytes.Equal(after, written(t, replayed)) {
		t.Fatalf("%s gives another state when replayed:\n%s\n%s", line, after, written(t, replayed))
	}
	if _, err := DecodeMap(after); err != nil {
		t.Fatalf("after %s: %v\n%s", line, err, after)
	}
	if res.Code != OK {
		undone := *next
		undone.Index, undone.Recent = m.Index, m.Recent
		if !bytes.Equal(before, written(t, &undone)) {
			t.Fatalf("%s was refused (%s) and changed something", line, res.Error)
		}
	}
	for _, check := range []func(old, now *Map, cmd *Command) error{checkTerms, checkEntry, checkR6, checkR9, checkR10, checkR14, checkR22, checkR24, checkIndex, checkEpoch} {
		if err := check(m, next, cmd); err != nil {
			t.Fatalf("%s (%v): %v\nbefore %s\nafter  %s", line, res.Err(), err, before, after)
		}
	}
	return next, res
}

func written(t rapid.TB, m *Map) []byte {
	b, err := EncodeMap(m)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

// leasedIn is the leader's word in a command, whatever the command is.
func leasedIn(c *Command) []Member {
	switch {
	case c.Register != nil:
		return c.Register.Leased
	case c.Ended != nil:
		return c.Ended.Leased
	case c.InService != nil:
		return c.InService.Leased
	case c.Resume != nil:
		return c.Resume.Leased
	case c.Sync != nil:
		return c.Sync.Leased
	case c.Force != nil:
		return c.Force.Leased
	}
	return nil
}

// eachGroup calls f for the groups that were there before and are now.
func eachGroup(old, now *Map, f func(was, is *Group) error) error {
	if old.Cluster != now.Cluster {
		return nil
	}
	for i, was := range old.Groups {
		if err := f(was, now.Groups[i]); err != nil {
			return fmt.Errorf("group %x: %w", uint32(was.ID), err)
		}
	}
	return nil
}

// checkTerms: R2, invariant 3; terms rise by one with every change of set or primary, and with nothing else.
func checkTerms(old, now *Map, cmd *Command) error {
	return eachGroup(old, now, func(was, is *Group) error {
		same := was.Primary == is.Primary && slices.Equal(was.InSync, is.InSync)
		asked := cmd.Sync != nil && slices.ContainsFunc(cmd.Sync.Changes, func(c SetChange) bool { return c.Group == was.ID && c.To == was.Primary.Node })
		forced := cmd.Force != nil && is.Forced == is.Term
		if same && is.Term != was.Term && !asked && !forced || !same && is.Term != was.Term+1 {
			return fmt.Errorf("term %d after %d", is.Term, was.Term)
		}
		if is.Primary != was.Primary && is.Granted != is.Term || is.Primary == was.Primary && is.Granted != was.Granted && !forced {
			return fmt.Errorf("primary %v was granted at %d, %v at %d", was.Primary, was.Granted, is.Primary, is.Granted)
		}
		if is.Primary.Node != NoNode && is.Primary != was.Primary && !now.Intact(is.Primary) {
			return fmt.Errorf("primary %v has ended", is.Primary)
		}
		if is.Primary.Node != NoNode && !now.Intact(is.Primary) && now.Nodes[is.Primary.Node].Inc == is.Primary.Inc {
			return fmt.Errorf("primary %v has ended and stays", is.Primary)
		}
		return nil
	})
}

// checkEntry: invariant 3; nobody comes into a set except by its primary's word, by resuming, or by force.
func checkEntry(old, now *Map, cmd *Command) error {
	if cmd.Sync != nil || cmd.Resume != nil || cmd.Force != nil {
		return nil
	}
	return eachGroup(old, now, func(was, is *Group) error {
		for _, b := range is.InSync {
			if !slices.Contains(was.InSync, b) {
				return fmt.Errorf("%v came in", b)
			}
		}
		return nil
	})
}

// checkR6: a new incarnation leaves every set in which another named one is in service, and stays a candidate in all others.
func checkR6(old, now *Map, cmd *Command) error {
	r := cmd.Register
	if r == nil {
		return nil
	}
	n := now.NodeByUUID(r.UUID)
	was := old.NodeByUUID(r.UUID)
	if n == nil || was == nil || n.Inc == was.Inc {
		return nil
	}
	return eachGroup(old, now, func(was, is *Group) error {
		named := slices.ContainsFunc(was.InSync, func(b Member) bool { return b.Node == n.ID })
		others := slices.ContainsFunc(was.InSync, func(b Member) bool {
			return b.Node != n.ID && old.Intact(b) && slices.Contains(r.Leased, b)
		})
		still := slices.ContainsFunc(is.InSync, func(b Member) bool { return b.Node == n.ID })
		switch {
		case named && others && still:
			return fmt.Errorf("node %d restarted and is still in sync beside members in service", n.ID)
		case named && !others && !still:
			return fmt.Errorf("node %d restarted and is no candidate any more, though nobody was in service", n.ID)
		case named && !others && !slices.Contains(is.Back, Member{n.ID, r.Inc}):
			return fmt.Errorf("node %d is not noted as back", n.ID)
		}
		return nil
	})
}

// checkR9: a proposal changes only groups that are at its term and led by its proposer, and leaves what it says.
func checkR9(old, now *Map, cmd *Command) error {
	if cmd.Sync == nil {
		return nil
	}
	return eachGroup(old, now, func(was, is *Group) error {
		if was.Term == is.Term {
			return nil
		}
		i := slices.IndexFunc(cmd.Sync.Changes, func(c SetChange) bool { return c.Group == was.ID && c.Term == was.Term })
		if i < 0 || was.Primary != cmd.Sync.By || !old.Intact(cmd.Sync.By) {
			return fmt.Errorf("changed by %v under a term that it does not have", cmd.Sync.By)
		}
		return nil
	})
}

// checkR10: a set never shrinks below min-copies while that many of those it names may return.
func checkR10(old, now *Map, cmd *Command) error {
	if cmd.Force != nil || cmd.Register != nil || cmd.NodeOut != nil {
		return nil // an administrator's word, and R6
	}
	return eachGroup(old, now, func(was, is *Group) error {
		few := old.Pools[was.ID.Pool()].MinCopies
		if len(is.InSync) >= few || len(is.InSync) >= len(was.InSync) {
			return nil
		}
		may := 0
		for _, b := range was.InSync {
			// A member that was superseded while others were in service cannot return. In a lost set its node can, for it.
			if n := now.Nodes[b.Node]; !n.Removed && (n.Inc == b.Inc || cmd.Resume != nil && len(now.servingIn(was, cmd.Resume.Leased)) == 0) {
				may++
			}
		}
		if may >= few {
			return fmt.Errorf("%d of %d stay in sync, min-copies is %d and %d may return", len(is.InSync), len(was.InSync), few, may)
		}
		return nil
	})
}

func (m *Map) servingIn(g *Group, leased []Member) []Member {
	e := &edit{m: m}
	return e.serving(g.InSync, leased)
}

// checkR14: generations only rise; a VDI has one writer unless it is shared; who is let in anew has a generation of his own.
func checkR14(old, now *Map, cmd *Command) error {
	if old.Cluster != now.Cluster {
		return nil
	}
	for _, v := range now.VDIs {
		if was := old.VDI(v.Vid); was != nil && was.Gen == v.Gen && v.SessGen < was.SessGen {
			return fmt.Errorf("%06x: session generation fell", v.Vid)
		}
		if list := now.SessionsOf(v.Vid); len(list) > 1 && !v.Shared {
			return fmt.Errorf("%06x has %d writers", v.Vid, len(list))
		}
	}
	for _, s := range now.Sessions {
		v := now.VDI(s.Vid)
		if s.Gen != v.SessGen {
			return fmt.Errorf("session %d has generation %d, its VDI %d", s.ID, s.Gen, v.SessGen)
		}
		if s.Holder.Node != NoNode && !now.Intact(s.Holder) {
			return fmt.Errorf("session %d outlives its holder", s.ID)
		}
		if old.Session(s.ID) == nil && !v.Shared && s.Gen <= old.VDI(s.Vid).SessGen {
			return fmt.Errorf("session %d does not fence the one before", s.ID)
		}
	}
	return nil
}

// checkR22: what is frozen stays as it is until it is deleted; a vid is frozen only from Closing, when every group had its term.
func checkR22(old, now *Map, cmd *Command) error {
	if old.Cluster != now.Cluster {
		return nil
	}
	for _, v := range now.VDIs {
		was := old.VDI(v.Vid)
		if was == nil || was.Gen != v.Gen {
			continue
		}
		switch {
		case was.State == Frozen && v.State != Frozen && v.State != Deleted, was.State == Deleted && v.State != Deleted:
			return fmt.Errorf("%06x went from state %d to %d", v.Vid, was.State, v.State)
		case was.State == Frozen && (v.Size != was.Size || v.SnapID != was.SnapID || v.Name != was.Name):
			return fmt.Errorf("snapshot %06x changed", v.Vid)
		case v.State == Frozen && was.State != Frozen:
			f := cmd.FreezeVDI
			if f == nil || was.State != Closing || f.Vid != v.Vid || f.Closing != was.Closing {
				return fmt.Errorf("%06x froze by itself", v.Vid)
			}
			for i, g := range old.PoolGroups(v.Pool) {
				if g.Term != f.Terms[i] {
					return fmt.Errorf("%06x froze without group %d", v.Vid, i)
				}
			}
			if s := old.Owing(v.Vid); s != nil {
				return fmt.Errorf("%06x froze without what session %d sends again", v.Vid, s.ID)
			}
			if next := now.VDI(v.Next); next == nil || next.Parent != v.Vid || next.State != Working || next.SessGen != was.SessGen {
				return fmt.Errorf("%06x froze without a successor", v.Vid)
			}
		}
	}
	return nil
}

// checkR24: a new VDI's vid means nothing to anybody; a vid leaves only when every group collected it.
func checkR24(old, now *Map, cmd *Command) error {
	if old.Cluster != now.Cluster {
		return nil
	}
	for _, v := range now.VDIs {
		if was := old.VDI(v.Vid); was != nil && was.Gen == v.Gen {
			continue
		}
		if v.Gen != now.Index {
			return fmt.Errorf("%06x has generation %d", v.Vid, v.Gen)
		}
		for _, w := range old.VDIs {
			if w.Vid == v.Vid || w.Parent == v.Vid || w.Root == v.Vid && w.Vid != v.Parent {
				return fmt.Errorf("%06x was given again while %06x stands on it", v.Vid, w.Vid)
			}
		}
	}
	for _, w := range old.VDIs {
		if now.VDI(w.Vid) == nil && (w.State != Deleted || cmd.Collected == nil || cmd.Collected.Vid != w.Vid) {
			return fmt.Errorf("%06x vanished", w.Vid)
		}
	}
	return nil
}

// checkIndex: what lookups say is what a walk over everything finds.
func checkIndex(_, now *Map, _ *Command) error {
	for _, v := range now.VDIs {
		if now.VDI(v.Vid) != v {
			return fmt.Errorf("%06x is not found", v.Vid)
		}
		snap := ""
		if v.State == Frozen {
			snap = fmt.Sprint(v.SnapID)
		}
		if got, err := now.Lookup(v.Name, snap); v.State != Deleted && got != v {
			return fmt.Errorf("%s:%s is not %06x: %v", v.Name, snap, v.Vid, err)
		}
		var chain []VidGen
		for w := v; w != nil; w = now.VDI(w.Parent) {
			chain = append(chain, VidGen{w.Vid, w.Gen})
		}
		if !slices.Equal(chain, now.Chain(v.Vid)) {
			return fmt.Errorf("%06x: chain %v, not %v", v.Vid, now.Chain(v.Vid), chain)
		}
	}
	return nil
}

// checkEpoch: it rises when and only when somebody comes into service or leaves it.
func checkEpoch(old, now *Map, cmd *Command) error {
	up := func(m *Map) (list []NodeID) {
		for _, n := range m.Nodes {
			if n.Up {
				list = append(list, n.ID)
			}
		}
		return list
	}
	was, is := up(old), up(now)
	if slices.Equal(was, is) && old.Cluster == now.Cluster && cmd.Register == nil && old.Epoch != now.Epoch || now.Epoch < old.Epoch {
		return fmt.Errorf("epoch %d after %d", now.Epoch, old.Epoch)
	}
	if now.Formatted() && (!slices.Equal(was, is) || old.Cluster != now.Cluster) {
		last := now.Epochs[len(now.Epochs)-1]
		if now.Epoch != old.Epoch+1 || last.Epoch != now.Epoch || !slices.Equal(last.Nodes, is) {
			return fmt.Errorf("epoch %d after %d, with %v", now.Epoch, old.Epoch, last.Nodes)
		}
	}
	return nil
}

// must applies a command and fails the test if it is refused.
func must(t testing.TB, m *Map, c Command) (*Map, Result) {
	t.Helper()
	next, res := apply(t, m, &c)
	if err := res.Err(); err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return next, res
}
