package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	latestTimeout = 2 * time.Second        // bounds how long an unknown name is looked for: an election takes a second
	latestPause   = 100 * time.Millisecond // between two tries to hear from a leader
)

// Lookup finds the working VDI of a name, or with snap (a tag or a number) its snapshot, and the map that has it. What is not known here is looked for again in a map as new as the
// leader's: whoever made it by way of another node is answered before all have heard of it. Errors wrap fs.ErrNotExist; the map is the one they are about.
func (c *Client) Lookup(ctx context.Context, name, snap string) (*state.VDI, *state.Map, error) {
	m := c.Map()
	v, err := m.Lookup(name, snap)
	if c.cfg.Latest == nil || !errors.Is(err, fs.ErrNotExist) {
		return v, m, err
	}
	ctx, cancel := context.WithTimeout(ctx, latestTimeout)
	defer cancel()
	for {
		index, unknown := c.cfg.Latest(ctx)
		if unknown == nil {
			if newer, late := c.WaitMap(ctx, index); late == nil {
				v, err = newer.Lookup(name, snap)
				return v, newer, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, m, err
		case <-time.After(latestPause):
		}
	}
}

// Latest is the index of the map that the cluster's leader has.
func (w *Watcher) Latest(ctx context.Context) (index uint64, err error) {
	who, err := askWho(func() ([]byte, error) { return w.ask(ctx, wire.KindWho, nil) })
	if err != nil || who.Lead {
		return who.Index, err
	}
	if who.Leader == "" {
		return 0, fmt.Errorf("%s knows no leader", who.Addr)
	}
	who, err = askWho(func() ([]byte, error) { return w.askAt(ctx, who.Leader, wire.KindWho, nil) })
	return who.Index, err
}

func askWho(ask func() ([]byte, error)) (who wire.Who, err error) {
	b, err := ask()
	if err == nil {
		err = who.Parse(b)
	}
	return who, err
}
