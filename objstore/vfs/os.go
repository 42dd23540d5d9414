package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// OS is the operating system's file system.
type OS struct{}

func (OS) Open(name string) (File, error) { return asFile(openOS(name, unix.O_RDWR, 0)) }

func (OS) Create(name string) (File, error) {
	return asFile(openOS(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o644))
}

// CreateTemp uses O_TMPFILE; file systems without it get a hidden name that
// Link takes away.
func (OS) CreateTemp(dir string) (File, error) {
	f, err := openOS(dir, unix.O_RDWR|unix.O_TMPFILE, 0o644)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return asFile(f, err)
	}
	f, err = openOS(filepath.Join(dir, fmt.Sprintf(".tmp-%d-%d", os.Getpid(), tempSeq.Add(1))),
		unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o644)
	if err == nil {
		f.hidden = f.name
	}
	return asFile(f, err)
}

var tempSeq atomic.Int64

func (OS) Link(file File, name string) error {
	f := file.(*osFile)
	if f.hidden != "" {
		err := unix.Linkat(unix.AT_FDCWD, f.hidden, unix.AT_FDCWD, name, 0)
		if err == nil {
			err = unix.Unlink(f.hidden)
			f.hidden = ""
		}
		return pathError("link", name, err)
	}
	err := unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(f.fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
	return pathError("link", name, err)
}

func (OS) Mkdir(name string) error      { return os.Mkdir(name, 0o755) }
func (OS) Remove(name string) error     { return os.Remove(name) }
func (OS) Rename(old, new string) error { return os.Rename(old, new) }
func (OS) SyncFS(name string) error     { return syncDirWith(name, "syncfs", unix.Syncfs) }
func (OS) SyncDir(name string) error    { return syncDirWith(name, "fsync", unix.Fsync) }

func (OS) ReadDir(name string) ([]string, error) {
	list, err := os.ReadDir(name)
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	return names, err
}

func syncDirWith(name, op string, sync func(fd int) error) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	return pathError(op, name, retry(func() error { return sync(fd) }))
}

func (OS) Statfs(name string) (Stat, error) {
	var s unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(name, &s) }); err != nil {
		return Stat{}, pathError("statfs", name, err)
	}
	return Stat{
		Total: int64(s.Blocks) * s.Bsize, Free: int64(s.Bavail) * s.Bsize,
		Inodes: int64(s.Files), InodesFree: int64(s.Ffree),
	}, nil
}

func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, pathError("flock", name, err)
	}
	return f, nil
}

// osFile is a bare descriptor: package os would add a lock, a poller check
// and a method call to each 4 KiB, a tenth of what the read costs.
type osFile struct {
	fd     int
	name   string
	hidden string // the name a temporary file has on file systems without O_TMPFILE

	direct   int // a second descriptor with O_DIRECT, -1 if it cannot be
	directMu sync.Once
}

func openOS(name string, flag int, mode uint32) (*osFile, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(name, flag|unix.O_CLOEXEC|unix.O_NOATIME, mode)
		if err == unix.EPERM { // O_NOATIME is the owner's privilege
			fd, err = unix.Open(name, flag|unix.O_CLOEXEC, mode)
		}
		return err
	})
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &osFile{fd: fd, name: name, direct: -1}, nil
}

// asFile keeps a nil *osFile from becoming a File that is not nil.
func asFile(f *osFile, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	return f.readFull(f.fd, p, off)
}

func (f *osFile) readFull(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, pathError("read", f.name, err)
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

// ReadNowait is a raw call: it cannot block, so the scheduler need not know
// of it.
func (f *osFile) ReadNowait(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	n, _, errno := syscall.RawSyscall6(unix.SYS_PREADV2, uintptr(f.fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), 0, unix.RWF_NOWAIT)
	runtime.KeepAlive(p)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return 0, ErrWouldBlock
	case errno == unix.EOPNOTSUPP || errno == unix.ENOSYS:
		return 0, ErrWouldBlock // not on this file system: let a worker read
	case errno != 0:
		return 0, pathError("read", f.name, errno)
	case n == 0:
		return 0, io.EOF
	case int(n) < len(p):
		return int(n), ErrWouldBlock
	}
	return int(n), nil
}

func (f *osFile) ReadDirect(p []byte, off int64) (int, error) {
	f.directMu.Do(func() {
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(f.fd), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err == nil {
			f.direct = fd
		}
	})
	if f.direct >= 0 {
		n, err := f.readFull(f.direct, p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	return f.ReadAt(p, off)
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathError("write", f.name, err)
		}
		done += n
	}
	return done, nil
}

func (f *osFile) Datasync() error {
	return pathError("fdatasync", f.name, retry(func() error { return unix.Fdatasync(f.fd) }))
}

func (f *osFile) StartWriteBack() error {
	err := retry(func() error { return unix.SyncFileRange(f.fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) })
	return pathError("sync_file_range", f.name, err)
}

func (f *osFile) WriteBackError() error {
	err := retry(func() error { return unix.SyncFileRange(f.fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE) })
	if err == unix.ENOSYS || err == unix.ESPIPE { // not on this file system: the sync has to do
		return nil
	}
	return pathError("sync_file_range", f.name, err)
}

func (f *osFile) WillRead(off, n int64) error {
	return pathError("fadvise", f.name, retry(func() error { return unix.Fadvise(f.fd, off, n, unix.FADV_WILLNEED) }))
}

func (f *osFile) Forget(off, n int64) error {
	return pathError("fadvise", f.name, retry(func() error { return unix.Fadvise(f.fd, off, n, unix.FADV_DONTNEED) }))
}

func (f *osFile) Punch(off, n int64) error {
	return pathError("punch", f.name, retry(func() error {
		return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}))
}

func (f *osFile) Allocate(off, n int64) error {
	return pathError("allocate", f.name, retry(func() error { return unix.Fallocate(f.fd, 0, off, n) }))
}

func (f *osFile) Size() (int64, error) {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstat(f.fd, &st) })
	return st.Size, pathError("stat", f.name, err)
}

// procName reaches the file by its descriptor, also while it has no name.
func (f *osFile) procName() string { return "/proc/self/fd/" + strconv.Itoa(f.fd) }

func (f *osFile) SetXattr(name, value string) error {
	return xattr.Set(f.procName(), name, []byte(value))
}

func (f *osFile) GetXattr(name string) (string, error) {
	v, err := xattr.Get(f.procName(), name)
	return string(v), err
}

func (f *osFile) Close() error {
	if f.hidden != "" {
		unix.Unlink(f.hidden)
	}
	if f.direct >= 0 {
		unix.Close(f.direct)
	}
	return pathError("close", f.name, unix.Close(f.fd))
}
