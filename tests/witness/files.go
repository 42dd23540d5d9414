package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const filesKept = 48 // files that are rewritten in turn

// fileWriter writes files into one directory and remembers their checksums and the longest time any step took.
type fileWriter struct {
	dir     string
	sums    [filesKept][sha256.Size]byte
	present [filesKept]bool
	longest time.Duration
	when    time.Duration // since the start, of the longest
	start   time.Time
}

// filesMain: witness files DIR SECONDS. Ends after SECONDS or when a line arrives on standard input. A round is one file
// created or rewritten, synced; the pause reported is the longest time from one round's end to the next one's.
func filesMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: witness files DIR SECONDS")
	}
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("seconds %q: %w", args[1], err)
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
			close(stop)
		}
	}()
	w := &fileWriter{dir: args[0], start: time.Now()}
	rounds, err := w.run(stop, time.Duration(seconds)*time.Second)
	if err != nil {
		return err
	}
	fmt.Printf("FILES-END rounds=%d longest-pause=%.3f at=%.1f\n", rounds, w.longest.Seconds(), w.when.Seconds())
	return w.verify()
}

func (w *fileWriter) run(stop <-chan struct{}, limit time.Duration) (rounds int, err error) {
	last := time.Now()
	for ; time.Since(w.start) < limit; rounds++ {
		select {
		case <-stop:
			return rounds, nil
		default:
		}
		if err := w.round(rounds); err != nil {
			return rounds, fmt.Errorf("round %d: %w", rounds, err)
		}
		took := time.Since(last)
		if last = time.Now(); took > w.longest {
			w.longest, w.when = took, time.Since(w.start)
		}
		if rounds%16 == 0 || took > time.Second {
			fmt.Printf("ROUND %d at=%.2f took=%.3f longest=%.3f\n", rounds, time.Since(w.start).Seconds(), took.Seconds(), w.longest.Seconds())
		}
	}
	return rounds, nil
}

// round rewrites one file: half of them in place, half by a new file renamed over the old one.
func (w *fileWriter) round(n int) error {
	slot := n % filesKept
	data := randomBytes(uint64(n), 4<<10+int(uint64(n)*2654435761%(124<<10)))
	name := w.name(slot)
	if slot%2 == 0 {
		name += ".new"
	}
	if err := writeSynced(name, data); err != nil {
		return err
	}
	if slot%2 == 0 {
		if err := os.Rename(name, w.name(slot)); err != nil {
			return err
		}
	}
	w.sums[slot], w.present[slot] = sha256.Sum256(data), true
	return nil
}

func (w *fileWriter) name(slot int) string { return filepath.Join(w.dir, fmt.Sprintf("f%02d", slot)) }

// verify reads everything back past the page cache and compares checksums.
func (w *fileWriter) verify() error {
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0) // best effort: only root may
	files := 0
	for slot, there := range w.present {
		if !there {
			continue
		}
		data, err := os.ReadFile(w.name(slot))
		if err != nil {
			return err
		}
		if sha256.Sum256(data) != w.sums[slot] {
			return fmt.Errorf("verify %s: its bytes are not those written", w.name(slot))
		}
		files++
	}
	fmt.Printf("FILES-VERIFIED %d\n", files)
	return nil
}

func writeSynced(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// randomBytes gives n bytes that only seed decides.
func randomBytes(seed uint64, n int) []byte {
	r := rand.NewPCG(seed, 0x5eed)
	b := make([]byte, (n+7)/8*8)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}
