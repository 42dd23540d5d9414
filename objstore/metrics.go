package objstore

import (
	"sync/atomic"
	"time"
)

// counters count since the store was opened.
type counters struct {
	staged, stagedLarge     atomic.Int64
	commits, journalBytes   atomic.Int64
	syncs, syncNanos        atomic.Int64
	syncMaxNanos            atomic.Int64
	journalWait             atomic.Int64
	checkpoints             atomic.Int64
	checkpointTime          atomic.Int64
	moved, punched          atomic.Int64
	loads, created, removed atomic.Int64
	badBlocks, readErrors   atomic.Int64
	damaged                 atomic.Int64
	full                    atomic.Int64
	replayed                atomic.Int64
	scrubbed, scrubBad      atomic.Int64
	scrubRounds             atomic.Int64
}

func (c *counters) syncTime(d time.Duration) {
	c.syncNanos.Add(int64(d))
	for old := c.syncMaxNanos.Load(); int64(d) > old; old = c.syncMaxNanos.Load() {
		if c.syncMaxNanos.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// Metrics is a snapshot of what the store has done since it was opened, and
// of what it is holding now.
type Metrics struct {
	WritesSmall, WritesLarge int64
	Commits, JournalBytes    int64
	Syncs                    int64
	SyncTime, SyncMax        time.Duration
	JournalWait              time.Duration // that writers waited for room
	Checkpoints              int64
	CheckpointTime           time.Duration // with its rests
	BlocksMoved              int64         // from the journal to object files
	BlocksPunched            int64
	TablesLoaded             int64
	FilesCreated             int64
	FilesRemoved             int64
	BadBlocks                int64 // reads that failed their checksum or the disk
	ReadErrors               int64 // tables that the disk could not read
	NoSpace                  int64
	Replayed                 int64 // records that Open applied
	ScrubBlocks              int64
	ScrubBad                 int64
	ScrubRounds              int64

	JournalLive    int64 // bytes that a replay would read
	BlocksUnplaced int64 // journaled, not yet in object files
	ObjectsDirty   int64
	ObjectsDamaged int64
	TablesCached   int64
	FilesOpen      int64
}

// Metrics returns the counters.
func (s *Store) Metrics() Metrics {
	c := &s.m
	s.files.mu.Lock()
	open := len(s.files.clock)
	s.files.mu.Unlock()
	return Metrics{
		WritesSmall: c.staged.Load(), WritesLarge: c.stagedLarge.Load(),
		Commits: c.commits.Load(), JournalBytes: c.journalBytes.Load(),
		Syncs: c.syncs.Load(), SyncTime: time.Duration(c.syncNanos.Load()), SyncMax: time.Duration(c.syncMaxNanos.Load()),
		JournalWait: time.Duration(c.journalWait.Load()),
		Checkpoints: c.checkpoints.Load(), CheckpointTime: time.Duration(c.checkpointTime.Load()),
		BlocksMoved: c.moved.Load(), BlocksPunched: c.punched.Load(),
		TablesLoaded: c.loads.Load(), FilesCreated: c.created.Load(), FilesRemoved: c.removed.Load(),
		BadBlocks: c.badBlocks.Load(), ReadErrors: c.readErrors.Load(), NoSpace: c.full.Load(),
		Replayed: c.replayed.Load(), ScrubBlocks: c.scrubbed.Load(), ScrubBad: c.scrubBad.Load(), ScrubRounds: c.scrubRounds.Load(),
		JournalLive: s.j.liveBytes(), BlocksUnplaced: s.unplaced.Load(), ObjectsDirty: s.dirtyObjects.Load(),
		ObjectsDamaged: c.damaged.Load(), TablesCached: s.tableCount.Load(), FilesOpen: int64(open),
	}
}
