package nbd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	gonbd "github.com/pojntfx/go-nbd/pkg/backend"
	gonbdserver "github.com/pojntfx/go-nbd/pkg/server"
)

// The servers run as processes of their own, so that each is measured with its own scheduler: this test binary serves if it is told to.

const benchSize = 256 << 20

func TestMain(m *testing.M) {
	if kind := os.Getenv("NBD_TEST_SERVE"); kind != "" {
		serveForBenchmark(kind, os.Getenv("NBD_TEST_SOCKET"))
		return
	}
	os.Exit(m.Run())
}

func serveForBenchmark(kind, path string) {
	var l net.Listener
	var err error
	if kind == "systemd" {
		ls, e := SystemdListeners()
		if e != nil || len(ls) != 1 {
			panic(fmt.Sprint(ls, e))
		}
		l = ls[0]
	} else if l, err = ListenUnix(UnixSocket{Path: path}); err != nil {
		panic(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	switch kind {
	case "ours", "systemd":
		b := NewMemBackend()
		b.Add(ExportInfo{Name: "", Size: benchSize})
		s, err := NewServer(Config{}, b)
		if err != nil {
			panic(err)
		}
		go s.Serve(l)
	case "async":
		s, err := NewServer(Config{}, &fakeBackend{info: ExportInfo{Size: benchSize}, device: newLaterDevice})
		if err != nil {
			panic(err)
		}
		go s.Serve(l)
	case "go-nbd":
		mem := gonbd.NewMemoryBackend(make([]byte, benchSize))
		go func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				go gonbdserver.Handle(nc, []*gonbdserver.Export{{Name: "", Backend: mem}}, nil)
			}
		}()
	}
	<-stop
	l.Close()
}

// laterDevice answers each batch from another goroutine, as a Device does that asks other machines.
type laterDevice struct {
	disk  *MemDisk
	batch []*Request
	work  chan []*Request
	spare chan []*Request
}

func newLaterDevice() Device {
	d := &laterDevice{disk: NewMemDisk(benchSize), work: make(chan []*Request, 64), spare: make(chan []*Request, 64)}
	go func() {
		for batch := range d.work {
			conn := batch[0].Conn()
			for _, r := range batch {
				d.disk.Submit(r)
			}
			conn.Flush()
			d.spare <- batch[:0]
		}
	}()
	return d
}

func (d *laterDevice) Submit(r *Request) { d.batch = append(d.batch, r) }

func (d *laterDevice) Push() {
	d.work <- d.batch
	select {
	case d.batch = <-d.spare:
	default:
		d.batch = nil
	}
}

func (d *laterDevice) Close() error { close(d.work); return nil }

// startServer starts one of the servers that are compared, and returns its process.
func startServer(b testing.TB, kind string) (pid int, sock string) {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		b.Fatal(err)
	}
	sock = filepath.Join(dir, "s")
	var cmd *exec.Cmd
	switch kind {
	case "nbdkit":
		cmd = exec.Command("nbdkit", "-f", "-U", sock, "memory", fmt.Sprint(benchSize))
	case "qemu-nbd":
		raw := filepath.Join(dir, "raw")
		if err := os.WriteFile(raw, nil, 0o600); err == nil {
			err = os.Truncate(raw, benchSize)
		}
		cmd = exec.Command("qemu-nbd", "-t", "-e", "16", "-f", "raw", "-k", sock, raw)
	default:
		cmd = exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "NBD_TEST_SERVE="+kind, "NBD_TEST_SOCKET="+sock)
	}
	if err := cmd.Start(); err != nil {
		b.Skipf("%s: %v", kind, err)
	}
	b.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		os.RemoveAll(dir)
	})
	within(b, kind+" to listen", func() bool {
		_, err := os.Stat(sock)
		return err == nil
	})
	return cmd.Process.Pid, sock
}

// load is one connection that keeps a number of requests in flight.
type load struct {
	nc    net.Conn
	rd    *bufio.Reader
	out   []byte
	write bool
	size  int
	data  []byte
	seed  uint64
}

func newLoad(t testing.TB, sock string, write bool, size int) *load {
	var nc net.Conn
	within(t, "the server to answer", func() bool {
		var err error
		nc, err = net.Dial("unix", sock)
		return err == nil
	})
	t.Cleanup(func() { nc.Close() })
	w := &wire{t, nc}
	w.recv(18)
	w.send(clientFixedNewstyle)
	w.wants(w.option(optGo, infoData("")), repAck)
	return &load{nc: nc, rd: bufio.NewReaderSize(nc, 256<<10), write: write, size: size, data: pattern(size, 1), seed: 1}
}

func (l *load) issue() {
	l.seed = l.seed*6364136223846793005 + 1442695040888963407
	off := l.seed >> 20 % (benchSize / uint64(l.size)) * uint64(l.size)
	cmd := cmdRead
	if l.write {
		cmd = cmdWrite
	}
	l.out = append(l.out, request(cmd, 0, 1, off, uint32(l.size))...)
	if l.write {
		l.out = append(l.out, l.data...)
	}
}

// run does n requests with depth in flight; each answers a reply at once, and all that are due go out with one write.
func (l *load) run(n, depth int) error {
	for range min(n, depth) {
		l.issue()
	}
	issued := min(n, depth)
	head := make([]byte, simpleReplySize)
	for done := 0; done < n; done++ {
		if l.rd.Buffered() < simpleReplySize && len(l.out) > 0 {
			if _, err := l.nc.Write(l.out); err != nil {
				return err
			}
			l.out = l.out[:0]
		}
		if _, err := io.ReadFull(l.rd, head); err != nil {
			return err
		}
		if code := binary.BigEndian.Uint32(head[4:]); code != 0 {
			return fmt.Errorf("error %d", code)
		}
		if !l.write {
			if _, err := l.rd.Discard(l.size); err != nil {
				return err
			}
		}
		if issued < n {
			l.issue()
			issued++
		}
	}
	return nil
}

// cpu is the processor time that a process has used.
func cpu(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	sys, _ := strconv.Atoi(f[12])
	return time.Duration(user+sys) * 10 * time.Millisecond
}

// BenchmarkServers compares this package over memory with others on the same machine: requests, and the server's processor time
// for each (cpu-us/op), which does not depend on what else the machine is doing. "async"
// is ours with a Device that answers from another goroutine.
func BenchmarkServers(b *testing.B) {
	for _, j := range []struct {
		name  string
		write bool
		size  int
		depth int
	}{
		{"read4k/qd1", false, 4 << 10, 1}, {"read4k/qd32", false, 4 << 10, 32}, {"write4k/qd1", true, 4 << 10, 1}, {"write4k/qd32", true, 4 << 10, 32},
		{"read128k/qd8", false, 128 << 10, 8}, {"write128k/qd8", true, 128 << 10, 8},
	} {
		for _, kind := range []string{"ours", "async", "nbdkit", "qemu-nbd", "go-nbd"} {
			b.Run(j.name+"/"+kind, func(b *testing.B) {
				pid, sock := startServer(b, kind)
				warm := newLoad(b, sock, true, 1<<20)
				if err := warm.run(256, 1); err != nil {
					b.Fatal(err)
				}
				l := newLoad(b, sock, j.write, j.size)
				b.SetBytes(int64(j.size))
				before := cpu(pid)
				b.ResetTimer()
				if err := l.run(b.N, j.depth); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				b.ReportMetric(float64((cpu(pid)-before).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}
