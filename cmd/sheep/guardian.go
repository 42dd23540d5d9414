package main

import (
	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/guard"
)

// guardianName is the hidden command by which a daemon starts its guardian.
const guardianName = "guardian"

func (s *shell) guardianCommand() *cli.Command {
	return &cli.Command{Name: guardianName, Hidden: true, Usage: "started by a daemon: reports its death to the cluster", Action: func(*cli.Context) error {
		if code := guard.Main(); code != 0 {
			return &coded{code, ""}
		}
		return nil
	}}
}
