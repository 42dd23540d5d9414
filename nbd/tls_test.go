package nbd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// authority makes certificates for a test, and writes them where GnuTLS clients look for them.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	dir  string
	last int64
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, dir: t.TempDir(), pool: x509.NewCertPool()}
	a.key = a.newKey()
	der := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, &a.key.PublicKey)
	a.cert, _ = x509.ParseCertificate(der)
	a.pool.AddCert(a.cert)
	a.write("ca-cert.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return k
}

func (a *authority) sign(c *x509.Certificate, pub *ecdsa.PublicKey) []byte {
	a.last++
	c.SerialNumber = big.NewInt(a.last)
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func (a *authority) write(name, kind string, der []byte) {
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// issue makes a certificate for a name.
func (a *authority) issue(file, name string) tls.Certificate {
	k := a.newKey()
	der := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, &k.PublicKey)
	a.write(file+"-cert.pem", "CERTIFICATE", der)
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(file+"-key.pem", "PRIVATE KEY", kd)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// tlsRig is a server with TLS. One export is for TLS only.
func tlsRig(t testing.TB, mode TLSMode, change ...func(*Config)) (*rig, *authority) {
	a := newAuthority(t)
	cert := a.issue("server", "localhost")
	b := NewMemBackend()
	b.Add(ExportInfo{Name: "disk", Size: testSize})
	b.Add(ExportInfo{Name: "secret", Size: testSize, TLSOnly: true})
	return newRig(t, b, append([]func(*Config){func(c *Config) {
		c.TLSMode, c.TLS = mode, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}}, change...)...), a
}

// upgrade does STARTTLS.
func (w *wire) upgrade(cfg *tls.Config) error {
	w.t.Helper()
	w.wants(w.option(optStartTLS, nil), repAck)
	tc := tls.Client(w.nc, cfg)
	if err := tc.Handshake(); err != nil {
		return err
	}
	w.nc = tc
	return nil
}

func (a *authority) client() *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: "localhost"}
}

func TestPitfall20StartTLSForgetsEverything(t *testing.T) {
	r, a := tlsRig(t, TLSAllowed)
	w := r.dial(t)
	w.greet(fixed)
	w.wants(w.option(optExtendedHeaders, nil), repAck)
	w.wants(w.option(optSetMetaContext, metaData("disk", BaseAllocation)), repAck)
	if err := w.upgrade(a.client()); err != nil {
		t.Fatal(err)
	}
	w.wants(w.option(optGo, infoData("disk")), repAck)
	if code := w.ask(cmdFlush, 0, 0, 0); code != 0 { // a simple reply to a compact request: nothing of the above is left
		t.Errorf("flush: %d", code)
	}
	if code := w.ask(cmdBlockStatus, 0, 0, 4096); code != codeEINVAL {
		t.Errorf("block status: %d", code)
	}
	w = r.dial(t) // what is negotiated again does not bring back what went with it
	w.greet(fixed)
	w.wants(w.option(optStructuredReply, nil), repAck)
	w.wants(w.option(optSetMetaContext, metaData("disk", BaseAllocation)), repAck)
	if err := w.upgrade(a.client()); err != nil {
		t.Fatal(err)
	}
	w.wants(w.option(optStructuredReply, nil), repAck)
	w.wants(w.option(optGo, infoData("disk")), repAck)
	w.send(request(cmdBlockStatus, 0, 1, 0, 4096))
	if c := w.chunk(); c.code() != codeEINVAL {
		t.Errorf("block status by a context that was selected in the clear: %+v", c)
	}
}

func TestPitfall21BytesInTheClearBehindStartTLS(t *testing.T) {
	r, _ := tlsRig(t, TLSAllowed)
	w := r.dial(t)
	w.greet(fixed)
	w.send(option(optStartTLS, nil), option(optStructuredReply, nil))
	w.closed()
}

func TestPitfall22And23TLSRequired(t *testing.T) {
	r, a := tlsRig(t, TLSRequired)
	w := r.dial(t)
	w.greet(fixed)
	for _, o := range []struct {
		id   uint32
		data []byte
	}{
		{optList, nil}, {optGo, infoData("disk")}, {optInfo, infoData("no such export")}, {optStructuredReply, nil}, {optExtendedHeaders, nil},
		{optSetMetaContext, metaData("disk", BaseAllocation)}, {optListMetaContext, bytes.Repeat([]byte{0xff}, 999)}, {777, []byte("unknown")},
	} {
		w.wants(w.option(o.id, o.data), repErrTLSReqd)
	}
	if err := w.upgrade(a.client()); err != nil {
		t.Fatal(err)
	}
	w.wants(w.option(optStartTLS, nil), repErrInvalid)
	if n := len(w.wants(w.option(optList, nil), repAck)); n != 2 {
		t.Errorf("%d exports", n)
	}
	w.inSync()
	w.wants(w.option(optAbort, nil), repAck)

	n := r.dial(t)
	n.greet(fixed)
	n.send(option(optExportName, []byte("disk")))
	n.closed()
	n = r.dial(t)
	n.greet(fixed)
	n.wants(n.option(optAbort, nil), repAck)
}

func TestPitfall25EndsWithinTLS(t *testing.T) {
	r, a := tlsRig(t, TLSRequired)
	for _, orderly := range []bool{true, false} {
		w := r.dial(t)
		w.greet(fixed)
		raw := w.nc
		if err := w.upgrade(a.client()); err != nil {
			t.Fatal(err)
		}
		w.wants(w.option(optGo, infoData("disk")), repAck)
		if orderly {
			w.nc.Close()
		}
		raw.Close()
		within(t, "the session to end", func() bool { return r.srv.Stats().Sessions == 0 })
	}
	w := r.dial(t) // and in the middle of the TLS handshake
	w.greet(fixed)
	w.wants(w.option(optStartTLS, nil), repAck)
	w.send("\x16\x03\x01")
	w.nc.Close()
	within(t, "the handshake to end", func() bool { return r.srv.Stats().HalfOpen == 0 })
}

func TestPitfall26OversizeWriteUnderTLS(t *testing.T) {
	r, a := tlsRig(t, TLSRequired)
	w := r.dial(t)
	w.greet(fixed)
	if err := w.upgrade(a.client()); err != nil {
		t.Fatal(err)
	}
	w.wants(w.option(optGo, infoData("disk")), repAck)
	w.send(request(cmdWrite, 0, 1, 0, 65<<20), make([]byte, 65<<20))
	if code := w.simple(1); code != codeEINVAL {
		t.Errorf("65 MiB: %d", code)
	}
	data := pattern(3<<20, 3)
	w.send(request(cmdWrite, 0, 2, 1000, 3<<20), data, request(cmdRead, 0, 3, 1000, 3<<20))
	w.simple(2)
	w.simple(3)
	if !bytes.Equal(w.recv(3<<20), data) {
		t.Error("what was written under TLS reads differently")
	}
}

func TestPitfall27NobodyEnumeratesWithoutTLS(t *testing.T) {
	r, a := tlsRig(t, TLSAllowed)
	w := r.dial(t)
	w.greet(fixed)
	for _, e := range w.wants(w.option(optList, nil), repAck) {
		if bytes.Contains(e.data, []byte("secret")) {
			t.Error("an export for TLS only is listed")
		}
	}
	for _, id := range []uint32{optInfo, optGo} {
		secret, unknown := w.option(id, infoData("secret")), w.option(id, infoData("no such export"))
		w.wants(secret, repErrTLSReqd)
		w.wants(unknown, repErrTLSReqd)
		if !bytes.Equal(secret[0].data, unknown[0].data) {
			t.Errorf("%q and %q tell them apart", secret[0].data, unknown[0].data)
		}
	}
	if err := w.upgrade(a.client()); err != nil {
		t.Fatal(err)
	}
	w.wants(w.option(optInfo, infoData("no such export")), repErrUnknown)
	w.wants(w.option(optGo, infoData("secret")), repAck)
}

func TestPitfall28TLSHandshakeHasTheSameDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that STARTTLS itself is in time on the slowest machine
		const limit = 10 * time.Second
		_, w := pipe(t, Config{HandshakeTimeout: limit, TLSMode: TLSRequired, TLS: &tls.Config{Certificates: []tls.Certificate{newAuthority(t).issue("server", "localhost")}}},
			NewMemBackend())
		begin := time.Now()
		w.greet(fixed)
		time.Sleep(limit / 2)
		w.wants(w.option(optStartTLS, nil), repAck)
		if _, err := io.ReadAll(w.nc); isTimeout(err) || time.Since(begin) != limit {
			t.Errorf("a client may dawdle in the TLS handshake, for %v (%v)", time.Since(begin), err)
		}
	})
}

func TestPitfall24ClientCertificates(t *testing.T) {
	var last atomic.Value
	r, a := tlsRig(t, TLSRequired, func(c *Config) {
		c.Authorize = func(p Peer, export string) error {
			last.Store(p.CommonName())
			if p.CommonName() != "alice" {
				return os.ErrPermission
			}
			return nil
		}
	})
	alice, mallory := a.issue("client", "alice"), newAuthority(t).issue("client", "alice")
	cfg := r.srv.cfg.TLS
	cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, a.pool
	try := func(certs ...tls.Certificate) (*wire, error) {
		w := r.dial(t)
		w.greet(fixed)
		c := a.client()
		c.Certificates = certs
		if err := w.upgrade(c); err != nil {
			return nil, err
		}
		_, err := w.nc.Write(option(optInfo, infoData("disk")))
		if err == nil {
			_, err = w.nc.Read(make([]byte, 0)) // TLS 1.3 tells a client of its rejection only now
		}
		if err == nil {
			var b [1]byte
			_, err = w.nc.Read(b[:])
		}
		return w, err
	}
	if _, err := try(); err == nil {
		t.Error("a client without certificate got in")
	}
	if _, err := try(mallory); err == nil {
		t.Error("a client with somebody else's certificate got in")
	}
	if _, err := try(alice); err != nil {
		t.Errorf("alice: %v", err)
	}
	if last.Load() != "alice" {
		t.Errorf("the server knows her as %q", last.Load())
	}
	cfg.ClientAuth = tls.RequireAnyClientCert // any will do, and proves nothing
	w := r.dial(t)
	w.greet(fixed)
	c := a.client()
	c.Certificates = []tls.Certificate{mallory}
	if err := w.upgrade(c); err != nil {
		t.Fatal(err)
	}
	w.wants(w.option(optInfo, infoData("disk")), repErrPolicy)
	if last.Load() != "" {
		t.Errorf("the server takes a stranger's word that she is %q", last.Load())
	}
	bad := r.dial(t)
	bad.greet(fixed)
	c = a.client()
	c.ServerName = "elsewhere"
	var he x509.HostnameError
	if err := bad.upgrade(c); !errors.As(err, &he) {
		t.Errorf("a client that wanted another host: %v", err)
	}
}

func TestTLSOff(t *testing.T) {
	r, _ := memRig(t)
	w := r.dial(t)
	w.greet(fixed)
	w.wants(w.option(optStartTLS, nil), repErrPolicy)
	w.inSync()
}

func TestStrangersTLS(t *testing.T) {
	r, a := tlsRig(t, TLSRequired)
	a.issue("client", "client")
	uri := "nbds://" + strings.Replace(r.tcp, "127.0.0.1", "localhost", 1) + "/disk?tls-certificates=" + a.dir
	if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo: %s", out)
	}
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(from, pattern(testSize, 9), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, conns := range []string{"1", "4"} {
		tool(t, "nbdcopy", "--connections="+conns, from, uri)
		tool(t, "nbdcopy", "--connections="+conns, uri, to)
		if got, _ := os.ReadFile(to); !bytes.Equal(got, pattern(testSize, 9)) {
			t.Error("what came back through TLS differs")
		}
	}
	host, port, _ := net.SplitHostPort(strings.Replace(r.tcp, "127.0.0.1", "localhost", 1))
	tool(t, "qemu-io", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+a.dir, "--image-opts",
		"driver=nbd,host="+host+",port="+port+",export=disk,tls-creds=t", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M")
}
