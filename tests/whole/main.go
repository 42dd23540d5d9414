// Command whole follows a cluster's agreed map through the nodes given (host:port), and tells when all groups have all their copies in sync: in milliseconds since 1970. It asks nothing
// while it waits, so that what is measured beside it has the processors to itself. After two minutes it gives up.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "whole:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, nodes []string) error {
	w, err := client.Watch(ctx, client.WatchConfig{Nodes: nodes, Net: wire.TCP{}})
	if err != nil {
		return err
	}
	defer w.Close()
	changed, done := w.Subscribe()
	defer done()
	for !whole(w.Map()) {
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("not all groups are in sync: %w", ctx.Err())
		}
	}
	_, err = fmt.Println(time.Now().UnixMilli())
	return err
}

func whole(m *state.Map) bool {
	h := admin.HealthOf(m)
	return h.Lost+h.Waiting+h.Stalled+h.Degraded == 0
}
