package simulation

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/sheepdog-go/sheepdog/objstore/vfs/simfs"
)

// diskFaults are what a machine's disk does wrong. Each field is how many more calls fail so, but for those of a disk that dies.
type diskFaults struct {
	reads, writes, syncs atomic.Int64
	left                 atomic.Int64             // calls until it dies
	dir                  string                   // what dies; set before dead
	dead                 atomic.Pointer[deadDisk] // nil: it lives
	any                  atomic.Bool              // one has failed since the last start: the store may be at its end
}

// deadDisk is how a whole disk fails, from some call on and until its machine's power is cut.
type deadDisk struct {
	name   string
	err    error
	spares func(op string) bool // calls that still work
}

const secondDisk = "/e"

var deadDisks = []*deadDisk{
	{"dies", syscall.EIO, func(op string) bool { return false }},
	{"dies, but says how much room it has", syscall.EIO, func(op string) bool { return op == "statfs" }},
	{"loses its names, but not its files", syscall.EIO, func(op string) bool {
		return op == "read" || op == "write" || op == "sync" || op == "writeback" || op == "statfs"
	}},
	{"becomes read-only", syscall.EROFS, func(op string) bool {
		return op == "read" || op == "size" || op == "readdir" || op == "getxattr" || op == "statfs" || op == "sync" || op == "syncdir" || op == "syncfs" || op == "writeback"
	}},
	{"is shut down by its file system", syscall.EUCLEAN, func(op string) bool { return op == "statfs" }},
}

func (f *diskFaults) on(d *simfs.FS) {
	d.Before(func(op, name string) error {
		if how := f.dead.Load(); how != nil && strings.HasPrefix(name, f.dir) && (f.left.Load() <= 0 || f.left.Add(-1) < 0) && !how.spares(op) {
			f.any.Store(true)
			return how.err
		}
		if !strings.Contains(name, "/obj") && !strings.Contains(name, "/journal") {
			return nil
		}
		switch op {
		case "read", "open", "size":
			return f.fail(&f.reads)
		case "write":
			return f.fail(&f.writes)
		case "sync", "syncfs", "syncdir":
			return f.fail(&f.syncs)
		}
		return nil
	})
}

func (f *diskFaults) fail(left *atomic.Int64) error {
	if left.Load() <= 0 || left.Add(-1) < 0 {
		return nil
	}
	f.any.Store(true)
	return syscall.EIO
}

// mend is a person's word that disks which failed work again: their node would leave them alone for ever. One that was all but removed when it failed stays so.
func mend(d *simfs.FS) error {
	const name = "/d/epoch/node.json"
	f, err := d.Open(name)
	if err != nil {
		return nil // a new node's
	}
	size, _ := f.Size()
	b := make([]byte, size)
	f.ReadAt(b, 0)
	f.Close()
	if !bytes.Contains(b, []byte(`"failed"`)) {
		return nil
	}
	var all map[string]any
	in := json.NewDecoder(bytes.NewReader(b))
	in.UseNumber()
	if err := in.Decode(&all); err != nil {
		return err
	}
	for _, x := range all["disks"].([]any) {
		k := x.(map[string]any)
		if f, err := d.Open(k["dir"].(string) + "/identity"); err == nil && k["state"] == "failed" {
			f.Close()
			delete(k, "state")
			delete(k, "why")
		}
	}
	if b, err = json.Marshal(all); err != nil {
		return err
	}
	if err := d.Remove(name); err != nil {
		return err
	}
	if f, err = d.Create(name); err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return errors.Join(f.Datasync(), d.SyncDir("/d/epoch"))
}

func (f *diskFaults) clear() {
	f.reads.Store(0)
	f.writes.Store(0)
	f.syncs.Store(0)
	f.dead.Store(nil)
	f.any.Store(false)
}
