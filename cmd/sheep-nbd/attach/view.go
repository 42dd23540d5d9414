package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// AnyDevice in ParseDevice: the kernel picks one.
const AnyDevice = -1

// ParseDevice reads /dev/nbd4, nbd4, or /dev/nbd for any that is free.
func ParseDevice(text string) (index int, err error) {
	digits, ok := strings.CutPrefix(strings.TrimPrefix(text, "/dev/"), "nbd")
	if ok && digits == "" {
		return AnyDevice, nil
	}
	n, err := strconv.ParseUint(digits, 10, 20) // the kernel's minor numbers have 20 bits
	if !ok || err != nil || digits != strconv.FormatUint(n, 10) {
		return 0, fmt.Errorf("'%s' is no NBD device: use /dev/nbdN, or /dev/nbd for any that is free", text)
	}
	return int(n), nil
}

// DeviceName is the device's file.
func DeviceName(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

// Device is what the kernel shows of an attached device.
type Device struct {
	Index     int
	PID       int    // who attached it; gone, if that one was killed
	Size      uint64 // bytes
	BlockSize uint64 // its sector, bytes
	ReadOnly  bool
	Backend   string // who may bring new sockets; "": the kernel does not know such a thing
}

// view is the kernel's directories /sys, /dev and /proc, held open. Paths would not do: a process that was started in an initial ramdisk, for the device
// on which the root is, stays behind when the root is switched, and finds nothing by path afterwards. It would take its device for detached.
type view struct {
	sys, proc *os.Root
	dev       *os.File
}

func openView(root string) (*view, error) {
	v := new(view)
	var err [3]error
	v.sys, err[0] = os.OpenRoot(filepath.Join(root, "sys"))
	v.proc, err[1] = os.OpenRoot(filepath.Join(root, "proc"))
	v.dev, err[2] = os.Open(filepath.Join(root, "dev"))
	if err := errors.Join(err[:]...); err != nil {
		v.close()
		return nil, fmt.Errorf("look at the kernel's devices: %w", err)
	}
	return v, nil
}

func (v *view) close() {
	if v.sys != nil {
		v.sys.Close()
	}
	if v.proc != nil {
		v.proc.Close()
	}
	if v.dev != nil {
		v.dev.Close()
	}
}

// List finds all attached devices.
func List() ([]Device, error) {
	v, err := openView("/")
	if err != nil {
		return nil, err
	}
	defer v.close()
	return v.list(), nil
}

func blockName(index int) string { return fmt.Sprintf("nbd%d", index) }

func (v *view) read(index int, name string) (string, error) {
	b, err := v.sys.ReadFile("block/" + blockName(index) + "/" + name)
	return strings.TrimSpace(string(b)), err
}

// look reads a device, and says whether it is attached.
func (v *view) look(index int) (Device, bool) {
	d := Device{Index: index}
	pid, err := v.read(index, "pid")
	if err != nil {
		return d, false
	}
	d.PID, _ = strconv.Atoi(pid)
	d.Backend, _ = v.read(index, "backend")
	size, _ := v.read(index, "size")
	sectors, _ := strconv.ParseUint(size, 10, 55)
	d.Size = sectors * 512 // whatever the device's own block size
	block, _ := v.read(index, "queue/logical_block_size")
	if d.BlockSize, err = strconv.ParseUint(block, 10, 16); err != nil {
		d.BlockSize = 512
	}
	ro, _ := v.read(index, "ro")
	d.ReadOnly = ro == "1"
	return d, true
}

func (v *view) list() []Device {
	var list []Device
	names, _ := fs.Glob(v.sys.FS(), "block/nbd*")
	for _, name := range names {
		index, err := ParseDevice(path.Base(name))
		if err != nil || index == AnyDevice {
			continue
		}
		if d, attached := v.look(index); attached {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b Device) int { return a.Index - b.Index })
	return list
}

// inUse says who uses a device: a file system, swap, a mapping, or a process that has it open. What cannot be found out counts as used.
func (v *view) inUse(index int) (by string, used bool) {
	holders, _ := fs.ReadDir(v.sys.FS(), "block/"+blockName(index)+"/holders")
	if len(holders) > 0 {
		return holders[0].Name(), true
	}
	switch err := v.claim(blockName(index)); {
	case err == nil:
	case errors.Is(err, syscall.EBUSY):
		return "a mounted file system, swap, or another device", true
	case errors.Is(err, syscall.ENXIO):
		return "", false // nothing is attached
	default:
		return fmt.Sprintf("something unknown (%v)", err), true
	}
	if pid := v.whoHasOpen(DeviceName(index)); pid != 0 {
		return fmt.Sprintf("process %d", pid), true
	}
	return v.partitionsInUse(index)
}

// claimTime is how long a claim may take. The kernel looks first whether somebody has the device; who opens it first reads its partition table then, which
// takes as long as nobody serves it.
const claimTime = time.Second

// claim opens a device for ourselves alone, and lets it go: EBUSY if somebody has it.
func (v *view) claim(name string) error {
	result := make(chan error, 1)
	go func() {
		fd, err := unix.Openat(int(v.dev.Fd()), name, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			unix.Close(fd)
		}
		result <- err
	}()
	select {
	case err := <-result:
		return err
	case <-time.After(claimTime):
		return nil // nobody has it; the open ends when the device is served, or detached
	}
}

func (v *view) partitionsInUse(index int) (by string, used bool) {
	parts, _ := fs.Glob(v.sys.FS(), fmt.Sprintf("block/%s/%[1]sp*", blockName(index)))
	for _, part := range parts {
		if name := path.Base(part); errors.Is(v.claim(name), syscall.EBUSY) {
			return "what uses /dev/" + name, true
		}
	}
	return "", false
}

// whoHasOpen finds another process that has a device, or one of its partitions, open.
func (v *view) whoHasOpen(name string) int {
	links, _ := fs.Glob(v.proc.FS(), "[0-9]*/fd/*")
	for _, link := range links {
		target, err := v.proc.Readlink(link)
		if err != nil || target != name && !strings.HasPrefix(target, name+"p") {
			continue
		}
		if pid, _ := strconv.Atoi(strings.Split(link, "/")[0]); pid != os.Getpid() {
			return pid
		}
	}
	return 0
}
