package lease

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"pgregory.net/rapid"
)

// rig is a leader's Keeper, whose clock and raft the test moves by hand.
type rig struct {
	now    time.Duration
	term   uint64
	voters []string
	k      *Keeper
	m      *state.Map
}

func (r *rig) Term() uint64     { return r.term }
func (r *rig) Voters() []string { return r.voters }

const second = time.Second

// newRig: node 0 leads; nodes are in service with incarnation 10+id; all vote.
func newRig(t testing.TB, nodes int) *rig {
	r := &rig{now: 100 * second, term: 7, m: state.New()}
	for i := range nodes {
		uuid := fmt.Sprint("u", i)
		r.voters = append(r.voters, uuid)
		r.apply(t, &state.Command{Register: &state.Register{UUID: uuid, Addr: uuid + ":1", Inc: 10 + uint64(i), Boot: "b"}})
		r.apply(t, &state.Command{InService: &state.InService{Members: []state.Member{member(i)}}})
	}
	r.k = NewKeeper(func() time.Duration { return r.now }, "u0", func() {})
	r.k.Begin(r, r.term, r.m)
	return r
}

func member(i int) state.Member {
	return state.Member{Node: state.NodeID(i), Inc: 10 + uint64(i)}
}

func (r *rig) apply(t testing.TB, c *state.Command) {
	t.Helper()
	m, res := r.m.Apply(r.m.Index+1, c)
	if res.Code != state.OK {
		t.Fatal(res.Error)
	}
	r.m = m
	if r.k != nil {
		r.k.MapChanged(m)
	}
}

// ask sends node i's renewal, echoing stamp.
func (r *rig) ask(i int, asked, stamp time.Duration) (wire.Grant, wire.Status) {
	return r.k.Renew(&wire.Renew{Node: uint32(i), Inc: 10 + uint64(i), Asked: int64(asked), StampTerm: 7, Stamp: int64(stamp), Term: 7})
}

func TestR12GrantNeedsAMajorityThatSpokeAfterTheAsking(t *testing.T) {
	r := newRig(t, 5)
	g, _ := r.ask(1, 1, 0)
	if g.Granted != 0 {
		t.Fatal("granted at once: nobody else has spoken")
	}
	first := time.Duration(g.Stamp)
	r.now += second / 100
	if g, _ = r.ask(2, 2, first-1); g.Granted != 0 {
		t.Fatal("granted on an echo of an earlier stamp")
	}
	// Node 1 echoes: itself and the leader are 2 of 5.
	if g, _ = r.ask(1, 3, first); g.Granted != 0 {
		t.Fatal("granted by a minority")
	}
	// Node 3 echoes the stamp that answered node 1: 3 of 5 for node 1's first asking, not for its second.
	r.ask(3, 4, first)
	if g, _ = r.ask(1, 5, first); g.Granted != 1 {
		t.Fatalf("granted %d, want 1", g.Granted)
	}
}

func TestR12VoterInALaterTermIsNoEcho(t *testing.T) {
	r := newRig(t, 3)
	g, _ := r.ask(1, 1, 0)
	r.now++
	// It voted in term 8 meanwhile: its asking echoes the stamp, but not the term.
	g, _ = r.k.Renew(&wire.Renew{Node: 1, Inc: 11, Asked: 2, StampTerm: 7, Stamp: g.Stamp, Term: 8})
	if g.Granted != 0 {
		t.Fatal("granted on the word of a voter that moved on")
	}
	r.term = 8
	if _, s := r.ask(2, 3, 0); s != wire.StatusNotPrimary {
		t.Fatalf("a deposed leader answers %s", s)
	}
}

// TestR12WordOfAnUnregisteredVoter: it counts for others' leases, and for nothing else.
func TestR12WordOfAnUnregisteredVoter(t *testing.T) {
	r := newRig(t, 3)
	g, _ := r.ask(1, 1, 0)
	after := int64(12)
	word := func(stamp int64) (wire.Grant, wire.Status) {
		return r.k.Renew(&wire.Renew{Node: 2, Asked: after, StampTerm: 7, Stamp: stamp, Term: 7})
	}
	w, s := word(0)
	if s != wire.StatusWrongInc || w.Stamp == 0 || w.Granted != 0 {
		t.Fatalf("the first word is answered with %+v, %s", w, s)
	}
	after = 11 // its directory knows nothing of what the map has
	word(w.Stamp)
	r.now += second / 100
	if g, _ = r.ask(1, 3, 0); g.Granted != 0 {
		t.Fatal("granted on the word of an older image of a voter's directory")
	}
	after = 12
	if w, _ = word(w.Stamp); w.Granted != 0 {
		t.Fatal("granted to nobody's incarnation")
	}
	if !r.k.Unsure(0) {
		t.Fatal("its former self counts as heard of")
	}
	if g, _ = r.ask(1, 4, 0); g.Granted != 1 {
		t.Fatalf("granted %d, want 1: two of three have spoken", g.Granted)
	}
	for end := r.now + Length + Margin; r.now < end; r.now += second / 2 { // in longer steps it takes itself for paused
		word(0)
	}
	if l := r.k.Lapsed(); !slices.Contains(l, member(2)) {
		t.Fatalf("lapsed: %v, but not its former self", l)
	}

	// It ends after it was registered and before it was in service: that one is not brought in any more.
	r.apply(t, &state.Command{Register: &state.Register{UUID: "u2", Addr: "u2:1", Inc: 99, PrevInc: 12, History: []uint64{12}, Boot: "b"}})
	r.k.Renew(&wire.Renew{Node: 2, Inc: 99, Asked: 6, Term: 7})
	want := state.Member{Node: 2, Inc: 99}
	if l := r.k.Waiting(); !slices.Contains(l, want) {
		t.Fatalf("waiting: %v, want %v", l, want)
	}
	after = 99
	word(0)
	if l := r.k.Waiting(); slices.Contains(l, want) {
		t.Fatalf("waiting: %v, though a new process speaks for that node", l)
	}
}

func TestR12NoGrantWhileRemovalIsUndecided(t *testing.T) {
	r := newRig(t, 1)
	if g, _ := r.ask(0, 1, 0); g.Granted != 1 {
		t.Fatalf("a cluster of one waits for nobody, but %d is granted", g.Granted)
	}
	r.k.Exited(member(0))
	if g, _ := r.ask(0, 2, 0); g.Granted != 0 {
		t.Fatal("granted to a member whose end is decided")
	}
	if l := r.k.Lapsed(); !slices.Equal(l, []state.Member{member(0)}) {
		t.Fatalf("lapsed: %v", l)
	}
	r.apply(t, &state.Command{Ended: &state.Ended{Members: []state.Member{member(0)}}})
	if _, s := r.ask(0, 3, 0); s != wire.StatusWrongInc {
		t.Fatalf("an ended incarnation gets %s", s)
	}
}

// A registration on another boot relies on it that the incarnation before has no lease: it must not get one before the registration is applied.
func TestR12NoGrantOnceARegistrationReliesOnItsEnd(t *testing.T) {
	r := newRig(t, 1)
	r.ask(0, 1, 0)
	if r.k.Over(member(0)) {
		t.Fatal("it has a lease")
	}
	for range 8 {
		r.now += (Length + Margin) / 8
		r.k.Leased() // time passes, this process runs
	}
	r.now++
	if !r.k.Over(member(0)) {
		t.Fatal("its lease has run out")
	}
	if g, _ := r.ask(0, 2, 0); g.Granted != 0 {
		t.Fatal("granted, though its successor's registration is under way")
	}
	if l := r.k.Lapsed(); !slices.Equal(l, []state.Member{member(0)}) { // if that registration comes to nothing
		t.Fatalf("lapsed: %v", l)
	}
}

func TestR12NewLeaderTakesAllAsLeased(t *testing.T) {
	r := newRig(t, 3)
	if l := r.k.Leased(); len(l) != 3 {
		t.Fatalf("leased: %v", l)
	}
	for range 20 { // time passes, this process runs
		r.now += Length / 20
		if l := r.k.Lapsed(); len(l) != 0 {
			t.Fatalf("%v lapsed within a lease of the barrier", l)
		}
	}
	r.now += Margin
	if l := r.k.Lapsed(); len(l) != 3 {
		t.Fatalf("lapsed after a lease and the margin: %v", l)
	}
}

func TestPausedLeaderGivesTimeToRenew(t *testing.T) {
	r := newRig(t, 3)
	r.now += 3600 * second
	if l := r.k.Lapsed(); len(l) != 0 {
		t.Fatalf("%v lapsed while this leader itself was stopped", l)
	}
	if l := r.k.Leased(); len(l) != 3 {
		t.Fatalf("leased: %v", l)
	}
}

func TestFirstLeaseOnlyInService(t *testing.T) {
	r := newRig(t, 2)
	r.apply(t, &state.Command{Register: &state.Register{UUID: "u2", Addr: "x:1", Inc: 12, Boot: "b"}})
	if g, s := r.ask(2, 1, 0); s != wire.StatusOK || g.Granted != 0 {
		t.Fatalf("granted %d (%s) before it is in service", g.Granted, s)
	}
	if w := r.k.Waiting(); !slices.Equal(w, []state.Member{member(2)}) {
		t.Fatalf("waiting: %v", w)
	}
	r.apply(t, &state.Command{InService: &state.InService{Members: []state.Member{member(2)}}})
	at := r.m.Index
	r.apply(t, &state.Command{Set: &state.Set{Key: "rebuild-after", Value: "5m"}})
	g, _ := r.ask(2, 2, 0)
	r.now++
	r.ask(1, 3, time.Duration(g.Stamp))
	if g, _ = r.ask(2, 4, 0); g.Granted != 2 || g.Index != at {
		t.Fatalf("grant %+v, want 2 from index %d", g, at)
	}
}

func TestR12HolderWaitsForTheIndex(t *testing.T) {
	now, applied := 10*second, uint64(5)
	h := NewHolder(func() time.Duration { return now }, func() uint64 { return applied })
	h.Begin(state.Member{Node: 1, Inc: 2})
	now++
	a := h.Ask()
	h.Granted(&wire.Grant{Term: 1, Stamp: 1, Granted: a.Asked, Index: 6})
	if h.Valid() {
		t.Fatal("valid before the index is applied")
	}
	applied = 6
	h.Applied()
	if !h.Valid() {
		t.Fatal("not valid")
	}
	now += Length
	if h.Valid() {
		t.Fatal("valid for longer than its length from the asking")
	}
	b := h.Ask()
	h.Granted(&wire.Grant{Term: 1, Stamp: 2, Granted: b.Asked, Index: 6})
	h.Begin(state.Member{Node: 1, Inc: 3})
	if h.Valid() {
		t.Fatal("a new incarnation has the lease of the old")
	}
	now++
	h.Granted(&wire.Grant{Term: 1, Stamp: 3, Granted: b.Asked, Index: 6})
	if h.Valid() {
		t.Fatal("a late answer to the old incarnation counts for the new")
	}
}

// An answer that takes its time gives no more time for it.
func TestR13LeaseRunsFromTheAsking(t *testing.T) {
	now := 10 * second
	h := NewHolder(func() time.Duration { return now }, func() uint64 { return 9 })
	h.Begin(state.Member{Node: 1, Inc: 2})
	now++
	a := h.Ask()
	now += Length / 2
	h.Granted(&wire.Grant{Term: 1, Stamp: 1, Granted: a.Asked, Index: 6})
	if left := h.Left(); left != Length/2 {
		t.Errorf("%v left of %v, half of which the answer took", left, Length)
	}
}

// A model: a Keeper and Holders with messages late, lost and repeated. Whatever happens, who has a valid lease is Leased by the leader that
// granted it, and a later leader that takes all as leased from its barrier never finds one lapsed that is valid.
func TestR12Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "nodes")
		r := &rig{now: 100 * second, term: 7, m: state.New()}
		tb := fataler{t}
		var holders []*Holder
		for i := range n {
			r.voters = append(r.voters, fmt.Sprint("u", i))
			m, _ := r.m.Apply(r.m.Index+1, &state.Command{Register: &state.Register{UUID: fmt.Sprint("u", i), Addr: "a", Inc: 10 + uint64(i), Boot: "b"}})
			m, _ = m.Apply(m.Index+1, &state.Command{InService: &state.InService{Members: []state.Member{member(i)}}})
			r.m = m
			h := NewHolder(func() time.Duration { return r.now }, func() uint64 { return r.m.Index })
			h.Begin(member(i))
			holders = append(holders, h)
		}
		r.now++
		r.k = NewKeeper(func() time.Duration { return r.now }, "u0", func() {})
		r.k.Begin(r, 7, r.m)
		type answer struct {
			to int
			g  wire.Grant
		}
		var asks []wire.Renew
		var answers []answer
		voted := make([]bool, n) // in a later term
		elected := time.Duration(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0: // somebody asks
				i := rapid.IntRange(0, n-1).Draw(t, "who")
				a := holders[i].Ask()
				if a.Term = 7; voted[i] {
					a.Term = 8
				}
				asks = append(asks, a)
			case 1: // an asking arrives, perhaps again
				if len(asks) > 0 {
					a := asks[rapid.IntRange(0, len(asks)-1).Draw(t, "which")]
					if g, s := r.k.Renew(&a); s == wire.StatusOK {
						answers = append(answers, answer{int(a.Node), g})
					}
				}
			case 2, 3: // an answer arrives, perhaps again
				if len(answers) > 0 {
					a := answers[rapid.IntRange(0, len(answers)-1).Draw(t, "which")]
					holders[a.to].Granted(&a.g)
				}
			case 4:
				r.now += time.Duration(rapid.IntRange(1, 700).Draw(t, "ms")) * time.Millisecond
			case 5: // a voter but the leader votes for another
				if n > 1 && elected == 0 {
					voted[rapid.IntRange(1, n-1).Draw(t, "voter")] = true
					votes := 0
					for _, v := range voted {
						if v {
							votes++
						}
					}
					if votes > n/2 {
						elected = r.now
					}
				}
			}
			leased := r.k.Leased()
			for i, h := range holders {
				if !h.Valid() {
					continue
				}
				if !slices.Contains(leased, member(i)) {
					tb.Fatalf("node %d has a lease that its leader does not know", i)
				}
				if elected != 0 && time.Duration(h.until.Load()) > elected+Length {
					tb.Fatalf("node %d has a lease to %s; a later leader was elected at %s", i, time.Duration(h.until.Load()), elected)
				}
			}
		}
	})
}

type fataler struct{ *rapid.T }

func BenchmarkValid(b *testing.B) {
	h := NewHolder(Boottime, func() uint64 { return 0 })
	h.Begin(state.Member{Node: 1, Inc: 1})
	a := h.Ask()
	h.Granted(&wire.Grant{Granted: a.Asked})
	b.ReportAllocs()
	for b.Loop() {
		h.Valid()
	}
}
