package args

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func testApp() *cli.App {
	address := &cli.StringFlag{Name: "address", Aliases: []string{"a"}}
	raw := &cli.BoolFlag{Name: "raw", Aliases: []string{"r"}}
	verbose := &cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}}
	leaf := func(name string, extra ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Flags: append([]cli.Flag{address, raw, verbose}, extra...)}
	}
	return &cli.App{Name: "sheep", Commands: []*cli.Command{
		{Name: "vdi", Subcommands: []*cli.Command{
			leaf("snapshot", &cli.StringFlag{Name: "snapshot", Aliases: []string{"s"}}),
			leaf("create", &cli.IntFlag{Name: "copies", Aliases: []string{"c"}}),
			leaf("list"),
		}},
	}}
}

func TestReorder(t *testing.T) {
	for in, want := range map[string]string{
		"sheep":                                "sheep",
		"sheep vdi snapshot disk -s t1":        "sheep vdi snapshot -s t1 disk",
		"sheep vdi snapshot -s t1 disk":        "sheep vdi snapshot -s t1 disk",
		"sheep -a h vdi -r snapshot disk -st1": "sheep vdi snapshot -a h -r -s t1 disk",
		"sheep vdi create d 1G --copies 2":     "sheep vdi create --copies 2 d 1G",
		"sheep vdi create d 1G --copies=2 -rv": "sheep vdi create --copies=2 -r -v d 1G",
		"sheep vdi create d 1G -rvc2":          "sheep vdi create -r -v -c 2 d 1G",
		"sheep vdi create vdi list":            "sheep vdi create vdi list",
		"sheep vdi list list":                  "sheep vdi list list",
		"sheep vdi list -r -- -r":              "sheep vdi list -r -- -r",
		"sheep vdi create - 1G -x":             "sheep vdi create -x -- - 1G",
		"sheep vdi create d 1G -c":             "sheep vdi create -c d 1G",
		"sheep vdi bogus -z q":                 "sheep vdi -z bogus q",
		"sheep vdi li " + completion:           "sheep vdi li " + completion,
	} {
		got := strings.Join(Reorder(testApp(), strings.Fields(in)), " ")
		if got != want {
			t.Errorf("Reorder(%s)\n got %s\nwant %s", in, got, want)
		}
	}
}

// FuzzReorder: every word stays, but for the dashes that are moved or taken apart; nothing panics.
func FuzzReorder(f *testing.F) {
	f.Add("vdi snapshot disk -s t1")
	f.Add("-a h vdi create -- -rvc2 --copies= x")
	f.Fuzz(func(t *testing.T, line string) {
		words := append([]string{"sheep"}, strings.Fields(line)...)
		got := Reorder(testApp(), words)
		letters := func(ws []string) int { return len(strings.ReplaceAll(strings.Join(ws, ""), "-", "")) }
		if letters(got) != letters(words) {
			t.Fatalf("%q became %q", words, got)
		}
	})
}
