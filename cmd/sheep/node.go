package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
)

func (s *shell) nodeCommand() *cli.Command {
	return &cli.Command{Name: "node", Usage: "single nodes", Subcommands: []*cli.Command{
		{Name: "list", Usage: "who belongs to the cluster", Flags: withAsk(), Action: s.nodeList},
		{Name: "info", Usage: "space of the nodes; with --json everything they say of themselves", Flags: withAsk(), Action: s.nodeInfo},
		{Name: "recovery", Usage: "which nodes are being brought up to date, and how far they are", Flags: withAsk(), Action: s.nodeRecovery},
		{Name: "drain", Usage: "give a node's groups to others; it keeps serving meanwhile", ArgsUsage: "ID", Flags: withAsk(
			&cli.BoolFlag{Name: "undo", Usage: "take the node back in"}), Action: s.nodeDrain},
		{Name: "rm", Usage: "remove a node for good: it may never come back with what it holds", ArgsUsage: "ID", Flags: withAsk(forceFlag), Action: s.nodeRemove},
		s.nodeDiskCommand(),
	}}
}

// askNodes fetches all nodes and prints them by one of three functions.
func (s *shell) askNodes(c *cli.Context, show func(st output.Style, nodes []admin.Node) error) error {
	if err := arguments(c); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		nodes, err := a.Nodes(ctx)
		if err != nil {
			return err
		}
		return show(style(c), nodes)
	})
}

func hostPort(n *admin.Node) string { return fmt.Sprintf("%s:%d", n.Host, n.Port) }

func zoneOf(n *admin.Node) string {
	if n.Zone == "" {
		return "-"
	}
	return n.Zone
}

func (s *shell) nodeList(c *cli.Context) error {
	return s.askNodes(c, func(st output.Style, nodes []admin.Node) error {
		if st == output.JSON {
			return output.Value(s.out, nodes)
		}
		t := output.NewTable(output.Column{Title: "Id", Width: 4, Right: true}, output.Column{Title: "Host:Port", Width: 21, Gap: 3},
			output.Column{Title: "V-Nodes", Right: true}, output.Column{Title: "Zone", Width: 8}, output.Column{Title: "State"})
		for i := range nodes {
			n := &nodes[i]
			if st == output.Raw {
				output.Fields(s.out, n.ID, hostPort(n), n.VNodes, zoneOf(n), n.State)
			}
			t.Row(fmt.Sprint(n.ID), hostPort(n), fmt.Sprint(n.VNodes), zoneOf(n), n.State)
		}
		if st == output.Raw {
			return nil
		}
		return t.Write(s.out)
	})
}

func (s *shell) nodeInfo(c *cli.Context) error {
	return s.askNodes(c, func(st output.Style, nodes []admin.Node) error {
		if st == output.JSON {
			return output.Value(s.out, nodes)
		}
		right := func(title string, width int) output.Column {
			return output.Column{Title: title, Width: width, Right: true}
		}
		t := output.NewTable(right("Id", 5), right("Size", 7), right("Used", 7), right("Avail", 7), right("Use%", 4), right("Primary", 7), right("In sync", 7),
			output.Column{Title: "State"})
		var size, used, avail uint64
		row := func(name string, size, used, avail uint64, primaries, inSync int, state string) {
			if st == output.Raw {
				output.Fields(s.out, name, size, used, avail, percent(used, size), primaries, inSync, state)
				return
			}
			t.Row(name, units.Human(size), units.Human(used), units.Human(avail), percent(used, size), fmt.Sprint(primaries), fmt.Sprint(inSync), state)
		}
		primaries, inSync := 0, 0
		for i := range nodes {
			n := &nodes[i]
			if n.Self == nil {
				row(fmt.Sprint(n.ID), 0, 0, 0, n.Primaries, n.InSync, n.State)
				continue
			}
			a, b, d := n.Self.Space()
			row(fmt.Sprint(n.ID), a, b, d, n.Primaries, n.InSync, n.State)
			size, used, avail = size+a, used+b, avail+d
			primaries, inSync = primaries+n.Primaries, inSync+n.InSync
		}
		row("Total", size, used, avail, primaries, inSync, "")
		if st == output.Raw {
			return nil
		}
		if err := t.Write(s.out); err != nil {
			return err
		}
		return s.scrubInfo(nodes)
	})
}

// scrubInfo says what the slow check of everything on the disks found.
func (s *shell) scrubInfo(nodes []admin.Node) error {
	s.printf("\nScrub:\n")
	right := func(title string, width int) output.Column {
		return output.Column{Title: title, Width: width, Right: true}
	}
	t := output.NewTable(right("Id", 5), output.Column{Title: "Last full pass", Width: 16}, right("Passes", 6), right("Blocks read", 11), right("Bad", 5),
		right("Repaired", 8), right("Not repairable", 14), right("Replicas differ", 15))
	for i := range nodes {
		n := &nodes[i]
		if n.Self == nil {
			continue
		}
		var last time.Time
		var rounds, blocks, bad int64
		for k, d := range n.Self.Disks { // a pass is full when every disk had one
			rounds, blocks, bad = rounds+d.Scrub.Rounds, blocks+d.Scrub.Blocks, bad+d.Scrub.Bad
			if k == 0 || d.Scrub.LastEnd.Before(last) {
				last = d.Scrub.LastEnd
			}
		}
		when := "-"
		if !last.IsZero() {
			when = last.Local().Format("2006-01-02 15:04")
		}
		t.Row(fmt.Sprint(n.ID), when, fmt.Sprint(rounds), fmt.Sprint(blocks), fmt.Sprint(bad), fmt.Sprint(n.Self.Rot.Repaired), fmt.Sprint(n.Self.Rot.Unrepairable),
			fmt.Sprint(n.Self.Rot.Differ))
	}
	return t.Write(s.out)
}

func percent(part, whole uint64) string {
	if whole == 0 {
		return "0%"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}

func (s *shell) nodeRecovery(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		rows, err := a.Recovery(ctx)
		if err != nil {
			return err
		}
		return s.printRecovery(style(c), rows)
	})
}

func (s *shell) printRecovery(st output.Style, rows []admin.Recovery) error {
	switch st {
	case output.JSON:
		return output.Value(s.out, rows)
	case output.Raw:
		for _, r := range rows {
			output.Fields(s.out, r.Node.ID, hostPort(&r.Node), r.Node.VNodes, zoneOf(&r.Node), r.Progress.Total-r.Progress.Left, r.Progress.Total, r.Progress.Seconds)
		}
		return nil
	}
	s.printf("Nodes In Recovery:\n")
	t := output.NewTable(output.Column{Title: "Id", Width: 4, Right: true}, output.Column{Title: "Host:Port", Width: 21, Gap: 3},
		output.Column{Title: "V-Nodes", Right: true}, output.Column{Title: "Zone", Width: 8}, output.Column{Title: "Groups left", Right: true},
		output.Column{Title: "Progress", Right: true}, output.Column{Title: "Time left", Right: true})
	for _, r := range rows {
		left := "-"
		if r.Progress.Seconds >= 0 {
			left = (time.Duration(r.Progress.Seconds) * time.Second).String()
		}
		t.Row(fmt.Sprint(r.Node.ID), hostPort(&r.Node), fmt.Sprint(r.Node.VNodes), zoneOf(&r.Node), fmt.Sprint(r.Progress.Left),
			fmt.Sprintf("%.1f%%", r.Progress.Percent()), left)
	}
	return t.Write(s.out)
}

// nodeArgument reads a node's number.
func nodeArgument(c *cli.Context) (state.NodeID, error) {
	if err := arguments(c, "ID"); err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(c.Args().First(), 10, 32)
	if err != nil || state.NodeID(id) == state.NoNode {
		return 0, usagef("Invalid node id '%.20s': use a number that `sheep node list` shows", c.Args().First())
	}
	return state.NodeID(id), nil
}

func (s *shell) nodeOut(c *cli.Context, what string, out state.NodeOut) error {
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		if _, err := propose(ctx, a, &state.Command{ID: rand.Text(), Time: time.Now(), NodeOut: &out}); err != nil {
			return fmt.Errorf("Failed to %s node %d: %w", what, out.Node, err)
		}
		return nil
	})
}

func (s *shell) nodeDrain(c *cli.Context) error {
	id, err := nodeArgument(c)
	if err != nil {
		return err
	}
	undo := c.Bool("undo")
	return s.nodeOut(c, "drain", state.NodeOut{Node: id, Drain: !undo, Out: !undo})
}

func (s *shell) nodeRemove(c *cli.Context) error {
	id, err := nodeArgument(c)
	if err != nil {
		return err
	}
	if err := s.confirm(c, fmt.Sprintf("Node %d will be removed for good; what only it holds is lost (drain it first to lose nothing).", id)); err != nil {
		return err
	}
	return s.nodeOut(c, "remove", state.NodeOut{Node: id, Remove: true})
}
