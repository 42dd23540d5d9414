package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

var forceFlag = &cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "do not ask"}

// confirm returns nil if -f was given or somebody at a terminal says yes. Without a terminal nobody can: then only -f will do.
func (s *shell) confirm(c *cli.Context, what string) error {
	if c.Bool("force") {
		return nil
	}
	if !terminal(s.in) {
		return &coded{exitFailed, what + " Nothing was done: say -f to do it without being asked"}
	}
	fmt.Fprintf(s.err, "%s\nAre you sure you want to continue? [yes/no]: ", what)
	answer, _ := bufio.NewReader(s.in).ReadString('\n')
	if strings.EqualFold(strings.TrimSpace(answer), "yes") {
		return nil
	}
	return &coded{exitFailed, "Nothing was done"}
}
