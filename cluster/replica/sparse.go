package replica

import (
	"log/slog"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// sparse logs what happens to many groups at once: a line for each kind and node, with how many more there were since the last.
type sparse struct {
	mu   sync.Mutex
	last map[sparseKey]*sparseCount
}

type sparseKey struct {
	what string
	node state.NodeID
}

type sparseCount struct {
	at   time.Time
	more int
}

// sparseInterval is how often one kind is said of one node.
const sparseInterval = 5 * time.Second

func (s *sparse) say(log *slog.Logger, what string, node state.NodeID, group state.GroupID, err error) {
	s.mu.Lock()
	k := sparseKey{what, node}
	if s.last == nil {
		s.last = map[sparseKey]*sparseCount{}
	}
	c := s.last[k]
	if c == nil {
		c = &sparseCount{}
		s.last[k] = c
	}
	if time.Since(c.at) < sparseInterval {
		c.more++
		s.mu.Unlock()
		return
	}
	more := c.more
	c.at, c.more = time.Now(), 0
	s.mu.Unlock()
	log.Warn(what, "node", node, "group", group, "before", more, "error", err)
}
