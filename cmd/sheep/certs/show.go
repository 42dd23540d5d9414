package certs

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// Info is one certificate of a directory.
type Info struct {
	File  string    `json:"file"`
	Name  string    `json:"name"`
	Hosts []string  `json:"hosts,omitempty"`
	Until time.Time `json:"until"`
	Trust string    `json:"trust"` // "ok", or what is wrong
}

const valid = "ok"

// Show lists the certificates in dir.
func Show(dir string) ([]Info, error) {
	ca, err := readCert(filepath.Join(dir, caCert))
	if err != nil {
		return nil, err
	}
	list := []Info{{caCert, ca.Subject.CommonName, nil, ca.NotAfter, validity(ca.NotBefore, ca.NotAfter)}}
	for _, kind := range []string{Server, Client} {
		cert, err := readCert(filepath.Join(dir, certFile(kind)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info := Info{certFile(kind), cert.Subject.CommonName, slices.Clone(cert.DNSNames), cert.NotAfter, validity(cert.NotBefore, cert.NotAfter)}
		for _, ip := range cert.IPAddresses {
			info.Hosts = append(info.Hosts, ip.String())
		}
		if cert.CheckSignatureFrom(ca) != nil {
			info.Trust = "signed by another authority"
		}
		list = append(list, info)
	}
	return list, nil
}

func validity(from, until time.Time) string {
	switch now := time.Now(); {
	case now.Before(from):
		return "not valid yet"
	case now.After(until):
		return "expired"
	}
	return valid
}
