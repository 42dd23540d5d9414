package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/vdi"
)

// TestPidFileFollowsALink: the file beside the pid file has a name that can be guessed, and a link there is followed.
func TestPidFileFollowsALink(t *testing.T) {
	dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, ".x.pid.new")); err != nil {
		t.Fatal(err)
	}
	remove, err := writePid(filepath.Join(dir, "x.pid"))
	if err == nil {
		defer remove()
	}
	if b, _ := os.ReadFile(victim); string(b) != "precious" {
		t.Errorf("the link's target now holds %q (%v)", b, err)
	}
}

type ableBackend struct{ nbd.Backend }

func (ableBackend) Open(context.Context, string) (nbd.Device, nbd.ExportInfo, error) {
	return vdi.NewDevice(nil), nbd.ExportInfo{}, nil
}

// TestGuestIsAsAble: what vdi.Device can (sum payloads in the reader, share large reads) is lost behind sheep-nbd's wrapper.
func TestGuestIsAsAble(t *testing.T) {
	d, _, _ := newCounted(ableBackend{}, 0).Open(t.Context(), "x")
	_, sharer := d.(nbd.Sharer)
	_, preparer := d.(nbd.Preparer)
	var v any = vdi.NewDevice(nil)
	_, s := v.(nbd.Sharer)
	_, p := v.(nbd.Preparer)
	if sharer != s || preparer != p {
		t.Errorf("vdi.Device: Sharer %v, Preparer %v; as sheep-nbd hands it to nbd: %v, %v", s, p, sharer, preparer)
	}
}
