package replica

import (
	"errors"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// parkedRead waits until lsn is committed (R16).
type parkedRead struct {
	r   *wire.Request
	lsn uint64
}

// parkRead has a read wait until lsn is committed.
func (g *group) parkRead(r *wire.Request, lsn uint64, b *wire.Batch) {
	if len(g.reads) >= parkedMax {
		g.refuse(r, wire.StatusBusy, b)
		return
	}
	g.reads = append(g.reads, parkedRead{r, lsn})
	g.stir()
}

// uncommitted returns the newest entry after since that changes these blocks and is not committed; 0: none. mu is held.
func (g *group) uncommitted(key objstore.Key, first, count int, since uint64) uint64 {
	if broken("R16") {
		return 0
	}
	for i := len(g.tail) - 1; i >= 0; i-- {
		en := g.tail[i]
		if en.Number.LSN <= since {
			return 0
		}
		if en.touches(key, first, count) {
			return en.Number.LSN
		}
	}
	return 0
}

// blocksOf is the range of blocks a request touches.
func blocksOf(io *wire.IO) (first, count int) {
	first = int(io.Off / objstore.BlockSize)
	end := (int(io.Off) + int(io.Len) + objstore.BlockSize - 1) / objstore.BlockSize
	return first, end - first
}

// read answers from the store what is committed. The bytes are fetched without the lock; if an entry for the same blocks was numbered meanwhile and is
// not committed, they may be its: then the read waits for it and looks again. mu is held, and released meanwhile.
func (g *group) read(r *wire.Request, v *view, b *wire.Batch) {
	first, count := blocksOf(&r.IO)
	if lsn := g.uncommitted(objstore.Key(r.IO.Key), first, count, 0); lsn != 0 {
		g.parkRead(r, lsn, b)
		return
	}
	since, st, granted := g.last, g.st, g.granted
	g.mu.Unlock()
	err := fetch(st, r, v, true)
	g.mu.Lock()
	if errors.Is(err, objstore.ErrWouldBlock) {
		g.readLater(r, v, since, granted)
		return
	}
	g.readDone(r, v, st, err, since, granted, b)
}

// fetch reads the request's bytes into Dst.
func fetch(st *objstore.Group, r *wire.Request, v *view, nowait bool) error {
	first, count := blocksOf(&r.IO)
	key, chain := objstore.Key(r.IO.Key), v.chain(r.IO.Vid)
	if int(r.IO.Len) == count*objstore.BlockSize {
		return st.Read(key, chain, first, count, r.Dst, nil, nowait)
	}
	buf := wire.GetBuf(count * objstore.BlockSize)
	defer buf.Release()
	if err := st.Read(key, chain, first, count, buf.B, nil, nowait); err != nil {
		return err
	}
	copy(r.Dst, buf.B[r.IO.Off%objstore.BlockSize:])
	return nil
}

// readLater lets a goroutine wait for the disk.
func (g *group) readLater(r *wire.Request, v *view, since, granted uint64) {
	st := g.st
	g.e.wg.Go(func() {
		g.e.readers <- struct{}{}
		err := fetch(st, r, v, false)
		<-g.e.readers
		var b wire.Batch
		g.mu.Lock()
		if g.e.cfg.Leased() {
			g.readDone(r, v, st, err, since, granted, &b)
		} else {
			g.refuse(r, wire.StatusBehind, &b)
		}
		g.mu.Unlock()
		b.End()
	})
}

// readDone answers a read whose bytes are there. mu is held.
func (g *group) readDone(r *wire.Request, v *view, st *objstore.Group, err error, since, granted uint64, b *wire.Batch) {
	first, count := blocksOf(&r.IO)
	var bad *objstore.BlockError
	switch lsn := g.uncommitted(objstore.Key(r.IO.Key), first, count, since); {
	case g.role != serving || g.granted != granted:
		g.refuse(r, wire.StatusNotPrimary, b)
	case g.st != st: // moved to another disk meanwhile
		g.again(r, b)
	case lsn != 0:
		g.parkRead(r, lsn, b)
	case v.m != g.e.agreed() && g.collectible(r): // what it had may have moved up while the disk was waited for
		g.again(r, b)
	case errors.As(err, &bad):
		g.repair(r, v, bad)
	case err != nil:
		g.fail(r, err, b)
	default:
		g.answerRead(r, b)
	}
}

// answerRead answers a read with the bytes in Dst. mu is held.
func (g *group) answerRead(r *wire.Request, b *wire.Batch) {
	g.e.Stats.Reads.Add(1)
	g.e.Stats.ReadBytes.Add(int64(r.IO.Len))
	r.Status = wire.StatusOK
	r.Done = wire.Done{}
	b.Complete(r)
}

// rerunReads looks again at reads whose entry is committed. mu is held.
func (g *group) rerunReads(b *wire.Batch) {
	if len(g.reads) == 0 {
		return
	}
	list := g.reads
	g.reads = nil
	for _, pr := range list {
		if g.role != serving { // answering another let the lock go
			g.refuse(pr.r, wire.StatusNotPrimary, b)
		} else if pr.lsn > g.commit {
			g.reads = append(g.reads, pr)
		} else {
			g.again(pr.r, b)
		}
	}
}

// extents answers what kinds of blocks a range is made of. mu is held: it reads tables, not blocks.
func (g *group) extents(r *wire.Request, v *view, b *wire.Batch) {
	first, count := blocksOf(&r.IO)
	if lsn := g.uncommitted(objstore.Key(r.IO.Key), first, count, 0); lsn != 0 {
		g.parkRead(r, lsn, b)
		return
	}
	r.Extents = r.Extents[:0]
	err := g.st.Extents(objstore.Key(r.IO.Key), v.chain(r.IO.Vid), first, count, func(_, n int, s objstore.State, vid objstore.Vid) {
		r.Extents = append(r.Extents, wire.Extent{Blocks: uint32(n), State: uint8(s), Vid: uint32(vid)})
	})
	if err != nil {
		g.fail(r, err, b)
		return
	}
	r.Status = wire.StatusOK
	r.Done = wire.Done{}
	b.Complete(r)
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// collectible says that the collector may have begun with the request's vid.
func (g *group) collectible(r *wire.Request) bool {
	d := g.e.agreed().VDI(r.IO.Vid)
	return d == nil || d.Gen != r.IO.Gen || d.State == state.Deleted
}
