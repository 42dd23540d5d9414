package objstore

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

var modelLives = flag.Int("model.lives", 12, "seeds of the model's short lives, each with 25 of them")

// lives is a model run of many short lives (rules 5, 8 and 9): each ends by a
// kill, by a power cut within a few syncs of its beginning or by a sync that
// fails, and so may each Open; between them write-backs fail and nobody is told.
type lives struct {
	*world
	r           *rand.Rand
	eio         atomic.Int64 // which sync from now on fails; 0: none
	failed      atomic.Bool  // it did
	kept, opens int
}

// TestModelLives: whatever the journal consists of after lives that ended in
// every way, also one after the other with no checkpoint between, nothing that
// was flushed is lost and nothing that was dropped comes back.
func TestModelLives(t *testing.T) {
	var mu sync.Mutex // guards what follows
	kept, opens := 0, 0
	eachOf(*modelLives, func(i int) {
		seed := *modelFrom + uint64(i)
		l, err := runLives(seed)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			for _, line := range l.trace[max(0, len(l.trace)-60):] {
				t.Log(line)
			}
			t.Errorf("seed %d: %.1500v", seed, err)
			return
		}
		kept, opens = kept+l.kept, opens+l.opens
	})
	t.Logf("%d of %d openings kept the journal", kept, opens)
	if kept < opens/4 && !t.Failed() {
		t.Error("too few openings kept the journal to say much")
	}
}

func runLives(seed uint64) (*lives, error) {
	l := &lives{r: rand.New(rand.NewPCG(seed, 77))}
	var err error
	l.world, err = newWorldWith(seed, func(c *Config) {
		l.bounds(c)
		if l.r.IntN(3) == 0 {
			c.CheckpointObjects = 1 + l.r.IntN(4)
		}
	})
	if err != nil {
		return l, err
	}
	defer func() { l.kill() }()
	l.mood.close, l.mood.kill, l.mood.scrub = 1, 10, 3
	if l.r.IntN(2) == 0 {
		l.mood.checkpoint = 3
	}
	for range 25 {
		if err := l.live(); err != nil {
			return l, err
		}
		if err := l.again(); err != nil {
			return l, err
		}
	}
	return l, nil
}

// bounds makes a journal of 4 to 16 segments, which is checkpointed when it is full.
func (l *lives) bounds(c *Config) {
	c.JournalBytesMax = 1 << (20 + l.r.IntN(3))
	c.CheckpointBytes = c.JournalBytesMax
}

func (l *lives) kill() {
	if l.s != nil && !l.s.closing.Load() {
		abandonStore(l.s)
	}
}

// arm decides how the life that begins now, or the Open, may end: by a power cut, by a sync that fails, or not at all.
func (l *lives) arm() {
	l.failed.Store(false)
	l.eio.Store(0)
	l.fs.CutAtSync(1 << 40)
	switch l.r.IntN(4) {
	case 0:
		l.fs.CutAtSync(1 + l.r.IntN(6))
	case 1, 2:
		l.eio.Store(int64(1 + l.r.IntN(6)))
	}
	l.fs.Before(func(op, name string) error {
		if op != "sync" || l.eio.Load() <= 0 || l.eio.Add(-1) != 0 {
			return nil
		}
		l.failed.Store(true)
		return syscall.EIO
	})
}

// live does some steps. An error is one that neither a cut nor a failed sync explains.
func (l *lives) live() error {
	l.arm()
	l.note("---- life")
	var err error
	for n := 1 + l.r.IntN(20); n > 0 && err == nil; n-- {
		if l.r.IntN(30) == 0 { // the next checkpoint writes the catalog whole
			l.s.checkpointLock.Lock()
			l.s.cat.base = -catalogSlack
			l.s.checkpointLock.Unlock()
		}
		err = l.step()
	}
	switch {
	case err == nil:
		if l.r.IntN(3) > 0 && l.s.SyncWait() == nil {
			l.note("sync")
			l.settled()
		}
		return nil
	case errors.Is(err, errModel) && !l.fs.Off() && (l.s == nil || l.s.Err() == nil):
		return err
	case errors.Is(err, syscall.EIO):
		l.failed.Store(true)
	}
	if l.fs.Off() || l.failed.Load() {
		return nil
	}
	return fmt.Errorf("step: %w", err)
}

// again opens what a life has left, until that succeeds.
func (l *lives) again() error {
	cut := l.r.IntN(3) == 0
	for try := 0; ; try++ {
		l.kill()
		if l.fs.Off() || cut {
			l.fs = l.fs.Cut()
			l.note("cut")
		}
		l.fs.Before(nil)
		l.between()
		l.failed.Store(false)
		if try < 6 && l.r.IntN(3) == 0 {
			l.arm()
		}
		err := l.reopen()
		l.opens++
		if err == nil {
			if l.s.m.checkpoints.Load() == 0 {
				l.kept++
			}
			l.note("opened, %d checkpoints", l.s.m.checkpoints.Load())
			l.fs.Before(nil)
			return nil
		}
		if !l.fs.Off() && !l.failed.Load() {
			return err
		}
		cut = false
	}
}

// between is what happens while nobody has the store open.
func (l *lives) between() {
	if l.r.IntN(3) == 0 { // the kernel writes back by itself, and fails
		for name := range l.fs.Files() {
			if l.r.IntN(3) == 0 {
				l.note("write-back of %s fails", name)
				l.fs.FailWriteBack(name)
			}
		}
	}
	if l.r.IntN(8) == 0 {
		l.bounds(&l.cfg)
	}
	if l.r.IntN(40) == 0 {
		l.cfg.SegmentBytes = 256<<10 + int64(l.r.IntN(2))*64<<10
	}
}
