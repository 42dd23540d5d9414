package guard

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// The test binary is also the guardian, and a daemon that has one.
func TestMain(m *testing.M) {
	switch os.Getenv("GUARD_TEST_ROLE") {
	case "guardian":
		os.Exit(Main())
	case "daemon":
		daemon()
	}
	os.Exit(m.Run())
}

// daemon starts a guardian, tells it what its arguments say, and waits to be killed or told to stop.
func daemon() {
	os.Setenv("GUARD_TEST_ROLE", "guardian")
	g, err := Start([]string{os.Args[0]}, slog.Default())
	if err == nil {
		err = g.Tell(state.Member{Node: 3, Inc: 77}, []string{os.Getenv("GUARD_TEST_ADDR")})
	}
	fmt.Println(g.Pid(), err)
	bufio.NewReader(os.Stdin).ReadString('\n')
	g.Stop()
	fmt.Println("stopped")
	os.Exit(0)
}

// leader takes reports.
type leader struct{ got chan wire.Exited }

func (l leader) Frame(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	var e wire.Exited
	if f.Kind == wire.KindExited && e.Parse(f.Meta) == nil {
		c.Send(&wire.Header{Kind: f.Kind | wire.KindAnswer, ID: f.ID}, nil, nil, nil)
		b.Flush(c)
		l.got <- e
	}
}
func (leader) Closed(*wire.Conn, error) {}

func serve(t *testing.T) (string, leader) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := wire.NewMux(l)
	fl := m.Listen(wire.PrefaceFrames)
	lead := leader{make(chan wire.Exited, 16)}
	go m.Serve()
	go func() {
		for {
			nc, err := fl.Accept()
			if err != nil {
				return
			}
			wire.NewConn(nc, lead).Start()
		}
	}()
	t.Cleanup(func() { m.Close() })
	return l.Addr().String(), lead
}

func startDaemon(t *testing.T, addr string) (*exec.Cmd, *bufio.Reader, func(string), int) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GUARD_TEST_ROLE=daemon", "GUARD_TEST_ADDR="+addr)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	first, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.Fields(first)[0])
	return cmd, r, func(s string) { fmt.Fprintln(in, s) }, pid
}

func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestR8GuardianTellsOfAKilledDaemon(t *testing.T) {
	addr, lead := serve(t)
	cmd, _, _, pid := startDaemon(t, addr)
	start := time.Now()
	cmd.Process.Kill()
	select {
	case e := <-lead.got:
		if e.Node != 3 || e.Inc != 77 {
			t.Errorf("told of %+v", e)
		}
		t.Logf("told after %s", time.Since(start))
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was told")
	}
	cmd.Wait()
	end := time.Now().Add(5 * time.Second)
	for !gone(pid) {
		if time.Now().After(end) {
			t.Fatal("the guardian stays")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestGuardianGoesQuietlyOnACleanStop(t *testing.T) {
	addr, lead := serve(t)
	cmd, out, say, pid := startDaemon(t, addr)
	syscallTerm(t, pid) // is not meant for it
	if gone(pid) {
		t.Fatal("SIGTERM ended the guardian")
	}
	say("stop")
	if s, _ := out.ReadString('\n'); s != "stopped\n" {
		t.Fatalf("daemon said %q", s)
	}
	cmd.Wait()
	if !gone(pid) {
		t.Error("the guardian stays")
	}
	select {
	case e := <-lead.got:
		t.Errorf("told of %+v after a clean stop", e)
	default:
	}
}

func syscallTerm(t *testing.T, pid int) {
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	// Wait until it ignores signals: its pidfd is open then, or nearly.
	end := time.Now().Add(5 * time.Second)
	for {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for _, l := range strings.Split(string(b), "\n") {
			if m, ok := strings.CutPrefix(l, "SigIgn:\t"); ok {
				if v, _ := strconv.ParseUint(m, 16, 64); v&(1<<14) != 0 {
					p.Signal(syscall.SIGTERM)
					return
				}
			}
		}
		if time.Now().After(end) {
			t.Fatal("the guardian does not ignore SIGTERM")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A guardian that was stopped reads nothing: neither telling it nor stopping it may hang the daemon.
func TestStoppedGuardianHangsNobody(t *testing.T) {
	t.Setenv("GUARD_TEST_ROLE", "guardian")
	g, err := Start([]string{os.Args[0]}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(g.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	full := make(chan error, 1)
	go func() { full <- g.Tell(state.Member{Node: 3, Inc: 77}, []string{strings.Repeat("x", 1<<20)}) }()                 // more than a pipe takes
	for end := time.Now().Add(5 * time.Second); g.mu.TryLock() && time.Now().Before(end); time.Sleep(time.Millisecond) { // until it is at it
		g.mu.Unlock()
	}
	done := make(chan struct{})
	go func() { g.Stop(); close(done) }()
	late := time.After(10 * time.Second)
	select {
	case <-done:
	case <-late:
		syscall.Kill(g.Pid(), syscall.SIGKILL)
		t.Fatal("the stop hangs")
	}
	select {
	case err := <-full:
		if err == nil {
			t.Error("a guardian that does not read was told all the same")
		}
	case <-late:
		t.Fatal("the telling hangs")
	}
	if !gone(g.Pid()) {
		t.Error("the guardian stays")
	}
}
