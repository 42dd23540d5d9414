package node

import (
	"encoding/binary"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// startWatch begins to send the map and what changes it. Meta is the index of the map that the client has already; nothing, or 0, for none.
func (n *Node) startWatch(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var from uint64
	if len(f.Meta) == 8 {
		from = binary.LittleEndian.Uint64(f.Meta)
	}
	select {
	case n.watchers <- struct{}{}:
	default:
		reply(c, f.Header, wire.StatusBusy, nil, b)
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
		case <-c.Ended():
			return
		case <-n.ctx.Done():
			c.Close(errStopping)
			return
		}
	}
}
