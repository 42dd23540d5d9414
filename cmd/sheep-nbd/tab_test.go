package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTab(t *testing.T) {
	text, err := os.ReadFile("../../scripts/systemd/nbdtab.example")
	if err != nil {
		t.Fatal(err)
	}
	words, err := findInTab(bytes.NewReader(text), "web1")
	if err != nil || !slices.Equal(words, []string{"web1", "-a", "10.0.0.1,10.0.0.2,10.0.0.3", "-c", "/dev/nbd0", "-C", "4"}) {
		t.Errorf("%q, %v", words, err)
	}
	file := filepath.Join(t.TempDir(), "nbdtab")
	os.WriteFile(file, []byte("a x -p 0 # bad port\nf x --bogus\nb\nc x\nc y\nd x --tab a\ne # x\n"), 0o600)
	for line, want := range map[string]int{"--tab nonesuch": exitMissing, "--tab a": exitUsage, "--tab b": exitUsage, "--tab c": exitUsage, "--tab d": exitUsage, "--tab e": exitUsage, "--tab f": exitUsage,
		"--tab a x": exitUsage, "--tab a -r": exitUsage} {
		var errs bytes.Buffer
		code := run(context.Background(), append([]string{"sheep-nbd", "--tab-file", file}, strings.Fields(line)...), new(bytes.Buffer), &errs)
		if strings.HasSuffix(line, "--tab f") && !strings.Contains(errs.String(), file+": the line of f") {
			t.Errorf("%s: which line it was: %s", line, &errs)
		}
		if code != want || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%s: exit code %d, want %d: %s", line, code, want, &errs)
		}
	}
	if code := run(context.Background(), []string{"sheep-nbd", "--tab", "a", "--tab-file", file + "x"}, new(bytes.Buffer), new(bytes.Buffer)); code != exitMissing {
		t.Error("no table: exit code", code)
	}
}

func FuzzTab(f *testing.F) {
	f.Add("a x -r\n", "a")
	f.Fuzz(func(t *testing.T, text, name string) {
		words, err := findInTab(strings.NewReader(text), name)
		if err == nil && (len(words) == 0 || !strings.Contains(text, words[0])) {
			t.Errorf("%q of %q became %q", name, text, words)
		}
	})
}
