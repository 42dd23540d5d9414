package objstore

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func testConfig(t testing.TB) Config {
	log := quiet()
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return Config{Dir: t.TempDir(), Logger: log, SegmentBytes: 1 << 20, JournalBytesMax: 8 << 20, ReserveBytes: 1 << 20}
}

var testIdentity = Identity{Cluster: "c0ffee00-1111", Disk: "d15c"}

func openNew(t testing.TB, cfg Config) *Store {
	t.Helper()
	if err := Create(cfg, testIdentity); err != nil {
		t.Fatal(err)
	}
	return reopen(t, cfg)
}

func reopen(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// abandonStore lets go of a store as a killed process would.
// TestMain lets the garbage of thousands of small worlds wait: collecting it was a third of what the tests cost.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(1 << 30)
	os.Exit(m.Run())
}

// eachOf calls f for 0 to n-1, on all processors.
func eachOf(n int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

func abandonStore(s *Store) {
	err := errors.New("killed")
	s.fail("kill", err)
	s.closing.Store(true)
	close(s.stop)
	s.wg.Wait()
	s.checkpointLock.Lock()
	s.closeFiles()
	s.checkpointLock.Unlock()
	s.lock.Close()
}

func fill(seed uint64, blocks int) []byte {
	b := make([]byte, blocks*BlockSize)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// stage gives an entry the group's next number.
func stage(t testing.TB, g *Group, e Entry) Entry {
	t.Helper()
	e.Number = Number{Term: max(1, g.Last().Term), LSN: g.Last().LSN + 1}
	if e.Kind == KindWrite {
		e.Count = uint16(len(e.Data) / BlockSize)
		e.SumData()
	}
	if err := g.Stage(&e); err != nil {
		t.Fatal(err)
	}
	return e
}

func wantRead(t testing.TB, g *Group, key Key, chain []VidGen, first int, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	crcs := make([]uint32, len(want)/BlockSize)
	if err := g.Read(key, chain, first, len(want)/BlockSize, got, crcs, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("object %v blocks from %d: wrong bytes", key, first)
	}
	for i := range crcs {
		if crcs[i] != Checksum(want[i*BlockSize:(i+1)*BlockSize]) {
			t.Fatalf("block %d: wrong checksum", first+i)
		}
	}
}

// A block that is zeroed between its look-up and its read is told with the checksum of zeros.
func TestRule12ZeroedWhileItIsRead(t *testing.T) {
	s := openNew(t, testConfig(t))
	defer s.Close()
	g := s.Group(1)
	key, chain := MakeKey(5, 7), []VidGen{{5, 100}}
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, First: 3, Data: fill(1, 2)})
	p := piece{g: g, key: key, chain: chain, first: 3, count: 2}
	if err := p.lookup(); err != nil {
		t.Fatal(err)
	}
	p.cells[1].sum++ // as where the journal's place has been used again
	stage(t, g, Entry{Kind: KindZero, Key: key, Vid: 5, Gen: 100, First: 4, Count: 1})
	got, crcs := make([]byte, 2*BlockSize), make([]uint32, 2)
	if err := p.fill(got, crcs); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, BlockSize)
	if !bytes.Equal(got[BlockSize:], zeros) || crcs[1] != Checksum(zeros) || crcs[0] != Checksum(got[:BlockSize]) {
		t.Fatalf("checksums %08x, zeros: %v", crcs, bytes.Equal(got[BlockSize:], zeros))
	}
}

// A resync's source reads neighbours together, and only what is a version's own.
func TestReadSlotsOf(t *testing.T) {
	s := openNew(t, testConfig(t))
	defer s.Close()
	g := s.Group(1)
	key, data := MakeKey(5, 7), fill(1, 40)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 1, First: 3, Data: data})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 6, Gen: 2, First: 10, Data: data[:2*BlockSize]}) // a child's, and in the journal
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 1, First: 20, Data: data[:BlockSize]})
	copy(data[17*BlockSize:], data[:BlockSize])
	got, crcs := make([]byte, len(data)), make([]uint32, 40)
	if err := g.ReadSlotsOf(key, 5, 3, 40, got, crcs); err != nil {
		t.Fatal(err)
	}
	for i, crc := range crcs {
		if crc != Checksum(data[i*BlockSize:][:BlockSize]) {
			t.Fatalf("block %d: wrong checksum", 3+i)
		}
	}
	if !bytes.Equal(got, data) {
		t.Fatal("wrong bytes")
	}
	for _, c := range []struct {
		vid          Vid
		first, count int
	}{{5, 2, 2}, {5, 42, 2}, {6, 9, 2}, {6, 11, 2}, {7, 3, 1}} {
		if err := g.ReadSlotsOf(key, c.vid, c.first, c.count, got, crcs); !errors.Is(err, ErrStale) {
			t.Errorf("%+v: %v, want ErrStale", c, err)
		}
	}
	for _, c := range [][2]int{{-1, 1}, {0, BlocksPerObject + 1}, {BlocksPerObject, 1}, {3, -1}} {
		if err := g.ReadSlotsOf(key, 5, c[0], c[1], got, crcs); !errors.Is(err, ErrFormat) {
			t.Errorf("%v: %v, want ErrFormat", c, err)
		}
	}
}

func TestWriteReadReopen(t *testing.T) {
	for _, blocks := range []int{1, 3, 16, 200} {
		cfg := testConfig(t)
		s := openNew(t, cfg)
		key, chain := MakeKey(5, 7), []VidGen{{5, 100}}
		g := s.Group(3)
		data := fill(1, blocks)
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, First: 10, Data: data})
		wantRead(t, g, key, chain, 10, data)
		if err := s.SyncWait(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, g, key, chain, 10, data)
		abandonStore(s)

		s = reopen(t, cfg)
		g = s.Group(3)
		if g.Last() != (Number{1, 1}) {
			t.Fatalf("last is %v", g.Last())
		}
		wantRead(t, g, key, chain, 10, data)
		wantRead(t, g, key, chain, 9, make([]byte, BlockSize))
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		more := fill(2, blocks)
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, First: 11, Data: more})
		wantRead(t, g, key, chain, 11, more)
		wantRead(t, g, key, chain, 10, data[:BlockSize])
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, g, key, chain, 11, more)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, cfg)
		g = s.Group(3)
		wantRead(t, g, key, chain, 11, more)
		if u := g.Used(5); u.Present != int64(blocks)+1 || u.Objects != 1 {
			t.Fatalf("usage %+v", u)
		}
	}
}

func TestVersionsMergeDelete(t *testing.T) {
	cfg := testConfig(t)
	cfg.ScrubBytesPerSecond = -1 // it would hold an object that is to go
	s := openNew(t, cfg)
	g, key := s.Group(1), MakeKey(1, 0)
	a, b, c := fill(1, 4), fill(2, 2), fill(3, 1)
	parent, child := []VidGen{{1, 1}}, []VidGen{{2, 2}, {1, 1}}
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: 0, Data: a})
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 2, Gen: 2, First: 1, Data: b})
	stage(t, g, Entry{Kind: KindZero, Key: key, Vid: 2, Gen: 2, First: 3, Count: 1})
	seen := append(append(bytes.Clone(a[:BlockSize]), b...), make([]byte, BlockSize)...)
	check := func() {
		t.Helper()
		wantRead(t, g, key, child, 0, seen)
	}
	check()
	wantRead(t, g, key, parent, 0, a)
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	check()
	wantRead(t, g, key, parent, 0, a)
	e := Entry{Kind: KindWrite, Key: key, Vid: 2, Gen: 9, First: 0, Count: 1, Data: c, Number: Number{1, 4}}
	e.SumData()
	if err := g.Stage(&e); !errors.Is(err, ErrGeneration) {
		t.Fatalf("wrong generation: %v", err)
	}
	stage(t, g, Entry{Kind: KindMerge, Key: key, Vid: 1, Gen: 1, Into: 2, IntoGen: 2})
	alone := []VidGen{{2, 2}}
	wantRead(t, g, key, alone, 0, seen)
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	abandonStore(s)
	s = reopen(t, cfg)
	g = s.Group(1)
	wantRead(t, g, key, alone, 0, seen)
	stage(t, g, Entry{Kind: KindDelete, Key: key, Vid: 2, Gen: 2})
	wantRead(t, g, key, alone, 0, make([]byte, 4*BlockSize))
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	n := 0
	g.Objects(0, func(ObjectInfo) bool { n++; return true })
	if n != 0 {
		t.Fatalf("%d objects left", n)
	}
	if m := s.Metrics(); m.FilesRemoved != 1 || m.ObjectsDirty != 0 || m.BlocksUnplaced != 0 {
		t.Fatalf("%+v", m)
	}
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 7, Gen: 3, First: 0, Data: fill(9, 20)})
	wantRead(t, g, key, []VidGen{{7, 3}}, 0, fill(9, 20))
}

// TestCopyWritesRuns: an object that was overwritten here and there has its free slots one by one. What a resync brings goes to the disk in long runs all the same; where space is
// scarce, into those slots, so that the file does not grow.
func TestCopyWritesRuns(t *testing.T) {
	for _, scarce := range []bool{false, true} {
		sim := simfs.New(1)
		cfg := simConfig(sim)
		s := openNew(t, cfg)
		g, key := s.Group(1), MakeKey(1, 3)
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: fill(1, 256)})
		for b := 0; b < 256; b += 2 {
			stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: uint16(b), Data: fill(uint64(b), 1)})
		}
		for range 2 { // the second frees what was overwritten
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			stage(t, g, Entry{Kind: KindZero, Key: MakeKey(1, 4), Vid: 1, Gen: 1, Count: 1})
		}
		g.mu.Lock()
		o := g.objects[key]
		name := s.objectName(o)
		g.mu.Unlock()
		chunks := func() int {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(o.t.used)
		}
		if scarce {
			sim.SetCapacity(sim.Used()*4/3, 0) // near full is below a quarter here
			s.spaceChanged()
			if sp := s.Space(); !sp.NearFull || sp.Full {
				t.Fatalf("%+v", sp)
			}
			waitFor(t, func() bool { return s.spares.n.Load() == 0 }) // they are taken while they are given back
		}
		writes, before := 0, chunks()
		sim.Before(func(op, at string) error {
			if op == "write" && at == name {
				writes++
			}
			return nil
		})
		c, err := g.NewCopy(key)
		if err != nil {
			t.Fatal(err)
		}
		data := fill(5, 5)
		var crcs []uint32
		for i := range 5 {
			crcs = append(crcs, Checksum(data[i*BlockSize:][:BlockSize]))
		}
		for first := 0; first < 120; first += 6 { // fewer than the object has free slots
			if err := c.Put(1, first, crcs, data); err != nil {
				t.Fatal(err)
			}
		}
		var slots []uint32
		for _, p := range c.put {
			slots = append(slots, p.value())
		}
		slices.Sort(slots)
		c.Abort()
		if got := chunks(); scarce && got != before {
			t.Errorf("space is scarce: the file grew from %d chunks to %d", before, got)
		}
		if !scarce && (writes != 20 || slots[99]-slots[0] != 99) {
			t.Errorf("%d writes for twenty runs, to slots %v", writes, slots)
		}
		s.Close()
	}
}

func TestCopyInstall(t *testing.T) {
	cfgA, cfgB := testConfig(t), testConfig(t)
	a, b := openNew(t, cfgA), openNew(t, cfgB)
	ga, gb, key := a.Group(1), b.Group(1), MakeKey(1, 3)
	data := fill(1, 20)
	for _, g := range []*Group{ga, gb} {
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: 0, Data: data})
	}
	stage(t, ga, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, First: 3, Data: fill(2, 2)})
	stage(t, ga, Entry{Kind: KindZero, Key: key, Vid: 2, Gen: 5, First: 0, Count: 9})
	stage(t, gb, Entry{Kind: KindWrite, Key: key, Vid: 3, Gen: 1, First: 3, Data: fill(3, 2)})
	stage(t, gb, Entry{Kind: KindWrite, Key: MakeKey(1, 4), Vid: 3, Gen: 1, First: 3, Data: fill(3, 2)})

	if err := gb.SetSyncing(); err != nil {
		t.Fatal(err)
	}
	u, err := ga.Unit(key)
	if err != nil {
		t.Fatal(err)
	}
	enc := u.Append(nil)
	if u, err = ParseUnit(enc); err != nil {
		t.Fatal(err)
	}
	have, _ := gb.Unit(key)
	old := map[blockID]uint32{}
	for _, v := range have.Versions {
		for _, k := range v.Blocks {
			old[blockID{v.Vid, k.Block}] = k.CRC
		}
	}
	c, err := gb.NewCopy(key)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, BlockSize)
	for _, v := range u.Versions {
		for _, k := range v.Blocks {
			if k.State != Present {
				continue
			}
			if old[blockID{v.Vid, k.Block}] == k.CRC {
				c.Keep(v.Vid, int(k.Block))
				continue
			}
			if err := ga.ReadSlotOf(key, v.Vid, int(k.Block), buf); err != nil {
				t.Fatal(err)
			}
			if err := c.Put(v.Vid, int(k.Block), []uint32{k.CRC}, buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Install(u); err != nil {
		t.Fatal(err)
	}
	if err := gb.DeleteObject(MakeKey(1, 4)); err != nil {
		t.Fatal(err)
	}
	if err := gb.SetTermStarts(ga.TermStarts()); err != nil {
		t.Fatal(err)
	}
	if err := gb.EndSyncing(ga.Last()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		got, err := gb.Unit(key)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Append(nil), enc) {
			t.Fatal("units differ")
		}
		want := bytes.Clone(data)
		copy(want[3*BlockSize:], fill(2, 2))
		wantRead(t, gb, key, []VidGen{{1, 1}}, 0, want)
		if gb.Last() != ga.Last() || gb.Syncing() {
			t.Fatalf("last %v, syncing %v", gb.Last(), gb.Syncing())
		}
		n := 0
		gb.Objects(0, func(ObjectInfo) bool { n++; return true })
		if n != 1 {
			t.Fatalf("%d objects", n)
		}
		abandonStore(b)
		b = reopen(t, cfgB)
		gb = b.Group(1)
	}
}

func TestDropGroup(t *testing.T) {
	cfg := testConfig(t)
	s := openNew(t, cfg)
	key, chain := MakeKey(1, 0), []VidGen{{1, 1}}
	for round := range 4 {
		g := s.Group(1)
		wantRead(t, g, key, chain, 0, make([]byte, 30*BlockSize))
		if !g.Last().IsZero() {
			t.Fatal("not a new group")
		}
		data := fill(uint64(round), 30)
		stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 1, Gen: 1, Data: data})
		if round%2 == 0 {
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if !s.Holds(1) || s.Holds(2) {
			t.Fatal("what the store holds is another group")
		}
		if err := s.DropGroup(1); err != nil {
			t.Fatal(err)
		}
		if round == 2 {
			abandonStore(s)
			s = reopen(t, cfg)
			if len(s.Groups()) != 0 || s.Holds(1) {
				t.Fatal("group is back")
			}
		}
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if m := s.Metrics(); m.ObjectsDirty != 0 || m.BlocksUnplaced != 0 || m.FilesOpen != 0 {
		t.Fatalf("%+v", m)
	}
}

func TestManyWritesPastCheckpoints(t *testing.T) {
	cfg := testConfig(t)
	cfg.TableCacheBytes = 6 * tableCost
	cfg.OpenFilesMax = 4
	s := openNew(t, cfg)
	r := rand.New(rand.NewPCG(1, 2))
	const objects = 20
	type id struct {
		obj, block int
	}
	model := map[id]uint64{}
	chain := []VidGen{{1, 1}}
	check := func() {
		t.Helper()
		buf := make([]byte, BlockSize)
		for k, seed := range model {
			g := s.Group(GroupID(k.obj % 3))
			if err := g.Read(MakeKey(1, uint32(k.obj)), chain, k.block, 1, buf, nil, false); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf, fill(seed, 1)) {
				t.Fatalf("object %d block %d: wrong bytes", k.obj, k.block)
			}
		}
	}
	for i := range 6000 {
		obj, block := r.IntN(objects), r.IntN(200)
		n := 1
		if i%50 == 0 {
			n = 40
		}
		g := s.Group(GroupID(obj % 3))
		var data []byte
		for k := range n {
			seed := uint64(i*100 + k)
			data = append(data, fill(seed, 1)...)
			model[id{obj, block + k}] = seed
		}
		stage(t, g, Entry{Kind: KindWrite, Key: MakeKey(1, uint32(obj)), Vid: 1, Gen: 1, First: uint16(block), Data: data})
		if i%500 == 0 {
			if err := s.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check()
	m := s.Metrics()
	if m.Checkpoints < 3 {
		t.Fatalf("only %d checkpoints", m.Checkpoints)
	}
	t.Logf("%+v", m)
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	abandonStore(s)
	s = reopen(t, cfg)
	check()
	s.Close()
	s = reopen(t, cfg)
	check()
}
