package node

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// hangingDisk is a file system of which one directory's calls, all or of one kind, can be made to hang.
type hangingDisk struct {
	*simfs.FS
	hangs   atomic.Bool
	held    atomic.Int64
	release chan struct{}
}

func newHangingDisk(dir, kind string) *hangingDisk {
	d := &hangingDisk{FS: simfs.New(5), release: make(chan struct{})}
	d.Before(func(op, name string) error {
		if d.hangs.Load() && (kind == "" || op == kind) && strings.HasPrefix(name, dir+"/") {
			d.held.Add(1)
			<-d.release
		}
		return nil
	})
	return d
}

const hangLimit = 6 * time.Second

// One of a node's two disks hangs: the node steps aside while that lasts, at most for as long as a disk may hang. Then that disk alone has ended, though not one of its calls
// ever comes back: the node serves, and its groups come to its other disk.
func TestFailure27OneHungDiskOfTwoEndsAlone(t *testing.T) {
	sim(t, func(t *testing.T) {
		disk := newHangingDisk("/b", "")
		if err := disk.Mkdir("/b"); err != nil {
			t.Fatal(err)
		}
		w := newWorldOf(t, 3, func(h string, cfg *Config) {
			if h == "n2" {
				cfg.Store.FS, cfg.Dirs, cfg.Store.HangTimeout = disk, []string{"/a", "/b"}, hangLimit
			}
		})
		defer w.end()
		w.formatted(3)
		n := w.nodes["n2"]
		w.until(20*time.Second, "both disks have groups", func() bool { return len(diskGroups(n, "/a")) > 8 && len(diskGroups(n, "/b")) > 8 })
		disk.hangs.Store(true)
		w.crash("n3") // so that every group's members take entries
		w.until(5*time.Second, "the disk hangs", func() bool { return disk.held.Load() > 0 })
		d := w.until(hangLimit+5*time.Second, "it is ended", func() bool { i := info(n, "/b"); return i.State == DiskFailed && strings.Contains(i.Why, "no answer") })
		t.Logf("ended %s after it was noticed", d)
		d = w.until(20*time.Second, "the node has everything on its other disk", func() bool {
			return n.Leased() && !slices.ContainsFunc(w.newest().Groups, func(g *state.Group) bool {
				return !slices.Contains(g.InSync, n.Self()) || !w.newest().InService(g.Primary)
			})
		})
		t.Logf("whole %s after that", d)
		close(disk.release) // what hung comes back, too late
		w.pass(5 * time.Second)
		if i := info(n, "/b"); i.State != DiskFailed || !n.Leased() || n.Err() != nil {
			t.Errorf("after the disk answered: %+v, %v", i, n.Err())
		}
	})
}

// A node's only disk hangs: ending it would help nobody. The node asks for no lease as long as it lasts, so that others take over, and goes on when it is over.
func TestFailure27OnlyDiskHangs(t *testing.T) {
	sim(t, func(t *testing.T) {
		disk := newHangingDisk("/a/journal", "sync") // holds no lock meanwhile, so that virtual time passes
		w := newWorldOf(t, 3, func(h string, cfg *Config) {
			if h == "n2" {
				cfg.Store.FS, cfg.Dirs, cfg.Store.HangTimeout = disk, []string{"/a"}, hangLimit
			}
		})
		defer w.end()
		w.formatted(3)
		n := w.nodes["n2"]
		was := n.Self()
		disk.hangs.Store(true)
		n.Stores()[0].Sync(func(error) {})
		w.until(5*time.Second, "the disk hangs", func() bool { return disk.held.Load() > 0 })
		w.until(10*time.Second, "the node is out of service", func() bool { return !w.newest().InService(was) })
		w.pass(3 * hangLimit)
		if st := n.Stores()[0]; st.Err() != nil || st.Late() < hangLimit || w.newest().InService(n.Self()) {
			t.Errorf("the disk: %v, late for %s; in service: %v", st.Err(), st.Late(), w.newest().InService(n.Self()))
		}
		disk.hangs.Store(false)
		close(disk.release)
		w.until(20*time.Second, "it is back, with what it has", func() bool {
			return n.Leased() && info(n, "/a").State == DiskInUse && !slices.ContainsFunc(w.newest().Groups, func(g *state.Group) bool { return !slices.Contains(g.InSync, n.Self()) })
		})
	})
}
