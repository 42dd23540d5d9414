package vdi

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// What changed since a snapshot is known without any bitmap: every block says whose it is.
//
//	a VDI's chain, newest first:   work ─▶ tuesday ─▶ monday ─▶ base
//	a block of                       dirty            └── clean ──┘     since monday
//
// It is offered by the name under which QEMU offers its own bitmaps, so that backup tools need not know us: qemu:dirty-bitmap:monday; for snapshots of
// another VDI in the chain, of which this one is a clone, qemu:dirty-bitmap:NAME:monday. A snapshot's export offers those of the snapshots before it:
// what lies between the two.
const dirtyBitmap = "qemu:dirty-bitmap:"

// pinsMax bounds how many snapshots of a chain are offered: the newest ones.
const pinsMax = 256

// pin is a snapshot whose dirty bitmap a connection was offered. The tag may be given to another snapshot later; what the client was told of stays this one.
type pin struct {
	context string
	vid     uint32
	gen     uint64
}

// pinned are the snapshots in a VDI's chain.
func pinned(m *state.Map, v *state.VDI) (list []pin) {
	for _, a := range m.Chain(v.Vid) {
		s := m.VDI(a.Vid)
		if s == nil || s.Vid == v.Vid || s.State != state.Frozen || s.Name == "" {
			continue
		}
		tag := cmp.Or(s.Tag, strconv.FormatUint(uint64(s.SnapID), 10))
		if s.Name != v.Name {
			tag = s.Name + ":" + tag
		}
		p := pin{dirtyBitmap + tag, s.Vid, s.Gen}
		if !slices.ContainsFunc(list, func(o pin) bool { return o.context == p.context }) {
			list = append(list, p)
		}
		if len(list) == pinsMax {
			break
		}
	}
	return list
}

// changes tells one snapshot's dirty bitmap. clean is whose blocks are as they were; nil: everything may have changed.
type changes struct{ clean []state.VidGen }

func (c changes) flags(e wire.Extent) uint64 {
	switch {
	case c.clean == nil:
		return nbd.StateDirty
	case objstore.State(e.State) == objstore.Absent: // in all of the chain, so it was then
		return 0
	case slices.ContainsFunc(c.clean, func(v state.VidGen) bool { return v.Vid == e.Vid }):
		return 0
	}
	return nbd.StateDirty
}

// changes finds out whose blocks are clean. If the snapshot is gone, or the VDI was rolled back to before it, the answer is that everything changed: a
// backup made from that is too large, and right.
func (d *Device) changes(context string) teller {
	i := slices.IndexFunc(d.pins, func(p pin) bool { return p.context == context })
	if i < 0 || d.maps == nil {
		return changes{}
	}
	p, chain := d.pins[i], d.maps().Chain(d.d.Vid())
	at := slices.Index(chain, state.VidGen{Vid: p.vid, Gen: p.gen})
	if at < 0 {
		return changes{}
	}
	return changes{chain[at:]}
}
