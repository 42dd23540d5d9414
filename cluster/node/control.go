package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/consensus"
	"github.com/sheepdog-go/sheepdog/cluster/lead"
	"github.com/sheepdog-go/sheepdog/cluster/replica"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	// How long a node tries on behalf of somebody who asked it.
	controlTimeout = 5 * time.Second
	// controlKinds is where the control plane's kinds begin; below are the engine's.
	controlKinds wire.Kind = 60
)

// accept takes frame connections.
func (n *Node) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c := wire.NewConn(nc, handler{n})
		n.connsMu.Lock()
		n.conns[c] = struct{}{}
		n.connsMu.Unlock()
		c.Start()
		if n.ctx.Err() != nil {
			c.Close(errStopping)
		}
	}
}

var errStopping = errors.New("this node is stopping")

func (n *Node) closeConns() {
	n.connsMu.Lock()
	for c := range n.conns {
		c.Close(errStopping)
	}
	n.connsMu.Unlock()
	// Their last frames are handled before anything they need is closed.
	for end := time.Now().Add(closeTimeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n.connsMu.Lock()
		left := len(n.conns)
		n.connsMu.Unlock()
		if left == 0 {
			return
		}
	}
}

// closeTimeout bounds the wait for connections to end.
const closeTimeout = 2 * time.Second

// handler takes what arrives on connections that others opened to this node.
type handler struct{ n *Node }

// Closed forgets a connection.
func (h handler) Closed(c *wire.Conn, err error) {
	h.n.connsMu.Lock()
	delete(h.n.conns, c)
	h.n.connsMu.Unlock()
	h.n.engine.Closed(c, err)
}

// Frame hands data to the engine and answers the rest.
//
//	kind     from                       needs the leader   answered
//	propose  anybody                    yes                by a goroutine
//	renew    a node                     this node leads    at once
//	watch    anybody                    no                 KindMap, KindCommand, by a goroutine
//	exited   a guardian, a node         yes                by a goroutine
//	closed   a primary                  this node leads    at once, and not to be relied on: it is repeated
//	keep     a client program           yes                by a goroutine
//	join     a node                     yes                by a goroutine
//	who      anybody                    no                 at once
func (h handler) Frame(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	n := h.n
	if f.Kind&^wire.KindAnswer < controlKinds {
		n.engine.Frame(c, f, b)
		return
	}
	switch f.Kind {
	case wire.KindRenew:
		n.answerRenew(c, f, b)
	case wire.KindWho:
		w := n.who()
		reply(c, f.Header, wire.StatusOK, w.Append(nil), b)
	case wire.KindClosed:
		n.takeClosed(f.Meta)
		reply(c, f.Header, wire.StatusOK, nil, b)
	case wire.KindWatch:
		n.startWatch(c, f, b)
	case wire.KindPropose:
		n.later(c, f, b, n.answerPropose)
	case wire.KindExited:
		n.later(c, f, b, n.answerExited)
	case wire.KindKeep:
		n.later(c, f, b, n.answerKeep)
	case wire.KindJoin:
		n.later(c, f, b, n.answerJoin)
	default:
		if f.Kind&wire.KindAnswer == 0 {
			reply(c, f.Header, wire.StatusInvalid, fmt.Appendf(nil, "no request of %s", f.Kind), b)
		}
	}
}

// reply queues an answer.
func reply(c *wire.Conn, h wire.Header, s wire.Status, meta []byte, b *wire.Batch) {
	ans := wire.Header{Kind: h.Kind | wire.KindAnswer, Status: s, ID: h.ID, Group: h.Group, Term: h.Term}
	c.Send(&ans, meta, nil, nil)
	if b != nil {
		b.Flush(c)
	} else {
		c.Flush()
	}
}

// later answers from a goroutine. There are so many at most; whoever comes beyond is told to try again.
func (n *Node) later(c *wire.Conn, f *wire.Frame, b *wire.Batch, answer func(context.Context, wire.Header, []byte) (wire.Status, []byte)) {
	select {
	case n.controls <- struct{}{}:
	default:
		reply(c, f.Header, wire.StatusBusy, nil, b)
		return
	}
	h, meta := f.Header, append([]byte(nil), f.Meta...)
	started := n.spawn(func() {
		defer func() { <-n.controls }()
		ctx, cancel := context.WithTimeout(n.ctx, controlTimeout)
		defer cancel()
		s, m := answer(ctx, h, meta)
		reply(c, h, s, m, nil)
	})
	if !started {
		<-n.controls
	}
}

func (n *Node) who() wire.Who {
	self, m := n.Self(), n.Map()
	return wire.Who{UUID: n.UUID(), Addr: n.addr, Cluster: n.clusterID(), Leader: n.LeaderAddr(), Node: uint32(self.Node), Inc: self.Inc,
		Index: m.Index, Lead: n.IsLeader()}
}

func (n *Node) answerRenew(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var r wire.Renew
	if err := r.Parse(f.Meta); err != nil {
		reply(c, f.Header, wire.StatusInvalid, []byte(err.Error()), b)
		return
	}
	g, s := n.leader.Keeper().Renew(&r)
	reply(c, f.Header, s, g.Append(nil), b)
}

// answerPropose decides, if this node leads, or passes the command on.
func (n *Node) answerPropose(ctx context.Context, h wire.Header, meta []byte) (wire.Status, []byte) {
	cmd, err := state.DecodeCommand(meta)
	if err != nil {
		return wire.StatusInvalid, []byte(err.Error())
	}
	var res state.Result
	if h.Flags&wire.FlagPassedOn != 0 {
		res, err = n.cons.ProposeHere(ctx, cmd)
	} else {
		res, err = n.cons.Propose(ctx, cmd)
	}
	if err != nil {
		return wire.StatusNotPrimary, []byte(err.Error())
	}
	b, err := json.Marshal(&res)
	if err != nil {
		return wire.StatusFailed, []byte(err.Error())
	}
	return wire.StatusOK, b
}

// passOn passes a request on. A node that was asked by way of another passes nothing on.
func (n *Node) passOn(ctx context.Context, h wire.Header, meta []byte) (wire.Status, []byte) {
	if h.Flags&wire.FlagPassedOn != 0 {
		return wire.StatusNotPrimary, []byte(consensus.ErrNoLeader.Error())
	}
	uuid, _ := n.cons.Leader()
	addr := n.cons.Addr(uuid)
	if addr == "" || uuid == n.UUID() {
		return wire.StatusBehind, []byte(consensus.ErrNoLeader.Error())
	}
	ans, m, err := n.peers.Do(ctx, addr, wire.Header{Kind: h.Kind, Flags: h.Flags | wire.FlagPassedOn}, meta)
	if err != nil {
		return wire.StatusBehind, []byte(err.Error())
	}
	return ans.Status, m
}

func (n *Node) answerKeep(ctx context.Context, h wire.Header, meta []byte) (wire.Status, []byte) {
	if n.cons.Leading() == 0 {
		return n.passOn(ctx, h, meta)
	}
	n.leader.Keep(string(meta))
	return wire.StatusOK, nil
}

// answerJoin takes an invitation, or has the leader admit the one who asks.
func (n *Node) answerJoin(ctx context.Context, h wire.Header, meta []byte) (wire.Status, []byte) {
	var w wire.Who
	if err := w.Parse(meta); err != nil || w.UUID == "" || w.Addr == "" {
		return wire.StatusInvalid, []byte("a join says neither who nor where")
	}
	if h.Flags&wire.FlagInvite != 0 {
		if err := n.adopt(w.Cluster); err != nil {
			return wire.StatusInvalid, []byte(err.Error())
		}
		return wire.StatusOK, nil
	}
	own := n.clusterID()
	switch {
	case own == "":
		return wire.StatusGone, []byte("this node belongs to no cluster yet")
	case w.Cluster != own:
		return wire.StatusInvalid, fmt.Appendf(nil, "this is cluster %s, the node belongs to %q", own, w.Cluster)
	case n.cons.Leading() == 0:
		return n.passOn(ctx, h, meta)
	}
	if err := n.leader.Admit(ctx, n.cons, &w); err != nil {
		if errors.Is(err, lead.ErrRefused) {
			return wire.StatusInvalid, []byte(err.Error())
		}
		return wire.StatusBehind, []byte(err.Error())
	}
	return wire.StatusOK, nil
}

// answerExited has the leader end an incarnation that is surely gone (R8). If it was the leader that is gone, the voters elect another at once.
func (n *Node) answerExited(ctx context.Context, h wire.Header, meta []byte) (wire.Status, []byte) {
	var e wire.Exited
	if err := e.Parse(meta); err != nil {
		return wire.StatusInvalid, []byte(err.Error())
	}
	member := state.Member{Node: state.NodeID(e.Node), Inc: e.Inc}
	if err := n.sayExited(ctx, member, h.Flags&wire.FlagPassedOn != 0); err != nil {
		return wire.StatusBehind, []byte(err.Error())
	}
	return wire.StatusOK, nil
}

// takeClosed hands a primary's report to the leader's work; a node that does not lead drops it: it is repeated.
func (n *Node) takeClosed(meta []byte) {
	var r wire.ClosedReport
	if r.Parse(meta) == nil && n.cons.Leading() != 0 {
		n.leader.Closed(&r)
	}
}

// reportClosed sends the engine's report to whoever leads (R22). It may be lost: the engine repeats it.
func (n *Node) reportClosed(r replica.ClosedReport) {
	w := wire.ClosedReport{Vid: r.Vid, Closing: r.Closing}
	for _, g := range r.Groups {
		w.Groups = append(w.Groups, wire.ClosedGroup{Group: uint32(g.Group), Term: g.Term})
	}
	if n.cons.Leading() != 0 {
		n.leader.Closed(&w)
		return
	}
	uuid, _ := n.cons.Leader()
	addr := n.cons.Addr(uuid)
	if addr == "" || uuid == n.UUID() {
		return
	}
	select {
	case n.controls <- struct{}{}:
	default:
		return
	}
	if !n.spawn(func() {
		defer func() { <-n.controls }()
		ctx, cancel := context.WithTimeout(n.ctx, joinTimeout)
		defer cancel()
		n.peers.Do(ctx, addr, wire.Header{Kind: wire.KindClosed}, w.Append(nil))
	}) {
		<-n.controls
	}
}
