package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Propose has a command agreed on by way of any node, and waits until the outcome is in the map here. It goes on trying until ctx ends: a command that
// was applied before is answered with its first outcome. A refusal is no error: the Result's Code says so.
func (w *Watcher) Propose(ctx context.Context, cmd *state.Command) (state.Result, error) {
	if cmd.ID == "" {
		cmd.ID = randomID()
	}
	if cmd.Time.IsZero() {
		cmd.Time = time.Now()
	}
	meta, err := state.EncodeCommand(cmd)
	if err != nil {
		return state.Result{}, err
	}
	for {
		res, err := w.proposeOnce(ctx, meta)
		if err == nil {
			_, err := WaitFor(ctx, w, func(m *state.Map) bool { return m.Index >= res.Index })
			return res, err
		}
		select {
		case <-ctx.Done():
			return state.Result{}, fmt.Errorf("propose to the cluster: %w (%w)", err, context.Cause(ctx))
		case <-w.ended:
			return state.Result{}, ErrClosed
		case <-time.After(watchPause):
		}
	}
}

func (w *Watcher) proposeOnce(ctx context.Context, meta []byte) (res state.Result, err error) {
	b, err := w.ask(ctx, wire.KindPropose, meta)
	if err != nil {
		return res, err
	}
	if err := json.Unmarshal(b, &res); err != nil {
		return res, fmt.Errorf("answer to a proposal: %w", err)
	}
	return res, nil
}

// ask asks one node after the other until one answers well.
func (w *Watcher) ask(ctx context.Context, kind wire.Kind, meta []byte) ([]byte, error) {
	last := errors.New("no node to ask")
	for _, addr := range w.nodes() {
		if ctx.Err() != nil || w.done() {
			break
		}
		b, err := w.askAt(ctx, addr, kind, meta)
		if err == nil {
			return b, nil
		}
		last = fmt.Errorf("%s by way of %s: %w", kind, addr, err)
	}
	return nil, last
}

func (w *Watcher) askAt(ctx context.Context, addr string, kind wire.Kind, meta []byte) ([]byte, error) {
	c, err := w.callerTo(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	h, b, _, err := c.Do(ctx, wire.Header{Kind: kind}, meta, nil)
	if err != nil {
		w.dropCaller(c)
		return nil, err
	}
	if h.Status != wire.StatusOK {
		return nil, fmt.Errorf("%s: %s", h.Status, b)
	}
	return b, nil
}

// callerTo is a connection for asking addr: the one there is, or a new one in its place.
func (w *Watcher) callerTo(addr string) (*wire.Caller, error) {
	w.mu.Lock()
	if w.caller != nil && w.callee == addr && w.caller.Err() == nil {
		defer w.mu.Unlock()
		return w.caller, nil
	}
	w.mu.Unlock()
	c, err := wire.DialCaller(w.cfg.Net, addr, watchDialTimeout)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.caller != nil {
		w.caller.Close()
	}
	w.caller, w.callee = c, addr
	return c, nil
}

func (w *Watcher) dropCaller(c *wire.Caller) {
	w.mu.Lock()
	if w.caller == c {
		w.caller = nil
	}
	w.mu.Unlock()
	c.Close()
}

// keep tells the cluster again and again that this client lives, so that its sessions do too.
func (w *Watcher) keep() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.wg.Go(func() {
		select {
		case <-w.ended:
			cancel()
		case <-ctx.Done():
		}
	})
	for !w.pause(keepInterval) {
		if _, err := w.ask(ctx, wire.KindKeep, []byte(w.cfg.ID)); err != nil {
			w.log.Debug("keep sessions alive", "error", err)
		}
	}
}
