package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestR5IncarnationsAreDurableAndBounded(t *testing.T) {
	path := t.TempDir()
	d, err := openDir(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDir(path, nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("opened twice: %v", err)
	}
	var last uint64
	for range incarnationsMax + 3 {
		if last, err = (&stores{self: d}).newIncarnation(); err != nil {
			t.Fatal(err)
		}
	}
	id := d.get()
	d.close()
	d, err = openDir(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	again := d.get()
	if again.UUID != id.UUID || len(again.Incarnations) != incarnationsMax || again.Incarnations[incarnationsMax-1] != last {
		t.Errorf("%d incarnations, last %x, want %x", len(again.Incarnations), again.Incarnations[len(again.Incarnations)-1], last)
	}
	slices.Sort(again.Incarnations)
	if len(slices.Compact(again.Incarnations)) != incarnationsMax {
		t.Error("an incarnation twice")
	}
}

func TestDamagedIdentityIsRefused(t *testing.T) {
	for _, bad := range []string{"", "{", `{"format":2,"uuid":"x"}`, `{"format":1}`} {
		path := t.TempDir()
		if err := os.MkdirAll(filepath.Join(path, epochDir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, epochDir, identityName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openDir(path, nil); err == nil || !strings.Contains(err.Error(), identityName) {
			t.Errorf("identity %q: %v", bad, err)
		}
	}
	path := t.TempDir()
	if err := os.MkdirAll(filepath.Join(path, epochDir, "raft"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := openDir(path, nil); err == nil { // a new identity on an old log would vote twice
		t.Error("a raft log without its node is accepted")
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"format":1,"uuid":"x","incarnations":[1,2]}`))
	f.Fuzz(func(t *testing.T, b []byte) { parseIdentity(b) })
}
