package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
)

const defaultPort = 7000

// askTimeout bounds what is a question of moments: everything but check, read, write and the like.
const askTimeout = 45 * time.Second

// shell is what commands act on: the streams of the process, or a test's.
type shell struct {
	in     io.Reader
	out    *bufio.Writer // stdout; flushed at the end
	err    io.Writer
	stdout io.Writer // beneath out
}

// withAsk adds the flags of every command that asks a node.
func withAsk(flags ...cli.Flag) []cli.Flag {
	return append(flags,
		&cli.StringFlag{Name: "address", Aliases: []string{"a"}, EnvVars: []string{"SHEEP_ADDRESS"}, Value: "127.0.0.1",
			Usage: "the node to ask: `HOST` or HOST:PORT"},
		&cli.IntFlag{Name: "port", Aliases: []string{"p"}, DefaultText: "7000", Usage: "its port, unless the address names one"},
		&cli.BoolFlag{Name: "raw", Aliases: []string{"r"}, Usage: "one record a line, fields by single spaces, bytes and Unix seconds"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON"},
	)
}

// style is how the command shall print.
func style(c *cli.Context) output.Style {
	switch {
	case c.Bool("json"):
		return output.JSON
	case c.Bool("raw"):
		return output.Raw
	}
	return output.Text
}

// address is host:port of the node to ask.
func address(c *cli.Context) (string, error) {
	a, port := cmp.Or(c.String("address"), "127.0.0.1"), c.Int("port")
	if port < 0 || port > 65535 {
		return "", usagef("Invalid port %d: use 1 to 65535", port)
	}
	if host, p, err := net.SplitHostPort(a); err == nil {
		if port != 0 {
			p = strconv.Itoa(port)
		}
		return net.JoinHostPort(host, p), nil
	}
	if port == 0 {
		port = defaultPort
	}
	return net.JoinHostPort(strings.Trim(a, "[]"), strconv.Itoa(port)), nil
}

// ask gives f a client of the node that the flags name, and a context that ends in good time.
func (s *shell) ask(c *cli.Context, f func(ctx context.Context, a *admin.Client) error) error {
	addr, err := address(c)
	if err != nil {
		return err
	}
	client := admin.NewClient(addr)
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.Context, askTimeout)
	defer cancel()
	return f(ctx, client)
}

// arguments checks how many arguments there are against their names; a name in brackets may be missing.
func arguments(c *cli.Context, names ...string) error {
	least := 0
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
	}
	switch n := c.NArg(); {
	case n < least:
		return usagef("%s: %s is missing; Usage: %s %s", c.Command.HelpName, strings.Trim(names[n], "[]"), c.Command.HelpName, strings.Join(names, " "))
	case n > len(names):
		return usagef("%s: unexpected argument '%s'; Usage: %s %s", c.Command.HelpName, c.Args().Get(len(names)), c.Command.HelpName, strings.Join(names, " "))
	}
	return nil
}

// propose gives the cluster a command and turns a refusal into an error.
func propose(ctx context.Context, a *admin.Client, cmd *state.Command) (state.Result, error) {
	r, err := a.Propose(ctx, cmd)
	if err != nil {
		return r, err
	}
	return r, r.Err()
}

// terminal says whether a stream is one.
func terminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (s *shell) printf(format string, v ...any) { fmt.Fprintf(s.out, format, v...) }
