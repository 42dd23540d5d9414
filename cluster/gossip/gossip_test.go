package gossip

import (
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"
)

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, p, _ := net.SplitHostPort(l.Addr().String())
	n, _ := strconv.Atoi(p)
	return n
}

func start(t *testing.T, port int, host, uuid, cluster string, join ...string) *Gossip {
	t.Helper()
	g, err := Start(Config{Host: host, Port: port, Join: join, Logger: slog.New(slog.DiscardHandler),
		Self: Meta{UUID: uuid, Addr: host + ":7000", Cluster: cluster}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// eventually counts its looks and not the time, so that a machine that stands still is not taken for nodes that do not meet.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !ok() {
		t.Fatal("never: " + what)
	}
}

func TestNodesFindEachOtherInAnyOrder(t *testing.T) {
	port := freePort(t)
	a := start(t, port, "127.0.0.1", "a", "", "127.0.0.2")
	b := start(t, port, "127.0.0.2", "b", "", "127.0.0.3")
	c := start(t, port, "127.0.0.3", "c", "")
	for _, g := range []*Gossip{a, b, c} {
		eventually(t, "all three met", func() bool { return len(g.Met()) == 2 })
	}
	if got := a.Addr("c"); got != "127.0.0.3:7000" {
		t.Errorf("c is at %q", got)
	}
	c.Update(Meta{UUID: "c", Addr: "127.0.0.3:7000", Cluster: "x"})
	eventually(t, "a hears of c's cluster", func() bool { met := a.Met(); return len(met) == 2 && met[1].Cluster == "x" })
}

func TestOtherClusterIsRefused(t *testing.T) {
	port := freePort(t)
	a := start(t, port, "127.0.0.1", "a", "one")
	b := start(t, port, "127.0.0.2", "b", "one", "127.0.0.1")
	c := start(t, port, "127.0.0.3", "c", "two", "127.0.0.1")
	eventually(t, "a and b met", func() bool { return len(a.Met()) == 1 && len(b.Met()) == 1 })
	if _, err := c.ml.Join([]string{net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}); err == nil {
		t.Error("joined another cluster")
	}
	if len(a.Met()) != 1 || len(c.Met()) != 0 {
		t.Errorf("a met %v, c met %v", a.Met(), c.Met())
	}
}

func FuzzMeta(f *testing.F) {
	f.Add([]byte(`{"u":"x","a":"h:1"}`))
	f.Fuzz(func(t *testing.T, b []byte) { parseMeta(b) })
}
