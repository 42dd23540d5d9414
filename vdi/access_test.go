package vdi

import (
	"context"
	"encoding/binary"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/certs"
	"github.com/sheepdog-go/sheepdog/nbd"
)

// TestAccessToSnapshotsAlone: a list that gives a client snapshots alone (*:*, the line of "backup" in package certs' own example) lets him write the working VDI, as "alpha:".
func TestAccessToSnapshotsAlone(t *testing.T) {
	list := filepath.Join(t.TempDir(), "access")
	if err := os.WriteFile(list, []byte("* *:*\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	access, err := certs.ReadAccess(list)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 11)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := s.nodes[0].Propose(ctx, &state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 16 << 20}})
		if err != nil || r.Err() != nil {
			t.Fatal(err, r.Err())
		}
		gw, _ := s.client("gw")
		time.Sleep(5 * time.Second)
		srv, err := nbd.NewServer(nbd.Config{Authorize: func(p nbd.Peer, export string) error { // as certs has it
			if !access.Allows(p.CommonName(), export) {
				return fs.ErrPermission
			}
			return nil
		}}, NewBackend(gw, BackendOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		defer srv.Close()
		for _, name := range []string{"alpha", "alpha:"} {
			ours, theirs := net.Pipe()
			srv.ServeConn(theirs)
			x := &extended{t, ours}
			x.recv(18)
			x.send(uint32(3), "IHAVEOPT", uint32(7), uint32(4+len(name)+2), uint32(len(name)), name, uint16(0))
			h := x.recv(20)
			data := x.recv(uint64(binary.BigEndian.Uint32(h[16:])))
			if kind := binary.BigEndian.Uint32(h[12:]); kind>>31 != 0 {
				t.Logf("GO %q: refused: %s", name, data)
				ours.Close()
				continue
			}
			flags := binary.BigEndian.Uint16(data[10:])
			x.recv(20) // ACK
			x.send(uint32(0x25609513), uint16(0), uint16(1), uint64(7), uint64(0), uint32(4096), strings.Repeat("x", 4096))
			code := binary.BigEndian.Uint32(x.recv(16)[4:])
			t.Errorf("GO %q is answered, read-only: %v; a write to it: error %d", name, flags&2 != 0, code)
			x.send(uint32(0x25609513), uint16(0), uint16(2), uint64(8), uint64(0), uint32(0))
			ours.Close()
			time.Sleep(time.Second)
		}
		gw.Close()
	})
}
