package objstore

import (
	"errors"
	"testing"
)

// TestCopyOfADroppedGroup: a copy that was begun before its group was dropped does not take away the file that the object has in the group's next life.
func TestCopyOfADroppedGroup(t *testing.T) {
	sim, cfg, s := simStore(t, nil)
	key, vid := MakeKey(5, 7), []VidGen{{5, 100}}
	g := s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, Data: fill(1, 4)})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	c, err := g.NewCopy(key) // as resync.fetchObject
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DropGroup(1); err != nil {
		t.Fatal(err)
	}
	g2 := s.Group(1)
	data := fill(2, 32)
	stage(t, g2, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, Data: data})
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	b := fill(3, 1)
	err = c.Put(5, 0, []uint32{Checksum(b)}, b) // the answer to a fetch comes late
	if !errors.Is(err, ErrDropped) {
		t.Errorf("put to a dropped group: %v", err)
	}
	c.Abort()
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	wantRead(t, g2, key, vid, 0, data)
	more := fill(4, 32)
	stage(t, g2, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, First: 64, Data: more}) // acknowledged and flushed
	if err := s.SyncWait(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = after(t, cfg, sim)
	wantRead(t, s.Group(1), key, vid, 0, data)
	wantRead(t, s.Group(1), key, vid, 64, more)
}

// TestReadOneOfADroppedGroup: a dropped group is gone for every reader.
func TestReadOneOfADroppedGroup(t *testing.T) {
	_, _, s := simStore(t, nil)
	key, vid := MakeKey(5, 7), []VidGen{{5, 100}}
	g := s.Group(1)
	stage(t, g, Entry{Kind: KindWrite, Key: key, Vid: 5, Gen: 100, Data: fill(1, 4)})
	s.checkpointLock.Lock() // none has come yet
	defer s.checkpointLock.Unlock()
	if err := s.DropGroup(1); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2*BlockSize)
	for n := 1; n <= 2; n++ {
		if err := g.Read(key, vid, 0, n, b[:n*BlockSize], nil, false); !errors.Is(err, ErrDropped) {
			t.Errorf("read %d blocks of a dropped group: %v", n, err)
		}
	}
}
