package client

import (
	"fmt"
	"strings"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// A VM whose requests wait sees a pause and nothing else. So the log of its client says that they wait, for whom, and when they go on.
const (
	waitWorthSaying = 5 * time.Second
	waitSaidAgain   = time.Minute
)

// waits is what was said of requests that wait. Only the tender has it.
type waits struct {
	said  int64 // tick; 0: nothing, since all was well
	since int64 // tick of the oldest that was said
}

// sayWaits looks for requests that have waited for long.
func (c *Client) sayWaits(m *state.Map) {
	now := c.now.Load()
	oldest, why := c.oldestWait(m, now)
	w := &c.waits
	switch {
	case why == "" && w.said != 0:
		c.log.Info("requests go on", "waited", time.Duration(now-w.since)*tick)
		*w = waits{}
	case why != "" && (w.said == 0 || now-w.said >= ticks(waitSaidAgain)):
		if w.said == 0 {
			w.since = oldest
		}
		w.said = now
		c.log.Warn("requests wait", "for", time.Duration(now-oldest)*tick, "why", why)
	}
}

// oldestWait finds the request that has waited the longest, if that is worth a word, and why it does.
func (c *Client) oldestWait(m *state.Map, now int64) (oldest int64, why string) {
	oldest = now - ticks(waitWorthSaying) + 1
	c.parkMu.Lock()
	for p := c.parked.first; p != nil; p = p.next {
		if p.parked != 0 && p.parked < oldest {
			oldest, why = p.parked, p.whyParked(m)
		}
	}
	c.parkMu.Unlock()
	c.peers.Range(func(_, v any) bool {
		x := v.(*peer)
		x.mu.Lock()
		defer x.mu.Unlock()
		if sent, ok := x.table.oldest(); ok && sent < oldest {
			oldest, why = sent, whyUnanswered(m, x.node)
		}
		return true
	})
	return oldest, why
}

// whyParked is what the map and the last answer say of a request that can't be sent, or was sent back.
func (p *piece) whyParked(m *state.Map) string {
	g := m.Group(p.group())
	switch {
	case g == nil:
		return fmt.Sprintf("group %d is not known yet", p.group())
	case g.Primary.Node == state.NoNode:
		var names []string
		for _, b := range g.InSync {
			names = append(names, nameOf(m, b.Node))
		}
		return fmt.Sprintf("none of the nodes that hold all of group %d is in service: start %s", g.ID, strings.Join(names, " or "))
	}
	said := p.req.Status.String()
	if p.req.Message != "" {
		said += ", " + p.req.Message
	}
	return fmt.Sprintf("%s, primary of group %d, does not serve it now (%s): it, or the nodes that it needs, may be down or cut off; see `sheep cluster info`", nameOf(m, p.node), g.ID, said)
}

// whyUnanswered is what the map says of a node that owes an answer.
func whyUnanswered(m *state.Map, node state.NodeID) string {
	short, example := 0, (*state.Group)(nil)
	for _, g := range m.Groups {
		if g.Primary.Node != node {
			continue
		}
		serving := 0
		for _, b := range g.InSync {
			if m.InService(b) {
				serving++
			}
		}
		if pool := m.Pool(g.ID.Pool()); pool != nil && serving < pool.MinCopies {
			short, example = short+1, g
		}
	}
	if short == 0 {
		return nameOf(m, node) + " does not answer"
	}
	return fmt.Sprintf("writes to %d groups of %s wait until %d copies are in sync (group %d has %d): see `sheep cluster info` for the nodes that are down",
		short, nameOf(m, node), m.Pool(example.ID.Pool()).MinCopies, example.ID, len(example.InSync))
}

func nameOf(m *state.Map, id state.NodeID) string {
	if n := m.Node(id); n != nil {
		return fmt.Sprintf("node %d (%s)", id, n.Addr)
	}
	return fmt.Sprintf("node %d", id)
}
