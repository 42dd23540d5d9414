package sheepdog_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestFailuresAreShown: tests/FAILURES.md has a line for each of the sixty failures, and every test, story, script and kind of scripts/soak that it names exists.
func TestFailuresAreShown(t *testing.T) {
	b, err := os.ReadFile("tests/FAILURES.md")
	if err != nil {
		t.Fatal(err)
	}
	have, kinds := testNames(t), soakKinds(t)
	soak := regexp.MustCompile("`scripts/soak` \\((\\w+)\\)")
	row := regexp.MustCompile(`^\| (\d+) \| .+ \| .+ \| (.+) \|$`)
	name := regexp.MustCompile("`([^`]+)`")
	next := 1
	for line := range strings.Lines(string(b)) {
		m := row.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if n, _ := strconv.Atoi(m[1]); n != next {
			t.Fatalf("after failure %d comes %d", next-1, n)
		}
		next++
		shown := name.FindAllStringSubmatch(m[2], -1)
		if len(shown) == 0 {
			t.Errorf("failure %s is shown by nothing", m[1])
		}
		for _, s := range shown {
			file := s[1]
			if strings.HasPrefix(file, "s") && !strings.Contains(file, "/") {
				file = "tests/" + file
			}
			if _, err := os.Stat(file); err != nil && !have[s[1]] {
				t.Errorf("failure %s is said to be shown by %s, which does not exist", m[1], s[1])
			}
		}
	}
	named := map[string]bool{}
	for _, m := range soak.FindAllStringSubmatch(string(b), -1) {
		if named[m[1]] = true; !kinds[m[1]] {
			t.Errorf("scripts/soak has no fault %s", m[1])
		}
	}
	for kind := range kinds {
		if !named[kind] {
			t.Errorf("no failure names the soak's %s", kind)
		}
	}
	if next != 61 {
		t.Errorf("the last failure is %d", next-1)
	}
}

// soakKinds are the faults that scripts/soak draws from.
func soakKinds(t *testing.T) map[string]bool {
	b, err := os.ReadFile("scripts/soak")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^kinds=\(([a-z ]+)\)$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("scripts/soak has no line of kinds")
	}
	kinds := map[string]bool{}
	for kind := range strings.FieldsSeq(string(m[1])) {
		if kinds[kind] = true; !regexp.MustCompile(`(?m)^ +([a-z]+\|)*` + kind + `(\|[a-z]+)*\) `).Match(b) {
			t.Errorf("scripts/soak draws %s and does not know it", kind)
		}
	}
	return kinds
}

// testNames are all tests and fuzz tests of the module.
func testNames(t *testing.T) map[string]bool {
	names := map[string]bool{}
	decl := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range decl.FindAllSubmatch(b, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
