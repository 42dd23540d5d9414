package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/admin/admintest"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sheep": main, "dog": main, "collie": main})
}

// nodeHosts are the addresses of a script's nodes; they share a port, as nodes do.
var nodeHosts = []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}

// listenAll listens on one port that is free on all of hosts: one from pick, or the system's choice for 0.
func listenAll(hosts []string, pick func() int) ([]net.Listener, int, error) {
	var last error
	for range 100 {
		first, err := net.Listen("tcp", net.JoinHostPort(hosts[0], strconv.Itoa(pick())))
		if err != nil {
			last = err
			continue
		}
		port := first.Addr().(*net.TCPAddr).Port
		list := []net.Listener{first}
		for _, host := range hosts[1:] {
			l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil {
				last = err
				break
			}
			list = append(list, l)
		}
		if len(list) == len(hosts) {
			return list, port, nil
		}
		closeAll(list)
	}
	return nil, 0, last
}

// freePort is a port that was free on all of nodeHosts a moment ago. It is below those that the system chooses from: other packages' tests, which run
// beside these, ask for such all the time, and a script's nodes come and go.
func freePort() (int, error) {
	list, port, err := listenAll(nodeHosts, func() int { return 10000 + rand.IntN(20000) })
	closeAll(list)
	return port, err
}

// TestScripts runs the stories in testdata/script, each against a made-up cluster of three nodes whose agreed state is the true one.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_GOLDEN") != "", // to be looked at before it is committed
		Setup: func(e *testscript.Env) error {
			listeners, port, err := listenAll(nodeHosts[:3], func() int { return 0 })
			if err != nil {
				return err
			}
			e.Setenv("PORT", strconv.Itoa(port))
			e.Setenv("SHEEP_ADDRESS", listeners[0].Addr().String())
			e.Setenv("TZ", "UTC")
			e.Values["cluster"] = serveFake(e, listeners)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"lose": func(ts *testscript.TestScript, _ bool, args []string) {
				fake(ts).Kill(state.NodeID(number(ts, args[0])))
			},
			"restart": func(ts *testscript.TestScript, _ bool, args []string) {
				fake(ts).Return(state.NodeID(number(ts, args[0])))
			},
			"usage":    setUsage,
			"findings": func(ts *testscript.TestScript, _ bool, args []string) { fake(ts).SetFindings(args...) },
			"open":     openSession,
			"stopped":  stopped,
		},
	})
}

func serveFake(e *testscript.Env, listeners []net.Listener) *admintest.Cluster {
	var addrs []string
	for _, l := range listeners {
		addrs = append(addrs, l.Addr().String())
	}
	c := admintest.New(addrs...)
	for i, l := range listeners {
		s := admin.NewServer(c.Node(i), slog.New(slog.DiscardHandler))
		go s.Serve(l)
		e.Defer(func() {
			s.Shutdown(context.Background())
			l.Close()
		})
	}
	return c
}

func fake(ts *testscript.TestScript) *admintest.Cluster {
	return ts.Value("cluster").(*admintest.Cluster)
}

func number(ts *testscript.TestScript, text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	ts.Check(err)
	return n
}

// exits CODE PROGRAM ARGS…: the program ends with this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	err := ts.Exec("timeout", append([]string{"--kill-after=5", "30"}, args[1:]...)...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if want := int(number(ts, args[0])); code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// usage NAME SNAP BYTES: what a VDI holds.
func setUsage(ts *testscript.TestScript, _ bool, args []string) {
	v, err := fake(ts).Node(0).Map().Lookup(args[0], args[1])
	ts.Check(err)
	fake(ts).SetUsage(v.Vid, number(ts, args[2]))
}

// open NAME OWNER: a client opens a VDI.
func openSession(ts *testscript.TestScript, _ bool, args []string) {
	r := fake(ts).Apply(&state.Command{OpenSess: &state.OpenSess{Name: args[0], Client: "client-" + args[1], Holder: state.Member{Node: state.NoNode}, Owner: args[1]}})
	ts.Check(r.Err())
}

// stopped N: somebody told node N to stop.
func stopped(ts *testscript.TestScript, neg bool, args []string) {
	if fake(ts).Stopped(int(number(ts, args[0]))) == neg {
		ts.Fatalf("node %s: stopped is %v", args[0], neg)
	}
}

// TestRealNodes runs the stories in testdata/real, one after the other: nodes with disks, in processes of their own.
func TestRealNodes(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("starts whole clusters")
	}
	files, err := filepath.Glob("testdata/real/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files { // they share ports: not in parallel
		testscript.RunT(sequential{t}, testscript.Params{
			Files: []string{file},
			Setup: func(e *testscript.Env) error {
				for _, name := range []string{"PORT", "GOSSIP", "NBD"} {
					port, err := freePort()
					if err != nil {
						return err
					}
					e.Setenv(name, strconv.Itoa(port))
				}
				e.Setenv("SHEEP_ADDRESS", "127.0.0.1:"+e.Getenv("PORT"))
				e.Setenv("TZ", "UTC")
				e.Setenv("TMPDIR", filepath.Join(e.WorkDir, ".tmp"))
				return nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "eventually": eventuallyRuns},
		})
	}
}

// sequential runs a script's subtest without the Parallel that testscript asks for.
type sequential struct{ *testing.T }

func (s sequential) Parallel()     {}
func (s sequential) Verbose() bool { return testing.Verbose() }
func (s sequential) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(sequential{t}) })
}

// eventually PATTERN PROGRAM ARGS…: before long the program succeeds and prints something that matches.
func eventuallyRuns(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN PROGRAM ARGS…")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	err = eventually(ctx, 100*time.Millisecond, func() (bool, error) {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return false, err
		}
		if out := ts.ReadFile("stdout"); !pattern.MatchString(out) {
			return false, fmt.Errorf("no match for %s", pattern)
		}
		return true, nil
	})
	ts.Check(err)
}

// TestTerminal: neither a file nor a buffer is a terminal.
func TestTerminal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if terminal(f) || terminal(nil) {
		t.Error("/dev/null is no terminal")
	}
}
