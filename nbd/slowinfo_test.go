package nbd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// slowInfo is a backend like the daemon's gateway (cmd/sheep/gateway.go, formatted): Info too waits, up to openWaitMax = 15 s, until the node is back in its cluster.
type slowInfo struct {
	*MemBackend
	wait  time.Duration
	fails bool
}

func (b *slowInfo) Info(ctx context.Context, name string) (ExportInfo, error) {
	time.Sleep(b.wait)
	if b.fails {
		return ExportInfo{}, errors.New("this node is not back in its cluster yet: a majority of the nodes must be up")
	}
	return b.MemBackend.Info(ctx, name)
}

// TestASlowInfoIsNotTheClientsTime: with the default handshake timeout of 10 s, an INFO or GO whose lookup takes 12 s (and could be answered) or 15 s (and has a sentence for the client).
func TestASlowInfoIsNotTheClientsTime(t *testing.T) {
	for _, id := range []uint32{optInfo, optGo} {
		for _, c := range []struct {
			wait  time.Duration
			fails bool
			want  uint32
		}{{12 * time.Second, false, repAck}, {15 * time.Second, true, repErrPlatform}} {
			t.Run("", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					mem := NewMemBackend()
					mem.Add(ExportInfo{Name: "x", Size: 1 << 20})
					_, w := pipe(t, Config{}, &slowInfo{mem, c.wait, c.fails})
					w.greet(fixed)
					w.wants(w.option(id, infoData("x")), c.want)
				})
			})
		}
	}
}
