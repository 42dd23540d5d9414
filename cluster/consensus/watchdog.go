package consensus

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// A call of raft's store that takes longer counts as hung: this node's raft connections are cut until it returns.
	storeHangMax = 2 * time.Second
	watchPeriod  = 250 * time.Millisecond
	// A call longer than this is worth a word in the log.
	storeSlow = 500 * time.Millisecond

	truncating = "truncate"
)

// timedStore is raft's log and stable store, every call timed, failed for good once a write has failed.
type timedStore struct {
	raft.LogStore
	stable raft.StableStore
	now    func() time.Time
	slow   func(what string, d time.Duration)
	fatal  func(error)

	began atomic.Int64 // UnixNano of the append or set under way, 0: none. Both come from raft's main goroutine alone
	mu    sync.Mutex
	err   error
}

// do runs one writing call.
func (t *timedStore) do(what string, f func() error) error {
	if err := t.failed(); err != nil {
		return err
	}
	start := t.now()
	if what != truncating { // which runs beside the others, and holds them up if it hangs
		t.began.Store(start.UnixNano())
		defer t.began.Store(0)
	}
	err := f()
	if d := t.now().Sub(start); d > storeSlow {
		t.slow(what, d)
	}
	if err != nil {
		err = fmt.Errorf("%s in raft's store: %w", what, err)
		t.mu.Lock()
		t.err = err
		t.mu.Unlock()
		t.fatal(err)
	}
	return err
}

func (t *timedStore) failed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// hung says whether a call has been under way for too long.
func (t *timedStore) hung() bool {
	began := t.began.Load()
	return began != 0 && t.now().UnixNano()-began > int64(storeHangMax)
}

func (t *timedStore) StoreLog(l *raft.Log) error { return t.StoreLogs([]*raft.Log{l}) }

func (t *timedStore) StoreLogs(logs []*raft.Log) error {
	return t.do("append", func() error { return t.LogStore.StoreLogs(logs) })
}

func (t *timedStore) DeleteRange(lo, hi uint64) error {
	return t.do(truncating, func() error { return t.LogStore.DeleteRange(lo, hi) })
}

func (t *timedStore) Set(k, v []byte) error {
	return t.do("set", func() error { return t.stable.Set(k, v) })
}

func (t *timedStore) SetUint64(k []byte, v uint64) error {
	return t.do("set", func() error { return t.stable.SetUint64(k, v) })
}

func (t *timedStore) Get(k []byte) ([]byte, error)       { return t.stable.Get(k) }
func (t *timedStore) GetUint64(k []byte) (uint64, error) { return t.stable.GetUint64(k) }

// watch mutes raft while the store hangs.
func (c *Consensus) watch() {
	defer c.wg.Done()
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	muted := false
	for {
		select {
		case <-c.closing:
			return
		case <-tick.C:
		}
		if hung := c.store.hung(); hung != muted {
			muted = hung
			c.stream.mute(hung)
			if hung {
				c.log.Warn("raft's disk does not answer: leaving raft to the others until it does", "for", storeHangMax)
			} else {
				c.log.Info("raft's disk answers again")
			}
		}
	}
}
