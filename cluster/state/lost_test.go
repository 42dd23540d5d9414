package state

import (
	"slices"
	"testing"
)

// A primary says that nobody has a copy; only force goes on from there, with whoever shall hold the group and is in service, and under a term of its own.
func TestLostCopiesWaitForForce(t *testing.T) {
	m, all := cluster(t, 3, 2, 4)
	g := m.Groups[0]
	if g.Lost() {
		t.Fatal("a new group is lost")
	}
	say := func(by Member, term uint64) Command {
		return Command{Sync: &SyncChange{By: by, Leased: all, Changes: []SetChange{{Group: g.ID, Term: term, To: NoNode, NoCopy: true}}}}
	}
	other := g.InSync[slices.IndexFunc(g.InSync, func(b Member) bool { return b != g.Primary })]
	refused(t, m, say(g.Primary, g.Term+1), Stale, "term")
	refused(t, m, say(other, g.Term), Stale, "")
	m, _ = must(t, m, say(g.Primary, g.Term))
	now := m.Groups[0]
	if !now.Lost() || now.Term != g.Term || now.Primary != g.Primary || m.Groups[1].Lost() {
		t.Fatalf("after the primary's word: %+v", now)
	}
	was := now
	m, _ = must(t, m, Command{Force: &Force{Groups: []GroupTerm{{g.ID, g.Term}}, Leased: all}})
	now = m.Groups[0]
	if now.Lost() || now.Term != was.Term+1 || now.Granted != now.Term || now.Forced != now.Term || now.Resumes != was.Resumes+1 || len(now.InSync) != 2 {
		t.Errorf("after force: %+v", now)
	}
	refused(t, m, Command{Force: &Force{Groups: []GroupTerm{{g.ID, g.Term}}, Leased: all}}, Stale, "")
	// Any change of the set takes the word back: who came in has a copy.
	m, _ = must(t, m, say(now.Primary, now.Term))
	m, _ = must(t, m, Command{Sync: &SyncChange{By: now.Primary, Leased: all, Changes: []SetChange{{Group: g.ID, Term: now.Term, To: NoNode, Remove: minus(now.InSync, []Member{now.Primary})}}}})
	if m.Groups[0].Lost() {
		t.Error("lost under a later term")
	}
	// Nobody who shall hold it is in service: force is refused, nothing is changed.
	now = m.Groups[0]
	m, _ = must(t, m, say(now.Primary, now.Term))
	refused(t, m, Command{Force: &Force{Groups: []GroupTerm{{g.ID, now.Term}}}}, Stale, "nobody")
}
