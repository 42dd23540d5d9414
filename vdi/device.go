package vdi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/nbd"
)

var errNotExist = fs.ErrNotExist

// closeTimeout bounds how long a connection's end waits for the last flush.
const closeTimeout = 10 * time.Second

// Device is an opened disk on one NBD connection.
type Device struct {
	d *client.Disk
	b wire.Batch // of Submit and Push

	gone atomic.Bool // the connection broke: a trim of a huge range must not keep the disk from whoever opens it next

	maps func() *state.Map // for pins; nil: there are none
	pins []pin             // the snapshots whose dirty bitmaps are offered
}

// NewDevice makes a Device of a disk, which it closes when it is closed.
func NewDevice(d *client.Disk) *Device { return &Device{d: d, b: wire.Batch{Patient: true}} }

// request is what a request of NBD needs on its way.
type request struct {
	op client.Op
	r  *nbd.Request

	disk *client.Disk // block status
	at   uint64       // block status: how far it is told
	tell []teller     // block status: for each context, what an extent means
}

var requests = sync.Pool{New: func() any {
	q := new(request)
	q.op.User = q
	return q
}}

// Prepare sums a write's blocks.
func (d *Device) Prepare(r *nbd.Request) {
	q := requests.Get().(*request)
	q.op.Sums = client.AppendSums(q.op.Sums[:0], r.Offset, r.Data)
	r.Tag = q
}

// batches are those of large reads.
var batches = sync.Pool{New: func() any { return new(wire.Batch) }}

// Read is Submit and Push of a read.
func (d *Device) Read(r *nbd.Request) {
	b := batches.Get().(*wire.Batch)
	d.submit(r, b)
	b.End()
	batches.Put(b)
}

// Submit starts a request.
func (d *Device) Submit(r *nbd.Request) { d.submit(r, &d.b) }

func (d *Device) submit(r *nbd.Request, b *wire.Batch) {
	q, prepared := r.Tag.(*request)
	if !prepared {
		q = requests.Get().(*request)
		q.op.Sums = q.op.Sums[:0]
	}
	q.r = r
	op := &q.op
	op.Off, op.Len, op.Data, op.Owner, op.FUA, op.Provision, op.Gone, op.Done = r.Offset, r.Length, nil, nil, r.FUA, false, &d.gone, done
	switch r.Op {
	case nbd.OpRead:
		op.Kind, op.Data = wire.KindRead, r.Data
	case nbd.OpWrite:
		op.Kind, op.Data = wire.KindWrite, r.Data
		if buf := r.Buffer(); buf != nil {
			op.Owner = buf
		}
	case nbd.OpFlush:
		op.Kind, op.Off, op.Len = wire.KindFlush, 0, 0
	case nbd.OpTrim:
		op.Kind = wire.KindTrim
	case nbd.OpWriteZeroes:
		op.Kind, op.Provision = wire.KindZero, r.NoHole
		if r.NoHole && r.FastZero {
			d.answer(q, fmt.Errorf("write zeroes without a hole: %w", errors.ErrUnsupported))
			return
		}
	case nbd.OpCache:
		d.answer(q, nil) // the primaries' page caches do what can be done
		return
	case nbd.OpBlockStatus:
		d.status(q)
		return
	default:
		d.answer(q, fmt.Errorf("%s: %w", r.Op, errors.ErrUnsupported))
		return
	}
	d.d.Submit(op, b)
}

// Push starts what Submit gathered.
func (d *Device) Push() { d.b.End() }

// PushLeaving is Push, but may leave a disk of this node to wait for.
func (d *Device) PushLeaving() (wait func()) { return d.b.EndLeaving() }

// Close closes the disk.
func (d *Device) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return d.d.Close(ctx)
}

// answer ends a request that needs nobody.
func (d *Device) answer(q *request, err error) {
	r := q.r
	q.free()
	r.Queue(err) // the connection sends what is queued after Push
}

// done ends a request when its last piece is there.
func done(op *client.Op, b *wire.Batch) {
	q := op.User.(*request)
	r, err := q.r, op.Err
	q.free()
	b.Flush(r.Queue(err))
}

func (q *request) free() {
	q.r, q.disk, q.tell = nil, nil, q.tell[:0]
	q.op.Data, q.op.Owner, q.op.Gone, q.op.Err = nil, nil, nil, nil
	requests.Put(q)
}
