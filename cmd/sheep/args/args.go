// Package args puts a command line into the order that urfave/cli wants: flags before arguments.
//
// Users of Sheepdog type flags where they think of them (`vdi snapshot NAME -s TAG`, `node list -a HOST`, `vdi create -c2 NAME 1G`); urfave/cli stops
// looking for flags at the first argument. So everything is sorted before it is parsed: the program and the path of commands, then all
// flags with their values, then a "--" if it is needed, then the arguments in their order.
package args

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// completion is what shells add at the end to ask for words: such a line is left alone.
const completion = "--generate-bash-completion"

// Reorder sorts line (program name first) for app.
func Reorder(app *cli.App, line []string) []string {
	if len(line) < 2 || line[len(line)-1] == completion {
		return line
	}
	commands := app.Commands
	known := app.Flags
	path := []string{line[0]}
	var flags, rest []string
	dashed := false
	for i := 1; i < len(line); i++ {
		word := line[i]
		switch {
		case dashed:
			rest = append(rest, word)
		case word == "--":
			dashed = true
		case len(word) > 1 && word[0] == '-':
			names, wantsValue := split(visible(known, commands), word)
			flags = append(flags, names...)
			if wantsValue && i+1 < len(line) {
				i++
				flags = append(flags, line[i])
			}
		default:
			if c := find(commands, word); c != nil && len(rest) == 0 {
				path = append(path, word)
				commands = c.Subcommands
				known = append(slices.Clip(known), c.Flags...)
				continue
			}
			rest = append(rest, word)
			commands = nil // what follows an argument is no command
		}
	}
	out := append(path, flags...)
	if slices.ContainsFunc(rest, func(s string) bool { return strings.HasPrefix(s, "-") }) {
		out = append(out, "--")
	}
	return append(out, rest...)
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// visible is what a flag may be at this place: a flag of the commands so far, or one of any command below.
func visible(known []cli.Flag, commands []*cli.Command) []cli.Flag {
	all := slices.Clip(known)
	for _, c := range commands {
		all = append(all, c.Flags...)
		all = visible(all, c.Subcommands)
	}
	return all
}

// split takes one word that begins with a dash apart: -xVALUE becomes -x VALUE, and -xy (both without value) -x -y. It says whether the
// next word is the last flag's value. What it doesn't know it leaves as it is, for the parser to refuse.
func split(known []cli.Flag, word string) (names []string, wantsValue bool) {
	name, _, assigned := strings.Cut(strings.TrimLeft(word, "-"), "=")
	if f := lookup(known, name); f != nil {
		return []string{word}, !assigned && takesValue(f)
	}
	if strings.HasPrefix(word, "--") {
		return []string{word}, false
	}
	for rest := word[1:]; rest != ""; rest = rest[1:] {
		f := lookup(known, rest[:1])
		if f == nil {
			return []string{word}, false
		}
		names = append(names, "-"+rest[:1])
		if takesValue(f) {
			if rest[1:] != "" {
				return append(names, rest[1:]), false
			}
			return names, true
		}
	}
	return names, false
}

func lookup(known []cli.Flag, name string) cli.Flag {
	for _, f := range known {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}
