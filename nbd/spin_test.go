package nbd

import "testing"

// TestSpinner: the reader spins while that succeeds, tries ever more rarely where it does not, and lets others be.
func TestSpinner(t *testing.T) {
	var s spinner
	tries := func(sleeps int) (n int) { // of a client that is never quick enough
		for range sleeps {
			if s.wants() {
				n++
				s.miss()
			}
		}
		return n
	}
	if n := tries(100_000); n > 10+100_000/(spinSkips+1)+1 {
		t.Errorf("%d tries in vain in 100,000", n)
	}
	for !s.wants() {
	}
	wakes := 0
	for range 10 * spinAlone {
		if s.hit() {
			wakes++
		}
		if !s.wants() {
			t.Fatal("it does not go on where it succeeds")
		}
	}
	if wakes != 1 {
		t.Errorf("another thread was woken %d times", wakes)
	}
	if s.miss(); !s.wants() {
		t.Error("one miss after many hits is not forgiven")
	}
	if s.miss(); s.wants() {
		t.Error("the second one is")
	}
	s = spinner{}
	s.disturbed(spinCalm)
	for i := range spinCalm {
		if s.wants() {
			t.Fatalf("it tried at the %d. sleep after others had come", i)
		}
	}
	if !s.wants() {
		t.Error("it never tries again")
	}
}

func TestSpinnersAreBounded(t *testing.T) {
	s := spinners{most: 2}
	if !s.enter() || !s.enter() || s.enter() {
		t.Error("not two")
	}
	if s.leave(); !s.enter() || s.enter() {
		t.Error("not one more after one left")
	}
	one := spinners{}
	if one.enter() {
		t.Error("a single processor spins")
	}
}
