package admin

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// What is in recovery is read from the map: a node lacks those groups that it shall hold and is not in sync for. How fast that goes is measured
// here, once a second, so that an answer can say how long it will take.
const (
	sampleEvery = time.Second
	samplesMax  = 20
)

// Recovery is one node in service that is being brought up to date.
type Recovery struct {
	Node     Node     `json:"node"`
	Progress Progress `json:"progress"`
}

// Progress says how far it is, in groups.
type Progress struct {
	Nodes   int    `json:"nodes"`   // in service, and not in sync for all they shall hold
	Left    int    `json:"left"`    // groups that a node still lacks
	Total   int    `json:"total"`   // groups that these nodes shall hold
	PerSec  uint64 `json:"perSec"`  // bytes copied per second at present
	Seconds int    `json:"seconds"` // left, if it goes on like that; -1: not known
}

// Percent is how much is done.
func (p Progress) Percent() float64 {
	if p.Total == 0 {
		return 0
	}
	return 100 * float64(p.Total-p.Left) / float64(p.Total)
}

// words says it in a line.
func (p Progress) words() string {
	if p.Nodes == 0 {
		return ""
	}
	what := "1 node is being brought up to date"
	if p.Nodes > 1 {
		what = fmt.Sprintf("%d nodes are being brought up to date", p.Nodes)
	}
	s := fmt.Sprintf("; %s: %.1f%% done", what, p.Percent())
	if p.PerSec > 0 {
		s += fmt.Sprintf(", %.1f MB/s", float64(p.PerSec)/(1<<20))
	}
	if p.Seconds >= 0 {
		s += fmt.Sprintf(", about %v left", time.Duration(p.Seconds)*time.Second)
	}
	return s
}

// lacking counts, for every node in service, the groups with a primary that it shall hold and those of them that it is not in sync for.
func lacking(m *state.Map) map[state.NodeID]Progress {
	all := map[state.NodeID]Progress{}
	for _, g := range m.Groups {
		if g.Primary.Node == state.NoNode {
			continue // nobody brings anybody up to date
		}
		for _, id := range g.Target {
			n := m.Node(id)
			if n == nil || !n.Up {
				continue
			}
			p := all[id]
			p.Total++
			if !slices.Contains(g.InSync, state.Member{Node: id, Inc: n.Inc}) {
				p.Left++
			}
			all[id] = p
		}
	}
	for id, p := range all {
		if p.Left == 0 {
			delete(all, id)
		}
	}
	return all
}

// sample is what was lacking at one moment.
type sample struct {
	at    time.Time
	left  map[state.NodeID]Progress
	bytes uint64 // that this node has copied to others since its start
}

// sampler remembers the newest samples.
type sampler struct {
	mu    sync.Mutex
	ring  []sample // oldest first
	index uint64   // of the map that the newest was made of
}

// run takes samples until ctx ends.
func (s *sampler) run(ctx context.Context, node LocalNode) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		s.take(time.Now(), node.Map(), node.ResyncBytes())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *sampler) take(now time.Time, m *state.Map, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := sample{at: now, bytes: bytes}
	if n := len(s.ring); n > 0 && s.index == m.Index {
		next.left = s.ring[n-1].left
	} else {
		next.left = lacking(m)
	}
	s.index = m.Index
	if len(s.ring) == samplesMax {
		s.ring = slices.Delete(s.ring, 0, 1)
	}
	s.ring = append(s.ring, next)
}

// perSec is how many bytes a second this node copies to others now.
func (s *sampler) perSec() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.ring)
	if n < 2 {
		return 0
	}
	from, to := s.ring[max(0, n-4)], s.ring[n-1]
	seconds := to.at.Sub(from.at).Seconds()
	if seconds <= 0 || to.bytes < from.bytes {
		return 0
	}
	return uint64(float64(to.bytes-from.bytes) / seconds)
}

// progress is each node's as m has it, with the time that is left by the pace since the oldest sample with more to do.
func (s *sampler) progress(now time.Time, m *state.Map) map[state.NodeID]Progress {
	all := lacking(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, p := range all {
		p.Nodes, p.Seconds = 1, -1
		for _, old := range s.ring {
			was := old.left[id].Left
			if past := now.Sub(old.at).Seconds(); was > p.Left && past > 0 {
				p.Seconds = int(float64(p.Left)*past/float64(was-p.Left)) + 1
				break
			}
		}
		all[id] = p
	}
	return all
}

// sum adds them up: all are done when the slowest is.
func sum(all map[state.NodeID]Progress) Progress {
	var p Progress
	p.Seconds = -1
	for _, one := range all {
		p.Nodes++
		p.Left += one.Left
		p.Total += one.Total
		p.Seconds = max(p.Seconds, one.Seconds)
	}
	return p
}
