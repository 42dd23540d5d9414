package vdi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// history is what a disk was, and which blocks were touched since each of its snapshots.
type history struct {
	now   []byte
	snaps map[string]*past
}

type past struct {
	content []byte
	touched []bool // by block, up to now, or up to the snapshot `until`
}

func (h *history) touch(at, n int) {
	for b := at / client.BlockSize; b <= (at+n-1)/client.BlockSize; b++ {
		for _, p := range h.snaps {
			p.touched[b] = true
		}
	}
}

// dirty asks a stranger which blocks an export says have changed.
func dirty(t *testing.T, uri, context string, blocks int) []bool {
	t.Helper()
	var list []struct{ Offset, Length, Type uint64 }
	out := tool(t, "nbdinfo", "--map="+context, "--json", uri)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err, out)
	}
	got := make([]bool, blocks)
	covered := uint64(0)
	for _, e := range list {
		if e.Offset != covered || e.Offset%client.BlockSize != 0 || e.Type > 1 {
			t.Fatalf("extent %+v after %d bytes", e, covered)
		}
		covered += e.Length
		for b := e.Offset / client.BlockSize; b*client.BlockSize < covered; b++ {
			got[b] = e.Type == 1
		}
	}
	if covered != uint64(blocks*client.BlockSize) {
		t.Fatalf("%d bytes are covered", covered)
	}
	return got
}

// TestDirtyBitmapModel: after any history, exactly the touched blocks are dirty; whatever happens to other snapshots, never is a block clean that differs.
func TestDirtyBitmapModel(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a node")
	}
	const size, blocks = 12 << 20, 12 << 20 / client.BlockSize
	c := startCluster(t, 1)
	c.propose(&state.Command{CreateVDI: &state.CreateVDI{Name: "disk", Size: size}})
	cl := c.gateway(0)
	t.Cleanup(func() { cl.Close() })
	uri := serveExports(t, NewBackend(cl, BackendOptions{}))
	s, closeStream := openStream(t, cl, "disk", "")
	defer func() { closeStream() }()

	rnd := rand.New(rand.NewPCG(11, 3))
	h := &history{now: make([]byte, size), snaps: map[string]*past{}}
	merged := false // snapshots were deleted: what was touched may then be known less exactly
	change := func() {
		at, n := rnd.IntN(size), 1+rnd.IntN(96<<10)
		n = min(n, size-at)
		if rnd.IntN(3) == 0 {
			at, n = at&^4095, (n+4095)&^4095
			n = min(n, size-at)
			clear(h.now[at : at+n])
			if err := s.ZeroAt(int64(at), int64(n)); err != nil {
				t.Fatal(err)
			}
		} else {
			for i := range n {
				h.now[at+i] = byte(rnd.Uint32())
			}
			if _, err := s.WriteAt(h.now[at:at+n], int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		h.touch(at, n)
	}
	verify := func(step int) {
		for tag, p := range h.snaps {
			got := dirty(t, uri("disk"), dirtyBitmap+tag, blocks)
			for b := range blocks {
				differs := !bytes.Equal(h.now[b*client.BlockSize:(b+1)*client.BlockSize], p.content[b*client.BlockSize:(b+1)*client.BlockSize])
				switch {
				case !got[b] && differs:
					t.Fatalf("step %d: block %d differs from %s, and is said to be clean", step, b, tag)
				case got[b] && !p.touched[b]:
					t.Fatalf("step %d: block %d was not touched since %s, and is said to be dirty", step, b, tag)
				case !got[b] && p.touched[b] && !merged && !bytes.Equal(h.now[b*client.BlockSize:(b+1)*client.BlockSize], make([]byte, client.BlockSize)):
					t.Fatalf("step %d: block %d was touched since %s, and is said to be clean", step, b, tag)
				}
			}
		}
	}
	for step := range 60 {
		switch k := rnd.IntN(12); {
		case k < 8:
			change()
		case k < 10:
			tag := fmt.Sprint("t", step)
			c.snapshot("disk", tag)
			h.snaps[tag] = &past{bytes.Clone(h.now), make([]bool, blocks)}
		case k < 11 && len(h.snaps) > 2:
			tags := make([]string, 0, len(h.snaps))
			for tag := range h.snaps {
				tags = append(tags, tag)
			}
			slices.Sort(tags)
			tag := tags[rnd.IntN(len(tags))]
			c.propose(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "disk", Snap: tag}})
			delete(h.snaps, tag)
			merged = true
		default:
			verify(step)
		}
	}
	verify(60)
	if len(h.snaps) < 2 {
		t.Fatal("the history had too few snapshots to show anything")
	}
	betweenSnapshots(t, c, h, uri, change)
	cloneBitmap(t, c, h, uri)
}

// betweenSnapshots: a snapshot's export tells what changed since the one before it, whatever comes after.
func betweenSnapshots(t *testing.T, c *testCluster, h *history, uri func(string) string, change func()) {
	c.snapshot("disk", "first")
	first := &past{nil, make([]bool, len(h.now)/client.BlockSize)}
	h.snaps["first"] = first
	change()
	c.snapshot("disk", "second")
	want := slices.Clone(first.touched)
	change()
	if got := dirty(t, uri("disk:second"), dirtyBitmap+"first", len(want)); !slices.Equal(got, want) {
		t.Error("between two snapshots: not what was touched")
	}
	delete(h.snaps, "first")
	out := tool(t, "nbdinfo", uri("disk:first"))
	if strings.Contains(out, dirtyBitmap+"second") {
		t.Error("a snapshot offers what changed since a later one")
	}
}

// cloneBitmap: a clone tells what changed since what it was cloned of.
func cloneBitmap(t *testing.T, c *testCluster, h *history, uri func(string) string) {
	c.propose(&state.Command{CloneVDI: &state.CloneVDI{Name: "disk", Snap: "second", New: "clone"}})
	tool(t, "qemu-io", "-f", "raw", uri("clone"), "-c", "write -P 7 1M 8k", "-c", "flush")
	got := dirty(t, uri("clone"), dirtyBitmap+"disk:second", len(h.now)/client.BlockSize)
	for b, d := range got {
		if d != (b == 256 || b == 257) {
			t.Errorf("block %d of the clone: dirty %v", b, d)
		}
	}
}

// TestChanges: what an extent means, in all cases; where the snapshot is gone everything is dirty.
func TestChanges(t *testing.T) {
	since := changes{[]state.VidGen{{Vid: 5, Gen: 50}, {Vid: 3, Gen: 30}}}
	for _, c := range []struct {
		state objstore.State
		vid   uint32
		want  uint64
	}{
		{objstore.Absent, 0, 0}, {objstore.Present, 5, 0}, {objstore.Zero, 3, 0}, {objstore.Present, 7, nbd.StateDirty}, {objstore.Zero, 7, nbd.StateDirty},
		{objstore.Bad, 0, nbd.StateDirty}, {objstore.Present, 0, nbd.StateDirty},
	} {
		e := wire.Extent{Blocks: 1, State: uint8(c.state), Vid: c.vid}
		if got := since.flags(e); got != c.want {
			t.Errorf("%v of vid %d: %d", c.state, c.vid, got)
		}
		if got := (changes{}).flags(e); got != nbd.StateDirty {
			t.Errorf("%v of vid %d, the snapshot is gone: %d", c.state, c.vid, got)
		}
	}
}
