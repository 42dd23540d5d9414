package client

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// eachSole runs with writes of which the primary says that nobody else has them. A gateway, whose own node is that primary, keeps no payload of them; a
// program keeps all, since nodes end and it lives on.
func eachSole(t *testing.T, run func(t *testing.T, f *fake, c *Client, d *Disk, id state.GroupID)) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		f.sole = true
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.move(id, 0)
		run(t, f, c, d, id)
		closeAll(t, c, d)
	})
}

func isGateway(c *Client) bool { return c.cfg.Local != nil }

func TestR17NoPayloadIsKeptOfWhatEndsWithUs(t *testing.T) {
	eachSole(t, func(t *testing.T, f *fake, c *Client, d *Disk, id state.GroupID) {
		put := func(off uint64, by byte) (held int32) {
			var owner counted
			if err := do(d, &Op{Kind: wire.KindWrite, Off: off, Len: 64 << 10, Data: pattern(64<<10, by), Owner: &owner}); err != nil {
				t.Fatal(err)
			}
			return owner.n.Load()
		}
		if err := flush(d); err != nil { // the first one covers what earlier sessions wrote
			t.Fatal(err)
		}
		held, kept := put(0, 1), c.Stats.Retained.Load()
		if gateway := isGateway(c); gateway != (held == 0) || gateway != (kept == blockSize+itemCost) {
			t.Errorf("gateway %v: payload held %d times, %d bytes counted", gateway, held, kept)
		}
		before := f.served[wire.KindFlush]
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		if n := f.served[wire.KindFlush] - before; n != 1 {
			t.Errorf("a flush asked %d groups, of one that was written", n)
		}
		if n := c.Stats.Retained.Load(); n != 0 {
			t.Errorf("%d bytes counted after the flush", n)
		}
		// Others join: from then on they may lose it while we live.
		f.sole = false
		if held := put(64<<10, 2); held == 0 {
			t.Error("payload not held though others have it")
		}
		f.powerCut(id, 0)
		if got := read(t, d, 64<<10, 64<<10); !bytes.Equal(got, pattern(64<<10, 2)) {
			t.Error("it was not sent again")
		}
	})
}

// TestR17SoleWritesOutliveReturns: the node was silent for long, and its group went on with it when it was back, in one step or in several of which we hear at
// once. Nothing is lost, and nothing older may be sent again over a write that is not: neither what was answered while others were in the set, nor a trim.
func TestR17SoleWritesOutliveReturns(t *testing.T) {
	for _, resumes := range []int{1, 2, 3} {
		eachSole(t, func(t *testing.T, f *fake, c *Client, d *Disk, id state.GroupID) {
			want := pattern(6*4096, 1)
			put := func(block int) {
				if err := write(d, uint64(block)*4096, want[block*4096:][:4096]); err != nil {
					t.Fatal(err)
				}
			}
			f.sole = false
			if err := write(d, 0, pattern(4*4096, 2)); err != nil {
				t.Fatal(err)
			}
			put(4)
			f.sole = true
			if err := do(d, &Op{Kind: wire.KindTrim, Len: 3 * 4096}); err != nil {
				t.Fatal(err)
			}
			for block := range 4 {
				put(block)
			}
			f.sole = false
			put(5)
			f.mu.Lock()
			for range resumes {
				f.resume(id, 1000)
			}
			f.recovered(id)
			f.mu.Unlock()
			if got := read(t, d, 0, len(want)); !bytes.Equal(got, want) {
				t.Errorf("%d resumes: something else is there", resumes)
			}
			if n := c.Stats.Resent.Load(); isGateway(c) && n > 1 {
				t.Errorf("%d resumes: %d writes sent again, of one after the last that is certain", resumes, n)
			}
			if err := flush(d); err != nil {
				t.Error(err)
			}
			if n := c.Stats.Lost.Load(); n != 0 {
				t.Errorf("%d writes counted as lost", n)
			}
		})
	}
}

// TestR17ForceUsesNumbersAgain: a group is forced to go on with a node that had as many changes, but others.
func TestR17ForceUsesNumbersAgain(t *testing.T) {
	for _, sole := range []bool{false, true} {
		eachSole(t, func(t *testing.T, f *fake, c *Client, d *Disk, id state.GroupID) {
			f.sole = sole
			if err := write(d, 0, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			f.mu.Lock()
			f.resume(id, 0)
			g := f.group(id)
			for range 20 { // nobody was told that these are done
				g.lsn++
				g.log = append(g.log, fakeEntry{lsn: g.lsn, key: 1 << 40, len: 512})
			}
			f.edit(id, func(g *state.Group) { g.Primary, g.Forced = f.m.Current(1), g.Term+1 })
			f.recovered(id)
			f.mu.Unlock()
			b := make([]byte, 4096)
			err := do(d, &Op{Kind: wire.KindRead, Len: 4096, Data: b})
			switch {
			case sole && isGateway(c):
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("read of lost bytes: %v", err)
				}
				if err := flush(d); !errors.Is(err, syscall.EIO) {
					t.Errorf("flush over lost bytes: %v", err)
				}
			case err != nil || !bytes.Equal(b, pattern(4096, 1)):
				t.Errorf("an acknowledged write is lost (%v)", err)
			}
		})
	}
}

// TestR17SoleWritesAreLostByForce: somebody had the group go on with a node that lacks them. The reads of those blocks and the next flush must say so.
func TestR17SoleWritesAreLostByForce(t *testing.T) {
	for _, resumes := range []int{1, 2} {
		eachSole(t, func(t *testing.T, f *fake, c *Client, d *Disk, id state.GroupID) {
			if err := write(d, 0, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			if err := do(d, &Op{Kind: wire.KindTrim, Off: 8192, Len: 4096}); err != nil { // of which there is no payload that could be missing
				t.Fatal(err)
			}
			f.mu.Lock()
			for i := range resumes {
				f.resume(id, 0)
				if i == 0 {
					f.edit(id, func(g *state.Group) { g.Primary, g.Forced = f.m.Current(1), g.Term+1 })
				}
			}
			f.recovered(id)
			f.mu.Unlock()
			if !isGateway(c) {
				if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
					t.Error("it was not sent again")
				}
				return
			}
			b := make([]byte, 4096)
			if err := do(d, &Op{Kind: wire.KindRead, Len: 4096, Data: b}); !errors.Is(err, syscall.EIO) {
				t.Errorf("read of lost bytes: %v", err)
			}
			if got := read(t, d, 8192, 4096); !bytes.Equal(got, make([]byte, 4096)) {
				t.Error("the trimmed block is wrong")
			}
			if n := c.Stats.Resent.Load(); n != 1 {
				t.Errorf("%d changes sent again, of one trim", n)
			}
			if err := flush(d); !errors.Is(err, syscall.EIO) {
				t.Errorf("flush over lost bytes: %v", err)
			}
			if err := write(d, 0, pattern(4096, 2)); err != nil {
				t.Fatal(err)
			}
			if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 2)) {
				t.Error("not healed by writing")
			}
			if err := flush(d); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestR17AnswersElsewhereAreKept: what a primary here said of a request that was then done elsewhere does not count.
func TestR17AnswersElsewhereAreKept(t *testing.T) {
	eachSole(t, func(t *testing.T, f *fake, c *Client, d *Disk, id state.GroupID) {
		first := true
		f.setFault(func(node state.NodeID, r *wire.Request) verdict {
			if r.Kind == wire.KindWrite && first {
				first = false
				f.move(id, 1)
				r.Sole = true
				return busy
			}
			return serve
		})
		f.sole = false
		var owner counted
		if err := do(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1), Owner: &owner}); err != nil {
			t.Fatal(err)
		}
		if owner.n.Load() == 0 {
			t.Error("payload not held")
		}
	})
}
