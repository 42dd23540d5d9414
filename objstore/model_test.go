package objstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// The model: what a store must hold after a prefix of what was done to it.

type mBlock struct {
	state State
	seed  uint64
}

type mVersion struct {
	gen    uint64
	blocks map[int]mBlock
}

type mObject struct {
	version Number
	vids    map[Vid]mVersion
}

// mGroup is never changed once it is in a history.
type mGroup struct {
	last    Number
	syncing bool
	anyNext bool
	objects map[Key]*mObject
}

func (g *mGroup) clone() *mGroup {
	c := *g
	c.objects = maps.Clone(g.objects)
	return &c
}

// change returns a copy of an object that may be changed.
func (g *mGroup) change(key Key) *mObject {
	o := &mObject{vids: map[Vid]mVersion{}}
	if old := g.objects[key]; old != nil {
		o.version = old.version
		for vid, v := range old.vids {
			o.vids[vid] = mVersion{v.gen, maps.Clone(v.blocks)}
		}
	}
	g.objects[key] = o
	return o
}

func (g *mGroup) apply(e *Entry, seeds []uint64) *mGroup {
	n := g.clone()
	n.last, n.anyNext = e.Number, false
	old := g.objects[e.Key]
	has := false
	if old != nil {
		_, has = old.vids[e.Vid]
	}
	if e.Kind == KindNoop || !has && !e.Kind.creates() {
		return n
	}
	o := n.change(e.Key)
	v, ok := o.vids[e.Vid]
	if !ok {
		v = mVersion{e.Gen, map[int]mBlock{}}
		o.vids[e.Vid] = v
	}
	o.version = e.Number
	for i := range int(e.Count) {
		b := int(e.First) + i
		switch e.Kind {
		case KindWrite:
			v.blocks[b] = mBlock{Present, seeds[i]}
		case KindZero:
			v.blocks[b] = mBlock{state: Zero}
		case KindBad:
			v.blocks[b] = mBlock{state: Bad}
		default:
			delete(v.blocks, b)
		}
	}
	switch e.Kind {
	case KindMerge:
		into, ok := o.vids[e.Into]
		if !ok {
			into = mVersion{e.IntoGen, map[int]mBlock{}}
		}
		for b, m := range v.blocks {
			if _, ok := into.blocks[b]; !ok {
				into.blocks[b] = m
			}
		}
		o.vids[e.Into] = into
		delete(o.vids, e.Vid)
	case KindDelete:
		delete(o.vids, e.Vid)
	}
	if len(o.vids) == 0 {
		delete(n.objects, e.Key)
	}
	return n
}

func (o *mObject) unit(key Key) *Unit {
	u := &Unit{Key: key, Version: o.version}
	for _, vid := range slices.Sorted(maps.Keys(o.vids)) {
		v := o.vids[vid]
		uv := UnitVersion{Vid: vid, Gen: v.gen}
		for _, b := range slices.Sorted(maps.Keys(v.blocks)) {
			m := v.blocks[b]
			ub := UnitBlock{Block: uint16(b), State: m.state}
			if m.state == Present {
				ub.CRC = Checksum(pattern(m.seed))
			}
			uv.Blocks = append(uv.Blocks, ub)
		}
		u.Versions = append(u.Versions, uv)
	}
	return u
}

func pattern(seed uint64) []byte {
	b := make([]byte, BlockSize)
	for at := 0; at < len(b); at += 16 {
		binary.LittleEndian.PutUint64(b[at:], seed)
		binary.LittleEndian.PutUint64(b[at+8:], seed*uint64(at+1)^uint64(at))
	}
	return b
}

var errModel = errors.New("model")

// history is all states a group went through since the last one that is sure,
// which is the first.
type history []*mGroup

func (h history) top() *mGroup { return h[len(h)-1] }

// world is a store on a simulated disk beside its model.
type world struct {
	cfg   Config
	fs    *simfs.FS
	s     *Store
	rng   *rand.Rand
	seeds uint64
	h     map[GroupID]history
	trace []string
	big   bool // wide block ranges and large writes more often
	mood  mood

	entries, cuts, lives int  // done so far
	early                bool // the first cut came before the end of its steps
	long                 bool // a run that may have cuts nobody asked for
}

// mood is what a run does more often than others: runs that differ find more
// than runs that are all alike. Each is out of a thousand steps; the rest are
// entries.
type mood struct {
	commit, sync, checkpoint, resync, drop, close, kill, scrub, read int

	deletes int // entries out of a hundred that take a whole version away
	vids    int // that there are
}

var moods = []mood{
	{50, 80, 30, 25, 5, 5, 5, 5, 20, 10, 4},
	{50, 80, 30, 10, 5, 15, 50, 5, 10, 10, 4},  // many lives
	{30, 50, 60, 10, 15, 5, 15, 10, 10, 60, 1}, // objects come and go
	{30, 8, 60, 25, 5, 5, 5, 10, 20, 10, 4},    // little is synced
	{30, 150, 5, 10, 2, 2, 10, 2, 10, 5, 4},    // little is checkpointed
}

const (
	worldGroups = 2
	worldKeys   = 3
	worldVids   = 4
)

func simConfig(fs *simfs.FS) Config {
	return Config{
		Dir: "/", FS: fs, Logger: modelLog(), SegmentBytes: 256 << 10, JournalBytesMax: 1 << 20,
		LargeWriteBytes: 4 * BlockSize, CheckpointInterval: time.Hour, ReserveBytes: -1, HangTimeout: -1, ScrubBytesPerSecond: -1,
		TableCacheBytes: 4 * tableCost, OpenFilesMax: 2,
	}
}

func newWorld(seed uint64) (*world, error) { return newWorldWith(seed, func(*Config) {}) }

func newWorldWith(seed uint64, change func(*Config)) (*world, error) {
	w := &world{fs: simfs.New(seed), rng: rand.New(rand.NewPCG(seed, 2)), h: map[GroupID]history{}}
	w.cfg = simConfig(w.fs)
	change(&w.cfg)
	w.big = seed%7 == 0
	w.mood = moods[seed%uint64(len(moods))]
	if err := Create(w.cfg, testIdentity); err != nil {
		return nil, err
	}
	for g := range GroupID(worldGroups) {
		w.h[g] = history{&mGroup{objects: map[Key]*mObject{}}}
	}
	var err error
	w.s, err = Open(w.cfg)
	return w, err
}

// settled says that all that was done until now is durable.
func (w *world) settled() {
	for g, h := range w.h {
		w.h[g] = history{h.top()}
	}
}

func (w *world) note(format string, args ...any) {
	if len(w.trace) < 5000 {
		w.trace = append(w.trace, fmt.Sprintf(format, args...))
	}
}

// step does one random thing.
func (w *world) step() error {
	gid := GroupID(w.rng.IntN(worldGroups))
	m := &w.mood
	p := w.rng.IntN(1000)
	is := func(share int) bool {
		p -= share
		return p < 0
	}
	switch {
	case is(m.commit):
		w.note("commit")
		return w.s.Commit()
	case is(m.sync):
		w.note("sync")
		done := make(chan error, 1)
		if w.rng.IntN(2) == 0 {
			w.s.Sync(func(err error) { done <- err })
		} else {
			w.s.SyncHere(func(err error) { done <- err })
		}
		if err := <-done; err != nil {
			return err
		}
		w.settled()
	case is(m.checkpoint):
		w.note("checkpoint")
		if err := w.s.Checkpoint(); err != nil {
			return err
		}
		w.settled()
	case is(m.resync):
		return w.resync(gid)
	case is(m.drop):
		w.note("drop %d", gid)
		w.h[gid] = append(w.h[gid], &mGroup{objects: map[Key]*mObject{}})
		return w.s.DropGroup(gid)
	case is(m.close):
		w.note("close")
		if err := w.s.Close(); err != nil {
			return err
		}
		w.settled()
		var err error
		w.s, err = Open(w.cfg)
		if err != nil {
			return fmt.Errorf("open after close: %w", err)
		}
		return w.compare()
	case is(m.kill):
		w.note("kill")
		abandonStore(w.s)
		err := w.reopen()
		if err == nil && !w.fs.Hooked() && w.long && w.rng.IntN(3) == 0 { // and soon the power goes as well
			w.fs.CutAtSync(1 + w.rng.IntN(8))
		}
		return err
	case is(m.scrub):
		w.note("scrub %d", gid)
		return w.scrub(gid)
	case is(m.read):
		return w.read(gid)
	default:
		return w.entry(gid)
	}
	return nil
}

// scrub has the scrub look at a group at once.
func (w *world) scrub(gid GroupID) error {
	g := w.s.Group(gid)
	w.s.removeOrphans(gid, false)
	w.s.removeLostGroups()
	bad := w.s.m.scrubBad.Load()
	for o := g.objectFrom(0); o != nil; o = g.objectFrom(o.key + 1) {
		w.s.scrubObject(o)
	}
	known := int64(0) // it tells of what is marked bad, too
	for _, o := range w.h[gid].top().objects {
		for _, v := range o.vids {
			for _, b := range v.blocks {
				if b.state == Bad {
					known++
				}
			}
		}
	}
	if found := w.s.m.scrubBad.Load() - bad; found > known && !w.fs.Off() && !w.fs.Hooked() {
		return fmt.Errorf("scrub found %d bad blocks, %d are known: %w", found, known, errModel)
	}
	return nil
}

// read reads some blocks through a chain of versions.
func (w *world) read(gid GroupID) error {
	key, first := MakeKey(1, uint32(w.rng.IntN(worldKeys))), w.rng.IntN(20)
	var chain []VidGen
	for vid := Vid(worldVids); vid > 0; vid-- {
		if w.rng.IntN(3) > 0 || vid == 1 {
			chain = append(chain, VidGen{vid, uint64(vid) * 10})
		}
	}
	w.note("read %d %v %v from %d", gid, key, chain, first)
	buf := make([]byte, 4*BlockSize)
	err := w.s.Group(gid).Read(key, chain, first, 4, buf, nil, false)
	o := w.h[gid].top().objects[key]
	for i := 0; i < 4 && o != nil; i++ {
		b := mBlock{}
		for k := 0; k < len(chain) && b.state == Absent; k++ {
			b = o.vids[chain[k].Vid].blocks[first+i]
		}
		var bad *BlockError
		if b.state == Bad && errors.As(err, &bad) {
			return nil
		}
		got := buf[i*BlockSize : (i+1)*BlockSize]
		if b.state == Bad || err == nil && b.state == Present && !bytes.Equal(got, pattern(b.seed)) || err == nil && b.state != Present && !allZero(got) {
			return fmt.Errorf("group %d object %v block %d: wrong bytes, %v: %w", gid, key, first+i, err, errModel)
		}
	}
	return err
}

func (w *world) randomEntry() (e Entry, seeds []uint64) {
	e.Kind = EntryKind([]int{1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 4, 7, 0}[w.rng.IntN(14)])
	if w.rng.IntN(100) < w.mood.deletes {
		e.Kind = EntryKind([]int{5, 5, 6}[w.rng.IntN(3)])
	}
	if e.Kind == KindNoop {
		return e, nil
	}
	e.Key = MakeKey(1, uint32(w.rng.IntN(worldKeys)))
	e.Vid = 1 + Vid(w.rng.IntN(w.mood.vids))
	e.Gen = uint64(e.Vid) * 10
	switch e.Kind {
	case KindMerge:
		e.Into = 1 + e.Vid%max(2, Vid(w.mood.vids))
		e.IntoGen = uint64(e.Into) * 10
		return e, nil
	case KindDelete:
		return e, nil
	}
	e.First, e.Count = uint16(w.rng.IntN(16)), uint16(1+w.rng.IntN(3))
	if w.rng.IntN(8) == 0 {
		e.Count = uint16(4 + w.rng.IntN(9))
	}
	if w.big && w.rng.IntN(8) == 0 {
		e.First, e.Count = uint16(w.rng.IntN(800)), uint16(1+w.rng.IntN(200))
	}
	if e.Kind == KindWrite {
		for range e.Count {
			w.seeds++
			seeds = append(seeds, w.seeds)
			e.Data = append(e.Data, pattern(w.seeds)...)
		}
		e.SumData()
	}
	return e, seeds
}

func (w *world) entry(gid GroupID) error {
	g := w.s.Group(gid)
	top := w.h[gid].top()
	e, seeds := w.randomEntry()
	e.Number = Number{max(1, top.last.Term), top.last.LSN + 1}
	if w.rng.IntN(50) == 0 {
		e.Number.Term++
	}
	if top.anyNext {
		e.Number.LSN += uint64(w.rng.IntN(5))
	}
	if o := top.objects[e.Key]; o != nil && e.Kind != KindNoop && w.rng.IntN(40) == 0 {
		if _, ok := o.vids[e.Vid]; ok { // of a vid's other life
			e.Gen++
			if err := g.Stage(&e); !errors.Is(err, ErrGeneration) {
				return fmt.Errorf("%v of another generation: %w: %v", e.Kind, errModel, err)
			}
			return nil
		}
	}
	w.note("group %d %v %v %v vid %d into %d blocks %d+%d", gid, e.Number, e.Kind, e.Key, e.Vid, e.Into, e.First, e.Count)
	w.h[gid] = append(w.h[gid], top.apply(&e, seeds))
	w.entries++
	err := g.Stage(&e)
	w.undo(gid, err)
	return err
}

// undo takes back the newest state if what led to it failed and the store
// goes on: then nothing was done.
func (w *world) undo(gid GroupID, err error) {
	if h := w.h[gid]; err != nil && w.s.Err() == nil {
		w.h[gid] = h[:len(h)-1]
	}
}

// resync does what a resync does to its target, with made up contents.
func (w *world) resync(gid GroupID) error {
	g := w.s.Group(gid)
	push := func(change func(m *mGroup)) {
		n := w.h[gid].top().clone()
		change(n)
		w.h[gid] = append(w.h[gid], n)
	}
	w.note("resync %d", gid)
	push(func(m *mGroup) { m.syncing, m.anyNext = true, true })
	if err := g.SetSyncing(); err != nil {
		return err
	}
	for range w.rng.IntN(4) {
		if err := w.copyObject(g, push); err != nil {
			return err
		}
		for range w.rng.IntN(3) {
			if err := w.entry(gid); err != nil {
				return err
			}
		}
	}
	if w.rng.IntN(3) == 0 {
		return nil // interrupted
	}
	last := Number{w.h[gid].top().last.Term + 1, uint64(w.rng.IntN(1000))}
	w.note("end resync %d at %v", gid, last)
	push(func(m *mGroup) {
		if m.anyNext || m.last.LSN <= last.LSN {
			m.last = last
		}
		m.syncing, m.anyNext = false, false
	})
	if err := g.EndSyncing(last); err != nil {
		return err
	}
	w.settled()
	return nil
}

func (w *world) copyObject(g *Group, push func(func(*mGroup))) error {
	key := MakeKey(1, uint32(w.rng.IntN(worldKeys)))
	if w.rng.IntN(4) == 0 {
		w.note("delete object %v", key)
		push(func(m *mGroup) { delete(m.objects, key) })
		err := g.DeleteObject(key)
		w.undo(g.id, err)
		return err
	}
	have, err := g.Unit(key)
	if err != nil {
		return err
	}
	kept := map[Vid]map[int]mBlock{}
	if have != nil {
		for vid, v := range w.h[g.id].top().objects[key].vids {
			kept[vid] = v.blocks
		}
	}
	c, err := g.NewCopy(key)
	if err != nil {
		return err
	}
	o := &mObject{version: Number{9, uint64(w.rng.IntN(500))}, vids: map[Vid]mVersion{}}
	for vid := Vid(1); vid <= Vid(w.mood.vids); vid++ {
		if w.rng.IntN(2) == 0 && vid > 1 {
			continue
		}
		v := mVersion{uint64(vid) * 10, map[int]mBlock{}}
		for range w.rng.IntN(12) {
			b := w.rng.IntN(24)
			if k, ok := kept[vid][b]; ok && k.state == Present && w.rng.IntN(2) == 0 {
				v.blocks[b] = k
				c.Keep(vid, b)
				continue
			}
			w.seeds++
			v.blocks[b] = mBlock{State(1 + w.rng.IntN(3)), w.seeds}
			if m := v.blocks[b]; m.state == Present {
				if err := c.Put(vid, b, []uint32{Checksum(pattern(m.seed))}, pattern(m.seed)); err != nil {
					c.Abort()
					return err
				}
			} else {
				v.blocks[b] = mBlock{state: m.state}
			}
		}
		o.vids[vid] = v
	}
	if w.rng.IntN(2) == 0 {
		if err := c.Sync(); err != nil {
			c.Abort()
			return err
		}
	}
	if w.rng.IntN(6) == 0 {
		w.note("abort copy %v", key)
		c.Abort()
		return nil
	}
	w.note("install %v", key)
	push(func(m *mGroup) { m.objects[key] = o })
	err = c.Install(o.unit(key))
	w.undo(g.id, err)
	if err != nil {
		c.Abort()
	}
	return err
}

// reopen opens what a crash left and finds the prefix each group is at.
func (w *world) reopen() error {
	var err error
	w.cfg.FS = w.fs
	w.lives++
	if w.s, err = Open(w.cfg); err != nil {
		return fmt.Errorf("open after crash: %w", err)
	}
	for gid, h := range w.h {
		if err := w.match(gid, h); err != nil {
			abandonStore(w.s) // it is not known what it holds
			return err
		}
	}
	return verifyStore(w.s)
}

func (w *world) match(gid GroupID, h history) error {
	var first error
	for i := len(h) - 1; i >= 0; i-- {
		err := w.same(gid, h[i])
		if err == nil {
			w.h[gid] = history{h[i]}
			return nil
		}
		if first == nil || h[i].last == w.s.Group(gid).Last() {
			first = err
		}
	}
	return fmt.Errorf("group %d at %v is at none of %d states from %v to %v: %w",
		gid, w.s.Group(gid).Last(), len(h), h[0].last, h.top().last, first)
}

// same compares a group with a state, and reads every block of it.
func (w *world) same(gid GroupID, m *mGroup) error {
	g := w.s.Group(gid)
	if g.Last() != m.last || g.Syncing() != m.syncing || g.anyNext != m.anyNext {
		return fmt.Errorf("last %v syncing %v, want %v %v", g.Last(), g.Syncing(), m.last, m.syncing)
	}
	n := 0
	g.Objects(0, func(i ObjectInfo) bool { n++; return true })
	if n != len(m.objects) {
		return fmt.Errorf("%d objects, want %d", n, len(m.objects))
	}
	usage := map[Vid]Usage{}
	for key, o := range m.objects {
		if err := w.sameObject(g, key, o, usage); err != nil {
			return fmt.Errorf("object %v: %w", key, err)
		}
	}
	for vid := Vid(1); vid <= worldVids; vid++ {
		want := usage[vid]
		got := g.Used(vid)
		got.Gen = 0
		if got != want {
			return fmt.Errorf("usage of vid %d is %+v, want %+v", vid, got, want)
		}
	}
	return nil
}

func (w *world) sameObject(g *Group, key Key, o *mObject, usage map[Vid]Usage) error {
	u, err := g.Unit(key)
	if err != nil || u == nil {
		return fmt.Errorf("unit %v: %w", u, err)
	}
	if want := o.unit(key); !bytes.Equal(u.Append(nil), want.Append(nil)) {
		return fmt.Errorf("unit is\n%v, want\n%v", u, want)
	}
	buf := make([]byte, BlockSize)
	for vid, v := range o.vids {
		us := usage[vid]
		us.Objects++
		for b, m := range v.blocks {
			switch m.state {
			case Present:
				us.Present++
				if err := g.ReadSlotOf(key, vid, b, buf); err != nil {
					return err
				}
				if !bytes.Equal(buf, pattern(m.seed)) {
					return fmt.Errorf("vid %d block %d: wrong bytes", vid, b)
				}
			case Zero:
				us.Zero++
			case Bad:
				us.Bad++
			}
		}
		usage[vid] = us
	}
	return nil
}

// compare checks the running store against the newest state.
func (w *world) compare() error {
	for gid, h := range w.h {
		if err := w.same(gid, h.top()); err != nil {
			return fmt.Errorf("group %d: %w", gid, err)
		}
	}
	return verifyStore(w.s)
}

// powerCut cuts the power, if it is not off yet, and reopens.
func (w *world) powerCut() error {
	image := w.fs.Cut()
	if w.s != nil && !w.s.closing.Load() {
		abandonStore(w.s)
	}
	w.fs = image
	w.cuts++
	w.note("power cut")
	if w.rng.IntN(4) == 0 {
		if err := w.sound(); err != nil {
			return err
		}
	}
	for w.rng.IntN(3) == 0 { // and again, while the store is being opened
		w.fs.CutAtSync(1 + w.rng.IntN(12))
		err := w.reopen()
		if !w.fs.Off() {
			w.fs.CutAtSync(1 << 40)
			return err
		}
		if w.s != nil && !w.s.closing.Load() {
			abandonStore(w.s)
		}
		w.fs = w.fs.Cut()
		w.cuts++
		w.note("power cut at open")
	}
	return w.reopen()
}

// sound has Check look at what a cut left: it must not find anything that the
// model did not do.
func (w *world) sound() error {
	cfg := w.cfg
	cfg.FS = w.fs
	var first error
	_, err := Check(cfg, func(p Problem) {
		if first == nil && !strings.Contains(p.What, "marked bad") {
			first = fmt.Errorf("check after the cut: %v: %w", p, errModel)
		}
	})
	return errors.Join(err, first)
}

// runWorld runs steps with a cut at the given sync, then some more with
// another cut, and so on.
func runWorld(seed uint64, steps int, cuts ...int) (w *world, err error) {
	w, err = newWorld(seed)
	if err != nil {
		return w, err
	}
	defer func() {
		if w.s != nil && !w.s.closing.Load() {
			abandonStore(w.s)
		}
	}()
	w.long = steps >= 100
	for i, k := range cuts {
		if k > 0 {
			w.fs.CutAtSync(k)
		}
		for range steps {
			if err = w.step(); err != nil {
				break
			}
		}
		if err != nil && (!w.fs.Off() || errors.Is(err, errModel) && !errors.Is(w.s.Err(), ErrDiskFailed)) {
			return w, err
		}
		if err == nil {
			if err := w.compare(); err != nil && !w.fs.Off() {
				return w, fmt.Errorf("before the cut: %w", err)
			}
		}
		w.early = w.early || i == 0 && w.fs.Off()
		if err := w.powerCut(); err != nil {
			return w, err
		}
	}
	return w, nil
}

var (
	modelSeeds = flag.Int("model.seeds", 60, "seeds of the model test")
	modelFrom  = flag.Uint64("model.from", 1, "first seed")
	modelSteps = flag.Int("model.steps", 150, "steps between cuts")
)

// TestModelCuts runs random histories with a power cut at the k-th sync, for
// every k of short ones and random ones of longer ones (rules 1 to 11, 15 to
// 17).
func TestModelCuts(t *testing.T) {
	var mu sync.Mutex // guards what follows
	var entries, cuts, lives int
	start := time.Now()
	eachOf(*modelSeeds, func(i int) {
		seed := *modelFrom + uint64(i)
		if *modelVerbose {
			fmt.Println("seed", seed)
		}
		r := rand.New(rand.NewPCG(seed, 3))
		w, err := runWorld(seed, *modelSteps, 1+r.IntN(60), 1+r.IntN(60), 0)
		mu.Lock()
		defer mu.Unlock()
		if err != nil && !t.Failed() {
			for _, l := range w.trace[max(0, len(w.trace)-40):] {
				t.Log(l)
			}
			t.Errorf("seed %d: %v", seed, err)
		}
		entries, cuts, lives = entries+w.entries, cuts+w.cuts, lives+w.lives
	})
	t.Logf("%d entries, %d power cuts, %d lives in %v", entries, cuts, lives, time.Since(start).Round(time.Second))
}

var modelEvery = flag.Int("model.every", 3, "short runs that are cut at each of their syncs")

// TestModelEveryCut runs short histories with a cut after the k-th sync for
// every k there is.
func TestModelEveryCut(t *testing.T) {
	var cuts atomic.Int64
	eachOf(*modelEvery, func(i int) {
		seed := 1000 + uint64(i)
		for k, hit := 1, true; hit && !t.Failed(); k++ {
			w, err := runWorld(seed, 40, k, 10)
			if err != nil {
				for _, l := range w.trace[max(0, len(w.trace)-40):] {
					t.Log(l)
				}
				t.Errorf("seed %d cut %d: %v", seed, k, err)
			}
			hit = w.early
			cuts.Add(1)
		}
	})
	t.Logf("%d cut points", cuts.Load())
}

var modelVerbose = flag.Bool("model.verbose", false, "log what the store says")

func modelLog() *slog.Logger {
	if *modelVerbose {
		return slog.New(slog.NewTextHandler(os.Stdout, nil))
	}
	return quiet()
}
