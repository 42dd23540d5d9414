package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// Config says what is attached, and how.
type Config struct {
	Device      int           // number, or AnyDevice
	Export      string        // by which name the server has it
	Backend     string        // identity: only who names the same one may serve the device after us
	Connections int           // 1 to 64; more than one need an export that can MULTI_CONN; default 1
	BlockSize   uint64        // the device's sector, bytes: 512 (default) to 4096
	IOTimeout   time.Duration // see Request; default 15 s
	DeadTimeout time.Duration // see Request; default 10 min
	OpenTimeout time.Duration // how long a device that is attached already waits for its disk; default 30 s
	Logger      *slog.Logger  // default: silent

	HoldDir string // default /run/sheep-nbd

	root  string // these two for tests
	inUse func(index int) (by string, used bool)
}

const (
	connectionsMax = 64 // ours: the kernel makes a hardware queue of 128 requests for each

	defaultIOTimeout   = 15 * time.Second
	defaultDeadTimeout = 10 * time.Minute
	defaultOpenTimeout = 30 * time.Second

	handshakeTimeout = 5 * time.Second // beside what the server has for opening an export
	leaveTimeout     = 20 * time.Second
	retryFirst       = 50 * time.Millisecond
	retryMost        = time.Second
)

func (c *Config) complete() error {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.IOTimeout, defaultIOTimeout)
	def(&c.DeadTimeout, defaultDeadTimeout)
	def(&c.OpenTimeout, defaultOpenTimeout)
	if c.Connections == 0 {
		c.Connections = 1
	}
	if c.BlockSize == 0 {
		c.BlockSize = 512
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.HoldDir == "" {
		c.HoldDir = holdDir
	}
	if c.root == "" {
		c.root = "/"
	}
	switch {
	case c.Connections < 1 || c.Connections > connectionsMax:
		return fmt.Errorf("%d connections: use 1 to %d", c.Connections, connectionsMax)
	case c.BlockSize < 512 || c.BlockSize > 4096 || c.BlockSize&(c.BlockSize-1) != 0:
		return fmt.Errorf("block size %d: use 512, 1024, 2048 or 4096", c.BlockSize)
	case c.Backend == "":
		return errors.New("a device needs an identity of what is behind it")
	}
	return nil
}

// Attachment is one device that this process serves.
//
//	Attach ─► attached ─► Run ─┬─ a connection ended ─► join again ─► attached
//	                           ├─ the disk has another size ─► renew ─► attached
//	                           ├─ somebody detached it ─► quiet ─► end
//	                           └─ told to stop ─► used: leave it attached; not used: detach ─► quiet ─► end
type Attachment struct {
	cfg     Config
	kernel  Kernel
	server  *nbd.Server
	exports *watched
	view    *view
	lock    *holder
	index   int
	export  Export          // as the newest connection found it
	size    uint64          // of the export, as the kernel has it, and unless it is just changing all connections in service
	conns   []*net.UnixConn // the server's halves

	lastJoin time.Time
	pause    time.Duration
}

// Watch wraps the backend of the server that Attach is given, so that it is known when a connection has ended.
func Watch(b nbd.Backend) *Watched {
	return &watched{Backend: b, ended: make(chan struct{}, 1)}
}

// Watched is a Backend that counts what is open.
type Watched = watched

type watched struct {
	nbd.Backend
	mu     sync.Mutex
	open   int
	failed error         // of a disk that did not close well
	ended  chan struct{} // has a value after a connection ended
}

// Open implements nbd.Backend.
func (w *watched) Open(ctx context.Context, name string) (nbd.Device, nbd.ExportInfo, error) {
	d, info, err := w.Backend.Open(ctx, name)
	if err != nil {
		return nil, info, err
	}
	w.mu.Lock()
	w.open++
	w.mu.Unlock()
	return nbd.OnClose(d, w.closed), info, nil
}

func (w *watched) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open
}

// WaitClosed waits until no disk is open, at most for so long: who opens it next finds it free then. The error says that one did not close, or not
// well. It comes after Run and the server's Close.
func (w *Watched) WaitClosed(most time.Duration) error {
	late := time.After(most)
	for w.count() > 0 {
		select {
		case <-w.ended:
		case <-late:
			return fmt.Errorf("the disk was not closed within %v", most)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// closed takes that a disk was closed, and how that went.
func (w *watched) closed(err error) {
	w.mu.Lock()
	w.failed = err // of the last one: it flushes for all
	w.open--
	w.mu.Unlock()
	select {
	case w.ended <- struct{}{}:
	default:
	}
}

// Attach makes the device, or joins one that an earlier process left behind. server must serve w.
func Attach(ctx context.Context, k Kernel, server *nbd.Server, w *Watched, cfg Config) (*Attachment, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	v, err := openView(cfg.root)
	if err != nil {
		return nil, err
	}
	if cfg.inUse == nil {
		cfg.inUse = v.inUse
	}
	a := &Attachment{cfg: cfg, kernel: k, server: server, exports: w, view: v, index: cfg.Device}
	if a.index == AnyDevice {
		a.index = a.orphan()
	}
	if a.index != AnyDevice {
		if err := a.take(); err != nil {
			a.Release()
			return nil, err
		}
	}
	if err := a.begin(ctx); err != nil {
		a.Release()
		return nil, err
	}
	return a, nil
}

// Index is the device's number.
func (a *Attachment) Index() int { return a.index }

// Size is how many bytes the disk had when the device was attached, or joined.
func (a *Attachment) Size() uint64 { return a.size }

// Release lets another process serve the device. It comes after Run.
func (a *Attachment) Release() {
	if a.lock != nil {
		a.lock.release()
	}
	a.view.close()
}

func (a *Attachment) take() (err error) {
	a.lock, err = hold(a.cfg.HoldDir, a.index)
	return err
}

// orphan is a device that waits for us, if there is one.
func (a *Attachment) orphan() int {
	for _, d := range a.view.list() {
		if busy, _ := served(a.cfg.HoldDir, d.Index); !busy && d.Backend == a.cfg.Backend {
			return d.Index
		}
	}
	return AnyDevice
}

// begin attaches the device, or joins it.
func (a *Attachment) begin(ctx context.Context) error {
	if a.index == AnyDevice {
		return a.connect()
	}
	d, attached := a.view.look(a.index)
	switch {
	case !attached:
		return a.connect()
	case d.Backend == "" || d.Backend != a.cfg.Backend:
		what := "something else"
		if d.Backend != "" {
			what = d.Backend
		}
		return fmt.Errorf("%s is attached to %s already; sheep-nbd -d %[1]s detaches it", DeviceName(a.index), what)
	}
	// The device keeps what it was made with. Another sector would break the file system that is mounted from it.
	if n := a.lock.connections; n > 0 {
		a.cfg.Connections = n
	}
	if d.BlockSize != a.cfg.BlockSize {
		a.cfg.Logger.Info("the device keeps its block size", "device", DeviceName(a.index), "block-size", d.BlockSize, "asked-for", a.cfg.BlockSize)
		a.cfg.BlockSize = d.BlockSize
	}
	a.size = d.Size
	// The process before us may have been killed: its session has to run out first.
	ctx, cancel := context.WithTimeout(ctx, a.cfg.OpenTimeout)
	defer cancel()
	err := a.join(ctx)
	if err == nil {
		err = a.lock.write(a.cfg.Backend, a.cfg.Connections)
		a.cfg.Logger.Info("joined a device that was attached already", "device", DeviceName(a.index), "backend", d.Backend)
	}
	return err
}

// connect attaches a free device.
func (a *Attachment) connect() error {
	socks, err := a.dial(a.cfg.Connections)
	defer closeFiles(socks)
	if err != nil {
		return err
	}
	if a.cfg.Connections > 1 && a.export.Flags&flagMultiConn == 0 {
		return fmt.Errorf("%d connections: this export allows one", a.cfg.Connections)
	}
	a.size = a.export.Size
	index, err := a.kernel.Connect(a.index, a.request(socks, a.size))
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.name(), err)
	}
	if a.index == AnyDevice {
		a.index = index
		err = a.take()
	}
	if err == nil {
		err = a.lock.write(a.cfg.Backend, a.cfg.Connections)
	}
	if err != nil {
		err = errors.Join(err, a.kernel.Disconnect(index)) // nobody can use it yet
	}
	return err
}

func (a *Attachment) name() string {
	if a.index == AnyDevice {
		return "a free device"
	}
	return DeviceName(a.index)
}

// request is all that the kernel is told.
func (a *Attachment) request(socks []*os.File, size uint64) *Request {
	r := &Request{Size: size &^ (a.cfg.BlockSize - 1), BlockSize: a.cfg.BlockSize, Flags: a.export.Flags, IOTimeout: a.cfg.IOTimeout,
		DeadTimeout: a.cfg.DeadTimeout, Backend: a.cfg.Backend}
	for _, f := range socks {
		r.Sockets = append(r.Sockets, int(f.Fd()))
	}
	return r
}

// dial makes n connections to the server, ready for the kernel, all of which know the same size. What was made is in the result, also with an error.
func (a *Attachment) dial(n int) (socks []*os.File, err error) {
	a.prune()
	for len(socks) < n {
		server, kernel, err := pair()
		if err != nil {
			return socks, err
		}
		a.server.ServeConn(server)
		x, err := shakeHands(kernel, a.cfg.Export, a.cfg.OpenTimeout+handshakeTimeout)
		if err != nil {
			kernel.Close()
			return socks, err
		}
		f, err := forKernel(kernel)
		kernel.Close()
		if err != nil {
			return socks, err
		}
		if len(socks) > 0 && x.Size != a.export.Size { // it was resized between two of them
			closeFiles(socks)
			socks = socks[:0]
		}
		a.export = x
		socks = append(socks, f)
		a.conns = append(a.conns, server)
	}
	return socks, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// prune forgets connections that are closed.
func (a *Attachment) prune() {
	a.conns = slices.DeleteFunc(a.conns, func(c *net.UnixConn) bool {
		rc, err := c.SyscallConn()
		return err != nil || rc.Control(func(uintptr) {}) != nil
	})
}

// errDetached says that somebody took the device away.
var errDetached = errors.New("detached")

// join brings new sockets in place of those that are dead. It tries until ctx ends: meanwhile the device's users wait.
func (a *Attachment) join(ctx context.Context) error {
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		missing := a.cfg.Connections - a.exports.count()
		if missing <= 0 {
			return nil
		}
		err := a.bring(missing)
		if err == nil || errors.Is(err, errDetached) {
			return err
		}
		a.cfg.Logger.Warn("the device waits for its disk", "device", DeviceName(a.index), "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("serve %s: %w", DeviceName(a.index), err)
		}
	}
}

// bring gives the kernel n new connections. The size that they know comes later (tell).
func (a *Attachment) bring(n int) error {
	if _, attached := a.view.look(a.index); !attached {
		return errDetached
	}
	socks, err := a.dial(n)
	if err == nil && n < a.cfg.Connections && a.export.Size != a.size { // the others do not know it
		closeFiles(socks)
		a.resize()
		socks, err = a.dial(a.cfg.Connections)
	}
	defer closeFiles(socks)
	if err != nil {
		return err
	}
	if err := a.reconfigure(socks, a.size); err != nil {
		return fmt.Errorf("bring new sockets for %s: %w", DeviceName(a.index), err)
	}
	return nil
}

// settleTime is for how long connections have to live before the kernel hears of another size: to change it it waits for all requests under way, and
// these, where no connection lives, for one that it would not take meanwhile. (It drops sockets for which it knows of no dead one yet.)
const settleTime = 100 * time.Millisecond

// tell has the kernel know the size that all connections know.
func (a *Attachment) tell(ctx context.Context) error {
	if a.exports.count() < a.cfg.Connections {
		return a.join(ctx)
	}
	if err := a.reconfigure(nil, a.export.Size); err != nil {
		return fmt.Errorf("resize %s: %w", DeviceName(a.index), err)
	}
	a.size = a.export.Size
	return nil
}

func (a *Attachment) reconfigure(socks []*os.File, size uint64) error {
	err := a.kernel.Reconfigure(a.index, a.request(socks, size))
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOENT) {
		return errDetached // it is, or is just being taken apart: a device in service accepts what is asked here
	}
	return err
}

// Run serves the device until it is detached or ctx ends. A value from resized is the size that the disk has now.
func (a *Attachment) Run(ctx context.Context, resized <-chan uint64) error {
	for {
		var err error
		var settled <-chan time.Time
		if a.export.Size != a.size {
			settled = time.After(settleTime)
		}
		select {
		case <-ctx.Done():
			return a.Leave()
		case <-settled:
			err = a.tell(ctx)
		case <-a.exports.ended:
			a.calm(ctx)
			err = a.join(ctx)
		case size := <-resized:
			err = a.renew(ctx, size, resized)
		}
		switch {
		case errors.Is(err, errDetached):
			a.cfg.Logger.Info("detached by another", "device", DeviceName(a.index))
			return a.quiet()
		case err != nil && ctx.Err() == nil:
			return err
		}
	}
}

// calm waits a little when connections end again and again, as when the kernel does not know yet that its old one is dead, and takes no new one.
func (a *Attachment) calm(ctx context.Context) {
	if now := time.Now(); now.Sub(a.lastJoin) > 2*retryMost {
		a.pause, a.lastJoin = 0, now
		return
	}
	a.pause = min(max(2*a.pause, retryFirst), retryMost)
	select {
	case <-time.After(a.pause):
	case <-ctx.Done():
	}
	a.lastJoin = time.Now()
}

// renew brings connections that know the disk's new size, and tells the kernel.
func (a *Attachment) renew(ctx context.Context, size uint64, resized <-chan uint64) error {
	wait, looks := retryFirst, 0
	for {
		probe, err := a.dial(1)
		closeFiles(probe)
		if err == nil {
			if looks++; a.export.Size == size || looks == staleMost {
				break
			}
			err = fmt.Errorf("it still opens with %d bytes", a.export.Size) // who opens may hear of it later than we did
		}
		if _, attached := a.view.look(a.index); !attached {
			return errDetached
		}
		a.cfg.Logger.Info("the disk has a new size, but does not open with it yet", "device", DeviceName(a.index), "new", size, "err", err)
		select {
		case <-time.After(wait):
			wait = min(2*wait, retryMost)
		case size = <-resized:
		case <-ctx.Done():
			return nil
		}
	}
	if a.export.Size == a.size {
		return nil
	}
	a.resize()
	return a.join(ctx)
}

// staleMost is how many probes with another size than was heard of are enough: they take some 3 s, in which no dead connection is replaced.
const staleMost = 8

// resize ends all connections, since the disk has not the size any more that they know. New ones know it before the kernel does, so that a request is
// never sent to where it does not fit, but for one to what is gone.
func (a *Attachment) resize() {
	a.cfg.Logger.Info("the disk has a new size", "device", DeviceName(a.index), "old", a.size, "new", a.export.Size)
	if err := a.quiet(); err != nil {
		a.cfg.Logger.Warn("connections are cut off; the kernel sends again what they did not answer", "device", DeviceName(a.index), "err", err)
		for _, c := range a.conns {
			c.Close()
		}
	}
}

// quiet ends all connections without an error for anybody: nothing more is taken in, what was taken is answered, the disk is closed. The kernel
// keeps the rest.
func (a *Attachment) quiet() error {
	a.prune()
	for _, c := range a.conns {
		_ = c.CloseRead()
	}
	late := time.After(leaveTimeout)
	for a.exports.count() > 0 {
		select {
		case <-a.exports.ended:
		case <-late:
			return fmt.Errorf("%s: requests under way were not answered, or the disk not closed, within %v", DeviceName(a.index), leaveTimeout)
		}
	}
	return nil
}

// Leave ends the service instead of Run: a device that nobody uses is detached, one that is in use stays for the next process.
func (a *Attachment) Leave() error {
	by, used := a.cfg.inUse(a.index)
	if !used {
		if err := a.kernel.Disconnect(a.index); err != nil {
			return fmt.Errorf("detach %s: %w", DeviceName(a.index), err)
		}
		return a.quiet() // who attaches it next finds the disk free
	}
	a.cfg.Logger.Warn("the device stays attached, because it is in use; its users wait until sheep-nbd -c is started again, or sheep-nbd -d detaches it",
		"device", DeviceName(a.index), "used-by", by, "wait", a.cfg.DeadTimeout)
	return a.quiet()
}

// notAttached is an fs.ErrNotExist in words of its own.
type notAttached struct{ index int }

func (e notAttached) Error() string {
	return fmt.Sprintf("detach %s: it is not attached", DeviceName(e.index))
}
func (e notAttached) Is(target error) bool { return target == fs.ErrNotExist }

// goneTimeout is how long Detach waits until the kernel has let go of a device, so that it can be attached again at once.
const goneTimeout = 5 * time.Second

// Detach takes a device away from the kernel. One that is in use is only detached by force: what its users still had to write is lost to them, and the
// device stays, without a disk, until they close it.
func Detach(k Kernel, index int, force bool) error {
	v, err := openView("/")
	if err != nil {
		return err
	}
	defer v.close()
	if _, attached := v.look(index); !attached {
		return notAttached{index}
	}
	by, used := v.inUse(index)
	if used && !force {
		return fmt.Errorf("detach %s: it is in use by %s; unmount or close it first (-f detaches it all the same)", DeviceName(index), by)
	}
	if err := k.Disconnect(index); err != nil {
		return fmt.Errorf("detach %s: %w", DeviceName(index), err)
	}
	for end := time.Now().Add(goneTimeout); !used && time.Now().Before(end); time.Sleep(retryFirst) {
		if _, attached := v.look(index); !attached {
			break
		}
	}
	return nil
}
