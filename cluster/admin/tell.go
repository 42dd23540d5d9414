package admin

import (
	"context"
	"time"
)

// tellAfter is how many looks in a row must see another state before the log says so: what is over within a second is not worth it.
const tellAfter = 2

// tell writes to the log whenever the cluster comes into another state, as this node sees it, what is the matter and why, in the words of `cluster info`: whoever wonders in the
// morning why a guest paused finds it there.
func (s *Server) tell(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	said, seen, times := "", "", 0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := s.stateNow()
		if now != seen {
			seen, times = now, 0
		}
		if times++; times < tellAfter || now == said {
			continue
		}
		first := said == ""
		said = now
		if first && now == "running" {
			continue // nothing was ever wrong
		}
		st := s.status(ctx)
		if st.State == "running" {
			s.log.Info("cluster", "status", st.Text)
		} else {
			s.log.Warn("cluster", "status", st.Text)
		}
	}
}

// stateNow is the state without its words, which cost more.
func (s *Server) stateNow() string {
	m := s.node.Map()
	if m.Formatted() && !m.ShutDown && !s.node.Self().Lease {
		return "no lease"
	}
	name, _ := describe(time.Now(), m, s.node.Cluster(), HealthOf(m), Progress{})
	return name
}
