// Package simulation runs whole clusters in one process, in virtual time, while everything breaks that can: true nodes (raft, leases, replication), true stores on
// simulated disks, the true cluster client. A test package; it has nothing else.
//
// # Fault model
//
// Processes: a node is killed at any moment and what it wrote to files stays (its guardian says so to the others, or is gone too); it is stopped and goes on later with what it
// believed before; it ends cleanly; clients are killed, those inside a node with it. A machine loses its power, alone, with others or all in the same instant: of what was not
// synced a part is there later, down to torn sectors, in any order; names in directories likewise. Raft's log is taken to be synced, as it is.
//
// Network: bytes arrive in order or not at all (TCP). Any direction between any two hosts is cut for a while, and what was sent then arrives after it; connections are reset
// and lose what was under way; links are slow, each differently. Clients' hosts too. So messages are lost, late, repeated (by who sends them again) and overtaken by those of other
// connections. Gossip always works: it decides nothing.
//
// Disks: writes and syncs fail with EIO, a few calls long, and reads while all copies are there, since what the only good copy cannot read is lost; or all calls from some moment on: a disk that dies, loses its
// names, becomes read-only or is shut down by its file system. Some machines have two; then it is the second, or one that groups are just being moved from or to. A store that is at its end for it is opened again, after a power cut, by a person's word. Many seeds keep hardly any
// table in memory and hardly any file open, so that the paths to a cold object are walked all the time.
//
// People: nodes join, are drained, taken back, removed; snapshots are taken and deleted, clones made, written and deleted; VDIs are created and deleted, and rolled back; a VDI is taken from who
// has it.
//
// Not modelled: disks that lie about syncs, clocks that run at different speeds, messages that are forged, memory that flips.
//
// # What is checked
//
// Every register (blocks that small and large writes share, sectors of a block, the seam of two objects) has a history that some order explains (porcupine). A write without an answer
// may take effect until its group has served a later session (R14), and once, however often it is sent (invariant 7). On a shared VDI one that was under way when all members
// of its group ended, or its session, fails. When all members of a group's set ended and power was lost, a register may fall back to what it
// had since the last flush, but what a living client was answered is there again (R17); a snapshot taken before that client had sent it again may lack it. A snapshot holds one point in time, for ever. At the end, when everything
// is healed: every request is answered, every group is whole, replicas are equal byte by byte, all nodes agree on the same map; what is deleted is collected; no goroutine is left.
// At every instant: no lease without being in service (invariant 4), no set resumed while a member serves (R6).
//
// A seed fixes what is done and when; goroutines still run in any order. A failing seed is printed: replay it with -sim.seed=N, several times with -sim.repeat=N.
package simulation

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

var (
	simSeed   = flag.Uint64("sim.seed", 0, "run this seed only")
	simRepeat = flag.Int("sim.repeat", 1, "so many times")
	simSeeds  = flag.Int("sim.seeds", 4, "how many seeds")
	simFirst  = flag.Uint64("sim.first", 0, "first seed; 0: by chance, so that every run has new ones")
	simFaults = flag.Int("sim.faults", 10, "faults in one run")
	simLong   = flag.Int("sim.long", 0, "faults in the life of one cluster, after which its memory is as before; 0: not")
	simCopies = flag.Int("sim.copies", 0, "copies of each object; 0: two or three, by the seed")
	simShared = flag.Bool("sim.shared", true, "one of the volumes is shared by two clients")
)

func TestSimulation(t *testing.T) {
	first, n := *simFirst, *simSeeds
	as := ""
	if *simCopies > 0 {
		as = fmt.Sprint(" -sim.copies ", *simCopies)
	}
	if first == 0 {
		first = 1_000_000 + rand.Uint64N(1e9)
	}
	if *simSeed != 0 {
		first, n = *simSeed, *simRepeat
	} else { // at once, not with the test's log: a run that comes to no end shall have said it
		fmt.Printf("seeds %d to %d: go test ./cluster/simulation -run 'TestSimulation$' -sim.first %d -sim.seeds %d%s\n", first, first+uint64(n)-1, first, n, as)
	}
	for i := range n {
		seed := first
		if *simSeed == 0 {
			seed += uint64(i)
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			ended := false
			defer func() {
				if t.Failed() || !ended {
					t.Logf("replay with -sim.seed=%d, and -sim.repeat=20 if it passes then: go test ./cluster/simulation -run 'TestSimulation$' -sim.seed=%d%s", seed, seed, as)
				}
			}()
			simulate(t, seed)
			ended = true
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	var w *world
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(t, seed)
		if w.build() {
			w.live(*simFaults)
			w.conclude()
		}
		w.endAll()
	})
	unknown := 0
	for _, v := range w.volumes {
		bad, u := v.linearizable(w.losses)
		unknown += u
		for _, b := range bad {
			t.Error(b)
		}
	}
	for _, b := range w.badSnapshots() {
		t.Error(b)
	}
	d := &w.done
	t.Logf("seed %d: %d machines, %d operations answered, %d unknown, %d refused, %d faults, %d snapshots, %d rollbacks, %d resumes, %d losses, index %d, %v; %d histories not decided", seed, len(w.machines),
		d.ops.Load(), d.unknown.Load(), d.refused.Load(), d.faults.Load(), d.snapshots.Load(), d.rollbacks.Load(), d.resumes.Load(), len(w.losses), w.best.Index, w.ended, unknown)
}

// build makes a cluster and the volumes, and begins to use them.
func (w *world) build() bool {
	r := w.rng
	if r.IntN(3) > 0 { // hardly anything is kept in memory
		w.tables, w.files, w.checkpoints = 1+r.Int64N(30<<10), 1+r.IntN(3), time.Duration(200+r.IntN(1000))*time.Millisecond
	}
	w.twoDisks = r.IntN(3) == 0
	n := 3 + min(r.IntN(3), r.IntN(3))
	if r.IntN(10) == 0 {
		n = 6 + r.IntN(4)
	}
	copies := 3
	if r.IntN(6) == 0 {
		copies = 2
	}
	if *simCopies > 0 {
		copies = *simCopies
	}
	zones := r.IntN(3) == 0 && n >= 5
	for i := range n {
		zone, vnodes := "", 64
		if zones {
			zone = fmt.Sprint("z", i%3)
		}
		if i >= 3 && r.IntN(5) == 0 {
			vnodes = []int{0, 32, 128}[r.IntN(3)]
		}
		w.addMachine(zone, vnodes).run()
	}
	ctx, cancel := timeout(30 * time.Second)
	defer cancel()
	if err := w.machines[0].node.Format(ctx, copies, 0, 4, false); err != nil {
		w.t.Errorf("format: %v", err)
		return false
	}
	if !w.until(10*time.Second, "the new cluster serves", w.whole) {
		return false
	}
	for _, kv := range [][2]string{{"resume-wait", fmt.Sprint(3+r.IntN(10), "s")}, {"rebuild-after", fmt.Sprint(10+r.IntN(60), "s")}} {
		if _, err := w.propose(time.Second, &state.Command{Set: &state.Set{Key: kv[0], Value: kv[1]}}); err != nil {
			w.t.Error(err)
		}
	}
	w.copies = copies
	w.event("%d nodes, %d copies, zones %v, two disks %v, %d bytes of tables and %d files kept", n, copies, zones, w.twoDisks, w.tables, w.files)
	for i := range 2 {
		if v := w.create(fmt.Sprint("v", i), i == 1 && *simShared); v != nil {
			w.useVolume(v)
		}
	}
	return true
}

// create makes a VDI; nil when that did not work.
func (w *world) create(name string, shared bool) *volume {
	res, err := w.propose(20*time.Second, &state.Command{CreateVDI: &state.CreateVDI{Name: name, Size: volumeBytes, Shared: shared}})
	if err != nil {
		w.event("create %s: %v", name, err)
		return nil
	}
	return w.volume(name, shared, res.Vid)
}

// volume is the model of a VDI that is there.
func (w *world) volume(name string, shared bool, vid uint32) *volume {
	var d *state.VDI
	var m *state.Map
	for d == nil {
		m = w.newest()
		if d = m.VDI(vid); d == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}
	v := newVolume(name, shared, func(index uint32) state.GroupID { return m.GroupFor(d, index) })
	w.mu.Lock()
	w.volumes = append(w.volumes, v)
	w.mu.Unlock()
	return v
}

// useVolume has clients use a volume from now on: one, or two of a shared one.
func (w *world) useVolume(v *volume) {
	n := 1
	if v.shared {
		n = 2
	}
	for range n {
		s := &slot{w: w, v: v}
		w.mu.Lock()
		w.slots = append(w.slots, s)
		seed := w.seq.Add(1) ^ int64(w.seed)
		w.mu.Unlock()
		v.users.Add(1)
		w.wg.Go(func() {
			defer v.users.Done()
			s.use(uint64(seed))
		})
	}
}

// live lets the cluster be used while n faults happen.
func (w *world) live(n int) {
	quiet := make(chan struct{})
	done := make(chan struct{})
	go func() { defer close(done); w.watch(quiet) }()
	admin := make(chan struct{})
	adminSeed := w.rng.Uint64()
	stopAdmin := make(chan struct{})
	go func() { defer close(admin); w.administrate(rand.New(rand.NewPCG(adminSeed, 5)), stopAdmin) }()
	w.pass(time.Second)
	d := newDriver(w, w.rng)
	for range n {
		d.fault()
	}
	close(stopAdmin)
	d.heal()
	<-admin
	close(quiet)
	<-done
}

// pass lets up to so much time pass.
func (w *world) pass(most time.Duration) { time.Sleep(time.Duration(w.rng.Int64N(int64(most)))) }
