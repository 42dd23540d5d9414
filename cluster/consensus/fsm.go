package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

const (
	// entryHead is the leader's term before the command.
	entryHead = 8
	// Applied commands kept for those who follow the map: enough for a follower that lags a second or two; one that lags more gets the map.
	historyEntriesMax = 4096
	historyBytesMax   = 8 << 20
)

// errTermMoved is the outcome of a command that was written under an earlier leadership: it was not applied.
var errTermMoved = errors.New("the leadership under which this was written is over")

// Command is an applied command, as it was encoded.
type Command struct {
	Index   uint64
	Encoded []byte // state.EncodeCommand
}

// fsm is raft's state machine. Apply, Restore and Snapshot are called by one goroutine of raft's and never block.
type fsm struct {
	cur     atomic.Pointer[state.Map]
	applied func(index, term uint64) // told of every command; must not block
	shared  *SharedMaps              // nil: this node makes all maps itself

	mu    sync.Mutex // guards what follows
	hist  []Command
	bytes int
	base  uint64 // map index before hist[0]
	subs  map[*Subscription]struct{}
}

// Subscription wakes whoever follows the map. Wakes are coalesced: one stands for any number of changes.
type Subscription struct {
	C <-chan struct{}
	c chan struct{}
	f *fsm
}

func newFSM() *fsm { return newFSMOf(nil) }

func newFSMOf(shared *SharedMaps) *fsm {
	f := &fsm{subs: map[*Subscription]struct{}{}, applied: func(uint64, uint64) {}, shared: shared}
	first := state.New()
	if shared != nil {
		first = shared.first
	}
	f.cur.Store(first)
	return f
}

// encodeEntry makes a raft log entry.
func encodeEntry(term uint64, cmd *state.Command) ([]byte, error) {
	b, err := state.EncodeCommand(cmd)
	if err != nil {
		return nil, fmt.Errorf("encode command %s: %w", cmd.ID, err)
	}
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, entryHead+len(b)), term), b...), nil
}

// Apply applies one committed command. It returns a state.Result or an error.
func (f *fsm) Apply(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return nil
	}
	if len(l.Data) < entryHead || binary.BigEndian.Uint64(l.Data) != l.Term {
		return errTermMoved
	}
	m, step := f.cur.Load(), step
	if f.shared != nil {
		step = f.shared.step
	}
	next, res, err := step(m, l.Index, l.Data[entryHead:])
	if err != nil {
		return err
	}
	if next == m {
		return res
	}
	f.publish(next, Command{Index: l.Index, Encoded: l.Data[entryHead:]})
	f.applied(l.Index, l.Term)
	return res
}

// step is what a command makes of a map.
func step(m *state.Map, index uint64, encoded []byte) (*state.Map, state.Result, error) {
	cmd, err := state.DecodeCommand(encoded)
	if err != nil {
		// The same on every node: it is in the log, and means nothing.
		return m, state.Result{}, fmt.Errorf("raft entry %d: %w", index, err)
	}
	next, res := m.Apply(index, cmd)
	return next, res, nil
}

// publish makes m the current map and wakes those who follow.
func (f *fsm) publish(m *state.Map, c Command) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur.Store(m)
	f.hist = append(f.hist, c)
	f.bytes += len(c.Encoded)
	if len(f.hist) > historyEntriesMax || f.bytes > historyBytesMax {
		drop := len(f.hist) / 4
		if drop == 0 {
			drop = len(f.hist)
		}
		f.base = f.hist[drop-1].Index
		for _, old := range f.hist[:drop] {
			f.bytes -= len(old.Encoded)
		}
		f.hist = append([]Command(nil), f.hist[drop:]...)
	}
	f.wake()
}

// wake is called with mu held.
func (f *fsm) wake() {
	for s := range f.subs {
		select {
		case s.c <- struct{}{}:
		default:
		}
	}
}

// since returns the commands that lead from the map at index to the current one. ok is false when that history is not kept: take the map.
func (f *fsm) since(index uint64) (list []Command, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if index < f.base || index > f.cur.Load().Index {
		return nil, false
	}
	i := len(f.hist)
	for i > 0 && f.hist[i-1].Index > index {
		i--
	}
	// f.hist's array is only appended to or left behind: a part of it may be handed out.
	return f.hist[i:len(f.hist):len(f.hist)], true
}

func (f *fsm) subscribe() *Subscription {
	s := &Subscription{c: make(chan struct{}, 1), f: f}
	s.C = s.c
	f.mu.Lock()
	f.subs[s] = struct{}{}
	f.mu.Unlock()
	return s
}

// Cancel ends the subscription.
func (s *Subscription) Cancel() {
	s.f.mu.Lock()
	delete(s.f.subs, s)
	s.f.mu.Unlock()
}

// Snapshot hands out the map, which nobody changes any more.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.cur.Load()}, nil }

// Restore replaces the map by one from a snapshot.
func (f *fsm) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		return fmt.Errorf("read raft snapshot: %w", err)
	}
	m, err := state.DecodeMap(b)
	if err != nil {
		return fmt.Errorf("raft snapshot of %d bytes: %w", len(b), err)
	}
	if f.shared != nil {
		m = f.shared.same(m, b)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur.Store(m)
	f.hist, f.bytes, f.base = nil, 0, m.Index
	f.wake()
	return nil
}

type snapshot struct{ m *state.Map }

// Persist writes the map out.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := state.EncodeMap(s.m)
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		sink.Cancel()
		return fmt.Errorf("write raft snapshot at map index %d: %w", s.m.Index, err)
	}
	return sink.Close()
}

// Release has nothing to do.
func (snapshot) Release() {}
