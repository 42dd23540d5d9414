package nbd

import "testing"

// TestBudgetDead: clients that never read, one after the other, each with as much as it can get, leave enough for those that work.
func TestBudgetDead(t *testing.T) {
	const total = 1 << 30
	for _, size := range []int64{4 << 10, 64 << 10, 1 << 20, 64 << 20} {
		b := newBudget(total)
		take := func(n int64, most int) (held int64) {
			for i := 0; i < most && held+n <= 64<<20+requestCost && b.take(held, n); i++ {
				held += n
			}
			return held
		}
		for range loadDead {
			take(size+requestCost, 1<<30)
		}
		const work, depth = 4<<10 + requestCost, 16
		for i := range loadBusy {
			if held := take(work, depth); held < depth*work {
				t.Fatalf("beside %d dead ones with requests of %d bytes, connection %d holds %d bytes of %d", loadDead, size, i, held, depth*work)
			}
		}
	}
}

// TestBudgetLargest: the longest request is admitted by the smallest budget that is allowed, once all else is given back.
func TestBudgetLargest(t *testing.T) {
	const largest = 64<<20 + requestCost
	b := newBudget(largest)
	if !b.take(0, 4096) || b.take(0, largest) {
		t.Fatal("more than all")
	}
	b.give(4096)
	if !b.take(0, largest) {
		t.Fatal("it is never admitted")
	}
}
