package client

import (
	"context"
	"errors"
	"io/fs"
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

// TestR14LapsedTwiceIsOpenedAgain: the first try to open a lapsed session again is granted, but the answer is lost, and since the client can't be heard for a
// while more, that one lapses too. Nobody else had the VDI.
func TestR14LapsedTwiceIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		opens := 0
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.OpenSess == nil {
				return f.Propose(ctx, cmd)
			}
			if opens++; opens == 2 {
				r := f.apply(cmd)
				f.apply(&state.Command{CloseSess: &state.CloseSess{ID: r.Sess.ID}}) // as the leader does after 10 s without a sign of life
				return state.Result{}, errors.New("cut off")
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose})
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: d.s.ident.Load().sess}})
		time.Sleep(time.Minute)
		if err := do(d, &Op{Kind: wire.KindFlush}); err != nil {
			t.Errorf("nobody else had the VDI: %v", err)
		}
		if opens != 4 || len(f.Map().Sessions) != 1 {
			t.Errorf("%d commands to open it, %d sessions", opens, len(f.Map().Sessions))
		}
		closeAll(t, c, d)
	})
}

// TestR14StrangerAfterALostTry: the first try to open a lapsed session again never arrived, and then somebody had the VDI: the generation is the one that the
// try would have got.
func TestR14StrangerAfterALostTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		opens := 0
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.OpenSess != nil {
				if opens++; opens == 2 {
					r := f.must(&state.Command{OpenSess: &state.OpenSess{Name: "alpha", Client: "stranger", Holder: state.Member{Node: state.NoNode}}})
					f.must(&state.Command{CloseSess: &state.CloseSess{ID: r.Sess.ID}})
					return state.Result{}, errors.New("cut off")
				}
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose})
		d := open(t, c, "alpha")
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: d.s.ident.Load().sess}})
		time.Sleep(time.Minute)
		if err := write(d, 0, pattern(4096, 3)); !errors.Is(err, syscall.EIO) {
			t.Fatalf("written after a stranger: %v", err)
		}
		if n := len(f.Map().Sessions); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		closeAll(t, c, d)
	})
}

// TestR14LapsedSessionOfADeletedDisk: meanwhile the VDI was deleted, and a clone of its snapshot took its name. It is of the same family, and the count of its
// sessions is as it would be if nobody had had the VDI.
func TestR14LapsedSessionOfADeletedDisk(t *testing.T) {
	for _, stranger := range []bool{false, true} {
		each(t, 3, func(t *testing.T, f *fake, c *Client) {
			f.snapshot("alpha", "s1")
			d := open(t, c, "alpha")
			identity := d.s.identity
			if err := write(d, 0, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			f.must(&state.Command{DeleteVDI: &state.DeleteVDI{Name: "alpha", Force: true}})
			f.must(&state.Command{CloneVDI: &state.CloneVDI{Name: "alpha", Snap: "s1", New: "alpha"}})
			if stranger {
				r := f.must(&state.Command{OpenSess: &state.OpenSess{Name: "alpha", Client: "stranger", Holder: state.Member{Node: state.NoNode}}})
				f.must(&state.Command{CloseSess: &state.CloseSess{ID: r.Sess.ID}})
			}
			time.Sleep(time.Minute)
			if err := write(d, 0, pattern(4096, 3)); !errors.Is(err, syscall.EIO) {
				t.Errorf("written to a disk that is gone: %v", err)
			}
			closeAll(t, c, d)
			c = f.program()
			if _, err := c.Open(context.Background(), "alpha", "", OpenOptions{Identity: identity}); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("another disk of the name: %v", err)
			}
			if _, err := c.Open(context.Background(), "alpha", "", OpenOptions{Identity: identity, ReadOnly: true}); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("another disk of the name, to be read: %v", err)
			}
			if n := len(f.Map().Sessions); n != 0 {
				t.Errorf("%d sessions are left", n)
			}
			f.snapshot("alpha", "s2")
			d, err := c.Open(context.Background(), "alpha", "", OpenOptions{Identity: f.Map().Working("alpha").Identity()})
			if err != nil {
				t.Fatal(err)
			}
			f.snapshot("alpha", "s3")
			if d.s.identity != f.Map().Working("alpha").Identity() {
				t.Error("a snapshot makes another disk of it")
			}
			closeAll(t, c, d)
		})
	}
}
