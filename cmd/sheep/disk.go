package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
	"github.com/sheepdog-go/sheepdog/objstore"
)

func (s *shell) diskCommand() *cli.Command {
	return &cli.Command{Name: "disk", Usage: "the directory of a node that is stopped", Subcommands: []*cli.Command{
		{Name: "check", Usage: "verify everything in it, every block; changes nothing", ArgsUsage: "DIR", Action: s.diskCheck,
			Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}},
		{Name: "dump", Usage: "explain in words what is in it, or one object (its file's name, 16 hex digits)", ArgsUsage: "DIR [OBJECT]", Action: s.diskDump},
	}}
}

// diskError gives what the store says of a directory the right exit code: none of it is about VDIs that exist or are missing.
func diskError(what, dir string, err error) error {
	return &coded{exitFailed, fmt.Sprintf("Failed to %s %s: %v", what, dir, err)}
}

func (s *shell) diskCheck(c *cli.Context) error {
	if err := arguments(c, "DIR"); err != nil {
		return err
	}
	dir := c.Args().First()
	problems := []string{}
	sum, err := objstore.Check(objstore.Config{Dir: dir}, func(p objstore.Problem) {
		if !nodesOwn(p.Path) {
			problems = append(problems, p.String())
		}
	})
	if err != nil {
		return diskError("check", dir, err)
	}
	if c.Bool("json") {
		output.Value(s.out, map[string]any{"ok": len(problems) == 0, "cluster": sum.Identity.Cluster, "disk": sum.Identity.Disk, "groups": sum.Groups,
			"objects": sum.Objects, "versions": sum.Versions, "blocks": sum.Blocks, "journalRecords": sum.JournalRecords, "problems": problems})
	} else {
		for _, p := range problems {
			s.printf("%s\n", p)
		}
	}
	if len(problems) > 0 {
		return &coded{exitFailed, fmt.Sprintf("disk check: %d problems in %s", len(problems), dir)}
	}
	if !c.Bool("json") {
		s.printf("OK: %d objects with %d versions in %d groups, %s verified, %d journal records to replay\n", sum.Objects, sum.Versions, sum.Groups,
			units.Human(uint64(sum.Blocks)*objstore.BlockSize), sum.JournalRecords)
	}
	return nil
}

// nodesOwn says that a file belongs to the node, which shares the directory with the store: its identity, raft's log.
func nodesOwn(path string) bool {
	return path == "epoch/node.json" || path == "epoch/raft" || strings.HasPrefix(path, "epoch/raft/")
}

func (s *shell) diskDump(c *cli.Context) error {
	if err := arguments(c, "DIR", "[OBJECT]"); err != nil {
		return err
	}
	dir, cfg := c.Args().First(), objstore.Config{Dir: c.Args().First()}
	if c.NArg() == 1 {
		if err := objstore.Dump(cfg, s.out); err != nil {
			return diskError("dump", dir, err)
		}
		return nil
	}
	name := c.Args().Get(1)
	key, err := strconv.ParseUint(name, 16, 64)
	if err != nil || len(name) != 16 {
		return usagef("Invalid object '%.40s': use the name of its file, 16 hex digits, or what `sheep vdi object` shows", name)
	}
	if err := objstore.DumpObject(cfg, objstore.Key(key), s.out); err != nil {
		return diskError("dump object "+name+" of", dir, err)
	}
	return nil
}
