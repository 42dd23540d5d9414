package client

import (
	"bytes"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// TestR17ResentAfterAForceStaysBehindLaterWrites: X is acknowledged; its group is forced and X is sent again. Y is written over X and acknowledged. Then the nodes lose power (an ordinary resume), and
// all survives. X must not be sent again over Y.
func TestR17ResentAfterAForceStaysBehindLaterWrites(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		f.move(id, 0)
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.resume(id, 0)
		f.edit(id, func(g *state.Group) { g.Primary, g.Forced = f.m.Current(1), g.Term+1 })
		f.recovered(id)
		f.mu.Unlock()
		if got := read(t, d, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("X not sent again")
		}
		if err := write(d, 0, pattern(4096, 2)); err != nil {
			t.Fatal(err)
		}
		before := c.Stats.Resent.Load()
		f.powerCut(id, 1000) // all of it survives
		got := read(t, d, 0, 4096)
		t.Logf("resent after the second resume, which lost nothing: %d", c.Stats.Resent.Load()-before)
		switch {
		case bytes.Equal(got, pattern(4096, 1)):
			t.Errorf("the earlier write X came back over the later acknowledged Y; flush says %v", flush(d))
		case !bytes.Equal(got, pattern(4096, 2)):
			t.Error("something else")
		}
		closeAll(t, c, d)
	})
}
