package client

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// lagging shows a fake's map as it was, until it is told to catch up.
type lagging struct {
	*fake
	mu  sync.Mutex
	old *state.Map
}

func (l *lagging) Map() *state.Map {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.old != nil {
		return l.old
	}
	return l.fake.Map()
}

func (l *lagging) catchUp() {
	l.mu.Lock()
	l.old = nil
	l.mu.Unlock()
	l.fake.mu.Lock()
	l.fake.publish(l.fake.m)
	l.fake.mu.Unlock()
}

// TestLookupAsksTheLeader: a name that was made by way of another node is found also before its map is here, even if nobody leads at first; one that nobody made does not exist, and
// with no leader at all that is said in bounded time.
func TestLookupAsksTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, 3)
		l := &lagging{fake: f}
		asked := 0
		latest := func(context.Context) (uint64, error) {
			if asked++; asked == 1 {
				return 0, errors.New("an election")
			}
			return f.Map().Index, nil
		}
		c := f.clientWith(Config{Maps: l, Net: f, Propose: f.Propose, Latest: latest})
		l.old = f.Map()
		f.vdi("new", 64<<20)
		time.AfterFunc(300*time.Millisecond, l.catchUp)
		d, err := c.Open(context.Background(), "new", "", OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		closeAll(t, c, d)
		if _, _, err := c.Lookup(context.Background(), "none", ""); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want ErrNotExist", err)
		}
		before := asked
		if _, _, err := c.Lookup(context.Background(), "new", ""); err != nil || asked != before {
			t.Errorf("a name that is known here: %v, the leader was asked %d times", err, asked-before)
		}

		start := time.Now()
		c = f.clientWith(Config{Maps: l, Net: f, Propose: f.Propose, Latest: func(context.Context) (uint64, error) { return 0, errors.New("no leader") }})
		if _, _, err := c.Lookup(context.Background(), "none", ""); !errors.Is(err, fs.ErrNotExist) || time.Since(start) > latestTimeout+latestPause {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}
