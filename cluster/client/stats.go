package client

import (
	"sync/atomic"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Stats counts what a Client did since it began.
type Stats struct {
	Reads, Writes, Zeroes, Trims, Flushes, ExtentQueries atomic.Int64 // requests to disks
	ReadBytes, WriteBytes                                atomic.Int64
	Errors                                               atomic.Int64 // requests that ended with one

	Retries    atomic.Int64 // pieces that were sent again
	Waits      atomic.Int64 // writes that waited behind an overlapping one (R15)
	Reconnects atomic.Int64 // connections to primaries lost or given up
	Relays     atomic.Int64 // times a primary was reached through another node (R18)
	Mismatches atomic.Int64 // answers whose bytes did not fit their checksum

	Retained     atomic.Int64 // bytes kept until they are flushed (R17), now; of a write whose payload is not kept, a block
	Throttled    atomic.Int64 // writes that wait until less is retained, now
	SelfFlushes  atomic.Int64 // flushes because too much was kept
	Resent       atomic.Int64 // acknowledged writes sent again after a set resumed (R17)
	Lost         atomic.Int64 // acknowledged writes that could not be
	Sessions     atomic.Int64 // open, now
	Fenced       atomic.Int64 // sessions that ended because somebody else took the VDI over
	Renewed      atomic.Int64 // sessions opened again after they had lapsed
	Parked       atomic.Int64 // pieces that wait for a newer map or a little while, now
	FlushedGroup atomic.Int64 // flushes of single groups
}

func (st *Stats) count(op *Op) {
	switch op.Kind {
	case wire.KindRead:
		st.Reads.Add(1)
		st.ReadBytes.Add(int64(op.Len))
	case wire.KindWrite:
		st.Writes.Add(1)
		st.WriteBytes.Add(int64(op.Len))
	case wire.KindZero:
		st.Zeroes.Add(1)
	case wire.KindTrim:
		st.Trims.Add(1)
	case wire.KindFlush:
		st.Flushes.Add(1)
	case wire.KindExtents:
		st.ExtentQueries.Add(1)
	}
}
