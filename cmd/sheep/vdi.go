package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
)

var (
	snapshotFlag = &cli.StringFlag{Name: "snapshot", Aliases: []string{"s"}, Usage: "a snapshot by its `TAG` or number"}
	verboseFlag  = &cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "say which VDI id it became"}
)

func (s *shell) vdiCommand() *cli.Command {
	return &cli.Command{Name: "vdi", Usage: "virtual disk images", Subcommands: []*cli.Command{
		{Name: "create", Usage: "make a VDI; it takes space only as it is written", ArgsUsage: "NAME SIZE", Action: s.vdiCreate, Flags: withAsk(
			&cli.IntFlag{Name: "copies", Aliases: []string{"c"}, DefaultText: "as the cluster was formatted", Usage: "keep `N` copies"},
			&cli.BoolFlag{Name: "shared", Usage: "several clients may write it at once"}, verboseFlag)},
		{Name: "list", Usage: "VDIs and snapshots", ArgsUsage: "[NAME]", Flags: withAsk(), Action: s.vdiList},
		{Name: "tree", Usage: "how VDIs and snapshots descend from each other", Flags: withAsk(), Action: s.vdiTree},
		{Name: "graph", Usage: "the same for Graphviz: sheep vdi graph | dot -Tsvg", Flags: withAsk(), Action: s.vdiGraph},
		{Name: "delete", Usage: "delete a VDI, or one snapshot of it", ArgsUsage: "NAME", Flags: withAsk(snapshotFlag, forceFlag), Action: s.vdiDelete},
		{Name: "snapshot", Usage: "freeze what the VDI holds now under a tag", ArgsUsage: "NAME", Action: s.vdiSnapshot, Flags: withAsk(
			&cli.StringFlag{Name: "snapshot", Aliases: []string{"s"}, Usage: "the snapshot's `TAG`; without one it has its number alone"}, verboseFlag)},
		{Name: "clone", Usage: "make a VDI that begins as a snapshot", ArgsUsage: "NAME NEW", Flags: withAsk(snapshotFlag, verboseFlag), Action: s.vdiClone},
		{Name: "rollback", Usage: "have a VDI begin again as one of its snapshots", ArgsUsage: "NAME", Flags: withAsk(snapshotFlag, forceFlag), Action: s.vdiRollback},
		{Name: "resize", Usage: "make a VDI larger", ArgsUsage: "NAME SIZE", Flags: withAsk(), Action: s.vdiResize},
		{Name: "read", Usage: "write the VDI's bytes to stdout", ArgsUsage: "NAME [OFFSET [LENGTH]]", Flags: withAsk(snapshotFlag), Action: s.vdiRead},
		{Name: "write", Usage: "write stdin to the VDI", ArgsUsage: "NAME [OFFSET [LENGTH]]", Flags: withAsk(), Action: s.vdiWrite},
		{Name: "object", Usage: "where a VDI's objects are", ArgsUsage: "NAME", Action: s.vdiObject, Flags: withAsk(snapshotFlag,
			&cli.Int64Flag{Name: "index", Aliases: []string{"i"}, Value: -1, Usage: "only the object with this `INDEX`"})},
		{Name: "lock", Usage: "who has VDIs open for writing", Subcommands: []*cli.Command{
			{Name: "list", Usage: "VDIs that are open for writing", Flags: withAsk(), Action: s.lockList},
			{Name: "unlock", Usage: "take a VDI from whoever has it open; that client gets errors from then on", ArgsUsage: "NAME", Flags: withAsk(forceFlag),
				Action: s.lockUnlock},
		}},
	}}
}

// tell proposes one command about VDIs and wraps its refusal in the words of what was tried.
func (s *shell) tell(c *cli.Context, what string, cmd state.Command, then func(state.Result) error) error {
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		cmd.ID, cmd.Time = rand.Text(), time.Now()
		r, err := propose(ctx, a, &cmd)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if then != nil {
			return then(r)
		}
		return nil
	})
}

// sizeArgument reads a size that a VDI may have.
func sizeArgument(text string) (uint64, error) {
	size, err := units.ParseSize(text)
	if err == nil {
		size, err = state.RoundSize(size)
	}
	if err != nil {
		text := err.Error()
		return 0, usagef("%s%s", strings.ToUpper(text[:1]), text[1:])
	}
	return size, nil
}

// newName checks the name of something to be made. Spaces are refused here although the cluster would take them: they make every script's life hard.
func newName(name string) error {
	if err := state.CheckName(name); err != nil {
		return usagef("%v", err)
	}
	if strings.ContainsFunc(name, unicode.IsSpace) {
		return usagef("Invalid VDI name %q: it may not hold spaces", name)
	}
	return nil
}

func (s *shell) vdiCreate(c *cli.Context) error {
	if err := arguments(c, "NAME", "SIZE"); err != nil {
		return err
	}
	name := c.Args().Get(0)
	if err := newName(name); err != nil {
		return err
	}
	size, err := sizeArgument(c.Args().Get(1))
	if err != nil {
		return err
	}
	copies := c.Int("copies")
	if c.IsSet("copies") && copies < 1 {
		return usagef("Invalid number of copies %d: use at least 1", copies)
	}
	what := "Failed to create VDI " + name
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		if copies > 0 {
			if err := enoughNodes(ctx, a, copies); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		cmd := &state.Command{ID: rand.Text(), Time: time.Now(), CreateVDI: &state.CreateVDI{Name: name, Size: size, Copies: copies, Shared: c.Bool("shared")}}
		r, err := propose(ctx, a, cmd)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if c.Bool("verbose") {
			s.printf("VDI ID of newly created VDI: %06x\n", r.Vid)
		}
		return nil
	})
}

// enoughNodes refuses more copies than there are nodes to hold them: such a VDI would be degraded for ever.
func enoughNodes(ctx context.Context, a *admin.Client, copies int) error {
	m, err := a.Map(ctx)
	if err != nil {
		return err
	}
	nodes := 0
	for _, n := range m.Nodes {
		if n.VNodes > 0 && !n.Removed {
			nodes++
		}
	}
	if m.Formatted() && copies > nodes {
		return fmt.Errorf("number of copies (%d) is larger than number of nodes (%d)", copies, nodes)
	}
	return nil
}

func (s *shell) vdiDelete(c *cli.Context) error {
	if err := arguments(c, "NAME"); err != nil {
		return err
	}
	name, snap := c.Args().First(), c.String("snapshot")
	what := "VDI " + name
	if snap != "" {
		what = fmt.Sprintf("snapshot %s of VDI %s", snap, name)
	} else if c.IsSet("snapshot") {
		return usagef("sheep vdi delete: the snapshot's tag is empty")
	}
	err := s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		_, err = lookup(m, name, snap)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.confirm(c, "This destroys "+what+" and everything that only it holds."); err != nil {
		return err
	}
	return s.tell(c, "Failed to delete "+what, state.Command{DeleteVDI: &state.DeleteVDI{Name: name, Snap: snap}}, nil)
}

// lookup finds a VDI or a snapshot, with the original's words if there is none.
func lookup(m *state.Map, name, snap string) (*state.VDI, error) {
	if !m.Formatted() {
		return nil, fmt.Errorf("Failed to open VDI %s: %w", name, state.ErrUnformatted)
	}
	v, err := m.Lookup(name, snap)
	if err == nil {
		return v, nil
	}
	if snap != "" {
		return nil, fmt.Errorf("Failed to open VDI %s (snapshot: %s): %w", name, snap, err)
	}
	return nil, fmt.Errorf("Failed to open VDI %s: %w", name, err)
}

func (s *shell) vdiClone(c *cli.Context) error {
	if err := arguments(c, "NAME", "NEW"); err != nil {
		return err
	}
	name, snap, fresh := c.Args().Get(0), c.String("snapshot"), c.Args().Get(1)
	if snap == "" {
		return usagef("sheep vdi clone: Only snapshot VDIs can be cloned: say which with -s")
	}
	if err := newName(fresh); err != nil {
		return err
	}
	what := fmt.Sprintf("Failed to clone %s:%s as %s", name, snap, fresh)
	return s.tell(c, what, state.Command{CloneVDI: &state.CloneVDI{Name: name, Snap: snap, New: fresh}}, func(r state.Result) error {
		if c.Bool("verbose") {
			s.printf("VDI ID of newly created clone: %06x\n", r.Vid)
		}
		return nil
	})
}

func (s *shell) vdiRollback(c *cli.Context) error {
	if err := arguments(c, "NAME"); err != nil {
		return err
	}
	name, snap := c.Args().First(), c.String("snapshot")
	if snap == "" {
		return usagef("sheep vdi rollback: say with -s which snapshot of %s is meant", name)
	}
	err := s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		_, err = lookup(m, name, snap)
		return err
	})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("VDI %s to snapshot %s", name, snap)
	if err := s.confirm(c, fmt.Sprintf("This rolls back %s: what was written since its last snapshot is lost.", what)); err != nil {
		return err
	}
	return s.tell(c, "Failed to roll back "+what, state.Command{Rollback: &state.Rollback{Name: name, Snap: snap}}, nil)
}

func (s *shell) vdiResize(c *cli.Context) error {
	if err := arguments(c, "NAME", "SIZE"); err != nil {
		return err
	}
	size, err := sizeArgument(c.Args().Get(1))
	if err != nil {
		return err
	}
	name := c.Args().First()
	return s.tell(c, "Failed to resize VDI "+name, state.Command{ResizeVDI: &state.ResizeVDI{Name: name, Size: size}}, nil)
}

func (s *shell) lockList(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		return s.printLocks(style(c), m)
	})
}

// lockRow is one client that has a VDI open.
type lockRow struct {
	Name   string    `json:"name"`
	Vid    string    `json:"vid"`
	Owner  string    `json:"owner"`
	Client string    `json:"client"`
	Since  time.Time `json:"since"`
}

func (s *shell) printLocks(st output.Style, m *state.Map) error {
	rows := []lockRow{}
	t := output.NewTable(output.Column{Width: 1}, output.Column{Title: "Name", Width: 8, Gap: 1}, output.Column{Title: "Id", Width: 5, Right: true, Gap: 1},
		output.Column{Title: "VDI id", Width: 7, Right: true, Gap: 1}, output.Column{Title: "Since", Width: 19}, output.Column{Title: "Owner node(s)"})
	for _, sess := range m.Sessions {
		v := m.VDI(sess.Vid)
		if v == nil {
			continue
		}
		row := lockRow{v.Name, fmt.Sprintf("%06x", v.Vid), sess.Owner, sess.Client, sess.Since}
		rows = append(rows, row)
		t.Row("", row.Name, "0", row.Vid, row.Since.Local().Format(time.DateTime), row.Owner)
		if st == output.Raw {
			output.Fields(s.out, row.Name, 0, row.Vid, row.Since, row.Owner)
		}
	}
	switch st {
	case output.JSON:
		return output.Value(s.out, rows)
	case output.Raw:
		return nil
	}
	return t.Write(s.out)
}

func (s *shell) lockUnlock(c *cli.Context) error {
	if err := arguments(c, "NAME"); err != nil {
		return err
	}
	name := c.Args().First()
	err := s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		v, err := lookup(m, name, "")
		if err == nil && len(m.SessionsOf(v.Vid)) == 0 {
			err = fmt.Errorf("VDI %s (vid=%06x) is not locked", name, v.Vid)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := s.confirm(c, fmt.Sprintf("The client that has VDI %s open gets errors from now on.", name)); err != nil {
		return err
	}
	return s.tell(c, "Failed to unlock VDI "+name, state.Command{Unlock: &state.Unlock{Name: name}}, nil)
}
