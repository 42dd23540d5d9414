package node

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// TestWatchersOfARestartedNodeThatHearsNothing: like TestWatchersLeaveANodeThatHearsNothing, but the node that is cut off was also started again (its machine rebooted, its switch is not
// back yet). It has raft's log, but nobody tells it what of that is committed: its map is that of before the format.
func TestWatchersOfARestartedNodeThatHearsNothing(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		t.Run(map[bool]string{false: "a program that followed", true: "a program that starts"}[fresh], func(t *testing.T) {
			sim(t, func(t *testing.T) {
				w := newWorld(t, 3)
				defer w.end()
				w.formatted(3)
				var f *client.Watcher
				watch := func() {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					var err error
					if f, err = client.Watch(ctx, client.WatchConfig{Nodes: []string{"n1:7000", "n2:7000", "n3:7000"}, Net: w.net.Host("client"), Logger: slog.New(slog.DiscardHandler)}); err != nil {
						t.Fatal(err)
					}
				}
				if !fresh {
					watch()
				}
				was := w.nodes["n1"].Self()
				w.isolate("n1")
				w.crash("n1")
				w.isolate("n1")
				w.run("n1")
				if fresh {
					w.pass(5 * time.Second)
					watch()
				}
				defer f.Close()
				w.until(20*time.Second, "the others go on", func() bool {
					return !w.newest().InService(was) && w.leader() != "n1" && w.leader() != ""
				})
				w.propose("n2", &state.Command{CreateVDI: &state.CreateVDI{Name: "a", Size: 1 << 20}})
				w.pass(5 * time.Minute)
				t.Logf("n1's map: index %d, formatted %v; the program's: index %d; the others': %d", w.nodes["n1"].Map().Index, w.nodes["n1"].Map().Formatted(), f.Map().Index, w.nodes["n2"].Map().Index)
				if f.Map().Working("a") == nil {
					t.Error("five minutes later the program has not heard of a VDI that the others agreed on: it follows the node that hears nothing")
				}
			})
		})
	}
}
