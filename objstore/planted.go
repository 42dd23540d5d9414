package objstore

// planted is a bug that a test has put in, to see that the tests find it. It
// is none in every program.
var planted bug

type bug uint8

const (
	bugNone            bug = iota
	bugSlotFreeAtOnce      // rule 1, 15: a superseded slot is free before that is durable
	bugTableInPlace        // rule 2: a table is written over the one that counts
	bugNameUnsynced        // rule 2: a file's name is not synced
	bugAttributeLate       // rule 2: the attribute is set when the file has its name already
	bugUnfinished          // rule 2: tables of a checkpoint that never finished count
	bugTableUnchecked      // rule 2: an older table is taken where the newest is rotten
	bugSlotsNotReused      // rule 3: a write makes the file longer although slots are free
	bugNeverPunched        // rule 3: free runs are not given back
	bugFlushJournal        // rule 4: a flush leaves large writes' files out
	bugCopyUnsynced        // rule 4: a copy's own sync does nothing, and the flush leaves its file out
	bugUnseeded            // rule 5: a record's checksum does not know its place
	bugNoFreshBatch        // rule 5: a batch goes on in the sector of the synced one
	bugNoMark              // rule 5: damage below the durable mark counts as a torn tail
	bugCommitEarly         // rule 6: the catalog is written before the tables are synced
	bugRetireEarly         // rule 6: segments are used again before the commit
	bugLateCut             // rule 6, 9: a checkpoint takes what came after its cut
	bugNoBound             // rule 7: writers do not wait at the bounds
	bugSyncRetried         // rule 8: a failed sync is tried again
	bugLargeTrusted        // rule 9: replay does not look at large writes' data
	bugGapTaken            // rule 9: replay takes entries behind a missing one
	bugVersionKept         // rule 10: a merge does not change the version
	bugGenerations         // rule 11: generations are not compared
	bugReadOnce            // rule 12: a read that fails its checksum is not looked up again
	bugReadTrusted         // rule 12: checksums are not compared
	bugBadIsZero           // rule 13: a bad block counts as one that has nothing
	bugScrubCached         // rule 14: the scrub reads memory
	bugMergeOver           // rule 16: a merge takes what the heir has already
	bugMergeFrees          // rule 16: a merge gives the moved slots free
	bugUnlinkEarly         // rule 17: a file is removed before that is committed
	bugUsageMerge          // rule 18: a merge does not move the counters
	bugNothingPromised     // rule 19: journaled blocks are not counted against free space
	bugReserveKept         // rule 20: the reserve is not given up
	bugOddKept             // rule 9: the journal goes on although replay left something out
	bugEndUnknown          // rule 9: replay goes on in a segment behind where the next one says that it ends
	bugPriorLife           // what a killed process left unsynced counts as durable

	bugEnd
)

func (b bug) active() bool { return planted == b }
