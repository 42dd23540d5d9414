package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

func (s *shell) vdiSnapshot(c *cli.Context) error {
	if err := arguments(c, "NAME"); err != nil {
		return err
	}
	name, tag := c.Args().First(), c.String("snapshot")
	if err := state.CheckTag(tag); err != nil {
		return usagef("%v", err)
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		snap, err := takeSnapshot(ctx, a, name, tag)
		if err != nil {
			return fmt.Errorf("Failed to create snapshot for %s: %w", name, err)
		}
		if c.Bool("verbose") {
			s.printf("new VID of original VDI: %06x, VDI ID of newly created snapshot: %06x\n", snap.Next, snap.Vid)
		}
		return nil
	})
}

// takeSnapshot begins a snapshot and waits until it is frozen (R22), everywhere: the map that shows it is agreed.
func takeSnapshot(ctx context.Context, a *admin.Client, name, tag string) (*state.VDI, error) {
	r, err := propose(ctx, a, &state.Command{ID: rand.Text(), Time: time.Now(), CloseVDI: &state.CloseVDI{Name: name, Tag: tag}})
	if err != nil {
		return nil, err
	}
	after := r.Index - 1
	for {
		m, err := a.MapAfter(ctx, after)
		if err != nil {
			return nil, err
		}
		after = m.Index
		if m.Index < r.Index {
			continue
		}
		switch v := m.VDI(r.Vid); {
		case v == nil:
			return nil, errors.New("it was deleted meanwhile")
		case v.State == state.Frozen:
			return v, nil
		case v.State != state.Closing || v.Closing != r.Index:
			return nil, fmt.Errorf("given up, not every group could take part in time; see `sheep cluster info`, then try again: %w", syscall.EAGAIN)
		}
	}
}
