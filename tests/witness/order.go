package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// orderLog notes of each acknowledged write when it was sent and when it was answered, one line each:
// "block version sent answered", in nanoseconds since the start.
type orderLog struct {
	start time.Time

	mu  sync.Mutex
	f   *os.File
	w   *bufio.Writer
	err error
}

func newOrderLog(name string) *orderLog {
	l := &orderLog{start: time.Now()}
	if l.f, l.err = os.Create(name); l.err == nil {
		l.w = bufio.NewWriter(l.f)
	}
	return l
}

func (l *orderLog) note(block uint64, version uint32, sent time.Time) {
	if l == nil {
		return
	}
	answered := time.Since(l.start)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		_, l.err = fmt.Fprintln(l.w, block, version, sent.Sub(l.start).Nanoseconds(), answered.Nanoseconds())
	}
}

func (l *orderLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = l.w.Flush()
	}
	if l.err != nil {
		fmt.Fprintln(os.Stderr, "witness: order log:", l.err)
	}
	if l.f != nil {
		l.f.Close()
	}
}

// checkOrder judges whether a picture is of one point in time: if write B was sent after write A had been answered, and B is in the
// picture, then A must be in it. So the newest sending among the writes in it may not be later than the oldest answer among
// the writes that are not.
func checkOrder(name string, picture map[uint64]uint32) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	newestIn, oldestOut, in, out := int64(0), int64(1)<<62, 0, 0
	for {
		var block uint64
		var version uint32
		var sent, answered int64
		if _, err := fmt.Fscan(r, &block, &version, &sent, &answered); err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if version <= picture[block] {
			in++
			newestIn = max(newestIn, sent)
		} else {
			out++
			oldestOut = min(oldestOut, answered)
		}
	}
	fmt.Printf("NBD-ORDER in=%d out=%d\n", in, out)
	if newestIn > oldestOut {
		return fmt.Errorf("not one point in time: a write sent at %v is in it, one answered at %v is not", time.Duration(newestIn), time.Duration(oldestOut))
	}
	return nil
}
