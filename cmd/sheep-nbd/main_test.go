package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/args"
	"github.com/sheepdog-go/sheepdog/nbd"
)

// parseLine runs the command line up to its options.
func parseLine(t *testing.T, line string) (*options, error) {
	t.Helper()
	var got *options
	app := newApp(new(bytes.Buffer), new(bytes.Buffer))
	app.Action = func(c *cli.Context) (err error) {
		got, err = parse(c)
		return err
	}
	words := append([]string{"sheep-nbd"}, strings.Fields(line)...)
	return got, app.Run(args.Reorder(app, words))
}

func TestParse(t *testing.T) {
	t.Setenv("SHEEP_ADDRESS", "")
	o, err := parseLine(t, "-t -k /run/a.sock -a 10.0.0.1,10.0.0.2:7001 disk:monday -x other -e 3 -r")
	if err != nil || o.target != "disk:monday" || o.socket.Path != "/run/a.sock" || !o.stay || !o.readOnly || o.export != "other" || o.clients != 3 ||
		!slices.Equal(o.nodes, []string{"10.0.0.1:7000", "10.0.0.2:7001"}) {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parseLine(t, "-e 0 disk"); err != nil || o.clients != 0 {
		t.Errorf("%+v, %v", o, err)
	}
	o, err = parseLine(t, "disk")
	if err != nil || o.bind != "127.0.0.1:10809" || o.socket.Path != "" || o.stay || !slices.Equal(o.nodes, []string{"127.0.0.1:7000"}) {
		t.Errorf("%+v, %v", o, err)
	}
	o, err = parseLine(t, "-k s --socket-mode 0660 --socket-owner 0:7 -v -D text --handshake-limit 3 disk")
	if err != nil || o.socket.Mode != 0o660 || o.socket.GID != 7 || o.level != "debug" || o.describe != "text" || o.shaking != 3*time.Second {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parseLine(t, "-b :: -p 1234 disk --insecure"); err != nil || o.bind != "[::]:1234" {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestAboutItself(t *testing.T) {
	for flag, want := range map[string]string{"-V": "sheep-nbd version ", "--version": "sheep-nbd version ", "--man": "persistent"} {
		var out, errs bytes.Buffer
		if code := run(context.Background(), []string{"sheep-nbd", flag}, &out, &errs); code != 0 || !strings.Contains(out.String(), want) || errs.Len() > 0 {
			t.Errorf("%s: exit code %d: %s%s", flag, code, &out, &errs)
		}
	}
}

func TestBadUsage(t *testing.T) {
	for _, line := range []string{"", "a b", ":s", "a:", "-p 0 a", "-p 70000 a", "-p x a", "-e -1 a", "-k s -p 1 a", "-a , a", "--nonesuch a",
		"--connect-timeout -1s a", "-b :: a", "-b 10.77.0.1 a", "-b 0.0.0.0 --tls allow a", "--tls maybe a", "--tls-verify a", "-k s --tls require a", "-k s --insecure a",
		"-c /dev/sda a", "-c /dev/nbd0", "-c /dev/nbd0 -k s a", "-c /dev/nbd0 -t a", "-C 2 a", "-c /dev/nbd0 -C 0 a", "-c /dev/nbd0 -C 65 a", "-d /dev/nbd", "-d /dev/nbd0 a",
		"-c /dev/nbd0 --block-size 100 a", "-c /dev/nbd0 --io-timeout -1s a", "-f a",
		"--socket-mode 0660 a", "-k s --socket-mode 9 a", "-k s --socket-owner : a", "--handshake-limit 0 a", "-v --log-level info a", "-c /dev/nbd0 -D x a",
		"-D " + strings.Repeat("x", 4097) + " a", "-x " + strings.Repeat("x", 4097) + " a", "-x \xff a"} {
		var errs bytes.Buffer
		if code := run(context.Background(), append([]string{"sheep-nbd"}, strings.Fields(line)...), new(bytes.Buffer), &errs); code != exitUsage {
			t.Errorf("sheep-nbd %s: exit code %d, want %d", line, code, exitUsage)
		}
		if n := strings.Count(errs.String(), "\n"); n != 1 {
			t.Errorf("sheep-nbd %s: %d lines on stderr: %s", line, n, &errs)
		}
	}
}

// TestWritePid: a pid file belongs to one process that lives, and is taken along by nobody else.
func TestWritePid(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	pid := strconv.Itoa(os.Getpid())
	remove, err := writePid(file)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); string(b) != pid+"\n" {
		t.Errorf("%q", b)
	}
	if _, err := writePid(file); err == nil || !strings.Contains(err.Error(), "process "+pid+", which runs") {
		t.Errorf("a second one: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != pid+"\n" {
		t.Errorf("after the second one: %q", b)
	}
	remove()
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left behind: %v", err)
	}
	if err := os.WriteFile(file, []byte("1\n"), 0o600); err != nil { // whose process was killed
		t.Fatal(err)
	}
	if remove, err = writePid(file); err != nil {
		t.Fatal(err)
	}
	os.Remove(file)
	other, err := writePid(file)
	if err != nil {
		t.Fatal(err)
	}
	defer other()
	remove()
	if _, err := os.Stat(file); err != nil {
		t.Errorf("another's was removed: %v", err)
	}
	if _, err := writePid(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is no file") {
		t.Errorf("a directory: %v", err)
	}
}

// TestNoCluster: that nobody answers is said at once, in the log; the error comes when the wait is over.
func TestNoCluster(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = old }()
	var errs bytes.Buffer
	// Long enough for a try to come to its end on a machine that stands still for a while.
	code := run(context.Background(), []string{"sheep-nbd", "-a", "127.0.0.1:1", "-k", t.TempDir() + "/s", "--connect-timeout", "2s", "disk"}, new(bytes.Buffer), &errs)
	w.Close()
	if said, _ := io.ReadAll(r); strings.Count(string(said), "no node of the cluster answers") != 1 || !strings.Contains(string(said), "connection refused") {
		t.Errorf("log: %s", said)
	}
	if code != exitSystem || !strings.Contains(errs.String(), "127.0.0.1:1") || strings.Count(errs.String(), "\n") != 1 {
		t.Errorf("exit code %d: %s", code, &errs)
	}
}

// TestCounted: no more clients than -e says, and the last one's leaving is told.
func TestCounted(t *testing.T) {
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Name: "disk", Size: 1 << 20, MultiConn: true})
	c := newCounted(mem, 2)
	ctx := context.Background()
	a, info, err := c.Open(ctx, "disk")
	if err != nil || !info.MultiConn {
		t.Fatal(info, err)
	}
	b, _, err := c.Open(ctx, "disk")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Open(ctx, "disk"); err == nil {
		t.Error("a third client was let in")
	}
	if _, _, err := c.Open(ctx, "nonesuch"); err == nil {
		t.Error("a disk that is not there was opened")
	}
	a.Close()
	select {
	case <-c.left:
		t.Error("told before the last one left")
	default:
	}
	b.Close()
	select {
	case <-c.left:
	default:
		t.Error("not told that the last one left")
	}
	if _, _, err := newCounted(mem, 1).Open(ctx, "disk"); err != nil {
		t.Error(err)
	}
	if info, err := newCounted(mem, 1).Info(ctx, "disk"); err != nil || info.MultiConn {
		t.Error("one client at a time, yet several connections are said to make sense", err)
	}
}

func TestExitCodes(t *testing.T) {
	if got := exitCode(connectError{errors.New("x")}); got != exitSystem {
		t.Error(got)
	}
	if got := exitCode(errors.New("x")); got != exitFailed {
		t.Error(got)
	}
}
