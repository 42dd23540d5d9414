package vdi

import (
	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/objstore"
)

const (
	// statusStep is how much of the disk is looked at in one go; statusMax, after how much an answer is good enough: the client asks again
	// for the rest.
	statusStep = 16 * client.ObjectSize
	statusMax  = 4 << 30
	// A step of many is for disks of which much is alike. One extent alone of a disk that is written everywhere ends in its first object.
	statusFirst = client.ObjectSize
)

// teller says what an extent means in one metadata context.
type teller interface{ flags(wire.Extent) uint64 }

// status tells a client which blocks hold bytes (base:allocation), and which have changed since a snapshot (dirty.go).
func (d *Device) status(q *request) {
	for i := range q.r.Contexts() {
		q.tell = append(q.tell, d.teller(q.r.Context(i)))
	}
	q.at = q.r.Offset
	q.disk = d.d
	q.op.Kind, q.op.Done = wire.KindExtents, told
	q.ask(&d.b)
}

// ask asks for the next stretch. It begins with a whole block.
func (q *request) ask(b *wire.Batch) {
	step := uint64(statusStep)
	if q.r.ReqOne && q.at == q.r.Offset {
		step = statusFirst
	}
	end := min(q.r.Offset+q.r.Length, q.at-q.at%step+step)
	q.op.Off = q.at - q.at%client.BlockSize
	q.op.Len = end - q.op.Off
	q.disk.Submit(&q.op, b)
}

// told takes one stretch's extents.
func told(op *client.Op, b *wire.Batch) {
	q := op.User.(*request)
	r := q.r
	more := op.Err == nil && q.add(op)
	if more && q.at < r.Offset+r.Length && q.at-r.Offset < statusMax {
		q.ask(b)
		return
	}
	err := op.Err
	if q.at > r.Offset {
		err = nil // what is known is told; the client asks again from there, and gets the error
	}
	q.free()
	b.Flush(r.Queue(err))
}

// add gives the request what was found, and says whether it takes more.
func (q *request) add(op *client.Op) (more bool) {
	r := q.r
	end := op.Off + op.Len
	pos := op.Off
	for _, e := range op.Extents {
		n := uint64(e.Blocks) * client.BlockSize
		from, to := max(pos, q.at), min(pos+n, end)
		pos += n
		if from >= to {
			continue
		}
		more = false
		for i := range r.Contexts() {
			if r.AddExtent(i, to-from, q.tell[i].flags(e)) {
				more = true
			}
		}
		q.at = to
		if !more {
			return false
		}
	}
	if q.at < end { // a primary that said less than it was asked: nothing is claimed of the rest
		for i := range r.Contexts() {
			more = r.AddExtent(i, end-q.at, q.tell[i].flags(unknown)) || more
		}
		q.at = end
	}
	return more
}

// unknown is an extent of which nothing may be claimed.
var unknown = wire.Extent{State: uint8(objstore.Bad)}

// allocation tells base:allocation.
type allocation struct{}

func (allocation) flags(e wire.Extent) uint64 {
	if client.Hole(e) {
		return nbd.StateHole | nbd.StateZero
	}
	return 0
}

// teller is for one context that the client selected.
func (d *Device) teller(context string) teller {
	if context == nbd.BaseAllocation {
		return allocation{}
	}
	return d.changes(context)
}
