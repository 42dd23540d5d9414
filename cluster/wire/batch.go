package wire

import "slices"

// Flusher is something with queued output: a connection to a peer or an NBD client.
type Flusher interface{ Flush() }

// Committer is a journal that takes with one write(2) all that was staged. It reports failure to those concerned itself.
type Committer interface{ Commit() error }

// Behind is a disk that begins early with what large writes gave it. CommitHere is Commit for those who call WriteBehind after it, which has it begin; else others are woken for that.
type Behind interface {
	Committer
	CommitHere() error
	WriteBehind()
}

// Finisher goes on with what had to wait for the journals' write: acknowledge, advance the commit point. upTo is the number it was
// registered with.
type Finisher interface{ Finish(b *Batch, upTo uint64) }

type finish struct {
	f    Finisher
	upTo uint64
}

// Syncer is a disk that makes durable all that is staged when it is asked, and tells everybody in the list of it. It is comparable: one of them is asked once a batch.
type Syncer interface {
	// Sync has them told from a goroutine that has nothing else to do.
	Sync(list []Synced)

	// Here says whether SyncHere may be asked, now.
	Here() bool

	// SyncHere may let the caller wait for the disk and then tell them, and others who ask meanwhile, itself.
	SyncHere(list []Synced)
}

// Synced goes on with what had to wait for the disk. It is called without any lock held; err is what ended the disk.
type Synced interface{ Synced(err error, b *Batch) }

type syncing struct {
	s    Syncer
	list []Synced
}

// Completer tells somebody the outcome of a request. It is called without any lock held and may submit more to the same batch.
type Completer interface{ Complete(b *Batch) }

// Batch gathers what a goroutine's current handful of frames or requests asks for, so that all of it costs one write to each
// journal and one to each peer. One goroutine owns a Batch.
type Batch struct {
	// Patient: the owner serves nobody but the one who asked, and has a moment for the disk when that is answered. Set before its first use.
	Patient bool

	journals  []Committer
	behind    []Behind
	finishers []finish
	done      []Completer
	syncs     []syncing
	flushers  []Flusher

	finishing  []finish
	completing []Completer
}

// Journal has c committed at the end of the batch.
func (b *Batch) Journal(c Committer) {
	for _, x := range b.journals {
		if x == c {
			return
		}
	}
	b.journals = append(b.journals, c)
}

// Behind has the disk begin with a large write that was staged, by the owner if that is patient, when all else is done.
func (b *Batch) Behind(w Behind) {
	if b.Patient && !slices.Contains(b.behind, w) {
		b.behind = append(b.behind, w)
	}
}

// Finish has f called with upTo after the journals' write.
func (b *Batch) Finish(f Finisher, upTo uint64) {
	for i := len(b.finishers) - 1; i >= 0 && i >= len(b.finishers)-8; i-- { // more than once does no harm
		if b.finishers[i].f == f {
			b.finishers[i].upTo = max(b.finishers[i].upTo, upTo)
			return
		}
	}
	b.finishers = append(b.finishers, finish{f, upTo})
}

// Sync has d told when all that is staged at the end of the batch is durable on s.
func (b *Batch) Sync(s Syncer, d Synced) {
	for i := range b.syncs {
		if b.syncs[i].s == s {
			b.syncs[i].list = append(b.syncs[i].list, d)
			return
		}
	}
	b.syncs = append(b.syncs, syncing{s, []Synced{d}})
}

// Complete has c called when no lock is held.
func (b *Batch) Complete(c Completer) { b.done = append(b.done, c) }

// Flush has f flushed before and after the journals' write.
func (b *Batch) Flush(f Flusher) {
	for _, x := range b.flushers {
		if x == f {
			return
		}
	}
	b.flushers = append(b.flushers, f)
}

// End does all that was gathered: sends to peers first, so that they work while our journal is written; then the journals, who waited for
// them, and the outcomes, until nothing new comes of it; then what all that queued is sent, and the disks are asked to sync.
func (b *Batch) End() {
	if x := b.settle(); x.s != nil {
		x.s.Sync(x.list)
	}
}

// EndLeaving is End for a caller who is free to wait for a disk: what it returns, unless that is nil, asks one that was left out, and may take as long as
// the disk does. The batch may be used meanwhile.
func (b *Batch) EndLeaving() (wait func()) {
	x := b.settle()
	switch {
	case x.s == nil:
		return nil
	case !x.s.Here():
		x.s.Sync(x.list)
		return nil
	}
	return func() { x.s.SyncHere(x.list) }
}

// settle does what is to be done, but for the last of the disks that are to sync.
func (b *Batch) settle() (last syncing) {
	for len(b.journals)+len(b.finishers)+len(b.done) > 0 {
		if len(b.journals) > 0 {
			b.flush()
			for i, c := range b.journals {
				b.commit(c)
				b.journals[i] = nil
			}
			b.journals = b.journals[:0]
		}
		b.finishing, b.finishers = b.finishers, b.finishing[:0]
		for i, f := range b.finishing {
			b.finishing[i] = finish{}
			f.f.Finish(b, f.upTo)
		}
		b.completing, b.done = b.done, b.completing[:0]
		for i, c := range b.completing {
			b.completing[i] = nil
			c.Complete(b)
		}
	}
	for i, x := range b.syncs {
		b.syncs[i] = syncing{}
		if last.s != nil {
			last.s.Sync(last.list)
		}
		last = x
	}
	b.syncs = b.syncs[:0]
	b.flush()
	for i, c := range b.behind {
		c.WriteBehind()
		b.behind[i] = nil
	}
	b.behind = b.behind[:0]
	return last
}

// commit has a journal written, whose groups see an error in Finish.
func (b *Batch) commit(c Committer) {
	for _, w := range b.behind {
		if w == c {
			w.CommitHere()
			return
		}
	}
	c.Commit()
}

func (b *Batch) flush() {
	for i, f := range b.flushers {
		f.Flush()
		b.flushers[i] = nil
	}
	b.flushers = b.flushers[:0]
}
