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
	var where []string
	sum, err := objstore.Check(objstore.Config{Dir: dir}, func(p objstore.Problem) {
		if !nodesOwn(p.Path) {
			problems, where = append(problems, p.String()), append(where, p.Path)
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
		for _, line := range whatToDo(where, dir) {
			s.printf("%s\n", line)
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

// whatToDo says, once for each kind of damage, what it means and what helps.
func whatToDo(paths []string, dir string) (lines []string) {
	for _, k := range [...]struct{ prefix, text string }{
		{"obj/", "An object's file: what is named above is bad on this disk alone. Start the node: reads and the scrub repair it from the other replicas, and `sheep node info` counts that. " +
			"Blocks that are bad on all replicas fail with EIO until they are written again or the VDI is restored."},
		{"journal/", "The journal: what was written since the last checkpoint may not all be there. When the node starts, the objects concerned are marked and copied again from other replicas."},
		{"epoch/", "The store's index: without it nothing on this disk can be trusted."},
		{"identity", "The disk does not say whose it is: nothing on it can be trusted."},
	} {
		for _, p := range paths {
			if p == strings.TrimSuffix(k.prefix, "/") || strings.HasPrefix(p, k.prefix) {
				lines = append(lines, k.text)
				break
			}
		}
	}
	if len(lines) > 0 {
		lines = append(lines, fmt.Sprintf("If the node refuses to start on %s: let the others go on, remove this node from the cluster (`sheep node rm`), and let it join anew with empty directories.", dir))
	}
	return lines
}

// nodesOwn says that a file belongs to the node, which shares the directory with the store: its identity, raft's log.
func nodesOwn(path string) bool {
	return path == "epoch/node.json" || path == "identity.removed" || path == "epoch/raft" || strings.HasPrefix(path, "epoch/raft/")
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
