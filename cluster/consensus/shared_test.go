package consensus

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

func TestSharedMapsAreWhatANodeMakesItself(t *testing.T) {
	shared := NewSharedMaps()
	alone, a, b, late := newFSM(), newFSMOf(shared), newFSMOf(shared), newFSMOf(shared)
	for i := range 20 {
		e := entry(t, uint64(2*i+1), 1, 1, setting(i))
		want := alone.Apply(e).(state.Result)
		for _, f := range []*fsm{a, b} {
			if got := f.Apply(e).(state.Result); got != want {
				t.Errorf("entry %d: %+v, alone %+v", e.Index, got, want)
			}
		}
		garbage := *e
		garbage.Index, garbage.Data = e.Index+1, append(e.Data[:entryHead:entryHead], 1)
		for _, f := range []*fsm{alone, a, b} {
			if err, _ := f.Apply(&garbage).(error); err == nil {
				t.Error("garbage was taken")
			}
		}
	}
	if a.cur.Load() != b.cur.Load() {
		t.Error("two maps where one was to be shared")
	}
	want, _ := state.EncodeMap(alone.cur.Load())
	if got, _ := state.EncodeMap(a.cur.Load()); !bytes.Equal(got, want) {
		t.Error("the shared map is another one")
	}
	if err := late.Restore(io.NopCloser(bytes.NewReader(want))); err != nil {
		t.Fatal(err)
	}
	if late.cur.Load() != a.cur.Load() {
		t.Error("a snapshot's map is not shared")
	}
	// Another command in the same place, of a log that is not theirs, is no reason to take their map.
	other := newFSMOf(shared)
	other.Apply(entry(t, 1, 1, 1, setting(7)))
	first := newFSMOf(shared)
	first.Apply(entry(t, 1, 1, 1, setting(0)))
	x, _ := state.EncodeMap(other.cur.Load())
	if y, _ := state.EncodeMap(first.cur.Load()); bytes.Equal(x, y) {
		t.Error("two commands made one map")
	}
}

func TestSharedLogsKeepWhatTheyWereGiven(t *testing.T) {
	shared := NewSharedMaps()
	a, b := sharedLogs{raft.NewInmemStore(), shared}, sharedLogs{raft.NewInmemStore(), shared}
	for i, e := range []struct{ a, b string }{{"x", "x"}, {"y", "z"}, {"", "w"}, {"v", "v"}} {
		n := uint64(i + 1)
		if err := errors.Join(a.StoreLog(&raft.Log{Index: n, Data: []byte(e.a)}), b.StoreLog(&raft.Log{Index: n, Data: []byte(e.b)})); err != nil {
			t.Fatal(err)
		}
		var x, y raft.Log
		if err := errors.Join(a.GetLog(n, &x), b.GetLog(n, &y)); err != nil || string(x.Data) != e.a || string(y.Data) != e.b {
			t.Errorf("%d: %q and %q, stored %q and %q: %v", n, x.Data, y.Data, e.a, e.b, err)
		}
		if e.a == e.b && &x.Data[0] != &y.Data[0] {
			t.Errorf("%d: twice there", n)
		}
	}
}
