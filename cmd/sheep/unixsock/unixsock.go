// Package unixsock is the flags that say who may connect to a unix socket for NBD clients.
package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// ErrUsage begins the text of errors in the wording of flags.
var ErrUsage = errors.New("Invalid")

// Flags are the flags of a program that listens on one.
func Flags(prefix string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: prefix + "socket-mode", Usage: "the unix socket's `MODE`: who can write to it can connect (default: 0600)"},
		&cli.StringFlag{Name: prefix + "socket-owner", Usage: "the unix socket's `USER[:GROUP]` or :GROUP, by name or number"},
	}
}

// FromFlags says how the socket is made. Errors of wording wrap ErrUsage.
func FromFlags(c *cli.Context, prefix, path string) (nbd.UnixSocket, error) {
	u := nbd.UnixSocket{Path: path}
	for _, name := range []string{"socket-mode", "socket-owner"} {
		if path == "" && c.IsSet(prefix+name) {
			return u, fmt.Errorf("%w --%s%s: there is no unix socket", ErrUsage, prefix, name)
		}
	}
	if text := c.String(prefix + "socket-mode"); text != "" {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || mode == 0 || mode > 0o777 {
			return u, fmt.Errorf("%w --%ssocket-mode '%s': use an octal number such as 0660", ErrUsage, prefix, text)
		}
		u.Mode = fs.FileMode(mode)
	}
	var err error
	if text := c.String(prefix + "socket-owner"); text != "" {
		if u.UID, u.GID, err = parseOwner(text); err != nil {
			return u, fmt.Errorf("%w --%ssocket-owner '%s': %w", ErrUsage, prefix, text, err)
		}
	}
	return u, nil
}

// parseOwner reads USER, USER:GROUP or :GROUP. What is not named is -1, which leaves it.
func parseOwner(text string) (uid, gid int, err error) {
	owner, group, both := strings.Cut(text, ":")
	if owner == "" && group == "" || both && group == "" {
		return 0, 0, errors.New("use USER, USER:GROUP or :GROUP")
	}
	if uid, err = id(owner, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	}); err != nil {
		return 0, 0, err
	}
	gid, err = id(group, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	return uid, gid, err
}

// id is a number, or a name's.
func id(text string, lookup func(string) (string, error)) (int, error) {
	if text == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return int(n), nil
	}
	number, err := lookup(text)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(number)
	return n, err
}
