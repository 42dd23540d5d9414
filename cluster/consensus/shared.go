package consensus

import (
	"bytes"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// sharedMax is how many commands SharedMaps looks back: who is further behind makes its own maps.
const sharedMax = 1 << 14

// SharedMaps lets the nodes of one simulated cluster take each agreed map from the first of them that made it: the same map and the same command make the
// same map, and hundreds of nodes in one process would do little else, and keep hundreds of copies. Maps are never changed, so they can be shared.
// It is for simulations (Memory.Maps) whose subject is not whether nodes agree; some of their nodes should go without.
type SharedMaps struct {
	mu    sync.Mutex
	first *state.Map
	made  map[uint64]made   // by the command's index
	data  map[uint64][]byte // what raft's logs hold, by index
}

// made is what one command made of one map.
type made struct {
	from    *state.Map
	command []byte
	next    *state.Map
	res     state.Result
	err     error
}

// NewSharedMaps makes one for a cluster that is not there yet.
func NewSharedMaps() *SharedMaps {
	return &SharedMaps{first: state.New(), made: map[uint64]made{}, data: map[uint64][]byte{}}
}

// step is what step is, done once.
func (s *SharedMaps) step(m *state.Map, index uint64, encoded []byte) (*state.Map, state.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x, ok := s.made[index]; ok && x.from == m && bytes.Equal(x.command, encoded) {
		return x.next, x.res, x.err
	}
	next, res, err := step(m, index, encoded)
	s.made[index] = made{m, encoded, next, res, err}
	delete(s.made, index-sharedMax)
	return next, res, err
}

// same is a map that was made already and equals one that was read from a snapshot; m when there is none.
func (s *SharedMaps) same(m *state.Map, encoded []byte) *state.Map {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, ok := s.made[m.Index]
	if !ok {
		return m
	}
	if b, err := state.EncodeMap(x.next); err != nil || !bytes.Equal(b, encoded) {
		return m
	}
	return x.next
}

// sharedLogs is a node's log, whose entries' bytes are there once for all nodes: hundreds of logs are most of what a large cluster in one process takes.
type sharedLogs struct {
	raft.LogStore
	s *SharedMaps
}

func (l sharedLogs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l sharedLogs) StoreLogs(list []*raft.Log) error {
	l.s.mu.Lock()
	for _, e := range list {
		if b, ok := l.s.data[e.Index]; ok && bytes.Equal(b, e.Data) {
			e.Data = b
			continue
		}
		l.s.data[e.Index] = e.Data
		delete(l.s.data, e.Index-sharedMax)
	}
	l.s.mu.Unlock()
	return l.LogStore.StoreLogs(list)
}
