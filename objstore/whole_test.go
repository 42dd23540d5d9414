package objstore

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// TestWrittenWholeModel: whatever small and large writes came before, a large one is told of all that lies page by page in the groups that it
// covers, and of nothing that is not its own.
func TestWrittenWholeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const chunks = 2
		tb := &tables{}
		tb.grow(chunks)
		var paged [chunks][BlocksPerObject]bool
		for range rapid.IntRange(1, 60).Draw(t, "writes") {
			k := rapid.IntRange(0, chunks-1).Draw(t, "chunk")
			n := rapid.IntRange(0, BlocksPerObject-1).Draw(t, "slot")
			most := rapid.SampledFrom([]int{1, 8, 40, BlocksPerObject}).Draw(t, "most")
			c := rapid.IntRange(1, min(most, BlocksPerObject-n)).Draw(t, "count")
			r := slotRun{dataSlot(k, n), uint32(c)}
			if rapid.Bool().Draw(t, "small") {
				tb.writtenSmall(r)
				for i := n; i < n+c; i++ {
					paged[k][i] = true
				}
				continue
			}
			for _, o := range tb.writtenWhole([]slotRun{r}, nil) {
				if o.n == 0 || o.slot < r.slot || o.slot+o.n > r.slot+r.n {
					t.Fatalf("writing %+v drops %+v", r, o)
				}
				for i := range o.n {
					ok, on, _ := slotPlace(o.slot + i)
					paged[ok][on] = false
				}
			}
			for i := (n + pageGroup - 1) / pageGroup * pageGroup; i < (n+c)/pageGroup*pageGroup; i++ {
				if paged[k][i] {
					t.Fatalf("writing %+v leaves slot %d of chunk %d page by page", r, i, k)
				}
			}
		}
	})
}

// countForgotten counts how often a part of a file is dropped from the page cache.
func countForgotten(sim *simfs.FS) *atomic.Int64 {
	n := new(atomic.Int64)
	sim.Before(func(op, name string) error {
		if op == "forget" {
			n.Add(1)
		}
		return nil
	})
	return n
}

// TestLargeWritesDropPagesOfSmallOnes: where large writes follow large ones nothing is dropped from the page cache; where they come to slots
// that small ones had, that is dropped once.
func TestLargeWritesDropPagesOfSmallOnes(t *testing.T) {
	sim := simfs.New(1)
	dropped := countForgotten(sim)
	s := openNew(t, simConfig(sim))
	g := s.Group(1)
	const blocks = 4 * pageGroup
	n := uint64(0)
	write := func(size int) (drops int64) {
		t.Helper()
		was := dropped.Load()
		for b := 0; b < blocks; b += size {
			n++
			stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, First: uint16(b), Data: fill(n, size)})
		}
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		return dropped.Load() - was
	}
	settled := func() {
		t.Helper()
		for i := range 4 { // what large writes have in turns
			if d := write(blocks); i >= 2 && d != 0 {
				t.Errorf("the %d. large write has %d parts dropped", i+1, d)
			}
		}
	}
	settled()
	write(1)
	if d := write(blocks) + write(blocks); d == 0 {
		t.Error("a large write over small ones had nothing dropped")
	}
	settled()
}

// TestLargeWritesKeepToWhatTheyWrote: large writes take turns between two places for each block. Where small writes left parts of an object in more places than that, they
// keep to the two that cost them least, instead of having each dropped in turn.
func TestLargeWritesKeepToWhatTheyWrote(t *testing.T) {
	sim := simfs.New(1)
	dropped := countForgotten(sim)
	s := openNew(t, simConfig(sim))
	g := s.Group(1)
	const blocks = BlocksPerObject
	n := uint64(0)
	write := func(first, size int) {
		t.Helper()
		n++
		stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, First: uint16(first), Data: fill(n, size)})
	}
	checkpoint := func() {
		t.Helper()
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	write(0, blocks)
	checkpoint()
	for b := 0; b < blocks; b += 2 { // half of them are in a second place then
		write(b, 1)
	}
	checkpoint()
	dropped.Store(0)
	for range 6 { // a third place, of which nothing is known, then the first, which a large write has filled, and so on
		write(0, blocks)
		checkpoint()
	}
	if d := dropped.Load(); d != 1 {
		t.Errorf("six large writes have %d parts dropped, not 1", d)
	}
}

// TestChunkForModel: slots that are free, if any are; those that are as large writes left them, if there are such; else home's.
func TestChunkForModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tb := &tables{}
		chunks := rapid.IntRange(1, 4).Draw(t, "chunks")
		tb.grow(chunks)
		for range rapid.IntRange(0, 12).Draw(t, "writes") {
			k := rapid.IntRange(0, chunks-1).Draw(t, "chunk")
			n := rapid.IntRange(0, 3*pageGroup).Draw(t, "slot")
			r := slotRun{dataSlot(k, n), uint32(rapid.IntRange(1, 3*pageGroup).Draw(t, "count"))}
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				tb.writtenWhole([]slotRun{r}, nil)
			case 1:
				tb.writtenSmall(r)
			case 2:
				for i := range r.n {
					tb.markUsed(r.slot + i)
				}
			}
		}
		first, count := rapid.IntRange(0, 3*pageGroup).Draw(t, "first"), rapid.IntRange(1, 3*pageGroup).Draw(t, "length")
		home := rapid.IntRange(0, chunks-1).Draw(t, "home")
		var free, whole []int
		for k := range chunks {
			isFree, isWhole := true, true
			for i := first; i < first+count; i++ {
				isFree = isFree && !tb.isUsed(dataSlot(k, i))
			}
			for b := 0; b < BlocksPerObject; b += pageGroup {
				if first <= b && b+pageGroup <= first+count {
					isWhole = isWhole && tb.whole[k]&(1<<(b/pageGroup)) != 0
				}
			}
			if isFree {
				free = append(free, k)
				if isWhole {
					whole = append(whole, k)
				}
			}
		}
		k, ok := tb.chunkFor(home, first, count)
		switch {
		case ok != (len(free) > 0):
			t.Fatalf("found %v, free are %v", ok, free)
		case !ok:
		case !slices.Contains(free, k):
			t.Fatalf("chunk %d, free are %v", k, free)
		case len(whole) > 0 && !slices.Contains(whole, k):
			t.Fatalf("chunk %d, whole are %v", k, whole)
		case slices.Contains(free, home) && (len(whole) == 0 || slices.Contains(whole, home)) && k != home:
			t.Fatalf("chunk %d, home %d would do", k, home)
		}
	})
}

// TestReadsOfManyRunsBeginTogether: where a read that may wait finds its blocks in several places, all of them are asked for before it waits for the first; a read of one
// run is one call.
func TestReadsOfManyRunsBeginTogether(t *testing.T) {
	sim := simfs.New(1)
	var calls []string
	sim.Before(func(op, name string) error {
		if op == "willread" || op == "read" && strings.HasPrefix(name, "/obj/") {
			calls = append(calls, op)
		}
		return nil
	})
	s := openNew(t, simConfig(sim))
	g := s.Group(1)
	chain := []VidGen{{Vid: 1, Gen: 1}}
	const blocks = 8
	var want []byte
	write := func(first int, data []byte) {
		t.Helper()
		want = append(want[:first*BlockSize:first*BlockSize], append(slices.Clone(data), want[min(len(want), first*BlockSize+len(data)):]...)...)
		stage(t, g, Entry{Kind: KindWrite, Key: 1 << 32, Vid: 1, Gen: 1, First: uint16(first), Data: data})
	}
	read := func() string {
		t.Helper()
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		calls = nil
		got := make([]byte, blocks*BlockSize)
		if err := g.Read(1<<32, chain, 0, blocks, got, nil, false); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read: %v", err)
		}
		return strings.Join(calls, " ")
	}
	write(0, fill(1, blocks))
	if c := read(); c != "read" {
		t.Errorf("one run: %s", c)
	}
	write(2, fill(2, 1))
	if c := read(); c != "willread willread willread read read read" {
		t.Errorf("three runs: %s", c)
	}
}

// TestForget: what is on the disk leaves memory, what is not stays.
func TestForget(t *testing.T) {
	var st unix.Statfs_t
	dir := t.TempDir()
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC {
		t.Skip("a tmpfs keeps everything in memory")
	}
	f, err := vfs.OS{}.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, b := fill(1, 32), make([]byte, 32*BlockSize)
	inMemory := func() bool {
		n, err := f.ReadNowait(b, 0)
		return err == nil && n == len(b)
	}
	write := func() {
		t.Helper()
		if _, err := f.WriteAt(data, 0); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if !inMemory() {
		t.Skip("this file system does not say what is in memory")
	}
	if err := f.Datasync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Forget(0, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if inMemory() {
		t.Error("what is on the disk is still in memory")
	}
	data = fill(2, 32)
	write()
	if err := f.Forget(0, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, data) {
		t.Errorf("what was not on the disk is lost: %v", err)
	}
}
