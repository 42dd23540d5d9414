package attach

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// fakeKernel is a kernel with devices, as far as an attachment sees it: slots for sockets that go dead, requests by simple replies, sysfs.
type fakeKernel struct {
	t    *testing.T
	root string

	mu      sync.Mutex
	devices map[int]*fakeDevice
}

type fakeDevice struct {
	last  Request
	slots []*fakeSlot
}

type fakeSlot struct {
	c    net.Conn
	dead bool
}

func newFakeKernel(t *testing.T) *fakeKernel {
	k := &fakeKernel{t: t, root: t.TempDir(), devices: map[int]*fakeDevice{}}
	for _, dir := range []string{"sys/block", "dev", "proc"} {
		if err := os.MkdirAll(filepath.Join(k.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func (k *fakeKernel) slot(fd int) *fakeSlot {
	own, err := unix.Dup(fd) // the kernel takes a reference of its own
	if err != nil {
		k.t.Error(err)
	}
	if err := unix.SetNonblock(own, true); err != nil {
		k.t.Error(err)
	}
	f := os.NewFile(uintptr(own), "kernel's socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		k.t.Error(err)
	}
	return &fakeSlot{c: c}
}

func (k *fakeKernel) show(index int, r *Request) {
	dir := filepath.Join(k.root, "sys/block", fmt.Sprintf("nbd%d", index))
	os.MkdirAll(filepath.Join(dir, "queue"), 0o755)
	for name, text := range map[string]string{"queue/logical_block_size": fmt.Sprint(r.BlockSize), "pid": "1", "backend": r.Backend, "size": fmt.Sprint(r.Size / 512), "ro": "0"} {
		os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644)
	}
}

// attached says whether a view made now shows the device as attached.
func (k *fakeKernel) attached(index int) bool {
	v, err := openView(k.root)
	if err != nil {
		k.t.Fatal(err)
	}
	defer v.close()
	_, attached := v.look(index)
	return attached
}

func (k *fakeKernel) Connect(index int, r *Request) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if index < 0 {
		for index = 0; k.devices[index] != nil; index++ {
		}
	}
	if k.devices[index] != nil {
		return 0, syscall.EBUSY
	}
	d := &fakeDevice{last: *r}
	for _, fd := range r.Sockets {
		d.slots = append(d.slots, k.slot(fd))
	}
	k.devices[index] = d
	k.show(index, r)
	return index, nil
}

func (k *fakeKernel) Reconfigure(index int, r *Request) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[index]
	if d == nil || d.last.Backend != r.Backend {
		return syscall.EINVAL
	}
	for _, s := range d.slots {
		s.dead = s.dead || ended(s.c)
	}
	if r.Size != d.last.Size && !slices.ContainsFunc(d.slots, func(s *fakeSlot) bool { return !s.dead }) {
		k.t.Error("a new size while no connection lives: the kernel waits for requests that wait for a connection, and takes no sockets meanwhile")
	}
	for _, fd := range r.Sockets {
		fresh := k.slot(fd)
		taken := false
		for i, s := range d.slots {
			if s.dead && !taken {
				d.slots[i], taken = fresh, true
			}
		}
		if !taken {
			fresh.c.Close()
		}
	}
	d.last = *r
	k.show(index, r)
	return nil
}

// ended says whether the other side has closed c.
func ended(c net.Conn) (end bool) {
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	if err := rc.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		end = n == 0 && err == nil
	}); err != nil {
		return true
	}
	return end
}

func (k *fakeKernel) Disconnect(index int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[index]
	if d == nil {
		return syscall.EINVAL
	}
	for _, s := range d.slots {
		s.c.Write(command(2, 0, nil))
		s.c.Close()
	}
	delete(k.devices, index)
	return os.Remove(filepath.Join(k.root, "sys/block", fmt.Sprintf("nbd%d", index), "pid"))
}

func (k *fakeKernel) Status(int) ([]Status, error) { return nil, nil }

// command is a request of the transmission phase.
//
//	| magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 4 | data |
func command(kind uint16, offset uint64, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint32(b, uint32(kind))
	b = binary.BigEndian.AppendUint64(b, 77)
	b = binary.BigEndian.AppendUint64(b, offset)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// write sends a write by any slot that lives, as the kernel would, and marks those that don't.
func (k *fakeKernel) write(index int, offset uint64, data []byte) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		k.mu.Lock()
		var live *fakeSlot
		for _, s := range k.devices[index].slots {
			if !s.dead {
				live = s
			}
		}
		k.mu.Unlock()
		if live == nil {
			continue // wait_for_reconnect
		}
		live.c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err := live.c.Write(command(1, offset, data))
		var reply [16]byte
		if err == nil {
			_, err = io.ReadFull(live.c, reply[:])
		}
		if err != nil {
			k.kill(live)
			continue
		}
		if code := binary.BigEndian.Uint32(reply[4:]); code != 0 {
			return fmt.Errorf("NBD error %d", code)
		}
		return nil
	}
	return errors.New("no connection in time")
}

// kill is what a timeout does, or an error: the slot's socket is shut down.
func (k *fakeKernel) kill(s *fakeSlot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.dead = true
	s.c.Close()
}

func (k *fakeKernel) live(index int) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.devices[index]; d != nil {
		for _, s := range d.slots {
			if !s.dead {
				n++
			}
		}
	}
	return n
}

// served is a process's part: a server and its attachment.
type servedDevice struct {
	a      *Attachment
	server *nbd.Server
	stop   context.CancelFunc
	ended  chan error
}

func (k *fakeKernel) config(device int) Config {
	return Config{Device: device, Backend: "sheepdog:test/disk", Connections: 3, HoldDir: filepath.Join(k.root, "run"), root: k.root,
		inUse: func(int) (string, bool) { return "a test", true }}
}

func serve(t *testing.T, k Kernel, b nbd.Backend, cfg Config, resized <-chan uint64) *servedDevice {
	t.Helper()
	w := Watch(b)
	server, err := nbd.NewServer(nbd.Config{}, w)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	a, err := Attach(ctx, k, server, w, cfg)
	if err != nil {
		stop()
		server.Close()
		t.Fatal(err)
	}
	s := &servedDevice{a, server, stop, make(chan error, 1)}
	go func() { s.ended <- a.Run(ctx, resized) }()
	t.Cleanup(func() { stop(); server.Close() })
	return s
}

func (s *servedDevice) end(t *testing.T) {
	t.Helper()
	s.stop()
	s.wait(t)
}

func (s *servedDevice) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	s.a.Release()
	s.server.Close()
}

// eventually counts its looks and not the time, so that a machine that stands still is not taken for one that hangs.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 10000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	if !ok() {
		t.Fatal("not so in time: " + what)
	}
}

// TestRestart: the device lives through sockets that die, through a process that stops well, and through one that is killed.
func TestRestart(t *testing.T) {
	k := newFakeKernel(t)
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Name: "", Size: 1 << 20, MultiConn: true})
	block := bytes.Repeat([]byte("x"), 4096)
	writes := func() {
		t.Helper()
		for i := range 8 {
			if err := k.write(0, uint64(i)*4096, block); err != nil {
				t.Fatal(err)
			}
		}
	}

	first := serve(t, k, mem, k.config(AnyDevice), nil)
	if first.a.Index() != 0 || k.live(0) != 3 {
		t.Fatalf("device %d with %d connections", first.a.Index(), k.live(0))
	}
	writes()
	k.mu.Lock()
	slots := append([]*fakeSlot(nil), k.devices[0].slots...)
	k.mu.Unlock()
	k.kill(slots[1])
	eventually(t, "a dead connection is replaced", func() bool { return k.live(0) == 3 })
	k.kill(slots[0])
	k.kill(slots[2])
	writes()
	eventually(t, "all connections are back", func() bool { return k.live(0) == 3 })

	first.end(t) // in use: it stays
	if !k.attached(0) {
		t.Fatal("a device in use was detached")
	}
	second := make(chan *servedDevice, 1)
	cfg := k.config(AnyDevice)
	cfg.Connections, cfg.BlockSize = 1, 4096 // the device has three places and a sector of its own, whatever the successor was told
	go func() { second <- serve(t, k, mem, cfg, nil) }()
	writes() // they find the old sockets dead and wait for the new ones
	s := <-second
	if s.a.Index() != 0 {
		t.Fatalf("the device that waited was not found: %d", s.a.Index())
	}
	eventually(t, "all places are filled", func() bool { writes(); return k.live(0) == 3 })
	k.mu.Lock()
	if b := k.devices[0].last.BlockSize; b != 512 {
		t.Errorf("the sector of a device in use became %d", b)
	}
	k.mu.Unlock()

	s.server.Close() // killed: the sockets break
	s.stop()
	s.wait(t)
	third := make(chan *servedDevice, 1)
	go func() { third <- serve(t, k, mem, k.config(0), nil) }()
	writes()
	s = <-third
	if err := k.Disconnect(0); err != nil {
		t.Fatal(err)
	}
	s.wait(t) // and notices by itself
}

// TestRootIsSwitched: a process that began in an initial ramdisk finds nothing by path any more; it must not take its device for detached.
func TestRootIsSwitched(t *testing.T) {
	k := newFakeKernel(t)
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Size: 1 << 20, MultiConn: true})
	s := serve(t, k, mem, k.config(0), nil)
	k.mu.Lock()
	slots := append([]*fakeSlot(nil), k.devices[0].slots...)
	k.mu.Unlock()
	for _, dir := range []string{"sys", "dev", "proc"} {
		if err := os.Rename(filepath.Join(k.root, dir), filepath.Join(k.root, "new-"+dir)); err != nil {
			t.Fatal(err)
		}
	}
	k.kill(slots[0])
	eventually(t, "the dead connection is replaced", func() bool { return k.live(0) == 3 })
	if err := k.write(0, 0, make([]byte, 4096)); err != nil {
		t.Error(err)
	}
	s.end(t)
}

// TestUnused: a device that nobody uses goes with its process.
func TestUnused(t *testing.T) {
	k := newFakeKernel(t)
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Size: 1 << 20, MultiConn: true})
	cfg := k.config(5)
	cfg.inUse = func(int) (string, bool) { return "", false }
	serve(t, k, mem, cfg, nil).end(t)
	if k.attached(5) {
		t.Error("it is still attached")
	}
}

// TestHoldFails: a device that was attached for nobody is not left behind.
func TestHoldFails(t *testing.T) {
	k := newFakeKernel(t)
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Size: 1 << 20, MultiConn: true})
	w := Watch(mem)
	server, err := nbd.NewServer(nbd.Config{}, w)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	cfg := k.config(AnyDevice)
	cfg.HoldDir = filepath.Join(k.root, "run")
	if err := os.WriteFile(cfg.HoldDir, nil, 0o600); err != nil { // no directory
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), k, server, w, cfg); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("attached: %v", err)
	}
	if k.attached(0) {
		t.Error("it is still attached")
	}
}

// slow is a backend whose disks take a while to close, as one does that flushes and gives its session back.
type slow struct {
	*nbd.MemBackend
	open    atomic.Int32
	closing chan struct{} // closed: they may
}

type slowDevice struct {
	nbd.Device
	b *slow
}

func (b *slow) Open(ctx context.Context, name string) (nbd.Device, nbd.ExportInfo, error) {
	d, info, err := b.MemBackend.Open(ctx, name)
	b.open.Add(1)
	return &slowDevice{d, b}, info, err
}

func (d *slowDevice) Close() error {
	<-d.b.closing
	d.b.open.Add(-1)
	return d.Device.Close()
}

// TestDiskIsClosedAtTheEnd: who attaches the device next must find the disk free.
func TestDiskIsClosedAtTheEnd(t *testing.T) {
	for _, how := range []string{"told to stop", "detached by another"} {
		t.Run(how, func(t *testing.T) {
			k := newFakeKernel(t)
			b := &slow{MemBackend: nbd.NewMemBackend(), closing: make(chan struct{})}
			b.Add(nbd.ExportInfo{Size: 1 << 20, MultiConn: true})
			cfg := k.config(0)
			cfg.inUse = func(int) (string, bool) { return "", false }
			s := serve(t, k, b, cfg, nil)
			if how == "told to stop" {
				s.stop()
			} else if err := k.Disconnect(0); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is detached", func() bool { return !k.attached(0) })
			select {
			case <-s.ended:
				t.Error("it ended with disks open")
			case <-time.After(50 * time.Millisecond): // long enough for a wrong end to be seen now and then; a right one waits
			}
			close(b.closing)
			s.wait(t)
			if n := b.open.Load(); n != 0 {
				t.Errorf("%d disks are open at the end", n)
			}
		})
	}
}

// TestAttachIsRefused: what was opened for it is closed when the process ends.
func TestAttachIsRefused(t *testing.T) {
	k := newFakeKernel(t)
	b := &slow{MemBackend: nbd.NewMemBackend(), closing: make(chan struct{})}
	b.Add(nbd.ExportInfo{Size: 1 << 20, MultiConn: true})
	w := Watch(b)
	server, err := nbd.NewServer(nbd.Config{}, w)
	if err != nil {
		t.Fatal(err)
	}
	cfg := k.config(0)
	cfg.inUse = func(int) (string, bool) { return "", false }
	if _, err := Attach(t.Context(), refusing{k}, server, w, cfg); !errors.Is(err, syscall.EPERM) {
		t.Errorf("attached: %v", err)
	}
	server.Close()
	if err := w.WaitClosed(time.Millisecond); err == nil {
		t.Error("nothing is said of a disk that stays open")
	}
	close(b.closing)
	if err := w.WaitClosed(20 * time.Second); err != nil || b.open.Load() != 0 {
		t.Errorf("%v, and %d disks are open", err, b.open.Load())
	}
}

type refusing struct{ *fakeKernel }

func (refusing) Connect(int, *Request) (int, error) { return 0, syscall.EPERM }

func TestRefusals(t *testing.T) {
	k := newFakeKernel(t)
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Size: 1 << 20, MultiConn: true})
	s := serve(t, k, mem, k.config(0), nil)
	try := func(change func(*Config), want string) {
		t.Helper()
		cfg := k.config(1)
		change(&cfg)
		w := Watch(mem)
		server, err := nbd.NewServer(nbd.Config{}, w)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if _, err = Attach(context.Background(), k, server, w, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	try(func(c *Config) { c.Device = 0 }, "served already, by process")
	try(func(c *Config) { c.Device, c.HoldDir, c.Backend = 0, t.TempDir(), "other" }, "attached to sheepdog:test/disk already")
	try(func(c *Config) { c.Connections = 65 }, "1 to 64")
	try(func(c *Config) { c.BlockSize = 8192 }, "block size")
	try(func(c *Config) { c.Export = "nonesuch" }, "nonesuch")
	s.end(t)
}

// TestB4TheKernelGetsUnixStreamSockets: it takes TCP and unix streams only (CVE-2025-40080), in blocking mode.
func TestB4TheKernelGetsUnixStreamSockets(t *testing.T) {
	server, kernel, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	f, err := forKernel(kernel)
	kernel.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	domain, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	flags, err3 := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err := errors.Join(err1, err2, err3); err != nil || domain != unix.AF_UNIX || kind != unix.SOCK_STREAM || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("domain %d, type %d, flags %#x, %v", domain, kind, flags, err)
	}
}

// TestHostileServer: whatever a server says, the handshake ends, with an error or an export.
func TestHostileServer(t *testing.T) {
	hello := append([]byte("NBDMAGICIHAVEOPT"), 0, 3)
	for _, say := range [][]byte{nil, []byte("HTTP/1.1 400 Bad Request"), hello, append(hello, bytes.Repeat([]byte{0xff}, 64)...),
		append(bytes.Clone(hello), 0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0)} {
		ours, theirs := net.Pipe()
		go func() {
			theirs.Write(say)
			theirs.Close()
		}()
		go io.Copy(io.Discard, theirs)
		if _, err := shakeHands(ours, "x", time.Second); err == nil {
			t.Errorf("%q was accepted", say)
		}
		ours.Close()
	}
}

func FuzzReadGo(f *testing.F) {
	info := []byte{0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 0x0d}
	f.Add(append(info, 0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0))
	f.Fuzz(func(_ *testing.T, data []byte) { readGo(bytes.NewReader(data), "x") })
}
