package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// ServerConfig is the TLS configuration of a server whose certificates lie in dir. verify wants a certificate of every client. The files are read again when
// they change; while what is there makes no sense, what was read before counts.
func ServerConfig(dir string, verify bool, log *slog.Logger) (*tls.Config, error) {
	l, err := certificates(dir, verify, log)
	if err != nil {
		return nil, err
	}
	outer := l.now().Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return l.now(), nil }
	return outer, nil
}

// NotAfter is when the server's certificate runs out, of a configuration that ServerConfig returned: the one that new clients are shown.
func NotAfter(cfg *tls.Config) time.Time {
	now, _ := cfg.GetConfigForClient(nil) // asks no client, and never fails: see ServerConfig
	return now.Certificates[0].Leaf.NotAfter
}

func certificates(dir string, verify bool, log *slog.Logger) (*latest[*tls.Config], error) {
	ca, cert, key := filepath.Join(dir, caCert), filepath.Join(dir, certFile(Server)), filepath.Join(dir, keyFile(Server))
	return newLatest("certificates", []string{ca, cert, key}, log, func() (*tls.Config, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("read the server's certificate (sheep tls init makes one): %w", err)
		}
		if v := validity(pair.Leaf.NotBefore, pair.Leaf.NotAfter); v != valid {
			log.Warn("the server's certificate is "+v+": clients that check it go away", "file", cert, "from", pair.Leaf.NotBefore, "until", pair.Leaf.NotAfter)
		}
		cfg := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		if verify {
			text, err := os.ReadFile(ca)
			if err != nil {
				return nil, fmt.Errorf("read whom to believe: %w", err)
			}
			cfg.ClientCAs = x509.NewCertPool()
			if !cfg.ClientCAs.AppendCertsFromPEM(text) {
				return nil, fmt.Errorf("read whom to believe: %s holds no certificate", ca)
			}
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return cfg, nil
	})
}
