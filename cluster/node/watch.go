package node

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// unheardMost is for how long a node without a lease goes on telling its map, which may be old by then: longer than an election takes. Its watchers
// find another node, if one is better off.
const unheardMost = 2 * time.Second

// unheard is an error when this node has had no lease for too long to know the newest map. (Before the cluster is formatted nobody has one.)
func (n *Node) unheard() error {
	d := n.cfg.Clock() - time.Duration(n.heard.Load())
	if d <= unheardMost || !n.Map().Formatted() && !n.dir.get().Formatted {
		return nil
	}
	return fmt.Errorf("node %s has had no lease for %s: its map may be old", n.addr, d.Round(time.Second))
}

// startWatch begins to send the map and what changes it. Meta is the index of the map that the client has already, u64, and of which cluster that is; nothing, or 0, for none.
func (n *Node) startWatch(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var from uint64
	if len(f.Meta) >= 8 {
		from = binary.LittleEndian.Uint64(f.Meta)
		if theirs, ours := string(f.Meta[8:]), n.Map().Cluster; theirs != "" && theirs != ours {
			reply(c, f.Header, wire.StatusInvalid, fmt.Appendf(nil, "node %s belongs to cluster %q, not to %q", n.addr, ours, theirs), b)
			return
		}
	}
	if err := n.unheard(); err != nil {
		reply(c, f.Header, wire.StatusBusy, []byte(err.Error()), b)
		return
	}
	select {
	case n.watchers <- struct{}{}:
	default:
		reply(c, f.Header, wire.StatusBusy, fmt.Appendf(nil, "%d follow the map by way of this node already", watchersMax), b)
		return
	}
	if !n.spawn(func() {
		defer func() { <-n.watchers }()
		n.watch(c, from)
	}) {
		<-n.watchers
	}
}

// watch sends commands as long as the history has them, or else the whole map: nothing is queued for a watcher but what is written to its
// connection, and a connection that does not take it is ended (package wire).
func (n *Node) watch(c *wire.Conn, at uint64) {
	sub := n.cons.Subscribe()
	defer sub.Cancel()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	first := at == 0
	for {
		list, ok := n.cons.Since(at)
		if first || !ok {
			m := n.cons.Map()
			b, err := state.EncodeMap(m)
			if err != nil {
				c.Close(err)
				return
			}
			c.Send(&wire.Header{Kind: wire.KindMap}, b, nil, nil)
			at, first = m.Index, false
		} else {
			for _, cmd := range list {
				c.Send(&wire.Header{Kind: wire.KindCommand}, wire.AppendCommand(nil, cmd.Index, cmd.Encoded), nil, nil)
				at = cmd.Index
			}
		}
		c.Flush()
		select {
		case <-sub.C:
		case <-look.C:
			if err := n.unheard(); err != nil {
				c.Close(err)
				return
			}
		case <-c.Ended():
			return
		case <-n.ctx.Done():
			c.Close(errStopping)
			return
		}
	}
}
