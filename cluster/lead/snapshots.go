package lead

import (
	"context"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	// A snapshot that is not complete after this long is given up, and the writes that it parked go on.
	closeTimeout = 20 * time.Second
	// A client program's session ends when it was not kept alive for this long.
	sessionTimeout = 10 * time.Second
)

// closingID names a snapshot being taken.
type closingID struct {
	vid     uint32
	closing uint64
}

// closing is what the leader has heard of it.
type closing struct {
	since   time.Time
	reports map[state.GroupID]uint64 // the term under which the group's primary says that all is durable
}

// Closed takes a primary's report (R22). Reports are repeated until the map moves on, so what comes too early may be dropped.
func (l *Leader) Closed(r *wire.ClosedReport) {
	l.mu.Lock()
	if c := l.closings[closingID{r.Vid, r.Closing}]; c != nil {
		for _, g := range r.Groups {
			c.reports[state.GroupID(g.Group)] = g.Term
		}
	}
	l.mu.Unlock()
	l.wake()
}

// snapshots freezes VDIs whose groups have all reported, and gives up those that take too long.
func (l *Leader) snapshots(ctx context.Context, m *state.Map) {
	for _, d := range l.snapshotsDue(m) {
		l.task(ctx, d.name, func(ctx context.Context) bool { return l.propose(ctx, d.name, d.cmd) })
	}
}

// due is a command to propose, under a name that keeps it from being proposed twice at once.
type due struct {
	name string
	cmd  *state.Command
}

func (l *Leader) snapshotsDue(m *state.Map) (list []due) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := 0
	for _, v := range m.VDIs {
		if v.State != state.Closing {
			continue
		}
		seen++
		id := closingID{v.Vid, v.Closing}
		c := l.closings[id]
		if c == nil {
			c = &closing{since: time.Now(), reports: map[state.GroupID]uint64{}}
			l.closings[id] = c
		}
		owing := m.Owing(v.Vid)
		if terms := c.complete(m, v); terms != nil && owing == nil {
			cmd := &state.Command{FreezeVDI: &state.FreezeVDI{Vid: v.Vid, Closing: v.Closing, Terms: terms}}
			list = append(list, due{fmt.Sprintf("freeze of vid %06x", v.Vid), cmd})
		} else if time.Since(c.since) > closeTimeout {
			why := fmt.Sprintf("%d of %d groups have reported after %s", len(c.reports), len(m.PoolGroups(v.Pool)), closeTimeout)
			if owing != nil {
				why += fmt.Sprintf(", and %s has not sent again what groups lost with their nodes' power", owing.Owner)
			}
			cmd := &state.Command{AbortClose: &state.AbortClose{Vid: v.Vid, Closing: v.Closing, Why: why}}
			list = append(list, due{fmt.Sprintf("end of the snapshot of vid %06x", v.Vid), cmd})
		}
	}
	if seen < len(l.closings) {
		for id := range l.closings {
			if v := m.VDI(id.vid); v == nil || v.State != state.Closing || v.Closing != id.closing {
				delete(l.closings, id)
			}
		}
	}
	return list
}

// complete returns the groups' terms if every one of them has reported under its current term.
func (c *closing) complete(m *state.Map, v *state.VDI) []uint64 {
	groups := m.PoolGroups(v.Pool)
	if len(c.reports) < len(groups) {
		return nil
	}
	terms := make([]uint64, len(groups))
	for i, g := range groups {
		if c.reports[g.ID] != g.Term {
			return nil
		}
		terms[i] = g.Term
	}
	return terms
}

// Keep notes that a client program is alive.
func (l *Leader) Keep(client string) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cons == nil {
		return
	}
	for _, s := range l.cons.Map().Sessions {
		if s.Client == client && s.Holder.Node == state.NoNode {
			l.kept[s.ID] = now
		}
	}
}

// sessions ends those of client programs that were not kept alive. A new leader gives each its full time.
func (l *Leader) sessions(ctx context.Context, m *state.Map) {
	for _, d := range l.sessionsDue(m) {
		l.task(ctx, d.name, func(ctx context.Context) bool { return l.propose(ctx, d.name, d.cmd) })
	}
}

func (l *Leader) sessionsDue(m *state.Map) (list []due) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	live := 0
	for _, s := range m.Sessions {
		if s.Holder.Node != state.NoNode {
			continue
		}
		live++
		since, ok := l.kept[s.ID]
		if !ok {
			l.kept[s.ID] = now
		} else if now.Sub(since) > sessionTimeout {
			cmd := &state.Command{CloseSess: &state.CloseSess{ID: s.ID}}
			list = append(list, due{fmt.Sprintf("end of session %d", s.ID), cmd})
		}
	}
	if live < len(l.kept) {
		for id := range l.kept {
			if m.Session(id) == nil {
				delete(l.kept, id)
			}
		}
	}
	return list
}
