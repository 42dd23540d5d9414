package replica

import (
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Space is promised before a number is given (STORE.md rule 19): with every acknowledgement a replica says how much the disk that the group is on can still take, and
// a primary numbers no write beyond the least of what its replicas said.

// askRoomPause is how often at most a replica that had no room is asked again: it acknowledges nothing while nothing is numbered, so it is not heard of by itself.
const askRoomPause = 100 * time.Millisecond

// credit is what we promise for this group. mu is held.
func (g *group) credit() wire.Credit {
	sp := g.store.Space()
	if sp.Full { // also where bytes are left, and inodes are not
		sp.Free = 0
	}
	return wire.Credit{Bytes: uint64(sp.Free), Disk: g.e.diskNumber(g.store)}
}

// diskNumber numbers our disks, for as long as this process lives.
func (e *Engine) diskNumber(s any) uint32 {
	if n, ok := e.disks.Load(s); ok {
		return n.(uint32)
	}
	n, _ := e.disks.LoadOrStore(s, e.diskCount.Add(1))
	return n.(uint32)
}

// takeCredit notes a promise; what it returns is the newest one for that disk, whoever hears of it.
func (p *peer) takeCredit(c wire.Credit) *atomic.Uint64 {
	p.mu.Lock()
	room := p.credits[c.Disk]
	if room == nil {
		room = new(atomic.Uint64)
		p.credits[c.Disk] = room
	}
	p.mu.Unlock()
	room.Store(c.Bytes)
	return room
}

// askRoom asks a replica where it stands, for the sake of its credit. mu is held.
func (g *group) askRoom(m *member) {
	now := time.Now()
	if now.Sub(m.asked) < askRoomPause {
		return
	}
	m.asked = now
	term := g.term
	g.e.wg.Go(func() {
		var b wire.Batch
		h := wire.Header{Kind: wire.KindSyncStart, Group: uint32(g.id), Term: term, From: g.e.self().Inc, To: m.Inc}
		m.p.call(&h, nil, nil, nil, callLimit, func(a *wire.Frame, _ *wire.Batch) {
			var pos wire.Position
			if a != nil && a.Status == wire.StatusOK && pos.Parse(a.Meta) == nil {
				m.p.takeCredit(pos.Credit)
			}
		}, &b)
		b.End()
	})
}
