package consensus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	// One attempt: longer than any commit takes while the cluster works.
	attemptTimeout = 3 * time.Second
	// Between attempts that were refused for now.
	retryPause = 20 * time.Millisecond
	// What may wait to get into raft's queue.
	enqueueTimeout = time.Second
)

// errNotLeading says that this node does not lead (any more), or has not begun to.
var errNotLeading = errors.New("this node does not lead the cluster")

// ErrNoLeader is why a proposal found nobody to decide it.
var ErrNoLeader = errors.New("the cluster has no leader at present: a majority of its voters must be reachable")

// ErrNotNow refuses a command for now, in Config.Prepare: the proposer tries again.
var ErrNotNow = errors.New("not now")

// NewID makes an identity for a command.
func NewID() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Propose has the cluster decide on cmd and waits until the outcome is applied here. Any node may propose. It goes on trying until ctx ends; the
// outcome is then unknown, and asking again with the same cmd.ID is harmless. A refusal is no error here: Result.Code says so.
func (c *Consensus) Propose(ctx context.Context, cmd *state.Command) (state.Result, error) {
	if cmd.ID == "" {
		cmd.ID = NewID()
	}
	if cmd.Time.IsZero() {
		cmd.Time = time.Now()
	}
	var last error
	for {
		res, err := c.attempt(ctx, cmd)
		if err == nil && res.Code != state.OK {
			return res, nil // nothing changed that one would have to see
		}
		if err == nil {
			return res, c.WaitApplied(ctx, res.Index)
		}
		last = err
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return state.Result{}, fmt.Errorf("propose %s: %w (%w)", orderName(cmd), last, context.Cause(ctx))
		case <-c.closing:
			return state.Result{}, fmt.Errorf("propose %s: this node is stopping (%w)", orderName(cmd), last)
		}
	}
}

// attempt asks once, whoever leads.
func (c *Consensus) attempt(ctx context.Context, cmd *state.Command) (state.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	uuid, changed := c.Leader()
	if uuid == c.cfg.UUID {
		return c.ProposeHere(ctx, cmd)
	}
	addr := c.Addr(uuid)
	if uuid == "" || addr == "" {
		select {
		case <-changed:
			return state.Result{}, ErrNoLeader
		case <-ctx.Done():
			return state.Result{}, ErrNoLeader
		}
	}
	go func() { // a leader that is replaced will not answer
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return c.proposeAt(ctx, addr, cmd)
}

// proposeAt asks the node at addr, which ought to lead.
func (c *Consensus) proposeAt(ctx context.Context, addr string, cmd *state.Command) (res state.Result, err error) {
	b, err := state.EncodeCommand(cmd)
	if err != nil {
		return res, err
	}
	ans, meta, err := c.cfg.Peers.Do(ctx, addr, wire.Header{Kind: wire.KindPropose, Flags: wire.FlagPassedOn}, b)
	if err != nil {
		return res, err
	}
	if ans.Status != wire.StatusOK {
		return res, fmt.Errorf("leader at %s: %s: %s", addr, ans.Status, meta)
	}
	if err := json.Unmarshal(meta, &res); err != nil {
		return res, fmt.Errorf("answer of the leader at %s: %w", addr, err)
	}
	return res, nil
}

// ProposeHere has this node put cmd into the log, which it can only while it leads.
func (c *Consensus) ProposeHere(ctx context.Context, cmd *state.Command) (state.Result, error) {
	f, err := c.enqueue(ctx, cmd)
	if err != nil {
		return state.Result{}, err
	}
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		return state.Result{}, context.Cause(ctx)
	}
	if err != nil {
		return state.Result{}, err
	}
	switch r := f.Response().(type) {
	case state.Result:
		return r, nil
	case error:
		return state.Result{}, r
	default:
		return state.Result{}, fmt.Errorf("raft answered %T", r)
	}
}

// enqueue prepares cmd and puts it into raft's queue.
func (c *Consensus) enqueue(ctx context.Context, cmd *state.Command) (raft.ApplyFuture, error) {
	if err := c.proposing.take(ctx); err != nil {
		return nil, err
	}
	defer c.proposing.pass()
	term := c.Leading()
	if term == 0 {
		return nil, errNotLeading
	}
	if err := c.cfg.Prepare(term, cmd); err != nil {
		return nil, err
	}
	b, err := encodeEntry(term, cmd)
	if err != nil {
		return nil, err
	}
	return c.raft.Apply(b, enqueueTimeout), nil
}

// WaitApplied waits until this node's map is at index or beyond.
func (c *Consensus) WaitApplied(ctx context.Context, index uint64) error {
	if c.Map().Index >= index {
		return nil
	}
	sub := c.Subscribe()
	defer sub.Cancel()
	for c.Map().Index < index {
		select {
		case <-sub.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for map index %d: %w", index, context.Cause(ctx))
		case <-c.closing:
			return fmt.Errorf("wait for map index %d: this node is stopping", index)
		}
	}
	return nil
}
