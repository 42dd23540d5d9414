package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

func entry(t *testing.T, index, writtenAt, committedAt uint64, cmd *state.Command) *raft.Log {
	b, err := encodeEntry(writtenAt, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Type: raft.LogCommand, Index: index, Term: committedAt, Data: b}
}

func setting(i int) *state.Command {
	return &state.Command{ID: fmt.Sprint("c", i), Set: &state.Set{Key: "rebuild-after", Value: fmt.Sprintf("%ds", i+1)}}
}

func TestR6CommandOfAnEarlierLeadershipIsSkipped(t *testing.T) {
	f := newFSM()
	if err, _ := f.Apply(entry(t, 1, 3, 5, setting(1))).(error); !errors.Is(err, errTermMoved) {
		t.Fatalf("applied: %v", err)
	}
	if f.cur.Load().Index != 0 {
		t.Error("the map moved")
	}
	if res, ok := f.Apply(entry(t, 2, 5, 5, setting(1))).(state.Result); !ok || res.Code != state.OK {
		t.Errorf("not applied: %+v", res)
	}
}

func TestInvariant12GarbageInTheLogIsSkipped(t *testing.T) {
	f := newFSM()
	for i, data := range [][]byte{nil, {1}, make([]byte, 8), append(make([]byte, 8), "\x01{}"...), append(make([]byte, 8), "\x01{\"set\":3}"...)} {
		f.Apply(&raft.Log{Type: raft.LogCommand, Index: uint64(i + 1), Data: data})
	}
}

func TestHistoryLeadsToTheSameMap(t *testing.T) {
	f := newFSM()
	sub := f.subscribe()
	defer sub.Cancel()
	follower := state.New()
	for i := range historyEntriesMax + 100 {
		f.Apply(entry(t, uint64(2*i+1), 1, 1, setting(i))) // barriers and such lie between
		if i%700 == 0 {
			follower = catchUp(t, f, follower)
		}
	}
	follower = catchUp(t, f, follower)
	want, _ := state.EncodeMap(f.cur.Load())
	got, _ := state.EncodeMap(follower)
	if !bytes.Equal(want, got) {
		t.Error("a follower of the commands came to another map")
	}
	if _, ok := f.since(1); ok {
		t.Error("history is not bounded")
	}
	if _, ok := f.since(follower.Index + 1); ok {
		t.Error("history of the future")
	}
	select {
	case <-sub.C:
	default:
		t.Error("nobody was woken")
	}
}

func catchUp(t *testing.T, f *fsm, m *state.Map) *state.Map {
	list, ok := f.since(m.Index)
	if !ok {
		t.Fatalf("no history from %d", m.Index)
	}
	for _, c := range list {
		cmd, err := state.DecodeCommand(c.Encoded)
		if err != nil {
			t.Fatal(err)
		}
		m, _ = m.Apply(c.Index, cmd)
	}
	return m
}

func TestSnapshotAndRestore(t *testing.T) {
	f := newFSM()
	for i := range 10 {
		f.Apply(entry(t, uint64(i+1), 1, 1, setting(i)))
	}
	s, _ := f.Snapshot()
	sink := &memSink{}
	if err := s.Persist(sink); err != nil {
		t.Fatal(err)
	}
	g := newFSM()
	if err := g.Restore(io.NopCloser(&sink.Buffer)); err != nil {
		t.Fatal(err)
	}
	a, _ := state.EncodeMap(f.cur.Load())
	b, _ := state.EncodeMap(g.cur.Load())
	if !bytes.Equal(a, b) {
		t.Error("restored another map")
	}
	if _, ok := g.since(3); ok {
		t.Error("a restored map has no history")
	}
	if list, ok := g.since(10); !ok || len(list) != 0 {
		t.Error("from the restored map on it has")
	}
	if err := g.Restore(io.NopCloser(bytes.NewReader([]byte("garbage")))); err == nil {
		t.Error("restored garbage")
	}
}

type memSink struct{ bytes.Buffer }

func (*memSink) ID() string    { return "x" }
func (*memSink) Cancel() error { return nil }
func (*memSink) Close() error  { return nil }

func TestStoreThatFailedStaysFailed(t *testing.T) {
	var told []error
	broken := errors.New("input/output error")
	bad := true
	s := &timedStore{LogStore: failing{raft.NewInmemStore(), &bad, broken}, stable: raft.NewInmemStore(), now: time.Now,
		slow: func(string, time.Duration) {}, fatal: func(err error) { told = append(told, err) }}
	if err := s.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, broken) {
		t.Fatalf("append: %v", err)
	}
	bad = false // fsync says all is well the second time: it is not
	if err := s.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, broken) {
		t.Fatalf("append after a failure: %v", err)
	}
	if err := s.SetUint64([]byte("k"), 1); !errors.Is(err, broken) {
		t.Fatalf("set after a failure: %v", err)
	}
	if len(told) != 1 {
		t.Errorf("told %d times", len(told))
	}
}

type failing struct {
	*raft.InmemStore
	bad *bool
	err error
}

func (f failing) StoreLogs(l []*raft.Log) error {
	if *f.bad {
		return f.err
	}
	return f.InmemStore.StoreLogs(l)
}

func FuzzHello(f *testing.F) {
	b, _ := appendHello(nil, "cluster", "node")
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		cluster, node, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := appendHello(nil, cluster, node)
		if err != nil || !bytes.HasPrefix(b, again) {
			t.Errorf("%q read as %q %q", b, cluster, node)
		}
	})
}
