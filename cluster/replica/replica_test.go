package replica

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

func TestWriteReadThreeCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 8)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		ctx := t.Context()
		for i := range 20 {
			data := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			if _, s := tc.do(ctx, wire.KindWrite, 0, uint32(i), 8192, 4096, data); s != wire.StatusOK {
				t.Fatalf("write %d: %v", i, s)
			}
		}
		if _, s := tc.do(ctx, wire.KindWrite, wire.FlagFUA, 3, 8200, 100, bytes.Repeat([]byte{0xee}, 100)); s != wire.StatusOK {
			t.Fatalf("write within a block: %v", s)
		}
		for i := range 20 {
			out, s := tc.do(ctx, wire.KindRead, 0, uint32(i), 8192, 4096, nil)
			want := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			if i == 3 {
				copy(want[8:], bytes.Repeat([]byte{0xee}, 100))
			}
			if s != wire.StatusOK || !bytes.Equal(out, want) {
				t.Fatalf("read %d: %v", i, s)
			}
			if _, s := tc.do(ctx, wire.KindFlush, 0, uint32(i), 0, 0, nil); s != wire.StatusOK {
				t.Fatalf("flush %d: %v", i, s)
			}
		}
		c.equal()
	})
}

func TestKilledNodeComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, 8)
		c.whole(5 * time.Second)
		c.a.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "d", Size: 1 << 30}})
		tc := c.client("x", "d")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		put := func(from, to int, v byte) {
			for i := from; i < to; i++ {
				if _, s := tc.do(ctx, wire.KindWrite, 0, uint32(i), 0, 8192, bytes.Repeat([]byte{v}, 8192)); s != wire.StatusOK {
					t.Fatalf("write %d: %v", i, s)
				}
			}
		}
		put(0, 30, 1)
		for k := range 3 {
			n := c.nodes[k]
			n.kill()
			n.exited()
			put(10, 20, byte(2+k))
			n.start()
			c.whole(20 * time.Second)
			c.equal()
		}
		for i := range 30 {
			v := byte(1)
			if i >= 10 && i < 20 {
				v = 4
			}
			if out, s := tc.do(ctx, wire.KindRead, 0, uint32(i), 0, 8192, nil); s != wire.StatusOK || !bytes.Equal(out, bytes.Repeat([]byte{v}, 8192)) {
				t.Fatalf("read %d: %v", i, s)
			}
		}
	})
}
