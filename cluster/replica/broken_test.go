package replica

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// Each of these makes the one situation for which a rule is there. Breaking the rule (cluster/planted) fails its test; tests/RULES.md has the table.

// others are the secondaries.
func (r *rules) others() (list []*testNode) {
	for _, n := range r.nodes {
		if n != r.primary {
			list = append(list, n)
		}
	}
	return list
}

func (r *rules) group() *state.Group { return r.a.cur().Groups[0] }

// fill is a block's content.
func fill(x byte) []byte { return bytes.Repeat([]byte{x}, 4096) }

// write writes one block and returns when that is answered.
func (r *rules) write(block uint32, x byte) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	if _, s := r.tc.do(ctx, wire.KindWrite, 0, 0, block*4096, 4096, fill(x)); s != wire.StatusOK {
		r.dump()
		r.t.Fatalf("write: %v", s)
	}
}

// read reads one block.
func (r *rules) read(block uint32) byte {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	out, s := r.tc.do(ctx, wire.KindRead, 0, 0, block*4096, 4096, nil)
	if s != wire.StatusOK {
		r.dump()
		r.t.Fatalf("read: %v", s)
	}
	return out[0]
}

// writing begins a write of one block; the channel says that it was answered. It is given up with the test.
func (r *rules) writing(block uint32, x byte) <-chan struct{} {
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, s := r.tc.do(ctx, wire.KindWrite, 0, 0, block*4096, 4096, fill(x)); s == wire.StatusOK {
			close(done)
		}
	})
	r.ends = append(r.ends, func() { cancel(); wg.Wait() })
	return done
}

// answered waits for a write.
func answered(done <-chan struct{}, within time.Duration) bool {
	select {
	case <-done:
		return true
	case <-time.After(within):
		return false
	}
}

// restart has nodes, all of which ended, come back, and their sets resumed (R6).
func (r *rules) restart(list ...*testNode) {
	for _, n := range list {
		n.exited()
	}
	for _, n := range list {
		n.start()
	}
	time.Sleep(100 * time.Millisecond)
	g := r.group()
	r.a.apply(&state.Command{Resume: &state.Resume{Groups: []state.GroupTerm{{Group: g.ID, Term: g.Term}}}})
}

// settled waits until all is whole and who should be is primary.
func (r *rules) settled() {
	r.t.Helper()
	r.whole(20 * time.Second)
	r.wait("the preferred primary", 20*time.Second, func() bool { g := r.group(); return g.Primary.Node == g.Target[0] })
	r.whole(20 * time.Second)
	for _, n := range r.nodes {
		if n.id == r.group().Primary.Node {
			r.primary = n
		}
	}
}

func (r *rules) last(n *testNode) objstore.Number {
	return n.store.Group(objstore.GroupID(r.group().ID)).Last()
}

// An entry that does not follow the last one is not taken.
func TestR1EntriesComeInOrder(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		n, g := r.others()[0], r.group()
		c, err := wire.DialCaller(r.net.Host("ahead"), n.host+":7000", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		before := r.last(n)
		en := objstore.Entry{Number: objstore.Number{Term: g.Term, LSN: before.LSN + 2}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		h, _, _, err := c.Do(ctx, wire.Header{Kind: wire.KindAppend, Group: uint32(g.ID), Term: g.Term, From: g.Primary.Inc, To: n.inc}, en.AppendHead((&wire.Append{}).Append(nil)), nil)
		if err != nil || h.Status != wire.StatusGap {
			t.Errorf("an entry after one that is missing: %v %v", h.Status, err)
		}
		if now := r.last(n); now != before {
			t.Errorf("it was taken: %v after %v", now, before)
		}
	})
}

// A set shrinks while an entry is under way to a member that stays: it gets it under the number that it has.
func TestR3EntriesKeepTheirNumbers(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		b, c := r.others()[0], r.others()[1]
		r.net.Cut(r.primary.host, b.host)
		r.net.Cut(r.primary.host, c.host)
		done := r.writing(0, 2)
		time.Sleep(50 * time.Millisecond)
		was := r.group().Term
		r.net.Reset(r.primary.host, b.host)
		c.kill()
		c.exited()
		r.wait("a smaller set", time.Second, func() bool { return r.group().Term > was })
		time.Sleep(50 * time.Millisecond) // the primary knows
		r.net.HealAll()
		if !answered(done, 20*time.Second) {
			r.dump()
			t.Fatal("not answered")
		}
		if x, y := r.last(r.primary), r.last(b); x != y {
			t.Errorf("the same entry is %v on one and %v on the other", x, y)
		}
		c.start()
		r.whole(20 * time.Second)
		r.equal()
	})
}

// A member whose disk does not take an entry has not got it.
func TestR4HasItMeansWritten(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		n := r.others()[0]
		n.failWrites.Store(true)
		r.write(0, 2)
		for _, m := range r.group().InSync {
			if m.Node == n.id {
				t.Error("a write was answered by a set with a member whose disk did not take it")
			}
		}
	})
}

// A message to a node's earlier incarnation changes nothing.
func TestR5MessagesNameIncarnations(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		n, g := r.others()[0], r.group()
		c, err := wire.DialCaller(r.net.Host("late"), n.host+":7000", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, kind := range []wire.Kind{wire.KindSync, wire.KindActivate, wire.KindUnitList} {
			h, _, _, err := c.Do(t.Context(), wire.Header{Kind: kind, Group: uint32(g.ID), Term: g.Term, From: g.Primary.Inc, To: n.inc - 1}, make([]byte, 16), nil)
			if err != nil || h.Status != wire.StatusWrongInc {
				t.Errorf("%v to an incarnation that ended: %v %v", kind, h.Status, err)
			}
		}
	})
}

// All end while a write is on its way to some. Whoever becomes primary, the longest prefix wins, and everybody has it then.
func TestR7LongestPrefixWins(t *testing.T) {
	for _, back := range []string{"all", "the secondaries"} {
		t.Run(back, func(t *testing.T) { longestPrefix(t, back == "all") })
	}
}

func TestR19MembersAreMadeEqual(t *testing.T) { longestPrefix(t, false) }

func longestPrefix(t *testing.T, all bool) {
	withRules(t, func(t *testing.T, r *rules) {
		for i := range 2 {
			r.settled()
			list := r.others()
			short := list[i]
			r.net.Cut(r.primary.host, short.host)
			done := r.writing(0, 2)
			time.Sleep(50 * time.Millisecond)
			if answered(done, 0) {
				t.Fatal("a write was answered that one lacks")
			}
			r.stop()
			nodes := r.nodes
			for _, n := range nodes {
				n.kill()
			}
			r.net.HealAll()
			if !all {
				r.primary.exited()
				nodes = list
			}
			r.restart(nodes...)
			if x := r.read(0); x != 2 {
				t.Errorf("reads %d", x)
			}
			if !all {
				r.primary.start()
			}
			r.whole(20 * time.Second)
			r.equal()
			r.write(0, 1)
		}
	})
}

// A joining that is agreed, though its primary has not heard: nothing is answered without the new member.
func TestR9UndecidedJoinCounts(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		d := r.others()[0]
		d.kill()
		d.exited()
		r.write(0, 2)
		var done <-chan struct{}
		r.primary.deafTo = func(cmd *state.Command) bool {
			if done != nil || cmd.Sync == nil || len(cmd.Sync.Changes) == 0 || len(cmd.Sync.Changes[0].Add) == 0 {
				return false
			}
			r.net.Cut(r.primary.host, d.host)
			done = r.writing(0, 3)
			time.Sleep(20 * time.Millisecond) // the other one has it
			return true
		}
		d.start()
		r.wait("it is a member", 20*time.Second, func() bool { return len(r.group().InSync) == 3 })
		if answered(done, time.Second) {
			t.Error("a write was answered without a member of the set")
		}
		r.stop()
	})
}

// A member that does not answer, and raft that does not either: nothing is answered before it is out of the set.
func TestR10ShrinkBeforeAnswer(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		r.primary.cut.Store(true)
		r.net.Cut(r.primary.host, r.others()[0].host)
		done := r.writing(0, 2)
		if answered(done, 15*time.Second) {
			t.Error("a write was answered though a member of the set lacks it")
		}
		r.primary.cut.Store(false)
		r.primary.tell(r.a.cur())
		if !answered(done, 30*time.Second) {
			t.Error("not answered when the set could shrink")
		}
		r.net.HealAll()
		r.whole(30 * time.Second)
		r.equal()
	})
}

// A node that was away joins, then all lose power, and it alone comes back and is told to go on: it has what was flushed.
func TestR11JoinsWithDurableData(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		d := r.others()[0]
		d.kill()
		d.exited()
		for i := range uint32(40) {
			r.write(i, byte(100+i))
		}
		if _, s := r.tc.do(t.Context(), wire.KindFlush, 0, 0, 0, 0, nil); s != wire.StatusOK {
			t.Fatal(s)
		}
		d.start()
		r.whole(20 * time.Second)
		for _, n := range r.nodes {
			n.cutPower()
		}
		for _, n := range r.nodes {
			if n != d {
				n.exited()
			}
		}
		r.restart(d)
		g := r.group()
		r.a.must(&state.Command{Force: &state.Force{Groups: []state.GroupTerm{{Group: g.ID, Term: g.Term}}, Leased: r.a.leased()}})
		for i := range uint32(40) {
			if x := r.read(i); x != byte(100+i) {
				t.Fatalf("block %d is %d", i, x)
			}
		}
	})
}

// A read does not show a write that may still be undone.
func TestR16ReadWaitsForTheWrite(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		r.net.Cut(r.primary.host, r.others()[0].host)
		r.writing(0, 2)
		time.Sleep(50 * time.Millisecond)
		y := *r.tc // the same session on a connection of its own would supersede the writer's
		y.name, y.conns, y.mu = "reader", map[state.NodeID]*wire.Caller{}, make(chan struct{}, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if out, s, err := y.once(ctx, wire.KindRead, 0, 0, 0, 4096, nil); err == nil && s == wire.StatusOK {
			t.Errorf("read %d, which one member lacks", out[0])
		}
		r.stop()
	})
}

// While a node that was away is brought up to date, the very object is written again and again.
func TestR20WritesToWhatIsStillToBeCopied(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		d := r.others()[0]
		for round := range byte(3) {
			d.kill()
			d.exited()
			for i := range uint32(30) {
				r.write(10+i, 10*round+1)
			}
			var stop atomic.Bool
			var wg sync.WaitGroup
			wg.Go(func() {
				for x := byte(0); !stop.Load(); x++ {
					r.write(0, x)
				}
			})
			d.start()
			r.whole(20 * time.Second)
			stop.Store(true)
			wg.Wait()
			r.equal()
		}
	})
}

// All restart: until one of them serves again, nobody gives a copy up, though no set names what they are now.
func TestR21NoCopyIsGivenUpEarly(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		for _, n := range r.nodes {
			n.kill()
		}
		r.restart(r.nodes...)
		if x := r.read(0); x != 1 {
			t.Errorf("reads %d", x)
		}
		r.whole(20 * time.Second)
		r.equal()
	})
}

// From the closing of a vid on writes to it wait, until the snapshot is there or given up.
func TestR22WritesWaitWhileAVidIsClosed(t *testing.T) {
	withRules(t, func(t *testing.T, r *rules) {
		r.a.noReports.Store(true)
		defer r.a.noReports.Store(false)
		res := r.a.must(&state.Command{CloseVDI: &state.CloseVDI{Name: "d", Tag: "s"}})
		time.Sleep(50 * time.Millisecond)
		done := r.writing(0, 2)
		if answered(done, time.Second) {
			t.Error("a write to a vid that is being frozen was done")
		}
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
		defer cancel()
		if _, s := r.tc.do(ctx, wire.KindWrite, wire.FlagAgain, 0, 4096, 4096, fill(3)); s == wire.StatusOK {
			t.Error("a write was done that says that it is sent again, where no group lost anything")
		}
		r.a.must(&state.Command{AbortClose: &state.AbortClose{Vid: res.Vid, Closing: res.Index, Why: "test"}})
		if !answered(done, 10*time.Second) {
			t.Error("not answered when the snapshot was given up")
		}
	})
}

// failing has a node's disk take no writes to its journal and objects while failWrites is set, and do what hook says.
func (n *testNode) failing(op, name string) error {
	if hook := n.hook.Load(); hook != nil {
		if err := (*hook)(op, name); err != nil {
			return err
		}
	}
	if n.failWrites.Load() && op == "write" && (strings.Contains(name, "/journal") || strings.Contains(name, "/obj")) {
		return syscall.EIO
	}
	return nil
}
