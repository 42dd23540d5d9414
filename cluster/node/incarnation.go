package node

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/objstore"
)

// Every disk keeps the node's incarnations (STORE.md rule 21), so that an older copy of one disk alone does not pass for what it was. A new incarnation goes
//
//	to every disk  ──▶  to node.json  ──▶  to raft
//
// and node.json says of each disk which incarnation it was told last. So a crash anywhere leaves disks that know what node.json says they know, or more, and a disk
// that knows less is older than what this node registered since. Whether node.json itself is the latest, raft says (R5).

// incarnationsMeta is the store's value that holds them: one a line, in hexadecimal, the newest last.
const incarnationsMeta = "incarnations"

func encodeIncarnations(list []uint64) (b []byte) {
	for _, inc := range list {
		b = append(strconv.AppendUint(b, inc, 16), '\n')
	}
	return b
}

func parseIncarnations(b []byte) (list []uint64, err error) {
	for line := range bytes.Lines(b) {
		inc, err := strconv.ParseUint(string(bytes.TrimSuffix(line, []byte("\n"))), 16, 64)
		if err != nil || len(list) == incarnationsMax {
			return nil, fmt.Errorf("line %d of a disk's incarnations is %.40q: %w", len(list)+1, line, objstore.ErrFormat)
		}
		list = append(list, inc)
	}
	return list, nil
}

// newIncarnation makes a random incarnation durable on every disk that works, then in node.json: only then may it be registered. A disk that fails at this, or does not answer, is
// a failed disk from then on. One that has no room is left behind with what it knows.
func (s *stores) newIncarnation() (inc uint64, err error) {
	s.incMu.Lock()
	defer s.incMu.Unlock()
	var b [8]byte
	for inc == 0 {
		rand.Read(b[:])
		inc = binary.BigEndian.Uint64(b[:])
	}
	history := append(s.self.get().Incarnations, inc)
	history = history[max(0, len(history)-incarnationsMax):]
	told := s.tell(history)
	return inc, s.self.change(func(id *identity) {
		id.Incarnations = history
		for i := range id.Disks {
			k := &id.Disks[i]
			d, asked := told[k.UUID]
			switch {
			case !asked:
			case d.err == nil:
				k.Inc = inc
			case d.failed:
				k.State, k.Why = DiskFailed, d.err.Error()
			}
		}
	})
}

// answer is what a disk did with a new incarnation.
type answer struct {
	err    error
	failed bool // the disk did, and takes nothing any more
}

// tell gives the incarnations to all disks that work, all at once.
func (s *stores) tell(history []uint64) map[string]answer {
	told := map[string]answer{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, d := range s.disks() {
		if d.store == nil || d.State == DiskFailed {
			continue
		}
		wg.Go(func() {
			a := answer{err: setIncarnations(d.store, history)}
			if a.err != nil {
				a.failed = d.store.Err() != nil
				s.log.Warn("a disk did not take this node's incarnation", "dir", d.Dir, "disk", d.UUID, "err", a.err)
			}
			mu.Lock()
			defer mu.Unlock()
			told[d.UUID] = a
		})
	}
	wg.Wait()
	return told
}

// hangPeriod is how often a disk that does not answer is asked whether it has failed.
const hangPeriod = 100 * time.Millisecond

// setIncarnations returns also when the disk never answers: then its store has failed (objstore.Config.HangTimeout).
func setIncarnations(st *objstore.Store, history []uint64) error {
	done := make(chan error, 1)
	go func() { done <- st.SetMeta(incarnationsMeta, encodeIncarnations(history)) }()
	t := time.NewTicker(hangPeriod)
	defer t.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-t.C:
			if err := st.Err(); err != nil {
				return err
			}
		}
	}
}

// stale says why a known disk is not the latest of itself; "": it is. A disk that was never told an incarnation (it is new, or the directory is of a program that did not
// tell it) is taken as it is.
func (s *stores) stale(dir string, k knownDisk) (why string, err error) {
	if k.Inc == 0 {
		return "", nil
	}
	b, err := objstore.ReadMeta(s.config(dir), incarnationsMeta)
	switch {
	case errors.Is(err, objstore.ErrChecksum):
		return "the incarnations it keeps are damaged, so it may be an older copy of itself", nil
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", err
	}
	list, err := parseIncarnations(b)
	if err != nil {
		return "", fmt.Errorf("directory %s: %w", dir, err)
	}
	if !slices.Contains(list, k.Inc) {
		return fmt.Sprintf("it is an older copy of itself, as of a restored image or snapshot: it does not know this node's incarnation %x", k.Inc), nil
	}
	return "", nil
}

// setAside makes it durable that stale disks are not to be trusted, as if they had failed, and returns the others.
func (s *stores) setAside(disks []found) (good []found, err error) {
	why := map[string]string{}
	for _, f := range disks {
		if f.stale == "" {
			good = append(good, f)
			continue
		}
		why[f.disk] = f.stale
		s.log.Error("a disk is not served: its groups are brought up to date elsewhere; `sheep node disk remove`, empty its directory, then `add` takes it in again",
			"dir", f.dir, "disk", f.disk, "why", f.stale)
	}
	if len(why) == 0 {
		return good, nil
	}
	return good, s.self.change(func(id *identity) {
		for i := range id.Disks {
			if k := &id.Disks[i]; why[k.UUID] != "" {
				k.State, k.Why = DiskFailed, why[k.UUID]
			}
		}
	})
}
