package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
)

func (s *shell) clusterCommand() *cli.Command {
	return &cli.Command{Name: "cluster", Usage: "the cluster as a whole", Subcommands: []*cli.Command{
		{Name: "info", Usage: "how the cluster is, and its history", Flags: withAsk(), Action: s.clusterInfo},
		{Name: "format", Usage: "make a cluster of the nodes that are there", Action: s.clusterFormat, Flags: withAsk(
			&cli.IntFlag{Name: "copies", Aliases: []string{"c"}, Value: 3, Usage: "keep `N` copies of everything"},
			&cli.IntFlag{Name: "min-copies", DefaultText: "1 for 1 or 2 copies, else 2", Usage: "writes wait while fewer than `N` are in sync"},
			&cli.IntFlag{Name: "pgs", DefaultText: "2048", Usage: "number of placement groups, a power of two, fixed for ever"},
			forceFlag)},
		{Name: "shutdown", Usage: "stop all nodes cleanly", Flags: withAsk(), Action: s.clusterShutdown},
		{Name: "set", Usage: "change a setting while the cluster runs", Description: settingsHelp(), ArgsUsage: "KEY VALUE", Flags: withAsk(), Action: s.clusterSet},
		{Name: "check", Usage: "compare all replicas of everything, versions and bytes", Flags: withAsk(), Action: s.clusterCheck},
		s.recoverCommand(),
	}}
}

func (s *shell) clusterInfo(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		st, err := a.Status(ctx)
		if err != nil {
			return err
		}
		switch style(c) {
		case output.JSON:
			return output.Value(s.out, st)
		case output.Raw:
			s.printf("%s\n", st.Text)
		default:
			s.printf("Cluster status: %s\n", st.Text)
			for _, d := range st.Disks {
				why := fmt.Sprintf("%s of %s left", units.Human(d.Avail), units.Human(d.Size))
				if d.Fault != "" {
					why = d.Fault
				}
				s.printf("Disk %s: %s of %s (%s)\n", d.State, d.Path, d.Node, why)
			}
			s.describePools(&st)
		}
		if len(st.Epochs) > 0 {
			s.epochs(c, &st)
		}
		return nil
	})
}

func (s *shell) describePools(st *admin.Status) {
	for i, p := range st.Pools {
		which := ""
		if i > 0 {
			which = fmt.Sprintf(" (pool %d)", p.ID)
		}
		s.printf("Copies%s: %d, at least %d to write; %d placement groups\n", which, p.Copies, p.MinCopies, p.Groups)
	}
	if !st.Created.IsZero() {
		s.printf("Cluster created at %s\n", st.Created.Local().Format(time.ANSIC))
	}
}

func (s *shell) epochs(c *cli.Context, st *admin.Status) {
	if style(c) == output.Text {
		s.printf("\nEpoch Time           Version [Host:Port:V-Nodes,,,]\n")
	}
	for _, e := range st.Epochs {
		nodes := "[" + strings.Join(e.Nodes, ", ") + "]"
		if style(c) == output.Raw {
			s.printf("%d %d %s\n", e.Time.Unix(), e.Epoch, nodes)
			continue
		}
		s.printf("%s %6d %s\n", e.Time.Local().Format(time.DateTime), e.Epoch, nodes)
	}
}

func (s *shell) clusterFormat(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	r := admin.FormatRequest{Copies: c.Int("copies"), MinCopies: c.Int("min-copies"), PGs: c.Int("pgs"), Few: c.Bool("force")}
	if r.Copies < 1 {
		return usagef("Invalid number of copies %d: use at least 1", r.Copies)
	}
	if r.MinCopies < 0 || r.MinCopies > r.Copies {
		return usagef("Invalid --min-copies %d: use 1 to %d, the number of copies", r.MinCopies, r.Copies)
	}
	if r.PGs < 0 || r.PGs&(r.PGs-1) != 0 || r.PGs > 1<<16 {
		return usagef("Invalid --pgs %d: use a power of two up to 65536", r.PGs)
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		st, err := a.Status(ctx)
		if err != nil {
			return err
		}
		if st.State != "unformatted" && st.State != "joining" {
			return errors.New("Failed to format the cluster: it is formatted already; to begin anew, stop all nodes and empty their directories")
		}
		if err := a.Format(ctx, r); err != nil {
			return fmt.Errorf("Failed to format the cluster: %w", err)
		}
		return nil
	})
}

func (s *shell) clusterShutdown(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		if err := a.Shutdown(ctx); err != nil {
			return fmt.Errorf("Failed to shut down the cluster: %w", err)
		}
		return nil
	})
}

func (s *shell) clusterSet(c *cli.Context) error {
	if err := arguments(c, "KEY", "VALUE"); err != nil {
		return err
	}
	key, value := c.Args().Get(0), c.Args().Get(1)
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		_, err := propose(ctx, a, &state.Command{ID: rand.Text(), Time: time.Now(), Set: &state.Set{Key: key, Value: value}})
		if err != nil {
			return fmt.Errorf("Failed to set %s to %s: %w", key, value, err)
		}
		return nil
	})
}

// checkSum gathers the lines of a check.
type checkSum struct {
	nodes    map[state.NodeID]admin.CheckEvent // the newest of each that is not through
	checked  map[uint32]bool                   // groups
	total    int                               // groups of nodes that are through, with objects
	objects  uint64
	findings []string
	errs     []string
}

func (k *checkSum) add(e admin.CheckEvent) {
	if e.Finding != "" {
		k.findings = append(k.findings, fmt.Sprintf("node %d: %s", e.Node, e.Finding))
	}
	if e.Error != "" {
		k.errs = append(k.errs, fmt.Sprintf("node %d: %s", e.Node, e.Error))
	}
	for _, id := range e.Checked {
		k.checked[id] = true
	}
	switch {
	case e.End: // groups that moved meanwhile are looked for once more
		k.total, k.objects = k.total+k.nodes[e.Node].Total, k.objects+k.nodes[e.Node].Objects
		delete(k.nodes, e.Node)
	case e.Groups > 0 || e.Objects > 0 || e.Total > 0:
		k.nodes[e.Node] = e
	}
}

func (k *checkSum) totals() (groups, total int, objects uint64) {
	total, objects = k.total, k.objects
	for _, e := range k.nodes {
		total, objects = total+e.Total, objects+e.Objects
	}
	return len(k.checked), max(total, len(k.checked)), objects
}

func (s *shell) clusterCheck(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	addr, err := address(c)
	if err != nil {
		return err
	}
	a := admin.NewClient(addr)
	defer a.Close()
	sum := &checkSum{nodes: map[state.NodeID]admin.CheckEvent{}, checked: map[uint32]bool{}, findings: []string{}, errs: []string{}}
	bar := s.newProgress("checking groups", false)
	err = a.Check(c.Context, false, nil, func(e admin.CheckEvent) {
		sum.add(e)
		done, total, _ := sum.totals()
		bar.set(int64(done), int64(total))
	})
	bar.end()
	if err != nil {
		return fmt.Errorf("Failed to check the cluster: %w", err)
	}
	return s.checkVerdict(c, sum)
}

func (s *shell) checkVerdict(c *cli.Context, sum *checkSum) error {
	groups, _, objects := sum.totals()
	if style(c) == output.JSON {
		output.Value(s.out, map[string]any{"ok": len(sum.findings)+len(sum.errs) == 0, "groups": groups, "objects": objects,
			"findings": sum.findings, "errors": sum.errs})
	} else {
		for _, line := range append(sum.findings, sum.errs...) {
			s.printf("%s\n", line)
		}
	}
	switch {
	case len(sum.findings) > 0:
		return &coded{exitFailed, fmt.Sprintf("cluster check: %d findings in %d objects", len(sum.findings), objects)}
	case len(sum.errs) > 0:
		return errors.New("cluster check: not everything could be checked")
	}
	if style(c) != output.JSON {
		s.printf("OK: %d objects in %d groups, all replicas equal\n", objects, groups)
	}
	return nil
}
