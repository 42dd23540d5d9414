package certs

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/nbd"
)

const year = 365 * 24 * time.Hour

// made is an authority with a server's and a client's certificate.
func made(t *testing.T, client string) string {
	t.Helper()
	dir := t.TempDir()
	a, err := NewAuthority(dir, "test CA", year)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Issue(dir, Server, "localhost", []string{"localhost", "127.0.11.1"}, 2*year); err != nil {
		t.Fatal(err)
	}
	if err := a.Issue(dir, Client, client, nil, year); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAuthority(t *testing.T) {
	dir := made(t, "web1")
	for file, mode := range map[string]fs.FileMode{caCert: 0o644, caKey: 0o600, "server-cert.pem": 0o644, "server-key.pem": 0o600, "client-cert.pem": 0o644, "client-key.pem": 0o600} {
		if st, err := os.Stat(filepath.Join(dir, file)); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v", file, st.Mode(), err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new*")); len(left) > 0 {
		t.Error("left behind:", left)
	}
	if _, err := NewAuthority(dir, "again", year); !errors.Is(err, fs.ErrExist) {
		t.Error("an authority was replaced:", err)
	}
	a, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := a.Issue(other, Client, "web2", nil, year); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(other); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a client got the authority's key:", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	for file, usage := range map[string]x509.ExtKeyUsage{filepath.Join(dir, "server-cert.pem"): x509.ExtKeyUsageServerAuth, filepath.Join(other, "client-cert.pem"): x509.ExtKeyUsageClientAuth} {
		cert, err := readCert(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(file, err)
		}
		if cert.NotAfter.After(a.cert.NotAfter) {
			t.Error(file, "outlives its authority")
		}
	}
	list, err := Show(dir)
	if err != nil || len(list) != 3 || list[1].Trust != "ok" || list[2].Name != "web1" || len(list[1].Hosts) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, name := range []string{"", strings.Repeat("x", 65)} {
		if err := a.Issue(other, Client, name, nil, year); err == nil {
			t.Errorf("a certificate for %q", name)
		}
	}
}

func TestAccess(t *testing.T) {
	a, err := parseAccess(strings.NewReader("# who what\nweb1 web1 web1:*\n\nbackup *:* # snapshots\n* public\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		client, export string
		want           bool
	}{
		{"web1", "web1", true}, {"web1", "web1:monday", true}, {"web1", "web10", false}, {"web1", "web2", false}, {"web1", "", false},
		{"backup", "web1:monday", true}, {"backup", "web1", false}, {"", "public", true}, {"", "web1", false}, {"*", "web1", false}, {"x", "public", true},
	} {
		if got := a.Allows(c.client, c.export); got != c.want {
			t.Errorf("%s opens %s: %v", c.client, c.export, got)
		}
	}
	if _, err := parseAccess(strings.NewReader("web1\n")); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Error(err)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add("a b*c *\n", "abc")
	f.Fuzz(func(t *testing.T, list, export string) {
		if a, err := parseAccess(strings.NewReader(list)); err == nil {
			a.Allows("a", export)
		}
		if !glob("*", export) || !glob(strings.ReplaceAll(export, "*", "?")+"*", strings.ReplaceAll(export, "*", "?")) {
			t.Error("a star does not match", export)
		}
	})
}

func TestLoopback(t *testing.T) {
	s := &Security{prefix: "nbd-"}
	for address, want := range map[string]bool{"127.0.0.1:10809": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "[::ffff:127.0.0.1]:1": true,
		":10809": false, "0.0.0.0:1": false, "[::]:1": false, "10.77.0.1:1": false, "nonesuch.invalid:1": false} {
		err := s.Check(context.Background(), address)
		if (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
		if err != nil && strings.HasPrefix(address, "nonesuch") && strings.Contains(err.Error(), "other machines") {
			t.Errorf("%s is no name of anything, and said to be reached: %v", address, err)
		}
	}
	for _, s := range []*Security{{Mode: nbd.TLSRequired}, {Insecure: true}} {
		if err := s.Check(context.Background(), "0.0.0.0:1"); err != nil {
			t.Error(err)
		}
	}
	if err := (&Security{Mode: nbd.TLSAllowed}).Check(context.Background(), "0.0.0.0:1"); err == nil {
		t.Error("clients without TLS are let in from everywhere, and nobody said --insecure")
	}
}

// TestRenewal: new files count for new clients; files that make no sense don't.
func TestRenewal(t *testing.T) {
	dir := made(t, "c")
	l, err := certificates(dir, true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	pass := passing(l)
	first := l.now().Certificates[0].Certificate[0]
	a, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Issue(dir, Server, "other", []string{"other.example"}, year); err != nil {
		t.Fatal(err)
	}
	pass(time.Hour)
	second := l.now().Certificates[0].Certificate[0]
	if bytes.Equal(first, second) {
		t.Error("the new certificate is not used")
	}
	os.WriteFile(filepath.Join(dir, "server-cert.pem"), []byte("nonsense"), 0o644)
	pass(time.Hour)
	if !bytes.Equal(second, l.now().Certificates[0].Certificate[0]) {
		t.Error("nonsense took the place of a certificate")
	}
}

// TestExpired: a server's certificate that has run out is used, since not every client looks, and the log says so, at the start and when it takes another's place.
func TestExpired(t *testing.T) {
	dir := made(t, "c")
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	l, err := certificates(dir, false, log)
	if err != nil {
		t.Fatal(err)
	}
	if text.Len() > 0 {
		t.Errorf("a good certificate has it say %q", &text)
	}
	a, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Issue(dir, Server, "late", []string{"localhost"}, -time.Minute); err != nil {
		t.Fatal(err)
	}
	pass := passing(l)
	pass(time.Hour)
	l.now()
	if _, err := certificates(dir, false, log); err != nil {
		t.Error(err)
	}
	if cfg, err := ServerConfig(dir, false, log); err != nil || !NotAfter(cfg).Before(time.Now()) {
		t.Error("its end is not known", err)
	}
	if n := strings.Count(text.String(), "is expired"); n != 3 {
		t.Errorf("%d of 3 warnings: %s", n, &text)
	}
}

// passing gives l a clock that goes on by what the function is told.
func passing[T any](l *latest[T]) func(time.Duration) {
	var at time.Duration
	l.clock = func() time.Time { return time.Now().Add(at) }
	return func(d time.Duration) { at += d }
}

// TestAccessChanges: a changed list counts for who opens something from then on; one that makes no sense doesn't, nor one that names clients whose certificates nobody asks for.
func TestAccessChanges(t *testing.T) {
	dir, list := made(t, "web1"), filepath.Join(t.TempDir(), "access")
	s := &Security{Mode: nbd.TLSRequired, dir: dir, access: list, limited: true, prefix: "nbd-"}
	log := slog.New(slog.DiscardHandler)
	if _, err := s.Apply(nbd.Config{}, log); err == nil {
		t.Error("a list that is not there is taken")
	}
	var l *latest[*Access]
	var pass func(time.Duration)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if l == nil {
			var err error
			if l, err = newLatest("list", []string{list}, log, s.readAccess); err != nil {
				t.Fatal(err)
			}
			pass = passing(l)
		}
		pass(time.Hour)
	}
	for _, c := range []struct {
		text        string
		one, second bool
	}{{"* one\n", true, false}, {"* one two second\n", true, true}, {"*\n", true, true}, {"web1 one more\n", true, true}, {"", false, false}, {"* second\n", false, true}} {
		write(c.text)
		if a := l.now(); a.Allows("", "one") != c.one || a.Allows("", "second") != c.second {
			t.Errorf("after %q: one %v, second %v", c.text, a.Allows("", "one"), a.Allows("", "second"))
		}
	}
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	pass(time.Hour)
	if !l.now().Allows("", "second") {
		t.Error("a list that is gone was taken for an empty one")
	}
	write("* third\n")
	l.read = func() (*Access, error) { return nil, syscall.EMFILE }
	if l.now(); l.now().Allows("", "third") {
		t.Error("it was read where it could not be")
	}
	l.read = s.readAccess
	pass(lookEvery)
	if !l.now().Allows("", "third") {
		t.Error("a list that could not be read once is not tried again")
	}
	if err := os.WriteFile(list, []byte("* fourth\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.clock, l.checked = func() time.Time { return l.look()[0].changed.Add(settle / 2) }, time.Time{}
	if l.now().Allows("", "fourth") {
		t.Error("what was written a moment ago, and may be half there, counts")
	}
}

// TestStrangers: libnbd and QEMU with the directories as they are made, against a server that wants certificates and has a list.
func TestStrangers(t *testing.T) {
	for _, tool := range []string{"nbdinfo", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir := made(t, "web1")
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Name: "web1", Size: 1 << 20})
	mem.Add(nbd.ExportInfo{Name: "secret", Size: 1 << 20})
	list := filepath.Join(t.TempDir(), "access")
	if err := os.WriteFile(list, []byte("web1 web1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Security{Mode: nbd.TLSRequired, dir: dir, verify: true, access: list, limited: true}
	log := slog.New(slog.DiscardHandler)
	cfg, err := s.Apply(nbd.Config{}, log)
	if err != nil {
		t.Fatal(err)
	}
	server, err := nbd.NewServer(cfg, mem)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.11.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	defer server.Close()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	uri := "nbds://" + host + ":" + port + "/"
	try := func(want bool, name string, args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); (err == nil) != want {
			t.Errorf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	try(true, "nbdinfo", "--size", uri+"web1?tls-certificates="+dir)
	try(false, "nbdinfo", "--size", uri+"secret?tls-certificates="+dir)
	try(false, "nbdinfo", "--size", "nbd://"+host+":"+port+"/web1")
	try(false, "nbdinfo", "--size", uri+"web1?tls-certificates="+made(t, "web1"))
	qemu := func(export string) []string {
		return []string{"info", "--object", "tls-creds-x509,id=t,endpoint=client,dir=" + dir, "--image-opts",
			"driver=nbd,host=" + host + ",port=" + port + ",export=" + export + ",tls-creds=t"}
	}
	try(true, "qemu-img", qemu("web1")...)
	try(false, "qemu-img", qemu("secret")...)
}
