package client

import (
	"context"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// A snapshot has all that was answered before it began (R22). Where groups resumed and may have lost some of that (R17), it waits for the word of every
// session's client that it is there again, and durable.

// tellTimeout is of one try.
const tellTimeout = 10 * time.Second

// tellReplayed gives that word for each of our sessions that a snapshot waits for. It runs in the tender only.
func (c *Client) tellReplayed(m *state.Map) {
	for _, ses := range m.Sessions {
		if ses.Client != c.cfg.ID {
			continue
		}
		v := m.VDI(ses.Vid)
		if v == nil || v.State != state.Closing || !m.Owes(ses) {
			continue
		}
		// A session that is over here, or only about to begin, has nothing to send again; one that is being opened again keeps what it had.
		if s := c.writerOf(v.Name); s == nil || s.ident.Load().sess == ses.ID && s.whole(m) {
			c.tell(s, ses.ID, m.Index)
		}
	}
}

// writerOf is the live session in which a VDI is written, nil if there is none.
func (c *Client) writerOf(name string) *session {
	for _, s := range c.allSessions() {
		if s.writer && s.name == name && s.deadErr() == nil {
			return s
		}
	}
	return nil
}

// whole says that all that groups lost up to this map is sent again. When it becomes so, resumed has the map followed once more.
func (s *session) whole(m *state.Map) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sg := range s.sgAll {
		if g := m.Group(sg.id); g == nil || sg.replay != nil || g.Resumes != sg.resumes.Load() {
			return false
		}
	}
	return true
}

// tell flushes what was sent again and says so, unless that is under way. s is nil where there is nothing to flush.
func (c *Client) tell(s *session, sess, index uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, on := c.telling[sess]; on || c.closed.Load() {
		return
	}
	c.telling[sess] = struct{}{}
	c.wg.Go(func() {
		if err := c.flushAndTell(s, sess, index); err != nil {
			c.log.Warn("tell that lost writes were sent again", "session", sess, "error", err)
			select {
			case <-time.After(renewInterval):
			case <-c.ended:
			}
		}
		c.mu.Lock()
		delete(c.telling, sess)
		c.mu.Unlock()
		c.lookAgain()
	})
}

func (c *Client) flushAndTell(s *session, sess, index uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	c.wg.Go(func() {
		select {
		case <-c.ended:
			cancel()
		case <-ctx.Done():
		}
	})
	if s != nil {
		if err := s.flushWait(ctx); err != nil {
			return err
		}
	}
	res, err := c.cfg.Propose(ctx, c.command(func(cmd *state.Command) { cmd.Replayed = &state.Replayed{Sess: sess, Index: index} }))
	if err == nil {
		err = res.Err() // our map is behind: a little later it says that the session is over
	}
	return err
}

// lookAgain has the tender follow the map once more.
func (c *Client) lookAgain() {
	c.refollow.Store(true)
	c.wakeTender()
}
