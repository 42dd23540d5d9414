package sheepdog_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRulesAreFoundBroken: tests/RULES.md has a line for each rule of replication, and for everything that can be broken on purpose; the tests in it
// exist; where none is named it says why.
func TestRulesAreFoundBroken(t *testing.T) {
	b, err := os.ReadFile("tests/RULES.md")
	if err != nil {
		t.Fatal(err)
	}
	have := testNames(t)
	row := regexp.MustCompile(`^\| (\w+) \| .+ \| (.+) \| (.+) \|$`)
	name := regexp.MustCompile("`(Test[^`]+)`")
	rules := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		m := row.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[1] == "rule" {
			continue
		}
		if rules[m[1]] {
			t.Errorf("%s is there twice", m[1])
		}
		rules[m[1]] = true
		shown := name.FindAllStringSubmatch(m[2], -1)
		if len(shown) == 0 && !strings.HasPrefix(m[2], "not needed") {
			t.Errorf("%s is shown by nothing", m[1])
		}
		for _, s := range shown {
			if !have[s[1]] {
				t.Errorf("%s is said to be shown by %s, which does not exist", m[1], s[1])
			}
		}
	}
	for i := 1; i <= 24; i++ {
		if r := fmt.Sprint("R", i); !rules[r] {
			t.Errorf("no line for %s", r)
		}
	}
	for r := range planted(t) {
		if !rules[r] {
			t.Errorf("%s can be broken on purpose, and has no line", r)
		}
	}
}

// planted are the rules that the code breaks when it is told to.
func planted(t *testing.T) map[string]bool {
	rules := map[string]bool{}
	asks := regexp.MustCompile(`\b(?:planted\.Broken|broken)\("(\w+)"\)`)
	err := filepath.WalkDir("cluster", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range asks.FindAllSubmatch(b, -1) {
			rules[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}
