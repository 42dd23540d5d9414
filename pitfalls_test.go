package sheepdog_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// pitfalls are places where NBD servers had bugs and CVEs. Each has a test that bears its number: TestPitfall29..., or TestPitfall18And19... for several.
var pitfalls = []string{
	1:  "a name of 4 GiB (CVE-2022-26495)",
	2:  "names and lists longer than their buffer (CVE-2022-26496)",
	3:  "an export name over 256 bytes (CVE-2017-15118)",
	4:  "huge options (CVE-2017-15119)",
	5:  "a malformed option is refused and not read: the place in the stream is lost",
	6:  "an error text that holds a client's name is too long (CVE-2020-10761)",
	7:  "a client that leaves in the handshake (CVE-2017-9524, CVE-2017-7539)",
	8:  "connections that never get through the handshake; a stop meanwhile (CVE-2024-7409)",
	9:  "any number of options",
	10: "an export opened before TLS and GO (CVE-2019-14850)",
	11: "options in an order nobody thought of (CVE-2019-14851)",
	12: "buffers whose size a stranger chooses",
	13: "unknown client flags; options without fixed newstyle",
	14: "INFO and GO disagree",
	15: "EXPORT_NAME answered with an error reply",
	16: "ABORT ends with a reset",
	17: "one client stops all (CVE-2013-7441)",
	18: "access lists that match what they should not (CVE-2011-1925, CVE-2015-0847, CVE-2013-6410)",
	19: "access that is not denied by default, or not everywhere",
	20: "STARTTLS keeps what was negotiated in the clear (CVE-2021-3716)",
	21: "bytes in the clear behind STARTTLS",
	22: "TLS required: an option is refused and not read",
	23: "TLS required: what each option is answered",
	24: "a client goes on without TLS, or without checking certificates (CVE-2019-14842, CVE-2024-7383)",
	25: "an endless loop at the end of TLS",
	26: "a payload skipped below TLS instead of within",
	27: "exports enumerated without TLS",
	28: "the TLS handshake has no deadline",
	29: "a command flag that was not offered",
	30: "a client hangs up while replies are queued",
	31: "block status of 4 GiB (CVE-2025-47711)",
	32: "offset and length overflow (CVE-2025-47712)",
	33: "extents that end within a block",
	34: "trims that round to nothing",
	35: "writes into one block from many connections",
	36: "memory for whatever length a request names (CVE-2005-3534, CVE-2011-0530)",
	37: "a read's success told before it is read",
	38: "an unknown command taken for one with a payload",
	39: "a write that is too long ends the connection",
	40: "an error ends the connection",
	41: "structured mode: errors and lengths told wrong",
	42: "sizes that break clients (CVE-2023-5215 and others)",
	43: "replies written into each other",
	44: "a client that does not read holds up others",
	45: "the place of a client that crashed is never free again",
	46: "a new configuration that makes no sense",
}

// failovers are what may go wrong when a connection dies and the client comes back, perhaps elsewhere.
var failovers = map[string]string{
	"TestB4NothingStartsAfterTheConnectionDied":          "a write of a dead connection starts after it was sent again on another one",
	"TestB4NothingStartsAfterTheConnectionDiedInSubmit":  "the same, of a write that was read along with one that the device is slow to take",
	"TestB4NothingHandedOffStartsAfterTheConnectionDied": "the same, of a write that waits behind another large one",
	"TestB4NothingHandedOffStartsAfterTheClientLeft":     "the same, where the client only ended its side",
	"TestB4NoSharedReadStartsAfterTheConnectionDied":     "the same, of a large read that waits for its turn",
	"TestB4StaleRetriedWrite":                            "a write of a dead gateway lands on top of a newer one",
	"TestB4RetryOfWhatWasPartlyDone":                     "a retry does not cover what was partly done",
	"TestB4NothingIsAnsweredTwice":                       "a request is answered twice",
	"TestB4TheKernelGetsUnixStreamSockets":               "the kernel is given a socket that it does not take (CVE-2025-40080)",
	"TestB4MultiConnAcrossGateways":                      "connections to different gateways do not see each other's writes",
	"TestB4FlushAfterFailover":                           "a flush does not cover what the dead gateway acknowledged",
}

var (
	pitfallTest   = regexp.MustCompile(`^TestPitfall(\d+(?:And\d+)*)`)
	pitfallNumber = regexp.MustCompile(`\d+`)
)

// TestEveryPitfallHasATest looks for them by name, in all packages.
func TestEveryPitfallHasATest(t *testing.T) {
	numbers, names := map[int]bool{}, map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil {
				continue
			}
			names[f.Name.Name] = true
			if m := pitfallTest.FindStringSubmatch(f.Name.Name); m != nil && strings.HasPrefix(path, "nbd") {
				for _, n := range pitfallNumber.FindAllString(m[1], -1) {
					k, _ := strconv.Atoi(n)
					numbers[k] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for n, what := range pitfalls {
		if what != "" && !numbers[n] {
			t.Errorf("pitfall %d has no test: %s", n, what)
		}
	}
	for name, what := range failovers {
		if !names[name] {
			t.Errorf("%s is not there: %s", name, what)
		}
	}
	for name := range names {
		if strings.HasPrefix(name, "TestB4") && failovers[name] == "" {
			t.Errorf("%s stands in no list", name)
		}
	}
}
