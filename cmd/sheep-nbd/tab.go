package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/args"
)

// A table of what is served, for service managers. One line each:
//
//	NAME  VDI[:SNAPSHOT]  flags of sheep-nbd
//
// Words are divided by blanks; what follows a # at a word's beginning is a comment.
const defaultTab = "/etc/sheepdog/nbdtab"

const tabLineMax = 64 << 10

func tabFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "tab", Usage: "serve what the line of the table that begins with `NAME` says"},
		&cli.StringFlag{Name: "tab-file", Value: defaultTab, Usage: "the table"},
	}
}

// runTab runs the line that --tab names.
func runTab(c *cli.Context, out, errs io.Writer) error {
	if c.NArg() > 0 || c.NumFlags() != 1 && !(c.NumFlags() == 2 && c.IsSet("tab-file")) {
		return usageError{fmt.Errorf("--tab goes with nothing but --tab-file: the table says all the rest")}
	}
	file := c.String("tab-file")
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("read the table: %w", err)
	}
	defer f.Close()
	words, err := findInTab(f, c.String("tab"))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	app := newApp(out, errs)
	err = app.RunContext(c.Context, args.Reorder(app, append([]string{"sheep-nbd"}, words...)))
	var usage usageError
	if errors.As(err, &usage) {
		return usageError{fmt.Errorf("%s: the line of %s: %w", file, c.String("tab"), err)}
	}
	return err
}

// findInTab finds the line of a name, and returns its VDI and flags.
func findInTab(r io.Reader, name string) ([]string, error) {
	var found []string
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, tabLineMax)
	for n := 1; lines.Scan(); n++ {
		words := tabWords(lines.Text())
		if len(words) == 0 || words[0] != name {
			continue
		}
		if len(words) < 2 || strings.HasPrefix(words[1], "-") {
			return nil, usageError{fmt.Errorf("line %d: %s is followed by no VDI", n, name)}
		}
		if found != nil {
			return nil, usageError{fmt.Errorf("line %d: a second line for %s", n, name)}
		}
		for _, w := range words[2:] {
			if w == "--tab" || strings.HasPrefix(w, "--tab=") {
				return nil, usageError{fmt.Errorf("line %d: --tab within the table", n)}
			}
		}
		found = words[1:]
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("no line begins with '%s': %w", name, fs.ErrNotExist)
	}
	return found, nil
}

func tabWords(line string) []string {
	words := strings.Fields(line)
	for i, w := range words {
		if w[0] == '#' {
			return words[:i]
		}
	}
	return words
}
