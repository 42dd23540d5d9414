package replica

import (
	"encoding/binary"
	"errors"
	"sync"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// The replica's end of a resync (resync.go). Frames of one primary come on one connection, so copies and entries arrive in the order in which
// they were decided.

func wireKey(b []byte, key objstore.Key) { binary.LittleEndian.PutUint64(b, uint64(key)) }

func parseKey(b []byte) (objstore.Key, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return objstore.Key(binary.LittleEndian.Uint64(b)), true
}

// syncStart says where we stand; with the flag it marks our copy as a mixture and begins the stream after the number given.
func (g *group) syncStart(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.admit(f, b); s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		return
	}
	if f.Flags == 0 {
		g.deny(c, f, wire.StatusOK, g.where().Append(nil), b)
		return
	}
	nums := wire.ParseNumbers(f.Meta)
	if len(nums) != 1 {
		g.deny(c, f, wire.StatusInvalid, []byte("a resync begins after one number"), b)
		return
	}
	if g.ending || g.holdsResync() {
		g.deny(c, f, wire.StatusBusy, nil, b)
		return
	}
	if err := g.st.SetSyncing(); err != nil {
		g.deny(c, f, statusOf(err), []byte(err.Error()), b)
		return
	}
	g.dropTail()
	g.dropCopy()
	g.syncing, g.syncConn = true, c
	g.last, g.journaled, g.commit = nums[0].LSN, nums[0].LSN, 0
	g.once = nil // the primary's word on that follows
	g.deny(c, f, wire.StatusOK, nil, b)
}

// admitCopy lets in only what belongs to the resync that began last: an older one may still have frames on an older connection. mu is held.
func (g *group) admitCopy(c *wire.Conn, f *wire.Frame, b *wire.Batch) wire.Status {
	s := g.admit(f, b)
	if s == wire.StatusOK && (!g.syncing || g.ending || c != g.syncConn) {
		s = wire.StatusGap
	}
	return s
}

// dropCopy ends the copy under way, if there is one. It waits for blocks that are just being put.
func (g *group) dropCopy() {
	if g.copy != nil {
		g.copy.end()
		g.copy = nil
	}
}

// incoming is the object that is being copied to us. Its blocks are put by a goroutine of their frame's, so that entries on the same connection do not wait.
type incoming struct {
	key objstore.Key
	st  *objstore.Group

	mu   sync.Mutex // after group.mu; not held over a sync
	cp   *objstore.Copy
	put  map[versionBlock]struct{} // its blocks that came
	over bool
}

// begin makes the store's copy at first use. mu is held.
func (in *incoming) begin() (err error) {
	if in.over {
		return errCopyOver
	}
	if in.cp == nil {
		in.cp, err = in.st.NewCopy(in.key)
	}
	return err
}

var errCopyOver = errors.New("another copy has begun")

// take puts the blocks of one frame to free slots, neighbours at once.
func (in *incoming) take(items []wire.CopyItem, data []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.begin(); err != nil {
		return err
	}
	if len(data) != len(items)*objstore.BlockSize {
		return objstore.ErrFormat
	}
	var crcs []uint32
	for len(items) > 0 {
		n := 0
		crcs = crcs[:0]
		for n < len(items) && items[n].Vid == items[0].Vid && int(items[n].Block) == int(items[0].Block)+n {
			crcs = append(crcs, items[n].CRC)
			n++
		}
		if err := in.cp.Put(objstore.Vid(items[0].Vid), int(items[0].Block), crcs, data[:n*objstore.BlockSize]); err != nil {
			return err
		}
		for _, it := range items[:n] {
			in.put[versionBlock{objstore.Vid(it.Vid), it.Block}] = struct{}{}
		}
		items, data = items[n:], data[n*objstore.BlockSize:]
	}
	return nil
}

// sync makes what came durable, while no flush has to wait for it.
func (in *incoming) sync() error {
	in.mu.Lock()
	cp := in.cp
	in.mu.Unlock()
	if cp == nil {
		return nil
	}
	return cp.Sync()
}

// install makes the object what the unit says.
func (in *incoming) install(u *objstore.Unit) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.begin(); err != nil {
		return err
	}
	eachPresent(u, func(vb versionBlock, _ uint32) {
		if _, ok := in.put[vb]; !ok {
			in.cp.Keep(vb.vid, int(vb.block))
		}
	})
	return in.cp.Install(u)
}

// end gives up what was not installed.
func (in *incoming) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.over = true
	if in.cp != nil {
		in.cp.Abort()
	}
}

// unitsMax bounds one answer to a listing.
const unitsMax = 4096

// unitList lists objects changed after a number, in order of their keys, a part at a time.
func (g *group) unitList(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	s := g.admit(f, b)
	st := g.st
	g.mu.Unlock()
	from := wire.ParseNumbers(f.Meta)
	if s == wire.StatusOK && len(from) != 1 {
		s = wire.StatusInvalid
	}
	if s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		return
	}
	var meta []byte
	n, more := 0, false
	err := st.Objects(from[0].LSN, func(o objstore.ObjectInfo) bool {
		if uint64(o.Key) <= from[0].Term {
			return true
		}
		if n == unitsMax {
			more = true
			return false
		}
		n++
		u := wire.UnitVersion{Key: uint64(o.Key), Version: wire.Number(o.Version)}
		if o.Damaged {
			u.Version = wire.Number{} // equal to nobody's: it is copied
		}
		meta = u.Append(meta)
		return true
	})
	h := wire.Header{Kind: f.Kind | wire.KindAnswer, Status: statusOf(err), ID: f.ID, Group: f.Group, Term: f.Term}
	if more {
		h.Flags = wire.FlagMore
	}
	c.Send(&h, meta, nil, nil)
	b.Flush(c)
}

// unitGet describes one object; for KindVerify after reading every block of it, in a goroutine of its own.
func (g *group) unitGet(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	g.mu.Lock()
	s := g.admit(f, b)
	st, store := g.st, g.store
	g.mu.Unlock()
	key, ok := parseKey(f.Meta)
	if s == wire.StatusOK && !ok {
		s = wire.StatusInvalid
	}
	if s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		return
	}
	if f.Kind == wire.KindVerify {
		h := f.Header
		g.e.wg.Go(func() {
			bad, u, err := verifyUnit(store, st, key)
			meta := binary.LittleEndian.AppendUint32(nil, uint32(bad))
			h.Kind, h.Status = h.Kind|wire.KindAnswer, statusOf(err)
			if err == nil && u != nil {
				meta = u.Append(meta)
			}
			c.Send(&h, meta, nil, nil)
			c.Flush()
		})
		return
	}
	if err := store.Commit(); err != nil {
		g.deny(c, f, wire.StatusFailed, []byte(err.Error()), b)
		return
	}
	u, err := st.Unit(key)
	switch {
	case err != nil:
		g.deny(c, f, statusOf(err), []byte(err.Error()), b)
	case u == nil || len(u.Versions) == 0:
		g.deny(c, f, wire.StatusGone, nil, b)
	default:
		g.deny(c, f, wire.StatusOK, u.Append(nil), b)
	}
}

// flagSettle, in KindCopyData, asks for the answer only when all that was copied of the object so far is durable.
const flagSettle = 1

// copyData takes blocks of the object that is being copied to us; they go to free slots.
func (g *group) copyData(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var items []wire.CopyItem
	key, err := wire.EachCopyItem(f.Meta, func(it wire.CopyItem) error {
		items = append(items, it)
		return nil
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.admitCopy(c, f, b)
	if s == wire.StatusOK && err != nil {
		s = wire.StatusInvalid
	}
	if s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		return
	}
	in := g.copyOf(objstore.Key(key))
	h := f.Header
	buf := f.Keep()
	g.e.wg.Go(func() { // as many as the primary's copiers: each waits for its answer
		err := in.take(items, buf.B)
		buf.Release()
		if err == nil && h.Flags&flagSettle != 0 {
			err = in.sync()
		}
		g.copyTaken(c, &h, in, err)
	})
}

// copyTaken answers a frame of copied blocks.
func (g *group) copyTaken(c *wire.Conn, h *wire.Header, in *incoming, err error) {
	var meta []byte
	h.Kind, h.Flags, h.To = h.Kind|wire.KindAnswer, 0, 0
	switch {
	case errors.Is(err, errCopyOver):
		h.Status = wire.StatusGap
	case err != nil:
		h.Status, meta = statusOf(err), []byte(err.Error())
		g.mu.Lock()
		if g.copy == in {
			g.dropCopy()
		}
		g.mu.Unlock()
	}
	c.Send(h, meta, nil, nil)
	c.Flush()
}

// copyOf returns the copy under way of an object, begun if another or none is. mu is held.
func (g *group) copyOf(key objstore.Key) *incoming {
	if g.copy != nil && g.copy.key != key {
		g.dropCopy()
	}
	if g.copy == nil {
		g.copy = &incoming{key: key, st: g.st, put: map[versionBlock]struct{}{}}
	}
	return g.copy
}

// install makes the object what the unit says. mu is held.
func (g *group) install(u *objstore.Unit) error {
	if err := g.copyOf(u.Key).install(u); err != nil {
		return err
	}
	g.copy = nil
	return g.store.Commit()
}

// copyEnd makes the object exactly what the primary says, at once: of its blocks those that were copied are new, the others were here.
func (g *group) copyEnd(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	u, err := objstore.ParseUnit(f.Meta)
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.admitCopy(c, f, b); s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		return
	}
	if err == nil {
		err = g.install(u)
	}
	if err != nil {
		g.dropCopy()
		g.deny(c, f, statusOf(err), []byte(err.Error()), b)
		return
	}
	g.deny(c, f, wire.StatusOK, nil, b)
}

// copyDrop deletes an object that the primary does not have.
func (g *group) copyDrop(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	key, ok := parseKey(f.Meta)
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.admitCopy(c, f, b)
	if s == wire.StatusOK && !ok {
		s = wire.StatusInvalid
	}
	if s == wire.StatusOK {
		g.dropCopy()
		if err := g.st.DeleteObject(key); err != nil {
			s = statusOf(err)
		}
	}
	g.deny(c, f, s, nil, b)
}

// syncEnd makes everything durable and takes the mark off: what we hold is a prefix again, as long as our own stream goes.
func (g *group) syncEnd(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var m wire.SyncEnd
	err := m.Parse(f.Meta)
	g.mu.Lock()
	s := g.admit(f, b)
	if s == wire.StatusOK && g.syncing && c != g.syncConn {
		s = wire.StatusGap
	}
	store, st, last := g.store, g.st, g.last
	if s == wire.StatusOK && (err != nil || g.last < m.Last.LSN) {
		s = wire.StatusGap
	}
	if s != wire.StatusOK {
		g.deny(c, f, s, nil, b)
		g.mu.Unlock()
		return
	}
	syncing := g.syncing
	g.mu.Unlock()
	h := f.Header
	h.Kind |= wire.KindAnswer
	if syncing {
		if err := store.Commit(); err != nil {
			g.e.diskFailed(err)
			return
		}
		g.e.wg.Go(func() { g.endSyncing(c, h, st, &m) })
		return
	}
	b.Sync(disk{store, g.e}, &syncedFor{g, c, h, store, last})
}

// endSyncing waits for the disk, takes the mark off for good and tells the primary. Nobody begins another resync meanwhile.
func (g *group) endSyncing(c *wire.Conn, h wire.Header, st *objstore.Group, m *wire.SyncEnd) {
	g.mu.Lock()
	ok := g.fence == h.Term && g.syncing && g.st == st && !g.ending
	g.ending = g.ending || ok
	var err error
	if ok {
		err = st.SetTermStarts(mergeTerms(m.Terms, st.TermStarts()))
	}
	g.mu.Unlock()
	if ok {
		if err == nil {
			err = st.EndSyncing(objstore.Number(m.Last))
		}
		g.mu.Lock()
		g.ending = false
		if err == nil {
			g.syncing, g.lost = false, false
		}
		g.mu.Unlock()
	}
	switch {
	case err != nil:
		h.Status = statusOf(err)
		g.e.log.Error("end a resync", "group", g.id, "error", err)
	case !ok:
		h.Status = wire.StatusOldTerm
	}
	c.Send(&h, nil, nil, nil)
	c.Flush()
}

// mergeTerms is the primary's history of terms and, beyond it, what our own stream began since: both exact, as lastCommon needs them.
func mergeTerms(theirs []wire.Number, ours []objstore.Number) []objstore.Number {
	var out []objstore.Number
	for _, n := range theirs {
		out = append(out, objstore.Number(n))
	}
	newest := uint64(0)
	if len(out) > 0 {
		newest = out[len(out)-1].Term
	}
	for _, n := range ours {
		if n.Term > newest {
			out = append(out, n)
		}
	}
	return out
}
