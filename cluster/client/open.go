package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// OpenOptions say how a VDI is opened.
type OpenOptions struct {
	ReadOnly bool   // no session is taken: the VDI may be open elsewhere. Snapshots are always opened so
	Identity uint64 // open no other that has the name by now (state.VDI); 0: whatever has it
}

// Disk is an opened VDI or snapshot. Requests to it may come from many goroutines.
type Disk struct {
	s        *session
	readOnly bool
	once     sync.Once
}

// opening is a writer's session, or one being opened: those who come meanwhile wait for it.
type opening struct {
	ready chan struct{}
	s     *session
	err   error
}

const (
	closeTimeout = 10 * time.Second // of the flush at the last Close
	endTimeout   = 5 * time.Second  // of telling raft that a session ended
)

// Open opens the working VDI of a name for writing, or with snap (a tag or a number) its snapshot for reading. All who open the same VDI for
// writing through one Client share one session (R14). Errors wrap fs.ErrNotExist, or syscall.EBUSY if another client has it.
func (c *Client) Open(ctx context.Context, name, snap string, o OpenOptions) (*Disk, error) {
	if c.closed.Load() {
		return nil, fmt.Errorf("open %s: %w", name, ErrClosed)
	}
	v, m, err := c.Lookup(ctx, name, snap)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", exportName(name, snap), err)
	}
	if err := o.meant(v.Identity(), name, snap); err != nil {
		return nil, err
	}
	if snap != "" || o.ReadOnly || v.State == state.Frozen {
		s := c.newSession(m, v, nil, exportName(name, snap), snap != "")
		return &Disk{s: s, readOnly: true}, nil
	}
	for {
		s, err := c.writer(ctx, name)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		live := !s.ending && s.deadErr() == nil
		if live {
			s.refs++
		}
		s.mu.Unlock()
		if live {
			d := &Disk{s: s}
			if err := o.meant(s.identity, name, snap); err != nil { // deleted and made anew just now
				d.Close(ctx)
				return nil, err
			}
			return d, nil
		}
		select { // it is just being ended
		case <-s.gone:
		case <-ctx.Done():
			return nil, fmt.Errorf("open %s: %w", name, context.Cause(ctx))
		}
	}
}

// meant refuses what is not the one asked for.
func (o *OpenOptions) meant(identity uint64, name, snap string) error {
	if o.Identity == 0 || o.Identity == identity {
		return nil
	}
	return fmt.Errorf("open %s: the one that was meant is deleted, and this is another of the same name: %w", exportName(name, snap), fs.ErrNotExist)
}

func exportName(name, snap string) string {
	if snap == "" {
		return name
	}
	return name + ":" + snap
}

// writer is the session of a name: one there is, or a new one.
func (c *Client) writer(ctx context.Context, name string) (*session, error) {
	o, mine := c.opening(name)
	for !mine {
		select {
		case <-o.ready:
		case <-ctx.Done():
			return nil, fmt.Errorf("open %s: %w", name, context.Cause(ctx))
		}
		if !errors.Is(o.err, context.Canceled) && !errors.Is(o.err, context.DeadlineExceeded) {
			return o.s, o.err
		}
		o, mine = c.opening(name) // his time was over, not ours
	}
	open := c.opens(name)
	s, unheard, err := c.openSession(ctx, name, open)
	c.mu.Lock()
	o.s, o.err = s, err
	if err != nil {
		delete(c.writers, name)
	}
	if unheard {
		c.resolve(name, open)
	}
	c.mu.Unlock()
	close(o.ready)
	return s, err
}

// resolve takes back a command to open a session for which nobody waits any more, whose outcome was not heard: what it was granted would keep the VDI from all others for as long
// as this process lives. Who opens the VDI here meanwhile waits, since raft would give him that session. mu is held.
func (c *Client) resolve(name string, open *state.Command) {
	if c.writers[name] != nil {
		return // who opens it is given that session
	}
	o := &opening{ready: make(chan struct{}), err: context.Canceled} // it is nobody's outcome
	started := c.spawn(func() {
		ctx, cancel := c.context()
		defer cancel()
		var m *state.Map
		c.insist(ctx, func() error {
			res, err := c.cfg.Propose(ctx, c.command(func(cmd *state.Command) { cmd.CloseSess = &state.CloseSess{Open: open.ID} }))
			if err == nil {
				m, err = c.WaitMap(ctx, res.Index)
			}
			return err
		})
		c.mu.Lock()
		if l := c.losses[name]; l != nil && m != nil { // it was granted, and is nobody else's
			if v := m.Working(name); v != nil && v.SessGen == l.gen+1 && v.SessFor == c.cfg.ID {
				l.gen++
			}
		}
		delete(c.writers, name)
		c.mu.Unlock()
		close(o.ready)
	})
	if started {
		c.writers[name] = o
	}
}

// insist tries until it succeeds, or the Client is closed.
func (c *Client) insist(ctx context.Context, try func() error) (ok bool) {
	for try() != nil {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(lingerInterval):
		}
	}
	return true
}

// context ends with the Client.
func (c *Client) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c.wg.Go(func() {
		select {
		case <-c.ended:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(nil) }
}

// opening is a name's, and says whether it was made here: then it is the caller's to bring to its end.
func (c *Client) opening(name string) (o *opening, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o = c.writers[name]; o != nil {
		return o, false
	}
	o = &opening{ready: make(chan struct{})}
	c.writers[name] = o
	return o, true
}

// openSession has raft grant a session (R14). unheard: there may be one that was granted all the same.
func (c *Client) openSession(ctx context.Context, name string, open *state.Command) (s *session, unheard bool, err error) {
	ses, m, err := c.grant(ctx, open)
	if err != nil {
		var refused *state.Error
		return nil, ses == nil && !errors.As(err, &refused), fmt.Errorf("open %s: %w", name, err)
	}
	v := m.VDI(ses.Vid)
	if v == nil {
		return nil, false, fmt.Errorf("open %s: vid %06x is gone again: %w", name, ses.Vid, syscall.EIO)
	}
	return c.newSession(m, v, ses, name, false), false, nil
}

// opens is the command that opens a session.
func (c *Client) opens(name string) *state.Command {
	return c.command(func(cmd *state.Command) {
		cmd.OpenSess = &state.OpenSess{Name: name, Client: c.cfg.ID, Holder: c.holder(), Owner: c.cfg.Owner}
	})
}

// grant proposes a session and waits until the map here holds it. Proposing a command again tells its first outcome: with an error, the session is one
// that was granted and has ended since, or nil.
func (c *Client) grant(ctx context.Context, open *state.Command) (*state.Session, *state.Map, error) {
	res, err := c.cfg.Propose(ctx, open)
	if err != nil {
		return nil, nil, err
	}
	if err := res.Err(); err != nil {
		return nil, nil, err
	}
	if res.Sess == nil {
		return nil, nil, errors.New("the cluster granted no session")
	}
	m, err := c.WaitMap(ctx, res.Index)
	if err != nil {
		return nil, nil, err
	}
	if now := m.Session(res.Sess.ID); now != nil {
		return now, m, nil
	}
	return res.Sess, m, fmt.Errorf("the session ended at once: %w", syscall.EBUSY)
}

// holder is whose lease a session lives under: our node's, or nobody's for a program.
func (c *Client) holder() state.Member {
	if c.cfg.LocalNode == state.NoNode {
		return state.Member{Node: state.NoNode}
	}
	return c.Map().Current(c.cfg.LocalNode)
}

// command makes a command with an identity of its own, so that proposing it again does no harm.
func (c *Client) command(fill func(*state.Command)) *state.Command {
	cmd := &state.Command{ID: randomID(), Time: time.Now()}
	fill(cmd)
	return cmd
}

// newSession begins a session that raft granted, or a reader's view.
func (c *Client) newSession(m *state.Map, v *state.VDI, ses *state.Session, name string, snap bool) *session {
	pool := m.Pool(v.Pool)
	s := &session{c: c, name: name, snap: snap, root: v.Root, pool: pool, identity: v.Identity(), gone: make(chan struct{})}
	s.groups = make([]atomicGroup, pool.PGs)
	id := &ident{vid: v.Vid, gen: v.Gen, size: v.Size, index: m.Index}
	if ses != nil {
		s.writer = true
		id.sess, id.sessGen = ses.ID, ses.Gen
		s.shared = v.Shared
		s.inherit = true // also with the first generation: raft gives a client that asks again the session it has
	} else {
		s.refs = 1
	}
	s.ident.Store(id)
	if s.shared {
		s.cover() // from now on it counts when one of them resumes
	}
	c.mu.Lock()
	c.sessions[s] = struct{}{}
	if s.writer {
		s.take(c.losses[name])
		delete(c.losses, name)
	}
	c.mu.Unlock()
	c.Stats.Sessions.Add(1)
	c.lookAgain() // it may have used a newer map before it knew of this session
	return s
}

// WaitMap waits for a map of at least this index.
func (c *Client) WaitMap(ctx context.Context, index uint64) (*state.Map, error) {
	return WaitFor(ctx, c.cfg.Maps, func(m *state.Map) bool { return m.Index >= index })
}

// WaitFor waits for a map that ok likes.
func WaitFor(ctx context.Context, maps Maps, ok func(*state.Map) bool) (*state.Map, error) {
	if m := maps.Map(); ok(m) {
		return m, nil
	}
	changed, cancel := maps.Subscribe()
	defer cancel()
	for {
		if m := maps.Map(); ok(m) {
			return m, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the agreed map: %w", context.Cause(ctx))
		}
	}
}

// Size is the VDI's size in bytes as the newest map has it.
func (d *Disk) Size() uint64 { return d.s.ident.Load().size }

// ReadOnly says that changes are refused.
func (d *Disk) ReadOnly() bool { return d.readOnly }

// Vid is the working vid now, or the snapshot's.
func (d *Disk) Vid() uint32 { return d.s.ident.Load().vid }

// Name is what was opened: NAME or NAME:SNAPSHOT.
func (d *Disk) Name() string { return d.s.name }

// Identity tells the disk, or the snapshot, from others that had its name or will have it (state.VDI).
func (d *Disk) Identity() uint64 { return d.s.identity }

// Close gives the Disk back. All its Ops must be done. The last one of a session flushes and ends it; an error says that acknowledged
// writes may not be durable. The session lives on until they are then, and the next Open finds it.
func (d *Disk) Close(ctx context.Context) (err error) {
	d.once.Do(func() {
		s := d.s
		s.mu.Lock()
		s.refs--
		last := s.refs == 0
		s.closes++
		mine := s.closes
		s.mu.Unlock()
		if last {
			err = s.close(ctx, mine)
		}
	})
	return err
}

// close flushes and ends a session that nobody uses any more. If the flush fails or takes too long it goes on behind: what is retained would
// be lost with the session (R17), and the next one's flush could not know.
func (s *session) close(ctx context.Context, mine uint64) error {
	if !s.writer {
		s.c.forget(s)
		return nil
	}
	if s.deadErr() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	err := s.flushWait(ctx)
	if err == nil {
		return s.end(mine)
	}
	s.mu.Lock()
	first := s.deadErr() == nil && !s.lingers
	s.lingers = s.lingers || first
	s.mu.Unlock()
	if first {
		s.c.log.Warn("the last flush of a VDI goes on after its closing", "vdi", s.name, "error", err)
		s.c.mu.Lock()
		s.c.spawn(s.linger)
		s.c.mu.Unlock()
	}
	return fmt.Errorf("close %s: flush: %w", s.name, err)
}

// lingerInterval is between tries to flush a session that nobody uses any more.
const lingerInterval = time.Second

// linger flushes until that succeeds and the session can end, it is opened again, or it is dead.
func (s *session) linger() {
	for {
		select {
		case <-s.gone:
			return
		case <-time.After(lingerInterval):
		}
		s.mu.Lock()
		mine := s.closes
		unused := s.refs == 0
		s.lingers = unused
		s.mu.Unlock()
		if !unused {
			return
		}
		if s.flushWait(context.Background()) != nil {
			continue
		}
		if err := s.end(mine); err != nil {
			s.c.log.Warn("close a VDI", "error", err)
		}
	}
}

// end ends a session with everything flushed, unless it was opened again since the Close that began this.
func (s *session) end(mine uint64) error {
	s.mu.Lock()
	if s.refs > 0 || s.closes != mine || s.ending {
		s.mu.Unlock()
		return nil
	}
	s.ending = true
	untold := s.untold()
	s.mu.Unlock()
	if untold != nil {
		s.c.mu.Lock()
		s.c.losses[s.name] = untold
		s.c.mu.Unlock()
	}
	if err := s.leave(context.Background()); err != nil { // whoever closes may have used up his context with waiting for the flush
		s.c.log.Warn("the ending of a session goes on after the closing of its VDI", "vdi", s.name, "error", err)
		s.c.behind(func(ctx context.Context) error { return s.leave(ctx) })
		return fmt.Errorf("close %s: end the session: %w", s.name, err)
	}
	if untold != nil && untold.flush != nil {
		return fmt.Errorf("close: %w", untold.flush)
	}
	return nil
}

// leave has raft end a session that is ending. Until that has an outcome it keeps the VDI from all others, and whoever opens it here waits.
func (s *session) leave(ctx context.Context) error {
	id := s.ident.Load().sess
	if err := s.c.closeSess(ctx, id); err != nil {
		return err
	}
	var b wire.Batch
	s.kill(fmt.Errorf("%s: %w", s.name, ErrClosed), &b)
	b.End()
	if now := s.ident.Load().sess; now != id { // it had lapsed, and was granted again just then
		s.c.giveBack(ctx, now)
	}
	return nil
}

// closeSess ends a session with raft.
func (c *Client) closeSess(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	_, err := c.cfg.Propose(ctx, c.command(func(cmd *state.Command) { cmd.CloseSess = &state.CloseSess{ID: id} }))
	return err
}

// giveBack ends a session that was granted to somebody who is not there any more, however long that takes.
func (c *Client) giveBack(ctx context.Context, id uint64) {
	if c.closeSess(ctx, id) == nil {
		return
	}
	c.behind(func(ctx context.Context) error { return c.closeSess(ctx, id) })
}

// behind tries in the background until it succeeds, or the Client is closed.
func (c *Client) behind(try func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spawn(func() {
		ctx, cancel := c.context()
		defer cancel()
		c.insist(ctx, func() error { return try(ctx) })
	})
}

// flushWait flushes unless nothing needs it.
func (s *session) flushWait(ctx context.Context) error {
	s.mu.Lock()
	clean := len(s.dirty) == 0 && s.round == nil
	s.mu.Unlock()
	if clean {
		return nil
	}
	done := make(chan error, 1)
	op := &Op{Kind: wire.KindFlush, s: s, quiet: true, Done: func(op *Op, _ *wire.Batch) { done <- op.Err }}
	var b wire.Batch
	s.flush(op, &b)
	b.End()
	select {
	case err := <-done:
		return err
	case <-s.gone:
		return s.deadErr()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
