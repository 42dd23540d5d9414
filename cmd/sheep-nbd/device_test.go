package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// TestSizeOfAnotherDiskOfTheSameName: `sheep vdi delete -f disk; sheep vdi create disk SIZE` under an attached device is no resize of it.
func TestSizeOfAnotherDiskOfTheSameName(t *testing.T) { synctest.Test(t, anotherDisk) }

func anotherDisk(t *testing.T) {
	m := state.New()
	apply := func(c *state.Command) {
		t.Helper()
		next, r := m.Apply(m.Index+1, c)
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		m = next
	}
	b := state.Member{Node: 0, Inc: 5}
	apply(&state.Command{Register: &state.Register{UUID: "n", Addr: "n", VNodes: 64, Inc: 5, Boot: "b"}})
	apply(&state.Command{InService: &state.InService{Members: []state.Member{b}, Leased: []state.Member{b}}})
	apply(&state.Command{Format: &state.Format{Cluster: "c", Copies: 1, PGs: 16}})
	apply(&state.Command{CreateVDI: &state.CreateVDI{Name: "disk", Size: 64 << 20}})
	was := m.Working("disk")
	changed := make(chan struct{}, 1)
	newest := make(chan *state.Map, 1)
	first := m
	newest <- first
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cur := first
	resized := sizes(ctx, func() *state.Map {
		select {
		case cur = <-newest:
		default:
		}
		return cur
	}, changed, "disk", was.Identity(), 64<<20)
	apply(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "disk", Force: true}})
	apply(&state.Command{CreateVDI: &state.CreateVDI{Name: "disk", Size: 128 << 20}})
	now := m.Working("disk")
	if o := (&options{target: "disk"}); backendName("c", now, o) == backendName("c", was, o) {
		t.Errorf("both are %q to the kernel", backendName("c", now, o))
	}
	synctest.Wait()
	newest <- m
	changed <- struct{}{}
	select {
	case n := <-resized:
		t.Errorf("the device is told to be resized to %d bytes, which is another disk: its connections end, and new ones lead there", n)
	case <-time.After(time.Second):
	}
}
