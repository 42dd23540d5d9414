package client

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// lines is a log to look at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// TestWaitsAreSaid: requests that wait are in the log once, with why and what to do; again when a minute has gone; and when they go on.
func TestWaitsAreSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		f.vdi("alpha", 64<<20)
		var log lines
		c := f.clientWith(Config{Maps: f, Net: f, Propose: f.Propose, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		d := open(t, c, "alpha")
		id := f.Map().GroupFor(f.Map().Working("alpha"), 0)
		says := func(what string, words ...string) {
			t.Helper()
			got := log.take()
			if strings.Count(got, "\n") != 1 {
				t.Errorf("%s: %d lines: %s", what, strings.Count(got, "\n"), got)
			}
			for _, w := range words {
				if !strings.Contains(got, w) {
					t.Errorf("%s: no %q in %s", what, w, got)
				}
			}
		}
		f.move(id, state.NoNode)
		log.take()
		done := start(d, &Op{Kind: wire.KindWrite, Len: 4096, Data: pattern(4096, 1)})
		time.Sleep(4 * time.Second)
		if got := log.take(); got != "" {
			t.Errorf("said too early: %s", got)
		}
		time.Sleep(5 * time.Second)
		says("no primary", "requests wait", "none of the nodes that hold all of group", "start node", "for=5s")
		time.Sleep(time.Minute)
		says("a minute later", "requests wait")
		f.move(id, 2)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		says("it goes on", "requests go on", "waited=1m9")

		// A primary that keeps a write, since too few copies are in sync there, and one that says nothing.
		if got := whyUnanswered(f.Map(), 2); got != nameOf(f.Map(), 2)+" does not answer" {
			t.Error(got)
		}
		f.mu.Lock()
		f.edit(id, func(g *state.Group) {
			g.InSync = []state.Member{f.m.Current(2)}
			g.Primary = g.InSync[0]
		})
		f.mu.Unlock()
		if got := whyUnanswered(f.Map(), 2); !strings.Contains(got, "wait until 2 copies are in sync") {
			t.Error(got)
		}
		closeAll(t, c, d)
	})
}
