package replica

import (
	"errors"
	"fmt"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// The source's end of a resync (resync.go): an object's blocks on their way to the replica (copyin.go).

const (
	copyRun    = 32        // blocks read at once
	copyFrame  = 256 << 10 // bytes of blocks in one frame
	copySettle = 4 << 20   // bytes of an object that the replica gets before it is asked to make them durable
)

// copyObject makes the replica's object what ours is. Most of it is copied while writes go on; they are parked while what changed meanwhile follows
// and the object is installed: milliseconds.
func (r *resync) copyObject(key objstore.Key) error {
	var keyMeta [8]byte
	wireKey(keyMeta[:], key)
	theirs := map[versionBlock]uint32{}
	a, err := r.call(wire.KindUnitGet, 0, keyMeta[:], nil, nil)
	if err != nil && a.status != wire.StatusGone && a.status != wire.StatusBad { // bad: its tables are lost, all of it is copied
		return err
	}
	if err == nil {
		u, err := objstore.ParseUnit(a.meta)
		if err != nil {
			return err
		}
		eachPresent(u, func(vb versionBlock, crc uint32) { theirs[vb] = crc })
	}
	if err := r.sendAhead(key, theirs); err != nil {
		return err
	}
	if err := r.quiet(key); err != nil {
		return err
	}
	before := r.j.bytes.Load()
	err = r.send(key, keyMeta[:], theirs)
	var b wire.Batch
	r.g.mu.Lock()
	r.copied(key)
	if err == nil {
		delete(r.j.pending, key)
	}
	r.g.rerun(&b)
	r.g.mu.Unlock()
	b.End()
	r.j.done.Add(1)
	if err != nil {
		return err
	}
	return r.limit.take(r.j.ctx, int(r.j.bytes.Load()-before)+objstore.BlockSize) // paid afterwards: nobody waits for it with a write parked
}

// versionBlock names a block of one version of an object.
type versionBlock struct {
	vid   objstore.Vid
	block uint16
}

func eachPresent(u *objstore.Unit, f func(versionBlock, uint32)) {
	for _, v := range u.Versions {
		for _, bl := range v.Blocks {
			if bl.State == objstore.Present {
				f(versionBlock{v.Vid, bl.Block}, bl.CRC)
			}
		}
	}
}

// quiet parks writes to the object and waits until those numbered are committed (R16). If it fails, nothing is parked.
func (r *resync) quiet(key objstore.Key) error {
	g := r.g
	g.mu.Lock()
	if g.granted != r.granted || g.role == idle || g.role == secondary {
		g.mu.Unlock()
		return errors.New("not the primary any more")
	}
	if g.copying == nil {
		g.copying = map[objstore.Key]int{}
	}
	g.copying[key]++
	lsn := uint64(0)
	if !r.inSet {
		lsn = g.uncommitted(key, 0, objstore.BlocksPerObject, 0)
	}
	g.mu.Unlock()
	err := r.waitCommitted(lsn)
	if err != nil {
		r.loud(key)
	}
	return err
}

// copied ends what quiet began. mu is held.
func (r *resync) copied(key objstore.Key) {
	g := r.g
	if g.granted != r.granted || g.copying == nil {
		return // stepping down ended it
	}
	if g.copying[key] > 1 {
		g.copying[key]--
	} else {
		delete(g.copying, key)
	}
}

// loud lets writes to the object go on.
func (r *resync) loud(key objstore.Key) {
	var b wire.Batch
	r.g.mu.Lock()
	r.copied(key)
	r.g.rerun(&b)
	r.g.mu.Unlock()
	b.End()
}

// sendAhead copies blocks as they are now, committed or not, to where nobody sees them: what counts is the object's description at its end. has is
// what the replica holds, by checksum, and then what it was sent.
func (r *resync) sendAhead(key objstore.Key, has map[versionBlock]uint32) error {
	if err := r.store.Commit(); err != nil {
		return err
	}
	u, err := r.st.Unit(key)
	if errors.Is(err, objstore.ErrDamaged) || err == nil && u == nil {
		return nil // send knows what to do
	}
	if err != nil {
		return err
	}
	f := copyFramer{r: r, key: key, has: has, paid: true}
	defer f.end()
	healing := true
	for vi := range u.Versions {
		v := &u.Versions[vi]
		err := f.version(v, func(bl *objstore.UnitBlock, err error) error {
			var bad *objstore.BlockError
			if healing && errors.As(err, &bad) { // another may have it: a copy without it would leave fewer than there could be
				if healing = r.g.heal(bad) == nil; healing {
					err = f.read(v.Vid, bl, 1)
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return f.settle()
}

// send copies the blocks that still differ and has the replica install the object.
func (r *resync) send(key objstore.Key, keyMeta []byte, has map[versionBlock]uint32) error {
	if err := r.store.Commit(); err != nil {
		return err
	}
	u, err := r.st.Unit(key)
	if errors.Is(err, objstore.ErrDamaged) { // it cannot be a source before it is whole itself
		if err = r.g.healObject(key, r.granted); err == nil {
			u, err = r.st.Unit(key)
		}
	}
	if err != nil {
		return err
	}
	if u == nil || len(u.Versions) == 0 {
		_, err := r.call(wire.KindCopyDrop, 0, keyMeta, nil, nil)
		return err
	}
	f := copyFramer{r: r, key: key, has: has}
	defer f.end()
	for vi := range u.Versions {
		err := f.version(&u.Versions[vi], func(bl *objstore.UnitBlock, err error) error {
			if errors.Is(err, errUnreadable) {
				bl.State, bl.CRC = objstore.Bad, 0 // a block bad everywhere travels as bad (STORE.md rule 13); repair heals it later
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := f.flush(); err != nil {
		return err
	}
	_, err = r.call(wire.KindCopyEnd, 0, u.Append(nil), nil, nil)
	return err
}

// copyFramer gathers blocks of an object into frames.
type copyFramer struct {
	r         *resync
	key       objstore.Key
	has       map[versionBlock]uint32
	paid      bool // each frame waits for the pace before it goes: only while nothing is parked
	flags     uint8
	unsettled int // bytes sent that may not be durable there
	meta      []byte
	buf       *wire.Buf // copyFrame bytes for what is gathered; nil: nothing is
	n         int       // bytes gathered
	crcs      [copyRun]uint32
}

// errUnreadable says that we have no good copy of a block.
var errUnreadable = errors.New("no good copy of the block here")

// version adds those of v's blocks that the replica has not. unread is told of one that could not be read: it may read it after all, or leave it out by
// returning errUnreadable.
func (f *copyFramer) version(v *objstore.UnitVersion, unread func(*objstore.UnitBlock, error) error) error {
	for i := 0; i < len(v.Blocks); {
		n := f.run(v.Vid, v.Blocks[i:])
		if n == 0 {
			i++
			continue
		}
		bl := &v.Blocks[i]
		err := f.read(v.Vid, bl, n)
		var bad *objstore.BlockError
		for err != nil && n > 1 { // one that is bad keeps none of its neighbours back
			if n /= 2; errors.As(err, &bad) {
				n = bad.Block - int(bl.Block)
			}
			if n <= 0 { // it is the first
				n = 1
				break
			}
			err = f.read(v.Vid, bl, n)
		}
		if err != nil {
			err = unread(bl, err)
		}
		switch {
		case err == nil:
			err = f.gather(v.Vid, v.Blocks[i:i+n])
		case errors.Is(err, errUnreadable):
			err = nil
		}
		if err != nil {
			return err
		}
		i += n
	}
	return nil
}

// run is how many blocks at the head of list can be read together: neighbours that the replica has not, and for which the frame has room.
func (f *copyFramer) run(v objstore.Vid, list []objstore.UnitBlock) (n int) {
	room := min(len(list), copyRun, (copyFrame-f.n)/objstore.BlockSize)
	for n < room && f.lacks(v, &list[n]) && list[n].Block == list[0].Block+uint16(n) {
		n++
	}
	return n
}

func (f *copyFramer) lacks(v objstore.Vid, bl *objstore.UnitBlock) bool {
	crc, ok := f.has[versionBlock{v, bl.Block}]
	return bl.State == objstore.Present && !(ok && crc == bl.CRC)
}

// read reads n blocks from bl on to behind what is gathered.
func (f *copyFramer) read(vid objstore.Vid, bl *objstore.UnitBlock, n int) error {
	if f.buf == nil {
		f.buf = wire.GetBuf(copyFrame)
	}
	err := f.r.st.ReadSlotsOf(f.key, vid, int(bl.Block), n, f.buf.B[f.n:][:n*objstore.BlockSize], f.crcs[:n])
	var bad *objstore.BlockError
	if errors.As(err, &bad) || f.paid && errors.Is(err, objstore.ErrStale) {
		return fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return err
}

// gather adds the blocks that were just read.
func (f *copyFramer) gather(vid objstore.Vid, list []objstore.UnitBlock) error {
	if f.n == 0 {
		f.meta = wire.AppendCopyData(f.meta[:0], uint64(f.key))
	}
	for i := range list {
		crc := list[i].CRC
		if f.paid { // it may have changed since it was described
			crc = f.crcs[i]
		}
		f.has[versionBlock{vid, list[i].Block}] = crc
		item := wire.CopyItem{Vid: uint32(vid), Block: list[i].Block, CRC: crc}
		f.meta = item.Append(f.meta)
	}
	f.n += len(list) * objstore.BlockSize
	f.r.e.Stats.ResyncBlocks.Add(int64(len(list)))
	switch {
	case f.unsettled+f.n >= copySettle && f.paid:
		return f.settle()
	case f.n >= copyFrame:
		return f.flush()
	}
	return nil
}

// settle sends what was gathered and has the replica make it durable, all before, too. A flush of what is in sync there then need not wait for it.
func (f *copyFramer) settle() error {
	f.flags = flagSettle
	err := f.flush()
	f.flags, f.unsettled = 0, 0
	return err
}

// flush sends what was gathered.
func (f *copyFramer) flush() error {
	if f.n == 0 && (f.flags&flagSettle == 0 || f.unsettled == 0) {
		return nil
	}
	if f.n == 0 {
		f.meta = wire.AppendCopyData(f.meta[:0], uint64(f.key))
	}
	f.unsettled += f.n
	if f.paid {
		if err := f.r.limit.take(f.r.j.ctx, f.n); err != nil {
			return err
		}
	}
	var data []byte
	var owner wire.Holder
	if f.n > 0 {
		data, owner = f.buf.B[:f.n], f.buf
	}
	_, err := f.r.call(wire.KindCopyData, f.flags, f.meta, data, owner)
	f.r.e.Stats.ResyncBytes.Add(int64(f.n))
	f.r.j.bytes.Add(int64(f.n))
	f.end() // the connection may have its hands on the buffer still
	return err
}

// end lets go of what is gathered.
func (f *copyFramer) end() {
	if f.buf != nil {
		f.buf.Release()
	}
	f.buf, f.n = nil, 0
}
