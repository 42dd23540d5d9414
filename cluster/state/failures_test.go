package state

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Failures by their number in tests/FAILURES.md.

// Clocks differ by ten minutes, and jump: the time in a command is for people to read. Two histories that differ in nothing but their proposers' clocks lead to
// maps that differ in nothing but times.
func TestFailure47ClocksAreForPeople(t *testing.T) {
	history := func(clock func(i int) time.Time) string {
		m, all := cluster(t, 4, 3, 4)
		i := 0
		step := func(c Command) {
			i++
			c.Time = clock(i)
			m, _ = apply(t, m, &c)
		}
		for _, c := range orders() {
			step(c)
		}
		step(Command{CreateVDI: &CreateVDI{Name: "a", Size: 1 << 30}})
		step(Command{Ended: &Ended{Members: all[:1], Leased: all[1:]}})
		step(Command{Ended: &Ended{Members: all[1:], Leased: nil}})
		step(Command{Register: &Register{UUID: "node1", Inc: 777, PrevInc: 101, VNodes: 64, Boot: "b", Cluster: "here"}})
		step(Command{NodeOut: &NodeOut{Node: 0, Out: true}})
		step(Command{CloseVDI: &CloseVDI{Name: "a", Tag: "x"}})
		return string(written(t, m))
	}
	stamp := regexp.MustCompile(`"\d{4}-\d\d-\d\dT[^"]*"`)
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	steady := history(func(i int) time.Time { return start.Add(time.Duration(i) * time.Second) })
	rnd := rand.New(rand.NewPCG(47, 1))
	wild := history(func(i int) time.Time { return start.Add(time.Duration(rnd.IntN(1200)-600) * time.Second) })
	if a, b := stamp.ReplaceAllString(steady, "T"), stamp.ReplaceAllString(wild, "T"); a != b {
		t.Errorf("clocks made a difference:\n%s\n%s", a, b)
	}
	if steady == wild || !strings.Contains(steady, "2030-01-01") {
		t.Error("the test compares nothing")
	}
}

// Commands and maps of another version of the program are refused with the two numbers, and so is a field that this version does not know: a node that skipped what it does not
// understand would come to hold another state than its peers.
func TestFailure50UnknownVersionsAreRefused(t *testing.T) {
	c, _ := EncodeCommand(&Command{Set: &Set{Key: "resume-wait", Value: "1s"}})
	m := written(t, rich(t))
	for _, x := range []struct {
		what string
		b    []byte
		read func([]byte) error
	}{
		{"command", c, func(b []byte) error { _, err := DecodeCommand(b); return err }},
		{"map", m, func(b []byte) error { _, err := DecodeMap(b); return err }},
	} {
		newer := slices.Clone(x.b)
		newer[0] = formatVersion + 1
		if err := x.read(newer); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("version %d, this program knows %d", formatVersion+1, formatVersion)) {
			t.Errorf("%s of a newer version: %v", x.what, err)
		}
		field := append(slices.Clone(x.b[:2]), (`"fromTheFuture":1,` + string(x.b[2:]))...)
		if err := x.read(field); err == nil || !strings.Contains(err.Error(), "fromTheFuture") {
			t.Errorf("%s with an unknown field: %v", x.what, err)
		}
		if err := x.read(x.b); err != nil {
			t.Errorf("%s of this version: %v", x.what, err)
		}
	}
}

// manyVDIs is how many disks TestFailure58 gives a hundred snapshots each: 10000 takes a minute and some gigabytes.
var manyVDIs = flag.Int("vdis", 200, "disks of TestFailure58, each with 100 snapshots")

// Ten thousand disks with a hundred snapshots each (-vdis 10000): how large the agreed map is, how long raft's snapshot of it takes, how long a node takes to read it when it starts, how
// long a command takes with it.
func TestFailure58ManyVDIs(t *testing.T) {
	const snaps = 100
	if testing.Short() {
		*manyVDIs = min(*manyVDIs, 20)
	}
	m, _ := cluster(t, 3, 3, 0)
	began := time.Now()
	taken := map[uint32]bool{}
	vid := func(name string) uint32 {
		v := HashName(name)
		for taken[v] || v == 0 {
			v = (v + 1) & MaxVid
		}
		taken[v] = true
		return v
	}
	full := *m
	for i := range *manyVDIs { // as the commands would leave it: a million of them one by one would only try the test's patience
		name := fmt.Sprintf("disk%05d", i)
		root, parent := uint32(0), uint32(0)
		for k := range snaps + 1 {
			v := &VDI{Vid: vid(name), Gen: uint64(100 + i*(snaps+1) + k), Name: name, Size: 100 << 30, Parent: parent, Created: began}
			if root == 0 {
				root = v.Vid
			}
			v.Root, v.RootGen = root, uint64(100+i*(snaps+1))
			if k < snaps {
				v.State, v.SnapID, v.Tag, v.Frozen = Frozen, uint32(k+1), fmt.Sprintf("day%03d", k), began
			} else {
				v.LastSnap = snaps
			}
			parent = v.Vid
			full.VDIs = append(full.VDIs, v)
		}
	}
	slices.SortFunc(full.VDIs, func(a, b *VDI) int { return int(a.Vid) - int(b.Vid) })
	full.Index = uint64(200 + *manyVDIs*(snaps+1))
	if err := full.derive(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began = time.Now()
	b := written(t, &full)
	encode := time.Since(began)
	full.VDIs, full.dir = nil, nil
	began = time.Now()
	again, err := DecodeMap(b)
	if err != nil {
		t.Fatal(err)
	}
	decode := time.Since(began)
	size, n := len(b), len(again.VDIs)
	b = nil
	taken = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d disks with %d snapshots each, %d entries: raft's snapshot has %d bytes (%d an entry), is written in %s, read and checked in %s; in memory %d bytes an entry",
		*manyVDIs, snaps, n, size, size/n, encode.Round(time.Millisecond), decode.Round(time.Millisecond), (after.HeapAlloc)/uint64(n))
	var times []time.Duration
	step := func(c Command) Result {
		began := time.Now()
		next, res := again.Apply(again.Index+1, &c)
		times = append(times, time.Since(began))
		if err := res.Err(); err != nil {
			t.Fatal(err)
		}
		again = next
		return res
	}
	for i := range 50 {
		step(Command{CreateVDI: &CreateVDI{Name: fmt.Sprint("new", i), Size: 1 << 30}})
		v := step(Command{CloseVDI: &CloseVDI{Name: "disk00001", Tag: fmt.Sprint("more", i)}}).Vid
		step(Command{FreezeVDI: &FreezeVDI{Vid: v, Closing: again.VDI(v).Closing, Terms: terms(again, v)}})
	}
	slices.Sort(times)
	t.Logf("half of 150 commands took less than %s, the slowest %s", times[75].Round(time.Microsecond), times[149].Round(time.Microsecond))
	if times[75] > time.Second {
		t.Errorf("a command takes %s", times[75])
	}
	runtime.KeepAlive(again)
}

func terms(m *Map, vid uint32) (list []uint64) {
	for _, g := range m.PoolGroups(m.VDI(vid).Pool) {
		list = append(list, g.Term)
	}
	return list
}
