package wire

import (
	"slices"
	"testing"
)

type asked struct {
	what *[]string
	name string
	list *[]Synced
}

func (a asked) Sync(list []Synced) {
	*a.what = append(*a.what, "sync "+a.name)
	*a.list = append(*a.list, list...)
}
func (a asked) SyncHere(list []Synced) {
	*a.what = append(*a.what, "sync here "+a.name)
	*a.list = append(*a.list, list...)
}
func (a asked) Here() bool    { return a.name != "busy" }
func (a asked) Commit() error { *a.what = append(*a.what, "commit "+a.name); return nil }
func (a asked) CommitHere() error {
	*a.what = append(*a.what, "commit here "+a.name)
	return nil
}
func (a asked) WriteBehind() { *a.what = append(*a.what, "behind "+a.name) }
func (a asked) Flush()       { *a.what = append(*a.what, "flush "+a.name) }

type told int

func (told) Synced(error, *Batch) {}

type then func(*Batch)

func (f then) Complete(b *Batch) { f(b) }

// However many things a batch wants durable on a disk, it asks once: after the journals' write and all outcomes, which may want more, and the last one after what is
// sent last.
func TestBatchAsksADiskOnce(t *testing.T) {
	var what []string
	var one, two []Synced
	a, z, c := asked{&what, "a", &one}, asked{&what, "z", &two}, asked{&what, "c", nil}
	var b Batch
	b.Sync(a, told(1))
	b.Sync(z, told(2))
	b.Sync(a, told(3))
	b.Journal(a)
	b.Complete(then(func(b *Batch) { b.Sync(a, told(4)); b.Flush(c) }))
	b.End()
	if want := []string{"commit a", "sync a", "flush c", "sync z"}; !slices.Equal(what, want) {
		t.Fatalf("did %q, want %q", what, want)
	}
	if !slices.Equal(one, []Synced{told(1), told(3), told(4)}) || !slices.Equal(two, []Synced{told(2)}) {
		t.Fatalf("a was asked for %v, z for %v", one, two)
	}
	what = nil
	if b.End(); len(what) > 0 {
		t.Fatalf("the next batch did %q", what)
	}
}

// A patient owner has a disk begin with large writes when all else is done; for others the disk sees to that.
func TestBatchBehind(t *testing.T) {
	for _, patient := range []bool{true, false} {
		var what []string
		a, z := asked{&what, "a", nil}, asked{&what, "z", nil}
		b := Batch{Patient: patient}
		for range 2 {
			what = nil
			b.Journal(a)
			b.Behind(a)
			b.Journal(z)
			b.Behind(a)
			b.Flush(z)
			b.End()
			want := []string{"flush z", "commit here a", "commit z", "behind a"}
			if !patient {
				want = []string{"flush z", "commit a", "commit z"}
			}
			if !slices.Equal(what, want) {
				t.Fatalf("patient %v: did %q, want %q", patient, what, want)
			}
		}
	}
}

// What a batch leaves to its owner is one disk: it may wait for that, when others are at work on all the rest.
func TestBatchLeavesOneDisk(t *testing.T) {
	var what []string
	var one, two []Synced
	a, z := asked{&what, "a", &one}, asked{&what, "z", &two}
	var b Batch
	if wait := b.EndLeaving(); wait != nil {
		t.Fatal("there was nothing to wait for")
	}
	b.Sync(a, told(1))
	b.Sync(z, told(2))
	b.Journal(a)
	b.Flush(z)
	wait := b.EndLeaving()
	if want := []string{"flush z", "commit a", "sync a"}; !slices.Equal(what, want) {
		t.Fatalf("did %q, want %q", what, want)
	}
	b.Sync(a, told(3)) // another's, meanwhile
	wait()
	b.End()
	if want := []string{"sync here z", "sync a"}; !slices.Equal(what[3:], want) {
		t.Fatalf("then did %q, want %q", what[3:], want)
	}
	if !slices.Equal(one, []Synced{told(1), told(3)}) || !slices.Equal(two, []Synced{told(2)}) {
		t.Fatalf("a was asked for %v, z for %v", one, two)
	}
	b.Sync(asked{&what, "busy", &one}, told(4))
	if b.EndLeaving() != nil || what[5] != "sync busy" {
		t.Fatalf("a disk that does not want to be waited for: did %q", what[5:])
	}
}
