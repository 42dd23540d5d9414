package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestR14SharedUnlockedWhileOpeningAgain: a shared VDI. The client's session lapsed; between its look at the map and the decision an administrator unlocks the VDI (as for a
// client that is cut off). Unlock fences: whoever had it gets errors from then on.
func TestR14SharedUnlockedWhileOpeningAgain(t *testing.T) {
	for _, shared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t, 3)
			f.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 64 << 20, Shared: shared}})
			raced := false
			propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
				if cmd.OpenSess != nil && f.Map().Working("alpha").SessGen > 0 && !raced {
					raced = true
					f.must(&state.Command{Unlock: &state.Unlock{Name: "alpha"}})
					// and somebody else writes, and is done
					o := f.program()
					od := open(t, o, "alpha")
					if err := write(od, 0, pattern(4096, 9)); err != nil {
						t.Error(err)
					}
					if err := od.Close(ctx); err != nil {
						t.Error(err)
					}
					o.Close()
				}
				return f.Propose(ctx, cmd)
			}
			c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
			d := open(t, c, "alpha")
			if err := write(d, 0, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
			time.Sleep(time.Second)
			err := write(d, 0, pattern(4096, 3))
			t.Logf("shared %v: raced %v, a write after the unlock: %v", shared, raced, err)
			if err == nil {
				t.Errorf("shared %v: written through a session that was fenced by vdi lock unlock", shared)
			}
			c.Close()
		})
	}
}

// TestR14SharedUnlockAfterALostTry: the same with a first try whose outcome was not heard, and an unlock in the map.
func TestR14SharedUnlockAfterALostTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.must(&state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 64 << 20, Shared: true}})
		opens := 0
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.OpenSess != nil {
				if opens++; opens == 2 {
					return state.Result{}, errors.New("cut off")
				}
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
		synctest.Wait()
		f.must(&state.Command{Unlock: &state.Unlock{Name: "alpha"}})
		time.Sleep(5 * time.Second)
		if err := write(d, 0, pattern(4096, 3)); err == nil {
			t.Errorf("written after unlock; %d opens", opens)
		}
		c.Close()
	})
}

// TestR14OpenGivenUp: a VDI is opened while the outcome is not heard in time (an election); the NBD client gives up. The command was decided all the same.
func TestR14OpenGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		late := false
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.OpenSess != nil && !late {
				late = true
				f.apply(cmd) // decided, but the answer comes too late
				<-ctx.Done()
				return state.Result{}, context.Cause(ctx)
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Local: &fakeLocal{f, 0}, LocalNode: 0, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if _, err := c.Open(ctx, "alpha", "", OpenOptions{}); err == nil {
			t.Fatal("opened")
		}
		time.Sleep(time.Hour)
		for _, s := range f.Map().Sessions {
			t.Errorf("an hour later session %d is held by node %d, for nobody", s.ID, s.Holder.Node)
		}
		o := f.client(1)
		if _, err := o.Open(context.Background(), "alpha", "", OpenOptions{}); err != nil {
			t.Errorf("the VM is started on another node: %v", err)
		}
		c.Close()
		o.Close()
	})
}

// TestR14CloseWhileTryPending: a lapsed session is being opened again with an outcome not heard; the VM goes away meanwhile.
func TestR14CloseWhileTryPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		opens := 0
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.OpenSess != nil {
				if opens++; opens == 2 {
					f.apply(cmd)
					<-ctx.Done()
					return state.Result{}, context.Cause(ctx)
				}
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Local: &fakeLocal{f, 0}, LocalNode: 0, Logger: slog.New(slog.DiscardHandler)})
		d := open(t, c, "alpha")
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
		time.Sleep(time.Second)
		if err := d.Close(context.Background()); err != nil {
			t.Log(err)
		}
		time.Sleep(time.Hour)
		for _, s := range f.Map().Sessions {
			t.Errorf("an hour later session %d is held by node %d, for nobody", s.ID, s.Holder.Node)
		}
		c.Close()
	})
}

// TestR14CloseWithoutALeader: a VM ends while no majority of the voters answers for ten seconds. All is flushed. Then the VM is started on another node.
func TestR14CloseWithoutALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		var until time.Time
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if d := time.Until(until); d > 0 { // it goes on trying until ctx ends
				select {
				case <-time.After(d):
				case <-ctx.Done():
					return state.Result{}, context.Cause(ctx)
				}
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Local: &fakeLocal{f, 0}, LocalNode: 0, Logger: slog.New(slog.DiscardHandler)})
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		until = time.Now().Add(10 * time.Second)
		t.Log("close:", d.Close(context.Background()))
		time.Sleep(time.Hour)
		for _, s := range f.Map().Sessions {
			t.Errorf("an hour later session %d is held by node %d, for nobody", s.ID, s.Holder.Node)
		}
		o := f.client(1)
		if _, err := o.Open(context.Background(), "alpha", "", OpenOptions{}); err != nil {
			t.Errorf("the VM is started on another node: %v", err)
		}
		c.Close()
		o.Close()
	})
}

// TestR14ForgottenTry: the first try to open a lapsed session again is granted; its answer is lost, and for two minutes nothing is heard, while the cluster decides 300 other commands
// (Recent forgets). Nobody else had the VDI.
func TestR14ForgottenTry(t *testing.T) {
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
				f.apply(&state.Command{CloseSess: &state.CloseSess{ID: r.Sess.ID}})
				time.Sleep(2 * time.Minute)
				for i := range 300 {
					f.apply(&state.Command{ID: fmt.Sprint("x", i), Time: time.Now(), Set: &state.Set{Key: "collect-speed", Value: "4096"}})
				}
				return state.Result{}, errors.New("cut off")
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
		d := open(t, c, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: d.s.ident.Load().sess}})
		time.Sleep(5 * time.Minute)
		if err := do(d, &Op{Kind: wire.KindFlush}); err != nil {
			t.Errorf("nobody else had the VDI: %v", err)
		}
		c.Close()
	})
}

// TestR14GhostOpenFences: no majority for 20 s. B has the VDI open (a VM runs); its session lapses in the outage. A tried to open it during the outage and gave up after 3 s; the command never reached
// raft. When the cluster is back, A's resolve opens the VDI for nobody, and B, whom nobody took anything from, is fenced for good.
func TestR14GhostOpenFences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		var until time.Time
		outage := func(after time.Duration) func(context.Context, *state.Command) (state.Result, error) {
			return func(ctx context.Context, cmd *state.Command) (state.Result, error) {
				if !until.IsZero() {
					if d := time.Until(until.Add(after)); d > 0 {
						select {
						case <-time.After(d):
						case <-ctx.Done():
							return state.Result{}, context.Cause(ctx) // never reached raft
						}
					}
				}
				return f.Propose(ctx, cmd)
			}
		}
		bc := f.clientWith(Config{Maps: f, Net: f, Propose: outage(100 * time.Millisecond), Logger: slog.New(slog.DiscardHandler)})
		ac := f.clientWith(Config{Maps: f, Net: f, Propose: outage(0), Logger: slog.New(slog.DiscardHandler)})
		d := open(t, bc, "alpha")
		if err := write(d, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
		until = time.Now().Add(20 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if _, err := ac.Open(ctx, "alpha", "", OpenOptions{}); err == nil {
			t.Fatal("opened")
		} else {
			t.Log("A gave up:", err)
		}
		time.Sleep(time.Until(until) - 10*time.Millisecond)
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: d.s.ident.Load().sess}}) // the new leader finds B's lease lapsed
		time.Sleep(5 * time.Second)
		if err := write(d, 0, pattern(4096, 2)); err != nil {
			t.Errorf("B is dead, though nobody ever had the VDI but B: %v", err)
		}
		bc.Close()
		ac.Close()
	})
}

// TestR14ResolveTakesFromTheNextOpener: renew's try was granted, its answer lost. The VM's connection ends and comes back (Open) before the renewal looks again. resolve closes the session that the second Open was given.
func TestR14ResolveTakesFromTheNextOpener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		opens, watch := 0, uint64(0)
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.OpenSess != nil {
				if opens++; opens == 2 {
					f.apply(cmd)
					return state.Result{}, errors.New("connection lost")
				}
			}
			r, err := f.Propose(ctx, cmd)
			if cmd.CloseSess != nil && watch != 0 && cmd.CloseSess.ID == watch {
				t.Errorf("session %d of a disk that is open is ended by its own client", watch)
				f.must(&state.Command{OpenSess: &state.OpenSess{Name: "alpha", Client: "stranger", Holder: state.Member{Node: state.NoNode}}}) // who waits for the VDI on another node gets it
			}
			return r, err
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Local: &fakeLocal{f, 0}, LocalNode: 0, Logger: slog.New(slog.DiscardHandler)})
		d := open(t, c, "alpha")
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
		time.Sleep(100 * time.Millisecond) // renew's first try is over, it sleeps 500 ms
		if err := d.Close(context.Background()); err != nil {
			t.Log("close:", err)
		}
		d2 := open(t, c, "alpha")
		if err := write(d2, 0, pattern(4096, 1)); err != nil {
			t.Fatal(err)
		}
		watch = d2.s.ident.Load().sess
		time.Sleep(5 * time.Second)
		if err := write(d2, 0, pattern(4096, 2)); err != nil {
			t.Errorf("write by who has it open: %v", err)
		}
		c.Close()
	})
}

// TestR14GrantedAndNotClosed: what was granted to a session that is gone is closed once; if that fails it stays for nobody.
func TestR14GrantedAndNotClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		raced, failed := false, false
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.CloseSess != nil && raced && !failed {
				failed = true
				return state.Result{}, errors.New("the leader just changed")
			}
			if cmd.OpenSess != nil && f.Map().Working("alpha").SessGen > 0 && !raced {
				raced = true
				r := f.must(&state.Command{OpenSess: &state.OpenSess{Name: "alpha", Client: "stranger", Holder: state.Member{Node: state.NoNode}}})
				f.must(&state.Command{CloseSess: &state.CloseSess{ID: r.Sess.ID}})
			}
			return f.Propose(ctx, cmd)
		}
		c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
		d := open(t, c, "alpha")
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
		time.Sleep(time.Second)
		t.Log(write(d, 0, pattern(4096, 3)))
		d.Close(context.Background())
		time.Sleep(time.Hour)
		if n := len(f.Map().Sessions); n != 0 {
			t.Errorf("an hour later %d sessions are left, for nobody", n)
		}
		c.Close()
	})
}

// TestR14LossesForgotten: ranges known to be lost are to be told (EIO) to the next session of this client. An Open whose answer was late raises the generation; the next one forgets the loss.
func TestR14LossesForgotten(t *testing.T) {
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t, 3)
			f.vdi("alpha", 64<<20)
			lose := false
			propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
				if cmd.OpenSess != nil && lose {
					lose = false
					f.apply(cmd)
					<-ctx.Done()
					return state.Result{}, context.Cause(ctx)
				}
				return f.Propose(ctx, cmd)
			}
			c := f.clientWith(Config{Maps: f, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
			d := open(t, c, "alpha")
			if err := write(d, 0, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			if err := flush(d); err != nil {
				t.Fatal(err)
			}
			d.s.mu.Lock()
			d.s.lossy.Store(true)
			d.s.lost = []lostRange{{index: 0, first: 0, end: 1}}
			d.s.mu.Unlock()
			d.Close(context.Background())
			if late {
				lose = true
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				defer cancel()
				if _, err := c.Open(ctx, "alpha", "", OpenOptions{}); err == nil {
					t.Fatal("opened")
				}
			}
			d = open(t, c, "alpha")
			d.s.mu.Lock()
			n := len(d.s.lost)
			d.s.mu.Unlock()
			if n == 0 {
				t.Errorf("late answer %v: the lost range is forgotten; nobody else had the VDI", late)
			}
			c.Close()
		})
	}
}

// TestR14OpenFailsAfterClose: -race. An Open waits for the cluster; the Client is closed; the Open fails then, and starts a goroutine that nobody waits for, which proposes.
func TestR14OpenFailsAfterClose(t *testing.T) {
	f := newFake(t, 3)
	f.vdi("alpha", 64<<20)
	for i := range 200 {
		in, out := make(chan struct{}), make(chan struct{})
		first := sync.Once{}
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			first.Do(func() { close(in); <-out })
			return state.Result{}, errors.New("cut off")
		}
		c, err := New(Config{Maps: f, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { c.Open(context.Background(), "alpha", "", OpenOptions{}) })
		<-in
		wg.Go(func() { time.Sleep(time.Duration(i) * time.Microsecond); close(out) })
		c.Close()
		wg.Wait()
	}
}

// TestR14EndFailsAfterClose: the same by Disk.Close, whose CloseSess has no answer while the Client is closed.
func TestR14EndFailsAfterClose(t *testing.T) {
	f := newFake(t, 3)
	f.vdi("alpha", 64<<20)
	for i := range 200 {
		in, out := make(chan struct{}), make(chan struct{})
		first := sync.Once{}
		propose := func(ctx context.Context, cmd *state.Command) (state.Result, error) {
			if cmd.CloseSess == nil {
				return f.Propose(ctx, cmd)
			}
			first.Do(func() { close(in); <-out })
			return state.Result{}, errors.New("cut off")
		}
		c, err := New(Config{Maps: f, Net: f, Propose: propose, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		d := open(t, c, "alpha")
		var wg sync.WaitGroup
		wg.Go(func() { d.Close(context.Background()) })
		<-in
		wg.Go(func() { time.Sleep(time.Duration(i) * time.Microsecond); close(out) })
		c.Close()
		wg.Wait()
		f.must(&state.Command{CloseSess: &state.CloseSess{ID: f.Map().Sessions[0].ID}})
	}
}
