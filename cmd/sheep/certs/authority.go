package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Files in a directory of certificates.
const (
	caCert, caKey = "ca-cert.pem", "ca-key.pem"

	Server = "server" // kinds: server-cert.pem, server-key.pem
	Client = "client"
)

func certFile(kind string) string { return kind + "-cert.pem" }
func keyFile(kind string) string  { return kind + "-key.pem" }

// clockSkew is how much earlier than now certificates are valid, for machines whose clocks are late.
const clockSkew = time.Hour

// Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewAuthority makes one and keeps it in dir. It never replaces one: every certificate signed so far would be worthless.
func NewAuthority(dir, name string, valid time.Duration) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory for certificates: %w", err)
	}
	for _, file := range []string{caCert, caKey} {
		if _, err := os.Lstat(filepath.Join(dir, file)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("make a certificate authority: %s is there already: %w", filepath.Join(dir, file), fs.ErrExist)
		}
	}
	t, err := template(name, valid)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := writePair(dir, caCert, caKey, der, key); err != nil {
		return nil, err
	}
	return &Authority{cert, key}, nil
}

// OpenAuthority reads one from dir.
func OpenAuthority(dir string) (*Authority, error) {
	cert, err := readCert(filepath.Join(dir, caCert))
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, caKey)
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the authority's key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("read the authority's key: %s is not PEM", file)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the authority's key %s: %w", file, err)
	}
	key, ok := any.(crypto.Signer)
	if !ok || !cert.IsCA {
		return nil, fmt.Errorf("%s does not hold a certificate authority", dir)
	}
	return &Authority{cert, key}, nil
}

// Issue signs a certificate of a kind (Server, Client) for name, and writes it, its key and the authority's certificate into dir. hosts are the names
// and addresses under which clients reach a server. A certificate that is there is replaced.
func (a *Authority) Issue(dir, kind, name string, hosts []string, valid time.Duration) error {
	t, err := template(name, valid)
	if err != nil {
		return err
	}
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	// GnuTLS clients (QEMU) insist on both usages whatever the kind of key.
	t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if kind == Server {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, host)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign a certificate for %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the directory for certificates: %w", err)
	}
	if err := writePair(dir, certFile(kind), keyFile(kind), der, key); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, caCert), pemOf("CERTIFICATE", a.cert.Raw), 0o644)
}

func template(name string, valid time.Duration) (*x509.Certificate, error) {
	if name == "" || len(name) > 64 { // the X.520 bound of a common name
		return nil, fmt.Errorf("'%s' is no name for a certificate: use 1 to 64 bytes", name)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Sheepdog"}, CommonName: name},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(valid)}, nil
}

// writePair writes a certificate and its key, the key first: a server that looks in between still finds a pair that does not fit, and keeps what it has.
func writePair(dir, cert, keyName string, der []byte, key crypto.Signer) error {
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	if err := writeFile(filepath.Join(dir, keyName), pemOf("PRIVATE KEY", k), 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, cert), pemOf("CERTIFICATE", der), 0o644)
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// writeFile writes a file whole or not at all, and never lets others read what they may not.
func writeFile(name string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func readCert(file string) (*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read a certificate: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("read a certificate: %s holds none in PEM", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the certificate %s: %w", file, err)
	}
	return cert, nil
}
