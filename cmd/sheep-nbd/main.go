package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/args"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/certs"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/unixsock"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/version"
	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/vdi"
)

const (
	defaultNodePort = "7000"
	defaultNBDPort  = 10809

	stringMax = 4096 // bytes of a string in NBD
)

// Exit codes, as `sheep` has them.
const (
	exitFailed  = 1
	exitSystem  = 2
	exitMissing = 5
	exitUsage   = 64
)

// options is what the command line asks for.
type options struct {
	nodes    []string       // host:port of nodes to learn the map from
	socket   nbd.UnixSocket // no path: TCP
	bind     string         // host:port
	stay     bool
	readOnly bool
	export   string        // name it is exported by; "": its own
	describe string        // what clients are told it is; "": what the cluster knows
	shaking  time.Duration // a client's handshake
	clients  int           // most at a time; 0: any number
	fork     bool
	pidFile  string
	target   string // NAME[:SNAP]
	connect  time.Duration
	level    string
	device   deviceOptions
	security *certs.Security // by TCP
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, line []string, out, errs io.Writer) int {
	app := newApp(out, errs)
	err := app.RunContext(ctx, args.Reorder(app, line))
	if err != nil {
		fmt.Fprintln(errs, "sheep-nbd: "+strings.Join(strings.Fields(err.Error()), " "))
	}
	return exitCode(err)
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

// connectError is a cluster that cannot be reached.
type connectError struct{ error }

func (e connectError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var usage usageError
	var connect connectError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &connect):
		return exitSystem
	case errors.Is(err, fs.ErrNotExist):
		return exitMissing
	}
	return exitFailed
}

func newApp(out, errs io.Writer) *cli.App {
	return &cli.App{
		Name: "sheep-nbd", HelpName: "sheep-nbd", Usage: "serve one VDI of a Sheepdog cluster over NBD", ArgsUsage: "NAME[:SNAP]", HideVersion: true,
		Writer: out, ErrWriter: errs, HideHelpCommand: true, EnableBashCompletion: true, ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return usageError{fmt.Errorf("%w; see sheep-nbd --help", err)}
		},
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, EnvVars: []string{"SHEEP_ADDRESS"}, Value: "127.0.0.1",
				Usage: "nodes to learn the cluster from: `HOST[:PORT],...`; any one that answers will do"},
			&cli.StringFlag{Name: "socket", Aliases: []string{"k"}, Usage: "listen on the unix socket `PATH`; sockets that systemd passes take the place of this, -b and -p"},
			&cli.StringFlag{Name: "bind", Aliases: []string{"b"}, Value: "127.0.0.1", Usage: "listen on `HOST`"},
			&cli.IntFlag{Name: "port", Aliases: []string{"p"}, Value: defaultNBDPort, Usage: "listen on `PORT`"},
			&cli.BoolFlag{Name: "persistent", Aliases: []string{"t"}, Usage: "stay after the last client has left"},
			&cli.BoolFlag{Name: "read-only", Aliases: []string{"r"}, Usage: "serve it read-only; then it may be open elsewhere"},
			&cli.StringFlag{Name: "export-name", Aliases: []string{"x"}, Usage: "export it as `NAME`"},
			&cli.StringFlag{Name: "description", Aliases: []string{"D"}, Usage: "describe it to clients as `TEXT`"},
			&cli.IntFlag{Name: "shared", Aliases: []string{"e"}, Usage: "serve at most `NUM` connections at a time; 0: any number"},
			&cli.IntFlag{Name: "handshake-limit", Value: 10, Usage: "cut clients off whose handshake takes more than `SECONDS`"},
			&cli.BoolFlag{Name: "fork", Usage: "return once clients can connect, and go on in the background"},
			&cli.StringFlag{Name: "pid-file", Usage: "write the process id to `FILE`"},
			&cli.DurationFlag{Name: "connect-timeout", Value: 30 * time.Second, Usage: "how long to look for the cluster at the start; that none answers is said at once"},
			&cli.StringFlag{Name: "log-level", Value: "warn", Usage: "debug, info, warn or error"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "the same as --log-level debug"},
			&cli.BoolFlag{Name: "version", Aliases: []string{"V"}, Usage: "print the version, and end", DisableDefaultText: true},
			&cli.BoolFlag{Name: "man", Usage: "print the manual page, and end: sheep-nbd --man | man -l -", DisableDefaultText: true},
		}, slices.Concat(unixsock.Flags(""), certs.Flags(""), deviceFlags(), tabFlags())...),
		Action: func(c *cli.Context) error {
			if c.Bool("version") || c.Bool("man") {
				return aboutItself(c, out)
			}
			if c.IsSet("tab") {
				return runTab(c, out, errs)
			}
			if done, err := aboutDevices(c, out); done {
				return err
			}
			o, err := parse(c)
			if err != nil {
				return err
			}
			if o.fork && !forked() {
				return forkAndWait(c.Context)
			}
			return serve(c.Context, o)
		},
	}
}

// aboutItself prints what needs neither cluster nor kernel.
func aboutItself(c *cli.Context, out io.Writer) error {
	text := "sheep-nbd version " + version.String() + "\n"
	if c.Bool("man") {
		page, err := c.App.ToMan()
		if err != nil {
			return err
		}
		text = page
	}
	_, err := io.WriteString(out, text)
	return err
}

// parse checks the flags.
func parse(c *cli.Context) (*options, error) {
	o := &options{stay: c.Bool("persistent"), readOnly: c.Bool("read-only"), export: c.String("export-name"), describe: c.String("description"),
		clients: c.Int("shared"), shaking: time.Duration(c.Int("handshake-limit")) * time.Second, fork: c.Bool("fork"), pidFile: c.String("pid-file"), connect: c.Duration("connect-timeout"), level: c.String("log-level")}
	usage := func(format string, v ...any) (*options, error) { return nil, usageError{fmt.Errorf(format, v...)} }
	if c.NArg() != 1 {
		return usage("say which VDI to serve: sheep-nbd [flags] NAME[:SNAP]; see sheep-nbd --help")
	}
	o.target = c.Args().First()
	if name, snap := vdi.SplitName(o.target); name == "" || strings.Contains(o.target, ":") && snap == "" {
		return usage("'%s' is no NAME or NAME:SNAP", o.target)
	}
	if c.Bool("verbose") {
		if c.IsSet("log-level") {
			return usage("use either -v or --log-level")
		}
		o.level = "debug"
	}
	var err error
	if o.socket, err = unixsock.FromFlags(c, "", c.String("socket")); err != nil {
		return nil, usageError{err}
	}
	device, err := parseDevice(c)
	if err != nil {
		return nil, err
	}
	o.device = device
	port := c.Int("port")
	switch {
	case port < 1 || port > 65535:
		return usage("invalid port %d: use 1 to 65535", port)
	case o.clients < 0:
		return usage("invalid number of clients %d: use 0 for any number", o.clients)
	case o.socket.Path != "" && (c.IsSet("bind") || c.IsSet("port")):
		return usage("use either -k PATH or -b HOST -p PORT")
	case c.IsSet("socket") && o.socket.Path == "":
		return usage("the socket's path is empty")
	case o.connect <= 0:
		return usage("invalid --connect-timeout %v", o.connect)
	case o.shaking < time.Second || o.shaking > time.Hour:
		return usage("invalid --handshake-limit %d: use 1 to 3600 seconds", c.Int("handshake-limit"))
	}
	for what, text := range map[string]string{"a description": o.describe, "an export name": o.export} {
		switch {
		case len(text) > stringMax:
			return usage("%s of %d bytes: the most is %d", what, len(text), stringMax)
		case !utf8.ValidString(text):
			return usage("%s that is not UTF-8: %q", what, text)
		}
	}
	o.bind = net.JoinHostPort(c.String("bind"), strconv.Itoa(port))
	if err := parseSecurity(c, o); err != nil {
		return nil, err
	}
	for node := range strings.SplitSeq(cmp.Or(c.String("address"), "127.0.0.1"), ",") {
		if node = strings.TrimSpace(node); node == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(node); err != nil {
			node = net.JoinHostPort(strings.Trim(node, "[]"), defaultNodePort)
		}
		o.nodes = append(o.nodes, node)
	}
	if len(o.nodes) == 0 {
		return usage("-a names no node")
	}
	return o, nil
}
