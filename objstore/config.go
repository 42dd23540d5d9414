package objstore

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// Config says how a store uses its directory. Zero means the default.
type Config struct {
	// Dir is the disk's directory.
	Dir string
	// FS is where Dir is; nil is the operating system's file system.
	FS vfs.FS
	// Logger gets what an administrator should know; nil is slog.Default.
	Logger *slog.Logger

	// JournalBytesMax bounds the journal (1 GiB, at most an eighth of the
	// disk, at least four segments). Past it writers wait for a checkpoint.
	JournalBytesMax int64
	// SegmentBytes is the size of a journal file (32 MiB).
	SegmentBytes int64
	// CheckpointBytes starts a checkpoint (half of JournalBytesMax).
	CheckpointBytes int64
	// CheckpointObjects starts a checkpoint when so many objects have
	// changed (16384); it bounds memory and the time of a replay.
	CheckpointObjects int
	// CheckpointInterval is how long a change waits for its checkpoint to begin,
	// from the end of the one before (30 s), and how long that may take at leisure.
	CheckpointInterval time.Duration

	// LargeWriteBytes is where a write goes to its slots at once and only
	// its table entries are journaled (64 KiB).
	LargeWriteBytes int
	// DirtyBytesMax bounds what is written and not yet synced (64 MiB), so
	// that a flush never waits for a flood. Past it writers wait.
	DirtyBytesMax int64
	// PendingBytesMax bounds what is staged and not yet committed (8 MiB).
	// Past it Stage commits by itself.
	PendingBytesMax int64

	// TableCacheBytes bounds the block tables kept in memory (256 MiB);
	// those with changes that are not checkpointed stay beyond it.
	TableCacheBytes int64
	// OpenFilesMax bounds the object files kept open (1024).
	OpenFilesMax int
	// ReserveBytes is the size of the file that is given up to finish a
	// checkpoint on a full disk (64 MiB, at most a 64th of the disk).
	ReserveBytes int64
	// HangTimeout is how long one call to the disk may take before the disk counts as failed (20 s; negative: for ever; watch.go).
	HangTimeout time.Duration
	// MayEnd is asked, by the watcher, whether a call that is late may end the disk; nil: it may. It is asked again while the call is late, and meanwhile Store.Late says so.
	MayEnd func() bool
	// Detached begins with what Store.Detach does.
	Detached bool

	// ScrubBytesPerSecond is the scrub's speed (4 MiB/s; negative: off).
	ScrubBytesPerSecond int64
	// OnBad is told of each bad block that the scrub finds, from its
	// goroutine, so that the block can be repaired from another replica.
	OnBad func(*BlockError)
}

// basics are the defaults that take no look at the disk.
func (c Config) basics() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("store: no directory given")
	}
	if c.FS == nil {
		c.FS = vfs.OS{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	def(&c.HangTimeout, 20*time.Second)
	return c, nil
}

// sized are the other defaults; some follow from the size of the disk.
func (c Config) sized(f vfs.FS) (Config, error) {
	st, err := f.Statfs(c.Dir)
	if err != nil {
		return c, fmt.Errorf("store %s: %w", c.Dir, err)
	}
	def(&c.SegmentBytes, 32<<20)
	def(&c.JournalBytesMax, max(min(1<<30, st.Total/8), 4*c.SegmentBytes))
	def(&c.CheckpointBytes, c.JournalBytesMax/2)
	def(&c.CheckpointObjects, 16384)
	def(&c.CheckpointInterval, 30*time.Second)
	def(&c.LargeWriteBytes, 64<<10)
	def(&c.DirtyBytesMax, 64<<20)
	def(&c.PendingBytesMax, 8<<20)
	def(&c.TableCacheBytes, 256<<20)
	def(&c.OpenFilesMax, 1024)
	def(&c.ReserveBytes, min(64<<20, st.Total/64))
	def(&c.ScrubBytesPerSecond, 4<<20)
	switch {
	case c.SegmentBytes < segmentBytesMin || c.SegmentBytes > segmentBytesMax || c.SegmentBytes%BlockSize != 0:
		return c, fmt.Errorf("store %s: segment size %d is not a multiple of 4096 between %d and %d",
			c.Dir, c.SegmentBytes, segmentBytesMin, segmentBytesMax)
	case c.JournalBytesMax < 3*c.SegmentBytes || c.JournalBytesMax > journalBytesMax:
		return c, fmt.Errorf("store %s: journal of %d bytes is not between three segments and %d", c.Dir, c.JournalBytesMax, int64(journalBytesMax))
	case c.CheckpointBytes > c.JournalBytesMax-c.SegmentBytes:
		c.CheckpointBytes = c.JournalBytesMax - c.SegmentBytes
	}
	return c, nil
}

// segments is how many the journal may have.
func (c *Config) segments() int { return int(c.JournalBytesMax / c.SegmentBytes) }

const (
	segmentBytesMin = 256 << 10
	segmentBytesMax = 1 << 30
	journalBytesMax = 8 << 30 // what a table cell in memory can point into
)

func def[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}
