package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/args"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// outBytes is what is printed at once. A reader that has seen enough (grep -q, head) then does not kill the program in mid-answer.
const outBytes = 64 << 10

// run is the whole program but for the process: it returns the exit code.
func run(ctx context.Context, line []string, in io.Reader, out, errs io.Writer) int {
	buffered := bufio.NewWriterSize(out, outBytes)
	s := &shell{in: in, out: buffered, err: errs, stdout: out}
	app := s.app()
	err := app.RunContext(ctx, args.Reorder(app, line))
	if flushed := buffered.Flush(); err == nil && flushed != nil {
		err = systemf("write the output: %w", flushed)
	}
	if err != nil {
		if text := errorLine(err); text != "" {
			fmt.Fprintln(errs, text)
		}
	}
	return exitCode(err)
}

// app is all commands. It is also what completion and the man page are made of.
func (s *shell) app() *cli.App {
	app := &cli.App{
		Name:                 "sheep",
		HelpName:             "sheep",
		Usage:                "Sheepdog: a replicated block store for virtual machines",
		Version:              version.String(),
		Reader:               s.in,
		Writer:               s.out,
		ErrWriter:            s.err,
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		Flags:                []cli.Flag{},
		ExitErrHandler:       func(*cli.Context, error) {}, // run says it, once
		Commands: []*cli.Command{
			s.daemonCommand(),
			s.devCommand(),
			s.clusterCommand(),
			s.nodeCommand(),
			s.vdiCommand(),
			s.tlsCommand(),
			s.diskCommand(),
			s.completionCommand(),
			s.manCommand(),
			s.guardianCommand(),
		},
	}
	app.Action = group(app.Commands)
	app.OnUsageError = onUsageError
	prepare(app.Commands)
	return app
}

// prepare gives every command the manners of all: usage errors of one line, unknown subcommands refused.
func prepare(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		if len(c.Subcommands) > 0 {
			c.Action = group(c.Subcommands)
			prepare(c.Subcommands)
		}
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	return usagef("%s: %v; see %s --help", c.Command.HelpName, err, c.Command.HelpName)
}

// group is the action of a command that has others below it: reached when none of them was named.
func group(below []*cli.Command) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() > 0 {
			return usagef("%s: unknown command '%s'; see %s --help", c.Command.HelpName, c.Args().First(), c.Command.HelpName)
		}
		if len(c.Lineage()) <= 2 && c.App.Name == c.Command.Name {
			return cli.ShowAppHelp(c)
		}
		names := ""
		for _, b := range below {
			if !b.Hidden {
				names += "|" + b.Name
			}
		}
		return usagef("Usage: %s {%s} ...", c.Command.HelpName, names[1:])
	}
}
