package client

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// A session ends without our doing when its holder's lease ended (the machine was stopped or cut off for a while), when an administrator unlocks the VDI, or
// when another client takes it over. In the first case, and only if nobody had the VDI meanwhile, which the VDI's count of generations says, it is opened
// again, and the VM sees a pause. Late copies of our old requests are fenced like a stranger's. In the other cases going on would overwrite what
// others wrote: the session is dead (R14).

// renewInterval is between tries to open a session again while the cluster can't say.
const renewInterval = 500 * time.Millisecond

// fenced takes the answer that a request's session is over as of a map index.
func (s *session) fenced(p *piece, index uint64, b *wire.Batch) {
	c := s.c
	m := c.cfg.Maps.Map()
	id := s.ident.Load()
	switch {
	case !s.writer:
		c.settle(p, p.errorf(syscall.EIO, "refused: the VDI may only be read through a session now"), b)
		return
	case index > m.Index:
		c.retry(p, index)
		return
	case p.req.IO.SessGen != id.sessGen:
		c.retry(p, 0) // from before it was opened again
		return
	}
	if ses := m.Session(id.sess); ses != nil && ses.Gen == id.sessGen {
		c.retry(p, 0) // the primary is ahead of our map, or behind it
		return
	}
	s.mu.Lock()
	if err := s.deadErr(); err != nil {
		s.mu.Unlock()
		c.settle(p, err, b)
		return
	}
	s.waiting.push(p)
	s.mu.Unlock()
	s.lapse()
}

// lapse has the session opened again, if that may be.
func (s *session) lapse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.renewing || s.deadErr() != nil || s.ending || s.c.closed.Load() {
		return
	}
	s.renewing = true
	s.c.wg.Go(s.renew)
}

// renew opens a lapsed session again, or finds that it is dead.
func (s *session) renew() {
	c := s.c
	ctx, cancel := c.context()
	defer cancel()
	r := &renewal{gen: s.ident.Load().sessGen}
	defer func() {
		if r.try != nil { // closed before that had an outcome
			c.mu.Lock()
			c.resolve(s.name, r.try)
			c.mu.Unlock()
		}
	}()
	for s.deadErr() == nil {
		err, final := s.renewOnce(ctx, r)
		switch {
		case err == nil && s.deadErr() != nil: // closed meanwhile: what was granted would keep others out
			c.giveBack(ctx, s.ident.Load().sess)
			return
		case err == nil:
			s.renewed()
			return
		case final:
			c.Stats.Fenced.Add(1)
			c.log.Error("session ended by others", "vdi", s.name, "error", err)
			var b wire.Batch
			s.kill(fmt.Errorf("%s is fenced: %w: %w", s.name, err, syscall.EIO), &b)
			b.End()
			return
		}
		c.log.Warn("open a lapsed session again", "vdi", s.name, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(renewInterval):
		}
	}
}

// renewal is what the tries to open one session again know of each other.
type renewal struct {
	gen uint64         // the newest that was ours
	try *state.Command // one whose outcome was not heard: it is asked again, not for another
}

// renewOnce tries once. final: trying again can't help.
func (s *session) renewOnce(ctx context.Context, r *renewal) (err error, final bool) {
	c := s.c
	m := c.Map()
	if c.cfg.LocalNode != state.NoNode && !m.InService(c.holder()) {
		return errors.New("this node is not in service"), false
	}
	if err := s.mayRenew(m, r); err != nil {
		return err, true
	}
	if r.try == nil {
		r.try = c.opens(s.name)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ses, m, err := c.grant(ctx, r.try)
	var refused *state.Error
	switch {
	case errors.As(err, &refused):
		r.try = nil
		return err, false // if somebody else has it now, the next map says so
	case ses == nil:
		return err, false
	}
	r.try = nil
	unbroken := ses.Gen == r.gen || ses.Gen == r.gen+1 && !s.shared // opening raises it, but of a shared VDI, where only fencing does
	if err != nil && unbroken {                                     // it lapsed too before its answer came
		r.gen = ses.Gen
		return err, false
	}
	v := m.VDI(ses.Vid)
	switch {
	case !unbroken || v == nil || v.Identity() != s.identity:
		c.giveBack(ctx, ses.ID)
		return fmt.Errorf("another client had the VDI meanwhile (generation %d, ours was %d)", ses.Gen, r.gen), true
	case ses.ID == s.ident.Load().sess:
		return nil, false // it had not ended
	}
	s.mu.Lock()
	s.inherit = true
	if v.Vid != s.ident.Load().vid {
		s.passed(v.Gen)
	}
	s.mu.Unlock()
	s.ident.Store(&ident{vid: v.Vid, gen: v.Gen, size: v.Size, sess: ses.ID, sessGen: ses.Gen, index: m.Index})
	return nil, false
}

// mayRenew says why the session can't be had back.
func (s *session) mayRenew(m *state.Map, r *renewal) error {
	v := m.Working(s.name)
	switch {
	case v == nil || v.Identity() != s.identity:
		return fmt.Errorf("the VDI was deleted")
	case v.SessGen == r.gen:
		return nil
	case v.SessGen == r.gen+1 && v.SessFor == s.c.cfg.ID: // granted by a try whose outcome we did not hear
		r.gen = v.SessGen
		return nil
	}
	for _, ses := range m.SessionsOf(v.Vid) {
		if ses.Client != s.c.cfg.ID {
			return fmt.Errorf("taken over by %s since %s", ses.Owner, ses.Since.Format(time.DateTime))
		}
	}
	return fmt.Errorf("unlocked, or taken over by another client (generation %d, ours is %d)", v.SessGen, r.gen)
}

// renewed lets go what waited.
func (s *session) renewed() {
	s.c.Stats.Renewed.Add(1)
	s.c.log.Warn("opened a lapsed session again; nobody had the VDI meanwhile", "vdi", s.name)
	s.mu.Lock()
	s.renewing = false
	list := s.waiting.take()
	s.mu.Unlock()
	for p := list.pop(); p != nil; p = list.pop() {
		s.c.retry(p, 0)
	}
	s.c.lookAgain() // the session may have missed a map while it had lapsed
}
