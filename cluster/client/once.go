package client

import (
	"slices"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// A change of a shared VDI that is sent again might take back what another client wrote there meanwhile (invariant 7). So it carries a number by which primaries know
// whether it was done already. They know that for as long as the session lives and any member of the group's set does.

// once gives a change of a shared VDI its number, before it is sent for the first time, and says when it must not be sent again: nobody knows any more
// whether it was done.
func (s *session) once(p *piece, g *state.Group) error {
	if !s.shared || !p.changes() {
		return nil
	}
	id, o := s.ident.Load(), &p.req.IO.Once
	switch {
	case o.Seq != 0 && p.resumes != g.Resumes:
		return p.errorf(syscall.EIO, "it is not known whether it was done: all nodes of its group ended meanwhile")
	case o.Seq != 0 && o.Sess != id.sess:
		return p.errorf(syscall.EIO, "it is not known whether it was done: the session lapsed meanwhile")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sg := s.getGroup(g)
	if o.Seq == 0 {
		o.Sess, o.Seq = id.sess, s.c.seqs.Add(1)
		p.resumes = g.Resumes
		sg.sent = append(sg.sent, o.Seq)
	}
	o.Low = sg.sent[0]
	return nil
}

// changed takes a change that has its outcome out of the books, and returns those that may go now. mu is held.
func (s *session) changed(p *piece) pieceList {
	if o := &p.req.IO.Once; o.Seq != 0 {
		sg := s.sgroup(p.group().Index())
		if i, ok := slices.BinarySearch(sg.sent, o.Seq); ok {
			sg.sent = slices.Delete(sg.sent, i, i+1)
		}
		*o = wire.Once{}
	}
	return s.over.remove(p)
}
