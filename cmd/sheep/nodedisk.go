package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
)

func (s *shell) nodeDiskCommand() *cli.Command {
	return &cli.Command{Name: "disk", Usage: "the disks of a running node", Subcommands: []*cli.Command{
		{Name: "list", Usage: "the disks of all nodes, and how they are", Flags: withAsk(), Action: s.nodeDiskList},
		{Name: "add", Usage: "take a directory of the node's machine in as another disk of the node asked", ArgsUsage: "DIR", Flags: withAsk(), Action: s.nodeDiskAdd},
		{Name: "remove", Usage: "move everything on a disk of the node asked to its others, then let it go", ArgsUsage: "DIR", Flags: withAsk(), Action: s.nodeDiskRemove},
	}}
}

// diskState is a disk's state in words.
func diskState(d *admin.Disk) string {
	text := d.State
	switch {
	case d.Fault != "":
		return "failed: " + d.Fault
	case d.State == "removing":
		text = fmt.Sprintf("removing, %d of %d groups left", d.Groups, d.Total)
	case d.State == "near full" && d.Inodes >= 0 && d.Inodes < 1024:
		text = fmt.Sprintf("near full: %d inodes left", d.Inodes)
	case d.State == "full" && d.Inodes == 0:
		text = "full: no inodes left"
	}
	if d.Note != "" {
		text += " (" + d.Note + ")"
	}
	return text
}

func (s *shell) nodeDiskList(c *cli.Context) error {
	return s.askNodes(c, func(st output.Style, nodes []admin.Node) error {
		type line struct {
			Node uint32 `json:"node"`
			admin.Disk
		}
		lines := []line{}
		for _, n := range nodes {
			if n.Self == nil {
				continue
			}
			for _, d := range n.Self.Disks {
				lines = append(lines, line{uint32(n.ID), d})
			}
		}
		if st == output.JSON {
			return output.Value(s.out, lines)
		}
		t := output.NewTable(output.Column{Title: "Node", Width: 4, Right: true}, output.Column{Title: "Directory", Width: 20}, output.Column{Title: "Id", Width: 36},
			output.Column{Title: "Size", Width: 7, Right: true}, output.Column{Title: "Used", Width: 7, Right: true}, output.Column{Title: "Free", Width: 7, Right: true},
			output.Column{Title: "Groups", Width: 6, Right: true}, output.Column{Title: "State"})
		for i := range lines {
			d := &lines[i].Disk
			if st == output.Raw {
				output.Fields(s.out, lines[i].Node, d.Path, d.ID, d.Size, d.Used, d.Avail, d.Groups, d.State, d.Total)
				continue
			}
			t.Row(fmt.Sprint(lines[i].Node), d.Path, d.ID, units.Human(d.Size), units.Human(d.Used), units.Human(d.Avail), fmt.Sprint(d.Groups), diskState(d))
		}
		for _, n := range nodes {
			if n.Self == nil && st == output.Text {
				s.printf("node %d does not answer: %s\n", n.ID, n.Fault)
			}
		}
		if st == output.Raw {
			return nil
		}
		return t.Write(s.out)
	})
}

// diskDir reads the argument: a directory as the daemon, which may run in another folder, would name it.
func diskDir(c *cli.Context) (string, error) {
	if err := arguments(c, "DIR"); err != nil {
		return "", err
	}
	return filepath.Abs(c.Args().First())
}

func (s *shell) nodeDiskAdd(c *cli.Context) error {
	dir, err := diskDir(c)
	if err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		if err := a.AddDisk(ctx, dir); err != nil {
			return fmt.Errorf("Failed to %w", err)
		}
		n, err := a.Node(ctx)
		if err != nil {
			return err
		}
		if style(c) != output.Text {
			return s.printDisk(style(c), &n, dir)
		}
		size, _, _ := n.Self.Space()
		s.printf("%s is a disk of node %d now, also after a restart; the node's groups spread over its disks by size (%s in all).\n", dir, n.ID, units.Human(size))
		s.printf("Its share of the cluster's data stays %d V-Nodes: start it with a greater --vnodes to give it more.\n", n.VNodes)
		return nil
	})
}

// printDisk prints one disk for programs.
func (s *shell) printDisk(st output.Style, n *admin.Node, dir string) error {
	for i := range n.Self.Disks {
		if d := &n.Self.Disks[i]; d.Path == dir {
			if st == output.JSON {
				return output.Value(s.out, d)
			}
			output.Fields(s.out, uint32(n.ID), d.Path, d.ID, d.Size, d.Used, d.Avail, d.Groups, d.State, d.Total)
		}
	}
	return nil
}

// removePoll is how often a removal is looked at.
const removePoll = 200 * time.Millisecond

func (s *shell) nodeDiskRemove(c *cli.Context) error {
	if err := arguments(c, "DIR"); err != nil {
		return err
	}
	name := c.Args().First()
	addr, err := address(c)
	if err != nil {
		return err
	}
	a := admin.NewClient(addr)
	defer a.Close()
	find := func() (*admin.Disk, error) {
		ctx, cancel := context.WithTimeout(c.Context, askTimeout)
		defer cancel()
		n, err := a.Node(ctx)
		if err != nil {
			return nil, err
		}
		abs, _ := filepath.Abs(name)
		for i := range n.Self.Disks {
			if d := &n.Self.Disks[i]; d.Path == abs || d.ID == name {
				return d, nil
			}
		}
		return nil, nil
	}
	d, err := find()
	if err != nil {
		return err
	}
	target := name
	if d != nil {
		target, name = d.ID, d.ID
	}
	if err := s.ask(c, func(ctx context.Context, a *admin.Client) error { return a.RemoveDisk(ctx, target) }); err != nil {
		return fmt.Errorf("Failed to %w", err)
	}
	bar := s.newProgress("moving groups", false)
	bar.silent = style(c) != output.Text
	defer bar.end()
	for {
		now, err := find()
		if err != nil {
			return fmt.Errorf("The removal of %s goes on, but the node does not answer: %w", target, err)
		}
		if now == nil {
			break
		}
		if now.State != "removing" && now.Fault != "" {
			return fmt.Errorf("disk %s failed while it was being removed: %s", now.Path, now.Fault)
		}
		bar.set(int64(now.Total-now.Groups), int64(now.Total))
		select {
		case <-time.After(removePoll):
		case <-c.Context.Done():
			return fmt.Errorf("the removal goes on; `sheep node disk list` shows how far it is")
		}
	}
	if style(c) == output.Text && d != nil {
		s.printf("%s is no disk of the node any more.\n", d.Path)
	}
	return nil
}
