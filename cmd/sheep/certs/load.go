package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ServerConfig is the TLS configuration of a server whose certificates lie in dir. verify wants a certificate of every client. The files are read again when
// they change; while what is there makes no sense, what was read before counts.
func ServerConfig(dir string, verify bool, log *slog.Logger) (*tls.Config, error) {
	k := &keeper{dir: dir, verify: verify, log: log}
	k.stamp = k.look()
	cfg, err := k.load()
	if err != nil {
		return nil, err
	}
	k.cfg = cfg
	outer := cfg.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.current(), nil }
	return outer, nil
}

// keeper holds the newest configuration that made sense.
type keeper struct {
	dir    string
	verify bool
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	cfg     *tls.Config
	stamp   [3]stamp
	checked time.Time
}

// stamp is enough of a file to see that it is another one.
type stamp struct {
	changed time.Time
	size    int64
}

// lookEvery bounds how often the files are looked at.
const lookEvery = time.Second

func (k *keeper) files() [3]string {
	return [3]string{filepath.Join(k.dir, caCert), filepath.Join(k.dir, certFile(Server)), filepath.Join(k.dir, keyFile(Server))}
}

func (k *keeper) look() (s [3]stamp) {
	for i, f := range k.files() {
		if st, err := os.Stat(f); err == nil {
			s[i] = stamp{st.ModTime(), st.Size()}
		}
	}
	return s
}

func (k *keeper) current() *tls.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.checked) < lookEvery {
		return k.cfg
	}
	k.checked = time.Now()
	now := k.look()
	if now == k.stamp {
		return k.cfg
	}
	cfg, err := k.load()
	if err != nil {
		k.log.Error("the changed certificates cannot be used; those read before still are", "err", err)
		return k.cfg
	}
	k.stamp, k.cfg = now, cfg
	k.log.Info("certificates read again", "dir", k.dir)
	return k.cfg
}

func (k *keeper) load() (*tls.Config, error) {
	f := k.files()
	pair, err := tls.LoadX509KeyPair(f[1], f[2])
	if err != nil {
		return nil, fmt.Errorf("read the server's certificate (sheep tls init makes one): %w", err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if k.verify {
		text, err := os.ReadFile(f[0])
		if err != nil {
			return nil, fmt.Errorf("read whom to believe: %w", err)
		}
		cfg.ClientCAs = x509.NewCertPool()
		if !cfg.ClientCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read whom to believe: %s holds no certificate", f[0])
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}
