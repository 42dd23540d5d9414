package objstore

import (
	"errors"
	"fmt"
	"io"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// Read fills dst with count blocks as the vid at chain[0] sees them: each
// from the newest version at or above it, the others of chain being its
// ancestors, nearest first. What no version has reads as zeros. Every block
// is checked; *BlockError names the first bad one. crcs, if not nil, gets the
// blocks' checksums. With nowait, ErrWouldBlock says that the disk would have
// to be asked.
func (g *Group) Read(key Key, chain []VidGen, first, count int, dst []byte, crcs []uint32, nowait bool) error {
	if len(chain) == 0 || first < 0 || count < 0 || first+count > BlocksPerObject || len(dst) < count*BlockSize || crcs != nil && len(crcs) < count {
		return fmt.Errorf("read object %v blocks %d+%d: %w", key, first, count, ErrFormat)
	}
	if count == 1 && g.readOne(key, chain, first, dst[:BlockSize], crcs, nowait) {
		return nil
	}
	for count > 0 {
		n := min(count, pieceBlocks)
		p := piece{g: g, key: key, chain: chain, first: first, count: n, nowait: nowait}
		if err := p.read(dst[:n*BlockSize], crcs); err != nil {
			return err
		}
		first, count, dst = first+n, count-n, dst[n*BlockSize:]
		if crcs != nil {
			crcs = crcs[n:]
		}
	}
	return nil
}

// readOne reads one block whose table is in memory and whose file is open. It
// is the common case, without what the others need; false sends the caller
// their way, for errors as well.
func (g *Group) readOne(key Key, chain []VidGen, block int, dst []byte, crcs []uint32, nowait bool) bool {
	if g.s.failure.Load() != nil {
		return false
	}
	g.mu.Lock()
	o := g.objects[key]
	if o == nil || o.t == nil || o.damaged || g.dropped {
		g.mu.Unlock()
		return false
	}
	o.t.recent = true
	v, err := o.t.through(key, chain, block)
	if err != nil {
		g.mu.Unlock()
		return false
	}
	var c cell
	if v != nil {
		c = v.cells[block]
	}
	var f *objFile
	kind := c.kind()
	if kind == cellSlot {
		f = o.hold()
	}
	g.mu.Unlock()
	switch {
	case kind == cellAbsent || kind == cellZero:
		clear(dst)
		c.sum = zeroSum
	case kind == cellJournal:
		err = g.s.j.read(c.value(), dst, nowait)
	case f == nil:
		return false
	case nowait:
		_, err = f.f.ReadNowait(dst, int64(c.value())*BlockSize)
	default:
		_, err = f.f.ReadAt(dst, int64(c.value())*BlockSize)
	}
	if f != nil {
		f.release()
	}
	if err != nil || kind != cellAbsent && kind != cellZero && Checksum(dst) != c.sum && !bugReadTrusted.active() {
		return false
	}
	if crcs != nil {
		crcs[0] = c.sum
	}
	return true
}

// pieceBlocks is how many blocks are looked up at once, on the stack.
const pieceBlocks = 32

// piece is a part of a read: what was looked up under the mutex and is then
// read without it.
type piece struct {
	g            *Group
	key          Key
	chain        []VidGen
	first, count int
	nowait       bool

	o     *object
	f     *objFile // held where some cell is a slot
	cells [pieceBlocks]cell
	vids  [pieceBlocks]Vid
}

func (p *piece) read(dst []byte, crcs []uint32) error {
	if err := p.lookup(); err != nil {
		return err
	}
	err := p.fill(dst, crcs)
	if p.f != nil {
		p.f.release()
	}
	return err
}

// lookup resolves the blocks and holds the file they are in.
func (p *piece) lookup() error {
	g := p.g
	if err := g.s.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if g.dropped { // what it held is elsewhere, or nowhere: never zeros
			return fmt.Errorf("read object %v: group %d: %w", p.key, g.id, ErrDropped)
		}
		p.o = g.objects[p.key]
		if p.o == nil {
			clear(p.cells[:p.count])
			return nil
		}
		if p.o.t == nil {
			if p.nowait {
				return ErrWouldBlock
			}
			g.mu.Unlock()
			err := g.s.load(p.o)
			g.mu.Lock()
			if err != nil {
				return err
			}
			continue
		}
		if p.o.damaged {
			return &BlockError{Group: g.id, Key: p.key, Block: p.first, Vid: p.chain[0].Vid, Err: ErrDamaged}
		}
		p.o.t.recent = true
		slots, err := p.resolve()
		if err != nil || !slots {
			return err
		}
		if p.f = p.o.hold(); p.f != nil {
			return nil
		}
		if p.nowait {
			return ErrWouldBlock
		}
		if err := g.openPinned(p.o); err != nil {
			return err
		}
	}
}

// openPinned opens the object's file for somebody who will hold it next.
// Holds mu, but lets go of it meanwhile.
func (g *Group) openPinned(o *object) error {
	t := o.t
	t.pins++
	g.mu.Unlock()
	f, err := g.s.acquire(o, false)
	g.mu.Lock()
	t.pins--
	if err != nil {
		if isLost(err) {
			g.markDamaged(o)
			return &BlockError{Group: g.id, Key: o.key, Err: err}
		}
		return err
	}
	f.release()
	return nil
}

func (g *Group) markDamaged(o *object) {
	if !o.damaged {
		o.damaged = true
		g.suspects++
		g.s.m.damaged.Add(1)
	}
}

// resolve finds each block's cell; slots says that some are in the file.
func (p *piece) resolve() (slots bool, err error) {
	for i := range p.count {
		v, err := p.o.t.through(p.key, p.chain, p.first+i)
		if err != nil {
			return false, err
		}
		p.cells[i], p.vids[i] = cell{}, 0
		if v != nil {
			p.cells[i], p.vids[i] = v.cells[p.first+i], v.vid
			slots = slots || p.cells[i].kind() == cellSlot
		}
	}
	return slots, nil
}

// step is how far the addresses of neighbouring blocks lie apart.
func (c cell) step() uint32 {
	if c.kind() == cellJournal {
		return BlockSize / recordAlign
	}
	return 1
}

// run is how many blocks from i on are neighbours in their file.
func (p *piece) run(i int) (n int) {
	c := p.cells[i]
	for n = 1; i+n < p.count && p.cells[i+n].at == c.at+uint32(n)*c.step(); n++ {
	}
	return n
}

// ahead has the disk begin with all runs of slots that the piece has, where
// there are several: blocks that were overwritten at random lie in runs of one
// or two, and each would wait for the one before.
func (p *piece) ahead() {
	first := true
	for i := 0; i < p.count; {
		if p.cells[i].kind() != cellSlot {
			i++
			continue
		}
		n := p.run(i)
		if first && i+n == p.count {
			return // the only one
		}
		first = false
		_ = p.f.f.WillRead(int64(p.cells[i].value())*BlockSize, int64(n)*BlockSize) // what it does not do, the read does
		i += n
	}
}

// fill reads runs of neighbours with one call each and checks every block.
func (p *piece) fill(dst []byte, crcs []uint32) error {
	if !p.nowait && p.f != nil {
		p.ahead()
	}
	for i := 0; i < p.count; {
		c := p.cells[i]
		n := 1
		switch c.kind() {
		case cellAbsent, cellZero:
			clear(dst[i*BlockSize : (i+1)*BlockSize])
			if crcs != nil {
				crcs[i] = zeroSum
			}
		case cellBad:
			return p.blockError(i, ErrMarkedBad)
		default:
			n = p.run(i)
			if err := p.fetch(i, n, dst[i*BlockSize:(i+n)*BlockSize]); err != nil {
				return err
			}
			if crcs != nil {
				for k := i; k < i+n; k++ {
					crcs[k] = p.cells[k].sum
				}
			}
		}
		i += n
	}
	return nil
}

var zeroSum = Checksum(make([]byte, BlockSize))

// fetch reads blocks i..i+n, which are neighbours, and verifies them.
func (p *piece) fetch(i, n int, dst []byte) error {
	err := p.readCell(p.cells[i], dst, p.nowait)
	if err == vfs.ErrWouldBlock || err == ErrWouldBlock {
		return ErrWouldBlock
	}
	for k := range n {
		b := dst[k*BlockSize : (k+1)*BlockSize]
		if err == nil && Checksum(b) == p.cells[i+k].sum {
			continue
		}
		if p.nowait {
			return ErrWouldBlock // a worker looks again, and reads again
		}
		if err := p.again(i+k, b); err != nil {
			return err
		}
	}
	return nil
}

func (p *piece) readCell(c cell, dst []byte, nowait bool) error {
	if c.kind() == cellJournal {
		return p.g.s.j.read(c.value(), dst, nowait)
	}
	var err error
	if nowait {
		_, err = p.f.f.ReadNowait(dst, int64(c.value())*BlockSize)
	} else {
		_, err = p.f.f.ReadAt(dst, int64(c.value())*BlockSize)
	}
	return err
}

// again looks a block up anew after it failed: it may have moved to its slot
// or been written meanwhile. It is bad only if nothing changed (rule 12).
func (p *piece) again(i int, dst []byte) error {
	old := p.cells[i]
	if bugReadOnce.active() {
		return p.blockError(i, ErrChecksum)
	}
	for range 8 {
		q := piece{g: p.g, key: p.key, chain: p.chain, first: p.first + i, count: 1}
		if err := q.lookup(); err != nil {
			return err
		}
		c := q.cells[0]
		var err error
		switch c.kind() {
		case cellSlot, cellJournal:
			err = q.readCell(c, dst, false)
			if err == nil && Checksum(dst) != c.sum {
				err = ErrChecksum
			}
		case cellBad:
			err = ErrMarkedBad
		default:
			clear(dst)
			c.sum = zeroSum // as fill says of blocks that were zeros from the first
		}
		if q.f != nil {
			q.f.release()
		}
		if err == nil {
			p.cells[i] = c
			return nil
		}
		if c == old {
			if err == io.EOF {
				err = ErrChecksum // the file is shorter than its table says
			}
			p.vids[i] = q.vids[0]
			return p.blockError(i, err)
		}
		old = c
	}
	return fmt.Errorf("read object %v block %d: %w", p.key, p.first+i, ErrStale)
}

func (p *piece) blockError(i int, err error) error {
	if !errors.Is(err, ErrMarkedBad) {
		p.g.s.m.badBlocks.Add(1)
	}
	return &BlockError{Group: p.g.id, Key: p.key, Block: p.first + i, Vid: p.vids[i], Err: err}
}

// Extents yields runs of blocks with the same state and the same version, as
// the vid at chain[0] sees them. vid is 0 where no version has them. A
// damaged object is one bad extent.
func (g *Group) Extents(key Key, chain []VidGen, first, count int, yield func(first, count int, st State, vid Vid)) error {
	if len(chain) == 0 || first < 0 || count < 0 || first+count > BlocksPerObject {
		return fmt.Errorf("extents of object %v blocks %d+%d: %w", key, first, count, ErrFormat)
	}
	start, n := first, 0
	var st State
	var vid Vid
	for count > 0 {
		p := piece{g: g, key: key, chain: chain, first: first, count: min(count, pieceBlocks)}
		err := p.lookup()
		if p.f != nil {
			p.f.release()
		}
		var bad *BlockError
		if errors.As(err, &bad) {
			for i := range p.count {
				p.cells[i] = cell{at: cellBad}
			}
		} else if err != nil {
			return err
		}
		for i := range p.count {
			s, v := p.cells[i].state(), p.vids[i]
			if s == Absent {
				v = 0
			}
			if n > 0 && (s != st || v != vid) {
				yield(start, n, st, vid)
				start, n = first+i, 0
			}
			st, vid = s, v
			n++
		}
		first, count = first+p.count, count-p.count
	}
	if n > 0 {
		yield(start, n, st, vid)
	}
	return nil
}

// ReadSlotOf reads one version's own block, not an ancestor's, and checks it.
func (g *Group) ReadSlotOf(key Key, vid Vid, block int, dst []byte) error {
	return g.ReadSlotsOf(key, vid, block, 1, dst, nil)
}

// ReadSlotsOf is Read of blocks that are one version's own. ErrStale says that
// one of them is not.
func (g *Group) ReadSlotsOf(key Key, vid Vid, first, count int, dst []byte, crcs []uint32) error {
	if first < 0 || count < 0 || first+count > BlocksPerObject {
		return fmt.Errorf("read object %v blocks %d+%d: %w", key, first, count, ErrFormat)
	}
	g.mu.Lock()
	o := g.objects[key]
	for o != nil && o.t == nil {
		g.mu.Unlock()
		if err := g.s.load(o); err != nil {
			return err
		}
		g.mu.Lock()
		o = g.objects[key]
	}
	var v *table
	if g.dropped {
		g.mu.Unlock()
		return fmt.Errorf("read object %v: group %d: %w", key, g.id, ErrDropped)
	}
	if o != nil {
		v = o.t.find(vid)
	}
	var gen uint64
	if v != nil {
		gen = v.gen
	}
	for b := first; b < first+count; b++ {
		st := Absent
		if v != nil {
			st = v.cells[b].state()
		}
		if st != Present {
			g.mu.Unlock()
			return fmt.Errorf("read object %v block %d of vid %06x: it is %v: %w", key, b, vid, st, ErrStale)
		}
	}
	g.mu.Unlock()
	return g.Read(key, []VidGen{{vid, gen}}, first, count, dst, crcs, false)
}
