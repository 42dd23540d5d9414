package objstore

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/sheepdog-go/sheepdog/objstore/vfs"
)

// Every parser of bytes from the disk or the wire: none panics, and what it
// takes encodes to the same again.

func sampleUnit() *Unit {
	return &Unit{Key: MakeKey(1, 2), Version: Number{3, 4}, Versions: []UnitVersion{
		{Vid: 1, Gen: 5, Blocks: []UnitBlock{{0, Zero, 0}, {7, Present, 9}, {1023, Bad, 0}}},
		{Vid: 9, Gen: 6},
	}}
}

func TestUnitRoundTrip(t *testing.T) {
	b := sampleUnit().Append([]byte("x"))[1:]
	u, err := ParseUnit(b)
	if err != nil || !reflect.DeepEqual(u, sampleUnit()) {
		t.Fatalf("%+v %v", u, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if _, err := ParseUnit(bad); err == nil {
			t.Fatalf("flip at %d accepted", i)
		}
	}
}

func FuzzParseUnit(f *testing.F) {
	f.Add(sampleUnit().Append(nil)[8:])
	f.Fuzz(func(t *testing.T, tail []byte) {
		// The checksum is made right, or the fuzzer would see nothing else.
		b := append([]byte{unitFormat, 0, 0, 0, 0, 0, 0, 0}, tail...)
		putSum(b[4:], Checksum(tail))
		if u, err := ParseUnit(b); err == nil && !bytes.Equal(u.Append(nil), b) {
			t.Fatalf("%x encodes again as %x", b, u.Append(nil))
		}
	})
}

func putSum(b []byte, sum uint32) {
	b[0], b[1], b[2], b[3] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
}

func FuzzParseRecord(f *testing.F) {
	e := sampleEntries()[1]
	b := endFrame(e.AppendHead(beginFrame(nil)), 0, recEntry, 7, 8192, 3, 0)
	f.Add(append(b, e.Data...), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, off uint16) {
		for _, fix := range []bool{false, true} {
			at := int64(off) &^ (recordAlign - 1)
			if fix && at+frameSize <= int64(len(b)) {
				n := int64(b[at+4]) | int64(b[at+5])<<8
				if n >= frameSize && at+n <= int64(len(b)) {
					putSum(b[at:], recordSum(b[at:at+n], 3, at))
				}
			}
			r, ok := parseRecord(b, 3, at)
			if !ok {
				continue
			}
			_, _, _ = ParseHead(r.body)
			_, _ = parseMark(r.body)
			parseNumbers(r.body)
			parseImage(r.body)
			parseLarge(r.body)
		}
	})
}

func FuzzParseLarge(f *testing.F) {
	e := sampleEntries()[1]
	f.Add(appendLarge(&e, 77, []slotRun{{dataSlot(0, 5), 1}, {dataSlot(1, 9), 1}})[e.HeadSize():])
	f.Fuzz(func(t *testing.T, tail []byte) {
		b := append(e.AppendHead(nil), tail...)
		if got, birth, runs, ok := parseLarge(b); ok && !bytes.Equal(appendLarge(&got, birth, runs), b) {
			t.Fatalf("%x encodes again otherwise", b)
		}
	})
}

func sampleImage() image {
	slots := imageVersion{vid: 5, gen: 6}
	for i := range uint32(300) { // in order, backwards, in order over a chunk's end
		at := [...]uint32{dataSlot(0, 8) + i, dataSlot(0, 900) - i, dataSlot(1, 1023) - 299 + i}[i/100]
		slots.blocks = append(slots.blocks, imageBlock{block: uint16(i), state: Present, how: imageSlot, sum: 7 * i, slot: at})
	}
	return image{key: 1, birth: 2, version: Number{3, 4}, versions: []imageVersion{slots, {vid: 6, gen: 7}, {vid: 7, gen: 8, blocks: []imageBlock{
		{block: 1, state: Present, how: imageSlot, sum: 7, slot: dataSlot(0, 8)}, {block: 2, state: Present, how: imageKeep, sum: 9}, {block: 3, state: Present, how: imageKeep, sum: 9},
		{block: 4, state: Zero}, {block: 5, state: Zero}, {block: 7, state: Zero}, {block: 1022, state: Bad}, {block: 1023, state: Bad}}}}}
}

func TestImageRoundTrip(t *testing.T) {
	im := sampleImage()
	b := im.append(nil)
	got, ok := parseImage(b)
	if !ok || !reflect.DeepEqual(got, im) {
		t.Fatalf("%v: %+v", ok, got)
	}
	if want := unitHead + 3*unitVersionHead + (1+100+1)*imageRunHead + 300*4 + 5*imageRunHead + 3*4; len(b) != want {
		t.Errorf("%d bytes, not %d", len(b), want)
	}
	for n := range b {
		if _, ok := parseImage(b[:n]); ok {
			t.Fatalf("the first %d bytes are an image too", n)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	im := sampleImage()
	f.Add(im.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if im, ok := parseImage(b); ok && !bytes.Equal(im.append(nil), b) {
			t.Fatalf("%x encodes again otherwise", b)
		}
	})
}

func FuzzParseTable(f *testing.F) {
	h := tableHead{chunk: 1, key: 2, birth: 3, checkpoint: 4, vid: 5, gen: 6, version: Number{7, 8}}
	var cells [BlocksPerObject]cell
	cells[3] = cell{cellSlot | dataSlot(0, 3), 9}
	f.Add(h.encode(make([]byte, tableBytes), &cells)[8:])
	h.free = true
	f.Add(h.encode(make([]byte, tableBytes), nil)[8:])
	f.Fuzz(func(t *testing.T, tail []byte) {
		b := append([]byte{'S', 'O', 'T', '1', 0, 0, 0, 0}, tail...)
		for _, n := range []int{tableUsed, freeMarkBytes} {
			if len(b) >= n {
				putSum(b[4:], Checksum(b[8:n]))
				var cells [BlocksPerObject]cell
				parseTable(b, &cells)
			}
		}
		parseFileHeader(tail)
	})
}

func FuzzCatalog(f *testing.F) {
	s := newStore(Config{Logger: quiet()}, testIdentity)
	g := s.groupLocked(3)
	g.terms = []Number{{1, 2}}
	g.usageOf(4, 5).Objects = 1
	b := g.appendRecord(nil)
	b = objectRecord{group: 3, key: 4, damaged: true}.append(b)
	b = appendGone(b, catObjectGone, 3, 4)
	f.Add(appendGone(b, catGroupGone, 3, 0))
	f.Fuzz(func(t *testing.T, records []byte) {
		b := endBatch(append(beginBatch(2, 3, true), records...), 0)
		h, ok := parseBatch(b, 0)
		if !ok || h.checkpoint != 2 || h.cut != 3 || !h.all || !bytes.Equal(h.records, records) {
			t.Fatalf("%+v %v", h, ok)
		}
		newStore(Config{Logger: quiet()}, testIdentity).takeBatch(h)
		parseBatch(records, 0)
	})
}

func FuzzNamed(f *testing.F) {
	f.Add(encodeNamed([]byte("value")))
	f.Add(encodeNamed(testIdentity.encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeNamed(b)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeNamed(v), b) {
			t.Fatalf("%q encodes again otherwise", b)
		}
		parseIdentity(v)
	})
}

// TestImageOfManyVersions: how many whole versions an object may have so that its image is one record of a segment of the usual size.
func TestImageOfManyVersions(t *testing.T) {
	for _, x := range []struct {
		versions int
		slot     func(block int) uint32
	}{{8100, func(b int) uint32 { return dataSlot(3, b) }}, {2000, func(b int) uint32 { return dataSlot(3, 1023-b) }}} {
		blocks := make([]imageBlock, BlocksPerObject)
		for b := range blocks {
			blocks[b] = imageBlock{block: uint16(b), state: Present, how: imageSlot, slot: x.slot(b), sum: uint32(b)}
		}
		im := image{key: 1}
		for v := range x.versions {
			im.versions = append(im.versions, imageVersion{vid: Vid(v + 1), blocks: blocks})
		}
		c, err := Config{Dir: t.TempDir()}.sized(vfs.OS{})
		if err != nil {
			t.Fatal(err)
		}
		if n := int64(frameLen(len(im.append(nil))) + 2*frameLen(markSize)); n > c.SegmentBytes {
			t.Errorf("%d versions: %d bytes, and a segment has %d", x.versions, n, c.SegmentBytes)
		}
	}
}
