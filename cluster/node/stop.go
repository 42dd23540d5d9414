package node

import (
	"context"
	"errors"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// fail ends the node: it cannot go on. The caller of Start sees it by Done.
func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.err = err
		n.holder.Drop()
		close(n.done)
	})
}

// Done is closed when the node cannot go on; Err says why. It still wants to be stopped.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the node cannot go on; nil while it can.
func (n *Node) Err() error {
	select {
	case <-n.done:
		return n.err
	default:
		return nil
	}
}

// Stop ends the node cleanly: what it is primary of is handed over as far as ctx has time and the cluster goes on; then it says that it is gone, so that nobody
// has to wait for its lease to run out. It may be called more than once.
func (n *Node) Stop(ctx context.Context) error {
	n.stopOnce.Do(func() {
		n.leaving.Store(true)
		if n.Err() == nil && n.Self().Node != state.NoNode && n.holder.Valid() {
			n.leaveService(ctx)
		}
		n.stopErr = n.teardown()
	})
	return n.stopErr
}

// Crash ends the node as a kill does, for simulations: nobody is told but by its connections.
func (n *Node) Crash() {
	n.stopOnce.Do(func() {
		n.leaving.Store(true)
		n.stopErr = n.teardown()
	})
}

// leaveService hands over and says goodbye.
func (n *Node) leaveService(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if m := n.Map(); m.Formatted() && !m.ShutDown && n.othersServe(m) {
		if err := n.engine.Resign(ctx); err != nil {
			n.log.Info("not every group could be handed over before stopping", "err", err)
		}
	}
	n.cons.HandOver(handOverTimeout)
	self := n.Self()
	n.holder.Drop()
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), goodbyeTimeout)
	defer cancel()
	if err := n.sayExited(ctx, self, false); err != nil {
		n.log.Debug("say goodbye", "err", err)
	}
}

const (
	stopTimeout     = 5 * time.Second
	handOverTimeout = time.Second
	goodbyeTimeout  = 500 * time.Millisecond
)

func (n *Node) othersServe(m *state.Map) bool {
	self := n.Self()
	for _, o := range m.Nodes {
		if o.Up && o.ID != self.Node && o.VNodes > 0 {
			return true
		}
	}
	return false
}

// teardown ends whatever was started.
func (n *Node) teardown() error {
	n.cancel()
	n.spawnMu.Lock()
	n.stopping = true
	n.spawnMu.Unlock()
	if n.guard != nil {
		n.guard.Stop()
	}
	if n.holder != nil {
		n.holder.Drop()
	}
	if n.gossip != nil {
		n.gossip.Close()
	}
	if n.mux != nil {
		n.mux.Close()
	}
	n.closeConns()
	if n.engine != nil {
		n.engine.Close()
	}
	if n.cons != nil {
		n.cons.Close()
	}
	if n.peers != nil {
		n.peers.Close()
		n.renews.Close()
	}
	n.wg.Wait()
	var errs []error
	if n.stores != nil {
		errs = append(errs, n.stores.close())
		n.stores.unlock()
	}
	if n.dir != nil {
		n.dir.close()
	}
	return errors.Join(errs...)
}
