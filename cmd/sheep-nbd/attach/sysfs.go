package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

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
	Index    int
	PID      int    // who attached it; gone, if that one was killed
	Size     uint64 // bytes
	ReadOnly bool
	Backend  string // who may bring new sockets; "": the kernel does not know such a thing
}

// sysfs is where to look; tests have one of their own.
type sysfs struct{ root string }

var system = sysfs{"/"}

// Look reads a device, and says whether it is attached.
func Look(index int) (Device, bool) { return system.look(index) }

// List finds all attached devices.
func List() []Device { return system.list() }

func (s sysfs) read(index int, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, "sys/block", fmt.Sprintf("nbd%d", index), name))
	return strings.TrimSpace(string(b)), err
}

func (s sysfs) look(index int) (Device, bool) {
	d := Device{Index: index}
	pid, err := s.read(index, "pid")
	if err != nil {
		return d, false
	}
	d.PID, _ = strconv.Atoi(pid)
	d.Backend, _ = s.read(index, "backend")
	size, _ := s.read(index, "size")
	sectors, _ := strconv.ParseUint(size, 10, 55)
	d.Size = sectors * 512 // whatever the device's own block size
	ro, _ := s.read(index, "ro")
	d.ReadOnly = ro == "1"
	return d, true
}

func (s sysfs) list() []Device {
	var list []Device
	names, _ := filepath.Glob(filepath.Join(s.root, "sys/block/nbd*"))
	for _, name := range names {
		index, err := ParseDevice(filepath.Base(name))
		if err != nil || index == AnyDevice {
			continue
		}
		if d, attached := s.look(index); attached {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b Device) int { return a.Index - b.Index })
	return list
}

// InUse says who uses a device: a file system, swap, a mapping, or a process that has it open.
func InUse(index int) (by string, used bool) {
	holders, _ := os.ReadDir(fmt.Sprintf("/sys/block/nbd%d/holders", index))
	if len(holders) > 0 {
		return holders[0].Name(), true
	}
	name := DeviceName(index)
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		unix.Close(fd)
	case errors.Is(err, syscall.EBUSY):
		return "a mounted file system, swap, or another device", true
	case errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENOENT):
		return "", false
	}
	for _, device := range []string{name, name + "p"} {
		if pid := whoHasOpen(device); pid != 0 {
			return fmt.Sprintf("process %d", pid), true
		}
	}
	return partitionsInUse(index)
}

func partitionsInUse(index int) (by string, used bool) {
	parts, _ := filepath.Glob(fmt.Sprintf("/dev/nbd%dp*", index))
	for _, part := range parts {
		fd, err := unix.Open(part, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			unix.Close(fd)
		}
		if errors.Is(err, syscall.EBUSY) {
			return "what uses " + part, true
		}
	}
	return "", false
}

// whoHasOpen finds a process that has a device open. A name that ends in p stands for the partitions.
func whoHasOpen(name string) int {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || target != name && !(strings.HasSuffix(name, "p") && strings.HasPrefix(target, name)) {
			continue
		}
		if pid, _ := strconv.Atoi(strings.Split(link, "/")[2]); pid != os.Getpid() {
			return pid
		}
	}
	return 0
}
