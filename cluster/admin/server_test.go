package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/admin/admintest"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// start serves a made-up cluster of n nodes and returns clients of all.
func start(t *testing.T, n int) (*admintest.Cluster, []*admin.Client) {
	t.Helper()
	var listeners []net.Listener
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, addrs = append(listeners, l), append(addrs, l.Addr().String())
	}
	c := admintest.New(addrs...)
	var clients []*admin.Client
	for i, l := range listeners {
		read := admin.NewLatency("read")
		read.Observe(4096, 100*time.Microsecond, false)
		s := admin.NewServer(c.Node(i), slog.New(slog.DiscardHandler), admin.Latencies{read}, admin.CertificateExpiry(func() time.Time { return time.Unix(4102444800, 0) }))
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		client := admin.NewClient(addrs[i])
		clients = append(clients, client)
		t.Cleanup(func() {
			client.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			s.Shutdown(ctx)
			if err := <-done; err != nil {
				t.Error(err)
			}
			l.Close() // the port was not the API's own
		})
	}
	return c, clients
}

func format(t *testing.T, c *admin.Client, copies int) {
	t.Helper()
	if err := c.Format(t.Context(), admin.FormatRequest{Copies: copies, PGs: 64}); err != nil {
		t.Fatal(err)
	}
}

func TestUnformatted(t *testing.T) {
	_, clients := start(t, 3)
	st, err := clients[1].Status(t.Context())
	if err != nil || st.State != "unformatted" || st.Text != "Waiting for cluster to be formatted" {
		t.Errorf("status %+v, %v", st, err)
	}
	nodes, err := clients[1].Nodes(t.Context())
	if err != nil || len(nodes) != 3 || nodes[2].Self == nil {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
	if err := clients[0].Check(t.Context(), false, nil, func(admin.CheckEvent) {}); !errors.Is(err, state.ErrUnformatted) {
		t.Errorf("check: %v", err)
	}
	if err := clients[0].Shutdown(t.Context()); !errors.Is(err, state.ErrUnformatted) {
		t.Errorf("shutdown: %v", err)
	}
}

func TestFormatRefusals(t *testing.T) {
	_, clients := start(t, 3)
	for _, r := range []admin.FormatRequest{{}, {Copies: 4}, {Copies: 3, MinCopies: 4}, {Copies: 3, PGs: 100}, {Copies: -1}, {Copies: 3, PGs: 1 << 20}} {
		if err := clients[0].Format(t.Context(), r); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("format %+v: %v", r, err)
		}
	}
	format(t, clients[0], 3)
	if err := clients[0].Format(t.Context(), admin.FormatRequest{Copies: 3}); !errors.Is(err, state.ErrFormatted) {
		t.Errorf("format again: %v", err)
	}
}

// TestStatusDegraded: the line says how many groups lack copies and who is down.
func TestStatusDegraded(t *testing.T) {
	c, clients := start(t, 3)
	format(t, clients[0], 3)
	st, err := clients[2].Status(t.Context())
	if err != nil || st.Text != "running" || st.Health.Full != 64 || len(st.Epochs) != 1 {
		t.Fatalf("status %+v, %v", st, err)
	}
	c.Kill(1)
	st, err = clients[2].Status(t.Context())
	if err != nil || st.State != "degraded" || st.Health.Degraded != 64 ||
		!strings.HasPrefix(st.Text, "degraded: 64 of 64 groups have fewer than 3 copies in sync; 127.0.0.1:") || !strings.HasSuffix(st.Text, " is down") {
		t.Errorf("status %q %+v, %v", st.Text, st.Health, err)
	}
	c.Kill(0)
	c.Kill(2)
	if st, err = clients[2].Status(t.Context()); err != nil || st.State != "waiting" {
		t.Errorf("status %q %+v, %v", st.Text, st.Health, err)
	}
}

// TestRecovery: a node that has returned is in recovery until it is in sync for all it shall hold.
func TestRecovery(t *testing.T) {
	c, clients := start(t, 4)
	format(t, clients[0], 3)
	c.Kill(1)
	st, err := clients[0].Status(t.Context())
	if err != nil || !strings.Contains(st.Text, "its groups go to others in ") && c.Node(0).Map().Settings.RebuildAfter > time.Since(admintest.Start) {
		t.Errorf("status %q, %v", st.Text, err)
	}
	if rows, err := clients[0].Recovery(t.Context()); err != nil || len(rows) != 0 {
		t.Error("a node that is down is not being brought up to date", rows, err)
	}
	c.Return(1)
	rows, err := clients[0].Recovery(t.Context())
	if err != nil || len(rows) != 1 || rows[0].Node.ID != 1 || rows[0].Progress.Left != rows[0].Progress.Total || rows[0].Progress.Seconds != -1 {
		t.Errorf("%+v, %v", rows, err)
	}
	if st, err = clients[0].Status(t.Context()); err != nil || !strings.HasSuffix(st.Text, "; 1 node is being brought up to date: 0.0% done") {
		t.Errorf("status %q, %v", st.Text, err)
	}
	m := c.Node(0).Map()
	for _, g := range m.Groups[:32] {
		c.Apply(&state.Command{Sync: &state.SyncChange{By: g.Primary, Leased: nil, Changes: []state.SetChange{
			{Group: g.ID, Term: g.Term, Add: []state.Member{{Node: 1, Inc: m.Node(1).Inc}}, To: state.NoNode}}}})
	}
	if rows, err = clients[0].Recovery(t.Context()); err != nil || len(rows) != 1 || rows[0].Progress.Percent() <= 0 || rows[0].Progress.Percent() >= 100 {
		t.Errorf("%+v, %v", rows, err)
	}
}

func TestNodes(t *testing.T) {
	c, clients := start(t, 3)
	format(t, clients[0], 3)
	c.Kill(2)
	nodes, err := clients[0].Nodes(t.Context())
	if err != nil || len(nodes) != 3 {
		t.Fatal(nodes, err)
	}
	primaries := 0
	for _, n := range nodes {
		primaries += n.Primaries
		if n.Self == nil || n.Self.Pid != 1000+int(n.ID) {
			t.Errorf("node %+v", n)
		}
	}
	if primaries != 64 || nodes[2].State != "down" || nodes[2].Primaries != 0 || nodes[2].InSync != 0 || nodes[1].Incarnation != 101 {
		t.Errorf("nodes %+v", nodes)
	}
}

func TestProposeIsForAdministrators(t *testing.T) {
	_, clients := start(t, 1)
	format(t, clients[0], 1)
	r, err := clients[0].Propose(t.Context(), &state.Command{ID: "1", CreateVDI: &state.CreateVDI{Name: "a", Size: 1 << 20}})
	if err != nil || r.Err() != nil {
		t.Fatal(r, err)
	}
	r, err = clients[0].Propose(t.Context(), &state.Command{ID: "2", CreateVDI: &state.CreateVDI{Name: "a", Size: 1 << 20}})
	if err != nil || !errors.Is(r.Err(), fs.ErrExist) {
		t.Error(r, err)
	}
	if _, err = clients[0].Propose(t.Context(), &state.Command{ID: "3", Ended: &state.Ended{}}); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

// TestMapAfter: a watcher sees the next map as soon as it is agreed.
func TestMapAfter(t *testing.T) {
	c, clients := start(t, 1)
	format(t, clients[0], 1)
	m, err := clients[0].Map(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *state.Map, 1)
	go func() {
		next, err := clients[0].MapAfter(t.Context(), m.Index)
		if err != nil {
			t.Error(err)
		}
		got <- next
	}()
	c.Apply(&state.Command{CreateVDI: &state.CreateVDI{Name: "a", Size: 1 << 20}})
	if next := <-got; next.Index <= m.Index || next.Working("a") == nil {
		t.Error("an old map")
	}
}

func TestUsageSums(t *testing.T) {
	c, clients := start(t, 3)
	format(t, clients[0], 3)
	c.SetUsage(7, 4096)
	for _, cl := range clients {
		if u, err := cl.Usage(t.Context(), true); err != nil || u[7] != 4096 {
			t.Error(u, err)
		}
	}
}

func TestCheckStreams(t *testing.T) {
	c, clients := start(t, 3)
	format(t, clients[0], 3)
	c.SetFindings("object 1 differs")
	var objects uint64
	var findings []string
	err := clients[1].Check(t.Context(), false, nil, func(e admin.CheckEvent) {
		objects += e.Objects
		if e.Finding != "" {
			findings = append(findings, e.Finding)
		}
	})
	if err != nil || objects != 21 || len(findings) != 1 {
		t.Error(objects, findings, err)
	}
}

func TestShutdownStopsAll(t *testing.T) {
	c, clients := start(t, 4)
	format(t, clients[0], 3)
	c.Kill(2) // and it is starting at this moment
	if err := clients[1].Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if !c.Stopped(i) {
			t.Errorf("node %d goes on", i)
		}
	}
}

// A node of another cluster that has the address of one that is down is none of a shutdown's business.
func TestShutdownSparesStrangers(t *testing.T) {
	c, clients := start(t, 3)
	format(t, clients[0], 3)
	var asked, stopped atomic.Int32
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			stopped.Add(1)
		}
		asked.Add(1)
		json.NewEncoder(w).Encode(admin.Node{ID: 3, UUID: "another's"})
	}))
	defer stranger.Close()
	c.Apply(&state.Command{Register: &state.Register{UUID: "ours", Addr: stranger.Listener.Addr().String(), VNodes: 64, Inc: 7, Boot: "boot"}})
	if err := clients[0].Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if asked.Load() == 0 || stopped.Load() != 0 {
		t.Errorf("asked %d times, told to stop %d times", asked.Load(), stopped.Load())
	}
}

// TestBadRequests: garbage gets an error, and the server goes on (invariant 12).
func TestBadRequests(t *testing.T) {
	_, clients := start(t, 1)
	url := "http://" + clients[0].Addr()
	post := func(path, body, origin string) int {
		req, _ := http.NewRequest(http.MethodPost, url+path, strings.NewReader(body))
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	for _, r := range []struct {
		path, body, origin string
		want               int
	}{
		{"/v1/propose", "", "", 400}, {"/v1/propose", "{", "", 400}, {"/v1/propose", `{"nonesuch":1}`, "", 400}, {"/v1/propose", `{}`, "", 403},
		{"/v1/propose", strings.Repeat(" ", 2<<20), "", 400}, {"/v1/format", `{"copies":1,"pgs":64}`, "http://evil.example", 403}, {"/v1/nonesuch", "", "", 404},
		{"/v1/map", "", "", 405},
	} {
		if got := post(r.path, r.body, r.origin); got != r.want {
			t.Errorf("POST %s %.40q: %d, want %d", r.path, r.body, got, r.want)
		}
	}
	if st, err := clients[0].Status(t.Context()); err != nil || st.State != "unformatted" {
		t.Error(st, err)
	}
}

func TestMetrics(t *testing.T) {
	c, clients := start(t, 3)
	format(t, clients[0], 3)
	c.Kill(2)
	resp, err := http.Get("http://" + clients[0].Addr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`sheepdog_groups{state="degraded"} 64`, "sheepdog_lease 1", "sheepdog_raft_leader 1", `sheepdog_stat{name="reads"} 1`,
		`sheepdog_disk_bytes{disk="/disk0",kind="used"}`, "go_goroutines",
		`sheepdog_nbd_request_seconds_bucket{op="read",le="6.4e-05"} 0`, `sheepdog_nbd_request_seconds_bucket{op="read",le="0.000128"} 1`,
		`sheepdog_nbd_bytes_total{op="read"} 4096`, `sheepdog_nodes{state="down"} 1`, `sheepdog_nodes{state="up"} 2`, "sheepdog_raft_has_leader 1", "sheepdog_recovery_seconds 0",
		"sheepdog_nbd_tls_certificate_expiration_timestamp_seconds 4.1024448e+09"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in\n%s", want, b)
		}
	}
}

func TestNoConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var conn *admin.ConnError
	_, err = admin.NewClient(addr).Status(t.Context())
	if !errors.As(err, &conn) || err.Error() != "failed to connect to "+addr+": connection refused" {
		t.Error(err)
	}
}
