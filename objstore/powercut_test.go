package objstore

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
	"golang.org/x/sys/unix"
)

// Power cuts on real file systems. A child process writes to a store on a
// loop device and says what was synced; then it is stopped, the power goes,
// and the store is opened on what is left.
//
//	shutdown  the file system stops without its log (FS_IOC_SHUTDOWN): what was
//	          not written back is lost
//	volatile  the device is a disk with a write cache (nbdkit's cache filter):
//	          what was not flushed is lost

var powerCuts = flag.Int("power.cuts", 0, "power cuts per scheme (needs root, losetup, mkfs.ext4, nbdkit, nbdfuse)")

const powerGroups = 3

// powerEntry is what entry n of a group is, in every process.
func powerEntry(seed uint64, g GroupID, n uint64) (e Entry, seeds []uint64) {
	r := rand.New(rand.NewPCG(seed<<8|uint64(g), n))
	e = Entry{Number: Number{1, n}, Kind: EntryKind([]int{1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 5, 6}[r.IntN(12)]), Key: MakeKey(1, uint32(r.IntN(12))), Vid: 1 + Vid(r.IntN(3))}
	e.Gen = uint64(e.Vid)
	switch e.Kind {
	case KindMerge:
		e.Into = 1 + e.Vid%3
		e.IntoGen = uint64(e.Into)
		return e, nil
	case KindDelete:
		return e, nil
	}
	e.First, e.Count = uint16(r.IntN(200)), uint16(1+r.IntN(3))
	if r.IntN(6) == 0 {
		e.Count = uint16(16 + r.IntN(40))
	}
	if e.Kind == KindWrite {
		for range e.Count {
			s := r.Uint64()
			seeds = append(seeds, s)
			e.Data = append(e.Data, pattern(s)...)
		}
		e.SumData()
	}
	return e, seeds
}

func powerConfig(dir string, fs vfs.FS) Config {
	return Config{Dir: dir, FS: fs, Logger: quiet(), SegmentBytes: 1 << 20, JournalBytesMax: 8 << 20, ReserveBytes: 1 << 20}
}

// lyingFS says that syncs succeeded and does none: the control.
type lyingFS struct{ vfs.OS }

type lyingFile struct{ vfs.File }

func (lyingFile) Datasync() error { return nil }

func lie(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return lyingFile{f}, nil
}

func (l lyingFS) Open(name string) (vfs.File, error)      { return lie(l.OS.Open(name)) }
func (l lyingFS) Create(name string) (vfs.File, error)    { return lie(l.OS.Create(name)) }
func (l lyingFS) CreateTemp(dir string) (vfs.File, error) { return lie(l.OS.CreateTemp(dir)) }
func (l lyingFS) Link(f vfs.File, name string) error      { return l.OS.Link(f.(lyingFile).File, name) }
func (lyingFS) SyncDir(string) error                      { return nil }
func (lyingFS) SyncFS(string) error                       { return nil }

// TestPowerChild is the child process.
func TestPowerChild(t *testing.T) {
	var dir string
	var seed uint64
	var lies bool
	if _, err := fmt.Sscan(os.Getenv("OBJSTORE_POWER_CHILD"), &dir, &seed, &lies); err != nil {
		t.Skip("not a child")
	}
	var fs vfs.FS = vfs.OS{}
	if lies {
		fs = lyingFS{}
	}
	s, err := Open(powerConfig(dir, fs))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 99))
	for i := 0; ; i++ {
		g := s.Group(GroupID(r.IntN(powerGroups)))
		e, _ := powerEntry(seed, g.ID(), g.Last().LSN+1)
		if err := g.Stage(&e); err != nil {
			t.Fatal(err)
		}
		if r.IntN(20) == 0 {
			if err := s.SyncWait(); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("synced %d %d %d\n", s.Group(0).Last().LSN, s.Group(1).Last().LSN, s.Group(2).Last().LSN)
		}
		if r.IntN(500) == 0 {
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestPowerCuts(t *testing.T) {
	if *powerCuts == 0 {
		t.Skip("no -power.cuts")
	}
	for _, how := range []string{"shutdown", "volatile"} {
		t.Run(how, func(t *testing.T) {
			for seed := range uint64(*powerCuts) {
				synced, err := powerCut(t, how, seed+1, false)
				if err != nil {
					t.Fatalf("cut %d: %v", seed+1, err)
				}
				t.Logf("cut %d: %v were synced, all there", seed+1, synced)
			}
		})
		t.Run(how+"/control", func(t *testing.T) {
			for seed := range uint64(*powerCuts) {
				if _, err := powerCut(t, how, seed+1, true); err != nil {
					t.Logf("found by cut %d: %.200v", seed+1, err)
					return
				}
			}
			t.Fatal("a store that does not sync passes")
		})
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// powerDisk is a disk that loses its power.
type powerDisk struct {
	dir, mnt, loop string
	nbdkit, fuse   *exec.Cmd
}

func newPowerDisk(t *testing.T, how string) *powerDisk {
	d := &powerDisk{dir: t.TempDir()}
	d.mnt = filepath.Join(d.dir, "m")
	os.Mkdir(d.mnt, 0o755)
	raw, back := filepath.Join(d.dir, "disk"), filepath.Join(d.dir, "disk")
	run(t, "truncate", "-s", "512M", raw)
	if how == "volatile" {
		sock := filepath.Join(d.dir, "s")
		back = filepath.Join(d.dir, "view")
		os.WriteFile(back, nil, 0o644)
		d.nbdkit = exec.Command("nbdkit", "-f", "-U", sock, "--filter=cache", "file", raw, "cache=writeback", "cache-max-size=1G", "cache-on-read=false")
		if err := d.nbdkit.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { _, err := os.Stat(sock); return err == nil })
		d.fuse = exec.Command("nbdfuse", back, "--unix", sock)
		if err := d.fuse.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { st, err := os.Stat(back); return err == nil && st.Size() > 0 })
	}
	run(t, "mkfs.ext4", "-q", "-F", back)
	run(t, "sync", back)
	d.loop = run(t, "losetup", "--show", "-f", back)
	run(t, "mount", d.loop, d.mnt)
	return d
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatal("waited in vain")
}

// cut takes the power away and brings it back.
func (d *powerDisk) cut(t *testing.T) {
	if d.nbdkit != nil {
		d.nbdkit.Process.Kill()
		d.nbdkit.Wait()
	} else {
		f, err := os.Open(d.mnt)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetPointerInt(int(f.Fd()), 0x8004587d, 2); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

func (d *powerDisk) back(t *testing.T) {
	d.unmount()
	run(t, "mount", "-o", "loop", filepath.Join(d.dir, "disk"), d.mnt)
}

func (d *powerDisk) unmount() {
	if exec.Command("umount", d.mnt).Run() != nil {
		exec.Command("umount", "-l", d.mnt).Run()
	}
	if d.loop != "" {
		exec.Command("losetup", "-d", d.loop).Run()
		d.loop = ""
	}
	if d.fuse != nil {
		view := filepath.Join(d.dir, "view")
		if exec.Command("umount", view).Run() != nil {
			exec.Command("umount", "-l", view).Run()
		}
		d.fuse.Process.Kill()
		d.fuse.Wait()
		d.fuse = nil
	}
}

// powerCut is one life of a store that ends with a cut, and the look at what
// is left.
func powerCut(t *testing.T, how string, seed uint64, lies bool) (synced [powerGroups]uint64, err error) {
	d := newPowerDisk(t, how)
	defer d.unmount()
	dir := filepath.Join(d.mnt, "store")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Create(powerConfig(dir, nil), testIdentity); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", d.mnt)
	child := exec.Command(os.Args[0], "-test.run=^TestPowerChild$", "-test.timeout=60s")
	child.Env = append(os.Environ(), fmt.Sprintf("OBJSTORE_POWER_CHILD=%s %d %v", dir, seed, lies))
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1<<16)
	go func() {
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			lines <- sc.Text()
		}
		close(lines)
	}()
	life := time.After(time.Duration(300+rand.New(rand.NewPCG(seed, 5)).IntN(900)) * time.Millisecond)
	take := func(l string) {
		if strings.HasPrefix(l, "synced ") {
			fmt.Sscanf(l, "synced %d %d %d", &synced[0], &synced[1], &synced[2])
		}
	}
	for alive := true; alive || synced[0] == 0; {
		select {
		case l, ok := <-lines:
			if !ok {
				t.Fatal("the child ended by itself")
			}
			take(l)
		case <-life:
			alive = false
		}
	}
	child.Process.Signal(syscall.SIGSTOP)
	for more := true; more; { // what it has said is outside by now
		select {
		case l := <-lines:
			take(l)
		case <-time.After(50 * time.Millisecond):
			more = false
		}
	}
	d.cut(t)
	child.Process.Kill()
	child.Wait()
	d.back(t)
	return synced, powerCheck(dir, seed, synced)
}

// powerCheck wants every group at a prefix that has what was synced.
func powerCheck(dir string, seed uint64, synced [powerGroups]uint64) error {
	s, err := Open(powerConfig(dir, nil))
	if err != nil {
		return err
	}
	defer s.Close()
	w := &world{s: s}
	for g := range GroupID(powerGroups) {
		m := &mGroup{objects: map[Key]*mObject{}}
		last := s.Group(g).Last().LSN
		if last < synced[g] {
			return fmt.Errorf("group %d is at %d, %d was synced", g, last, synced[g])
		}
		for n := uint64(1); n <= last; n++ {
			e, seeds := powerEntry(seed, g, n)
			m = m.apply(&e, seeds)
		}
		if err := w.same(g, m); err != nil {
			return fmt.Errorf("group %d at %d: %w", g, last, err)
		}
	}
	return verifyStore(s)
}
