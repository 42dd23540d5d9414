package unixsock

import (
	"errors"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/nbd"
)

func parse(path string, args ...string) (u nbd.UnixSocket, err error) {
	app := &cli.App{Flags: Flags(""), Action: func(c *cli.Context) error { u, err = FromFlags(c, "", path); return nil }}
	if e := app.Run(append([]string{"x"}, args...)); e != nil {
		return u, e
	}
	return u, err
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		want nbd.UnixSocket
	}{
		{nil, nbd.UnixSocket{Path: "s"}},
		{[]string{"--socket-mode", "0660"}, nbd.UnixSocket{Path: "s", Mode: 0o660}},
		{[]string{"--socket-mode", "666", "--socket-owner", "12:34"}, nbd.UnixSocket{Path: "s", Mode: 0o666, UID: 12, GID: 34}},
		{[]string{"--socket-owner", ":34"}, nbd.UnixSocket{Path: "s", UID: -1, GID: 34}},
		{[]string{"--socket-owner", "root:root"}, nbd.UnixSocket{Path: "s"}},
	} {
		if got, err := parse("s", c.args...); err != nil || got != c.want {
			t.Errorf("%v: %+v, %v", c.args, got, err)
		}
	}
	for _, args := range [][]string{{"--socket-mode", "999"}, {"--socket-mode", "0"}, {"--socket-mode", "4755"}, {"--socket-mode", "rw"}, {"--socket-owner", ":"},
		{"--socket-owner", "1:"}, {"--socket-owner", "no such user"}, {"--socket-owner", "1:no such group"}, {"--socket-owner", "-5"}} {
		if u, err := parse("s", args...); !errors.Is(err, ErrUsage) {
			t.Errorf("%v: %+v, %v", args, u, err)
		}
	}
	if _, err := parse("", "--socket-mode", "0660"); !errors.Is(err, ErrUsage) {
		t.Errorf("a mode without a socket: %v", err)
	}
}
