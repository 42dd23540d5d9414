package client

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestR17SameSessionAgain: what a client left unflushed is covered by the first flush also when it gets the very session it had, which is the VDI's first.
func TestR17SameSessionAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		cfg := Config{Maps: f, Net: f, Propose: f.Propose, ID: "one"}
		c := f.clientWith(cfg)
		if err := write(open(t, c, "alpha"), 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close() // raft is not told
		c = f.clientWith(cfg)
		d := open(t, c, "alpha")
		if ses := f.Map().Sessions; len(ses) != 1 || ses[0].Gen != 1 {
			t.Fatalf("not the same session: %+v", ses)
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		for id, g := range f.groups {
			if len(g.log) > 0 {
				t.Errorf("group %d holds something unflushed", id)
			}
		}
		f.mu.Unlock()
		closeAll(t, c, d)
	})
}

// TestR14SessionEndsAlsoWithoutTimeLeft: the time of whoever closes bounds the flush, not the word to raft.
func TestR14SessionEndsAlsoWithoutTimeLeft(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := d.Close(ctx); err != nil {
			t.Error(err)
		}
		if ses := f.Map().Sessions; len(ses) != 0 {
			t.Errorf("%d sessions are left", len(ses))
		}
	})
}
