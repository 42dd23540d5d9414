package client

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestR14StrangerWhileOpeningAgain: the map says that nobody had the VDI, but by the time the command is decided somebody had.
func TestR14StrangerWhileOpeningAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		raced := false
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.OpenSess != nil && f.Map().Working("alpha").SessGen > 0 && !raced {
				raced = true
				r := f.must(&state.Command{OpenSess: &state.OpenSess{Name: "alpha", Client: "stranger", Holder: state.Member{Node: state.NoNode}}})
				f.must(&state.Command{CloseSess: &state.CloseSess{ID: r.Sess.ID}})
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose})
		d := open(t, c, "alpha")
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
		time.Sleep(time.Second)
		if err := write(d, 0, pattern(4096, 3)); !errors.Is(err, syscall.EIO) || !raced {
			t.Fatalf("written after a stranger: %v", err)
		}
		if n := len(f.Map().Sessions); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		closeAll(t, c, d)
	})
}

// TestR14OldMapDoesNotEndASession: the tender holds a map from before the session was granted.
func TestR14OldMapDoesNotEndASession(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		old := f.Map()
		d := open(t, c, "alpha")
		follow(d, old)
		if d.s.renewing {
			t.Error("opened again for an old map")
		}
		time.Sleep(time.Minute)
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Error(err)
		}
		closeAll(t, c, d)
	})
}

// TestR14OpeningAgainWhatHadNotEnded: raft answers with the very session, which nobody took.
func TestR14OpeningAgainWhatHadNotEnded(t *testing.T) {
	each(t, 3, func(t *testing.T, f *fake, c *Client) {
		d := open(t, c, "alpha")
		d.s.lapse()
		time.Sleep(time.Minute)
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Error(err)
		}
		if n := len(f.Map().Sessions); n != 1 {
			t.Errorf("%d sessions", n)
		}
		closeAll(t, c, d)
	})
}

func follow(d *Disk, m *state.Map) {
	var b wire.Batch
	d.s.follow(m, &b)
	b.End()
}

// TestR14ClosedWhileOpeningAgain: what was granted to a session that is gone keeps nobody out.
func TestR14ClosedWhileOpeningAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		var d *Disk
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			r, err := f.Propose(ctx, cmd)
			if cmd.OpenSess != nil && d != nil {
				d.Close(context.Background())
			}
			return r, err
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose})
		d = open(t, c, "alpha")
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
		time.Sleep(time.Minute)
		if n := len(f.Map().Sessions); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		closeAll(t, c)
	})
}
