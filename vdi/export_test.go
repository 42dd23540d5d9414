package vdi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/nbd"
)

// tool runs an NBD client of somebody else's, or skips the test where it is not installed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// serveExports exports every VDI of a cluster on a unix socket.
func serveExports(t *testing.T, b *Backend) (uri func(export string) string) {
	srv, err := nbd.NewServer(nbd.Config{}, b)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "nbd.sock")
	l, err := nbd.ListenUnix(nbd.UnixSocket{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-served
	})
	return func(export string) string { return "nbd+unix:///" + export + "?socket=" + path }
}

func TestExportsToStrangers(t *testing.T) {
	if testing.Short() {
		t.Skip("starts nodes")
	}
	c := startCluster(t, 3)
	c.propose(&state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 64<<20 + 512}})
	c.propose(&state.Command{CreateVDI: &state.CreateVDI{Name: "thin", Size: 1 << 40}})
	c.propose(&state.Command{CreateVDI: &state.CreateVDI{Name: "vast", Size: vastSize}})
	gw, prog := c.gateway(0), c.gateway(1)
	t.Cleanup(func() { gw.Close(); prog.Close() })
	uri := serveExports(t, NewBackend(gw, BackendOptions{}))
	other := serveExports(t, NewBackend(prog, BackendOptions{}))

	img := filepath.Join(t.TempDir(), "img")
	want := make([]byte, 64<<20+512)
	rnd := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < len(want); at += 1 << 20 { // every second MiB
		if at>>20%2 == 0 {
			for i := at; i < min(at+1<<20, len(want)); i++ {
				want[i] = byte(rnd.Uint32())
			}
		}
	}
	if err := os.WriteFile(img, want, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", "--flush", img, uri("alpha"))
	t.Run("copy out", func(t *testing.T) {
		for _, conns := range []string{"1", "4"} {
			out := filepath.Join(t.TempDir(), "out")
			tool(t, "nbdcopy", "--connections="+conns, other("alpha"), out)
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes differ from what went in (%v)", len(got), err)
			}
		}
	})
	c.snapshot("alpha", "monday")
	t.Run("list", func(t *testing.T) {
		out := tool(t, "nbdinfo", "--list", "--json", uri(""))
		var list struct {
			Exports []struct {
				Name     string `json:"export-name"`
				Size     uint64 `json:"export-size"`
				ReadOnly bool   `json:"is_read_only"`
				Multi    bool   `json:"can_multi_conn"`
			} `json:"exports"`
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range list.Exports {
			names = append(names, e.Name)
			if e.ReadOnly != (e.Name == "alpha:monday") || !e.Multi {
				t.Errorf("%+v", e)
			}
		}
		if got := strings.Join(names, " "); got != "alpha alpha:monday thin vast" {
			t.Errorf("exports: %s", got)
		}
	})
	t.Run("map", func(t *testing.T) {
		out := tool(t, "nbdinfo", "--map", "--totals", uri("alpha"))
		if !strings.Contains(out, "50.0%") {
			t.Errorf("half of the disk holds bytes, the map says:\n%s", out)
		}
		out = tool(t, "nbdinfo", "--map", uri("thin"))
		if n := strings.Count(out, "hole,zero"); n != 1 || strings.Contains(out, "data") {
			t.Errorf("an empty disk's map:\n%s", out)
		}
	})
	t.Run("patterns", func(t *testing.T) {
		tool(t, "qemu-io", "-f", "raw", uri("alpha"),
			"-c", "write -P 7 4096 8192", "-c", "read -P 7 4096 8192", "-c", "write -z 4096 4096", "-c", "read -P 0 4096 4096", "-c", "read -P 7 8192 4096",
			"-c", "write -P 9 1048000 5000", "-c", "read -P 9 1048000 5000", "-c", "discard 2M 4M", "-c", "read -P 0 2M 4M", "-c", "write -f -P 3 67108864 512",
			"-c", "read -P 3 67108864 512", "-c", "flush")
	})
	t.Run("snapshot", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out")
		tool(t, "nbdcopy", other("alpha:monday"), out)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Fatal("the snapshot changed")
		}
	})
	t.Run("extended headers", func(t *testing.T) { extendedHeaders(t, other("thin")) })
	t.Run("abandoned", func(t *testing.T) {
		abandon(t, other("vast"))
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for {
			d, _, err := NewBackend(gw, BackendOptions{}).Open(ctx, "vast")
			if err == nil {
				d.Close()
				return
			}
			if !errors.Is(err, syscall.EBUSY) || ctx.Err() != nil {
				t.Fatalf("the disk of a client that left in the middle of a trim: %v", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		ctx := context.Background()
		b := NewBackend(gw, BackendOptions{Only: "alpha:monday", As: "copy"})
		list, err := b.List(ctx)
		if err != nil || len(list) != 1 || list[0].Name != "copy" {
			t.Errorf("LIST: %v, %v", list, err)
		}
		for _, asked := range []string{"", "copy"} {
			info, err := b.Info(ctx, asked)
			if err != nil || info.Name != "copy" {
				t.Errorf("INFO %q: %q, %v", asked, info.Name, err)
			}
			d, info, err := b.Open(ctx, asked)
			if err != nil {
				t.Fatal(err)
			}
			d.Close()
			if info.Name != "copy" {
				t.Errorf("GO %q: %q", asked, info.Name)
			}
		}
		if _, err := b.Info(ctx, "alpha:monday"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("by its own name: %v", err)
		}
	})
	t.Run("locked", func(t *testing.T) { // R14
		ctx := context.Background()
		mine, _, err := NewBackend(gw, BackendOptions{}).Open(ctx, "alpha")
		if err != nil {
			t.Fatal(err)
		}
		defer mine.Close()
		_, _, err = NewBackend(prog, BackendOptions{}).Open(ctx, "alpha")
		if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), c.nodes[0].Addr()) {
			t.Errorf("a second client: %v", err)
		}
		if _, _, err = NewBackend(prog, BackendOptions{}).Open(ctx, "nobody"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no such VDI: %v", err)
		}
	})
}
