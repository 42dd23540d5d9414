package client

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// laggingMaps is a source of maps that stands still for a while, as a Watcher's does while it looks for another node.
type laggingMaps struct {
	*fake
	mu    sync.Mutex
	still *state.Map
}

func (l *laggingMaps) Map() *state.Map {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.still != nil {
		return l.still
	}
	return l.fake.Map()
}

func (l *laggingMaps) stand(still bool) {
	l.mu.Lock()
	l.still = nil
	if still {
		l.still = l.fake.Map()
	}
	l.mu.Unlock()
	if !still {
		l.fake.mu.Lock()
		l.fake.publish(l.fake.m)
		l.fake.mu.Unlock()
	}
}

// TestReaderOutlivesADeletedSnapshot: a read-only view of a working VDI (sheep-nbd -r NAME). While the program's map stands still a backup takes a snapshot and deletes it again. The VDI lives on.
func TestReaderOutlivesADeletedSnapshot(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t, 3)
			f.vdi("alpha", 64<<20)
			wc := f.client(0)
			w := open(t, wc, "alpha")
			if err := write(w, 0, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			lag := &laggingMaps{fake: f}
			c := f.clientWith(Config{Maps: lag, Net: f, Propose: f.Propose, Logger: slog.New(slog.DiscardHandler)})
			d, err := c.Open(context.Background(), "alpha", "", OpenOptions{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
				t.Fatal("bytes")
			}
			lag.stand(true)
			f.snapshot("alpha", "backup")
			if deleted {
				f.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "alpha", Snap: "backup"}})
			}
			time.Sleep(time.Second)
			lag.stand(false)
			time.Sleep(time.Second)
			b := make([]byte, 4096)
			err = do(d, &Op{Kind: wire.KindRead, Len: 4096, Data: b})
			t.Logf("snapshot deleted again: %v; read of the VDI, which lives: %v", deleted, err)
			if err != nil {
				t.Errorf("a reader of a VDI that lives: %v", err)
			}
			if v := f.Map().Working("alpha"); v == nil {
				t.Error("no VDI")
			}
			c.Close()
			closeAll(t, wc, w)
		})
	}
}
