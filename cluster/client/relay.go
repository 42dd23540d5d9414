package client

import (
	"github.com/sheepdog-go/sheepdog/cluster/planted"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// R18: a primary that this client can't reach for a while may be reached by other nodes. Requests for it travel through one of them then, wrapped
// in KindRelay, on the connection that leads to that node anyway. They carry an epoch of their own, which the primary takes like a new
// connection's (R15): what came before under older ones, directly or relayed, is not numbered any more.

// unreachable says that requests should take another way. mu is held.
func (p *peer) unreachable() bool {
	return !planted.Broken("R18") && p.lostAt != 0 && p.c.now.Load()-p.lostAt >= ticks(p.c.cfg.RelayAfter)
}

// relayEpoch is what a relayed request goes under. mu is held.
func (p *peer) relayEpoch(pc *piece) uint64 {
	if p.relayed == 0 {
		p.relayed = p.c.epochs.Add(1)
		p.c.Stats.Relays.Add(1)
		p.c.log.Warn("a primary can't be reached; going through other nodes", "node", p.node, "group", pc.req.Group)
	}
	return p.relayed
}

// renewRelay gives relayed requests a new epoch after a refusal under the old one: whoever passed it on may have given up while the
// request still waits at the primary, where it must not be numbered beside its successor.
func (p *peer) renewRelay(old uint64) {
	p.mu.Lock()
	if p.relayed == old {
		p.relayed = p.c.epochs.Add(1)
	}
	p.mu.Unlock()
}

// relay sends a piece through another node whose connection is ready; false: there is none, but one is being made.
func (c *Client) relay(pc *piece, m *state.Map, b *wire.Batch) bool {
	var idle *peer
	for _, n := range m.Nodes {
		if n.ID == pc.node || !n.Up || n.ID == c.cfg.LocalNode {
			continue
		}
		p := c.peer(n.ID)
		p.mu.Lock()
		if p.state == peerReady {
			conn := p.conn
			p.putRelayed(pc)
			p.mu.Unlock()
			b.Flush(conn)
			return true
		}
		if p.state == peerIdle && idle == nil {
			idle = p
			p.wanted = c.now.Load()
			p.dial(m)
		}
		p.mu.Unlock()
	}
	return false
}

// putRelayed queues a wrapped request. mu is held.
func (p *peer) putRelayed(pc *piece) {
	r := &pc.req
	pc.sent = p.c.now.Load()
	wrap := wire.Relay{Kind: r.Kind, Client: p.c.cfg.ID, Epoch: pc.epoch, Meta: r.IO.Append(nil)}
	p.meta = wrap.Append(p.meta[:0])
	h := wire.Header{Kind: wire.KindRelay, Flags: r.Flags, ID: p.table.add(pc), Group: r.Group, Term: r.Term, To: pc.inc}
	p.conn.Send(&h, p.meta, r.Data, r.Owner)
}
