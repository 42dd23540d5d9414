package objstore

import (
	"errors"
	"fmt"
	"syscall"
)

var (
	ErrOrder      = errors.New("entry is not the next one of its group")
	ErrGeneration = errors.New("vid has another generation")
	ErrFormat     = errors.New("malformed")
	ErrWouldBlock = errors.New("would block")
	ErrClosed     = errors.New("store is closed")
	ErrDiskFailed = errors.New("disk failed")
	ErrCluster    = errors.New("directory belongs to another cluster")
	ErrLocked     = errors.New("directory is in use by another process")
	ErrNotStore   = errors.New("not a store's directory")
	ErrExists     = errors.New("directory already holds a store")
	ErrNoXattr    = errors.New("file system has no user extended attributes")
	ErrSyncing    = errors.New("group is not being resynced")
	ErrDropped    = errors.New("group is dropped")
	ErrStale      = errors.New("object changed meanwhile")
)

// BlockError says that a block's bytes could not be read or failed their
// checksum, or that the block was marked bad before. It never carries bytes.
type BlockError struct {
	Group GroupID
	Key   Key
	Block int
	Vid   Vid   // the version whose block it is
	Err   error // why: ErrChecksum, ErrMarkedBad or what the disk said
}

var (
	ErrChecksum  = errors.New("checksum mismatch")
	ErrMarkedBad = errors.New("marked bad")
	ErrDamaged   = errors.New("block table is damaged")
)

func (e *BlockError) Error() string {
	return fmt.Sprintf("read object %v block %d of vid %06x (group %d): %v", e.Key, e.Block, e.Vid, e.Group, e.Err)
}

func (e *BlockError) Unwrap() error { return e.Err }

// Is makes a bad block an I/O error for whoever maps errors without knowing
// this package.
func (e *BlockError) Is(target error) bool { return target == syscall.EIO }
