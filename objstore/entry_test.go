package objstore

import (
	"bytes"
	"reflect"
	"testing"
)

func sampleEntries() []Entry {
	data := bytes.Repeat([]byte{7}, 2*BlockSize)
	w := Entry{Number: Number{3, 9}, Kind: KindWrite, Key: MakeKey(0xabcdef, 5), Vid: 0xabcdef, Gen: 77, First: 1022, Count: 2, Data: data}
	w.SumData()
	return []Entry{
		{Number: Number{1, 1}, Kind: KindNoop},
		w,
		{Number: Number{3, 10}, Kind: KindZero, Key: 1, Vid: 1, Gen: 2, First: 0, Count: 1024},
		{Number: Number{3, 11}, Kind: KindMerge, Key: 1, Vid: 1, Gen: 2, Into: 3, IntoGen: 4},
		{Number: Number{3, 12}, Kind: KindDelete, Key: 1, Vid: 1, Gen: 2},
	}
}

func TestEntryHeadRoundTrip(t *testing.T) {
	for _, e := range sampleEntries() {
		b := e.AppendHead([]byte("x"))[1:]
		if len(b) != e.HeadSize() {
			t.Fatalf("%v: head of %d bytes, HeadSize %d", e.Kind, len(b), e.HeadSize())
		}
		got, n, err := ParseHead(append(b, 1, 2, 3))
		if err != nil || n != len(b) {
			t.Fatalf("%v: n=%d err=%v", e.Kind, n, err)
		}
		got.Data = e.Data
		if len(got.CRCs) == 0 {
			got.CRCs = nil
		}
		if !reflect.DeepEqual(got, e) {
			t.Fatalf("got %+v want %+v", got, e)
		}
		if err := got.VerifyData(); err != nil {
			t.Fatal(err)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 0x10
			if _, _, err := ParseHead(bad); err == nil {
				t.Fatalf("%v: flip at %d accepted", e.Kind, i)
			}
		}
	}
}

func FuzzParseHead(f *testing.F) {
	for _, e := range sampleEntries() {
		f.Add(e.AppendHead(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, n, err := ParseHead(b)
		if err != nil {
			return
		}
		if got := e.AppendHead(nil); !bytes.Equal(got, b[:n]) {
			t.Fatalf("%x encodes again as %x", b[:n], got)
		}
	})
}
