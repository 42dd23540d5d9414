// Package objstore keeps objects on one disk: 4 MiB pieces of virtual disks,
// each with all its versions in one file. It survives a power cut at any
// instant, notices every rotten bit, and pays for a large write once.
//
// # The directory
//
//	identity           whose disk this is (text)
//	lock               held while a store is open
//	catalog            what the last checkpoint committed (catalog.go)
//	journal/NNN        segments of the journal (record.go, segment.go)
//	obj/GGGGGGGG/KEY   one file per object, by group (table.go); each has one
//	                   extended attribute, user.sheepdog, that says what it is
//	epoch/NAME         named values of whoever uses the store (meta.go)
//	reserve            space to finish a checkpoint with
//
// # A write
//
// Stage (stage.go) checks that an entry is the next of its group and appends
// its record to the pending batch; the object's table in memory points into
// the journal from then on. A write of LargeWriteBytes or more goes to free
// slots of the object's file first, and only its table entries are journaled.
// Commit (journal.go) writes all that waits with one pwrite. Sync (sync.go)
// makes it durable, the journal and the files of large writes side by side.
// A checkpoint (checkpoint.go) moves the net effect to the object files and
// commits all of it with one write to the catalog; then journal segments are
// used again, and slots that were superseded are free. Open replays what the
// journal has beyond the last checkpoint and goes on behind it (replay.go).
//
// Readers find a block's newest version in the chain they bring (resolve.go,
// read.go). A scrub reads everything once in a while (scrub.go). Check and
// Dump look at a stopped store (check.go, dump.go). Resync installs whole
// objects (unit.go, copy.go, syncing.go).
//
// # Invariants
//
//   - Bytes that count are never overwritten: data go to free slots, tables to
//     the place that does not count, records behind those that are synced.
//   - A slot is free when no table that counts and no record that could be
//     replayed names it.
//   - After a crash a group is at a prefix of its entries, which holds all
//     that was synced.
//   - Every block is checked when it is read, wherever it lies.
//   - A sync or a write that failed (but for want of space) ends the disk.
//
// # Locks
//
// A group's mutex guards its state and its objects; then come the journal's,
// the syncer's, the caches', the spares' and the list of groups'. None is held across I/O.
// What is held across I/O is an ioMutex: one checkpoint, one sync round, one
// creation or removal of a file per stripe, one named value at a time.
//
// # Goroutines
//
//	rounds          at most 1 that waits, from the first Sync on: rounds of Sync; another one for each round that is wanted while one
//	                still answers the last. Callers of SyncHere make their own
//	answers of Sync one for each but a round's last: whom they tell may take locks
//	behindLoop      1, Open to Close: has the disk begin with large writes
//	checkpointLoop  1, Open to Close: checkpoints, the reserve
//	segmentLoop     1, Open to Close: makes segments before they are needed
//	scrubLoop       1, Open to Close: reads everything, slowly
//	parallel        at most 8 for the length of a sync round
//	wakeAll         1, once, when the disk failed
//	watch           1, Open to Close, or until the disk fails: looks whether calls come back
//	detached calls  while Detach is on, one for each call to the disk; one that hangs stays until it is let go
//
// # What it does not do
//
// It gives no numbers, orders nothing between groups, and knows neither
// ancestors (readers bring the chain) nor other nodes: who is right, and what
// is to be repaired from where, others decide.
package objstore
