package client

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// TestR15Overlap compares the table with a list: a piece may go when nothing older that touches it is left, and never before.
func TestR15Overlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var o overlap
		var list []*piece // oldest first
		going := map[*piece]bool{}
		blocked := func(p *piece) bool {
			for _, q := range list {
				if q == p {
					return false
				}
				if q.index == p.index && q.touches(p) {
					return true
				}
			}
			return false
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				off := rapid.Uint32Range(0, 64<<10).Draw(t, "off")
				p := &piece{index: rapid.SampledFrom([]uint32{0, 1, overlapBuckets, 2 * overlapBuckets}).Draw(t, "index")}
				p.req.IO = wire.IO{Off: off, Len: rapid.Uint32Range(1, 20000).Draw(t, "len")}
				free := o.add(p)
				list = append(list, p)
				if free == blocked(p) {
					t.Fatalf("free %v", free)
				}
				going[p] = free
			},
			"remove": func(t *rapid.T) {
				var can []*piece
				for _, p := range list {
					if going[p] {
						can = append(can, p)
					}
				}
				if len(can) == 0 {
					t.Skip()
				}
				p := rapid.SampledFrom(can).Draw(t, "piece")
				free := o.remove(p)
				list = slices.DeleteFunc(list, func(q *piece) bool { return q == p })
				for q := free.pop(); q != nil; q = free.pop() {
					if going[q] || blocked(q) {
						t.Fatal("let go too early, or twice")
					}
					going[q] = true
				}
			},
			"": func(t *rapid.T) {
				for _, p := range list {
					if !going[p] && !blocked(p) {
						t.Fatal("waits for nothing")
					}
				}
			},
		})
	})
}

func TestLateAnswersMeetNobody(t *testing.T) {
	var table inflight
	a, b := new(piece), new(piece)
	first := table.add(a)
	if table.take(first) != a || table.take(first) != nil {
		t.Fatal("not exactly once")
	}
	second := table.add(b)
	if first == second || table.take(first) != nil || table.take(second+1) != nil || table.take(1<<63) != nil {
		t.Fatal("a withdrawn request was found")
	}
	if table.take(second) != b || table.n != 0 {
		t.Fatal("lost")
	}
}
