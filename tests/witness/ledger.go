package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
)

// A block's content is made from (seed, block, version), and says so in its first bytes:
//
//	 0  8  magic "witness1"
//	 8  8  seed
//	16  8  block
//	24  8  version
//	32     what randomBytes makes of the three, to the block's end
const blockMagic = "witness1"

const ledgerBlocksMax = 4 << 20 // 16 GiB: a ledger is four numbers a block in memory

func blockBytes(seed, block uint64, version uint32) []byte {
	b := randomBytes(seed*0x9E3779B97F4A7C15+block<<24+uint64(version), recordSize)
	copy(b, blockMagic)
	binary.LittleEndian.PutUint64(b[8:], seed)
	binary.LittleEndian.PutUint64(b[16:], block)
	binary.LittleEndian.PutUint64(b[24:], uint64(version))
	return b
}

// blockVersion tells which version of the block these bytes are: 0 for never written (all zeros).
func blockVersion(seed, block uint64, b []byte) (uint32, error) {
	if !bytes.HasPrefix(b, []byte(blockMagic)) {
		for _, c := range b {
			if c != 0 {
				return 0, fmt.Errorf("block %d: neither ours nor zeros (starts %q)", block, b[:16])
			}
		}
		return 0, nil
	}
	s, n, v := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if s != seed || n != block {
		return 0, fmt.Errorf("block %d (seed %d): holds block %d (seed %d)", block, seed, n, s)
	}
	if !bytes.Equal(b, blockBytes(seed, block, uint32(v))) {
		return 0, fmt.Errorf("block %d: torn: starts as version %d but does not go on so", block, v)
	}
	return uint32(v), nil
}

// ledger knows of each block the newest version that was sent, that was acknowledged, and that was acknowledged before a flush
// that succeeded; and which blocks have a request under way (at most one each, as a disk's own client keeps it).
type ledger struct {
	seed uint64

	mu                     sync.Mutex
	issued, acked, flushed []uint32
	seen                   []uint32 // a later read may not go back behind this
	busy                   map[uint64]bool
	unflushed              map[uint64]uint32 // acknowledged since the last flush was sent
	losses                 int               // how often lose was called
}

func newLedger(seed, blocks uint64) *ledger {
	return &ledger{seed: seed, issued: make([]uint32, blocks), acked: make([]uint32, blocks), flushed: make([]uint32, blocks),
		seen: make([]uint32, blocks), busy: map[uint64]bool{}, unflushed: map[uint64]uint32{}}
}

// take marks a block busy; false when it is already.
func (l *ledger) take(block uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy[block] {
		return false
	}
	l.busy[block] = true
	return true
}

func (l *ledger) release(block uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, block)
}

func (l *ledger) issue(block uint64) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.issued[block]++
	return l.issued[block]
}

func (l *ledger) ack(block uint64, version uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[block], l.seen[block] = version, version
	l.unflushed[block] = version
}

// lose notes that whoever acknowledged may have lost what it had not flushed: no later flush covers that.
func (l *ledger) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losses++
	l.unflushed = map[uint64]uint32{}
	copy(l.seen, l.flushed)
}

// flushing is what a flush covers.
type flushing struct {
	covered map[uint64]uint32
	losses  int
}

// beginFlush hands out what a flush sent now covers; endFlush notes that it succeeded.
func (l *ledger) beginFlush() flushing {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := flushing{l.unflushed, l.losses}
	l.unflushed = map[uint64]uint32{}
	return f
}

func (l *ledger) endFlush(f flushing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.losses != l.losses { // it was sent again to another
		return
	}
	for block, v := range f.covered {
		l.flushed[block] = max(l.flushed[block], v)
	}
}

// judge compares a version read from a block with nothing under way with what may be there.
func (l *ledger) judge(block uint64, version uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if version < l.seen[block] || version > l.issued[block] {
		return fmt.Errorf("block %d: version %d read; sent up to %d, acknowledged %d, flushed %d, seen before %d",
			block, version, l.issued[block], l.acked[block], l.flushed[block], l.seen[block])
	}
	l.seen[block] = version
	return nil
}

// expect sets the oldest version that reads may show: what was acknowledged (strict: nobody lost power), or what was flushed.
func (l *ledger) expect(strict bool) {
	if copy(l.seen, l.flushed); strict {
		copy(l.seen, l.acked)
	}
}

// bound makes this ledger judge a picture taken between two others: at least what was acknowledged in it, at most what was sent
// by the later one.
func (l *ledger) bound(upper *ledger) error {
	if upper.seed != l.seed || len(upper.issued) != len(l.issued) {
		return fmt.Errorf("the two ledgers are of different runs")
	}
	l.issued = upper.issued
	return nil
}

// save writes the ledger as text: a header, then "block issued acked flushed" for each block ever sent.
func (l *ledger) save(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b bytes.Buffer
	fmt.Fprintf(&b, "witness-ledger 1 %d %d\n", l.seed, len(l.issued))
	for block, v := range l.issued {
		if v > 0 {
			fmt.Fprintf(&b, "%d %d %d %d\n", block, v, l.acked[block], l.flushed[block])
		}
	}
	if err := os.WriteFile(name+".new", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func loadLedger(name string) (*ledger, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	var seed, blocks uint64
	if _, err := fmt.Fscanf(r, "witness-ledger 1 %d %d\n", &seed, &blocks); err != nil || blocks > ledgerBlocksMax {
		return nil, fmt.Errorf("%s is not a ledger: %v", name, err)
	}
	l := newLedger(seed, blocks)
	for line := 2; ; line++ {
		var block uint64
		var issued, acked, flushed uint32
		n, err := fmt.Fscanf(r, "%d %d %d %d\n", &block, &issued, &acked, &flushed)
		if n == 0 {
			return l, nil
		}
		if err != nil || block >= blocks {
			return nil, fmt.Errorf("%s line %d: bad entry (%v)", name, line, err)
		}
		l.issued[block], l.acked[block], l.flushed[block] = issued, acked, flushed
	}
}
