package nbd

import (
	"testing"
	"time"
)

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

// TestReaderLeavesTheNetworkToAnother: where others ask for something, another thread waits for the network soon after a reader that does not sleep any more.
func TestReaderLeavesTheNetworkToAnother(t *testing.T) {
	quiet := true
	srv := &Server{cfg: Config{Quiet: func() bool { return quiet }}, spinners: newSpinners()}
	c := &Conn{srv: srv}
	c.spin.woken()
	now := c.spin.away
	later := func(d time.Duration) bool { now = now.Add(d); return c.unattended(now) }
	for range 10 {
		if later(aloneTime) {
			t.Fatal("a thread was woken for nobody")
		}
	}
	srv.company.Store(now.UnixNano()) // as another connection's reader does
	if later(aloneTime / 2) {
		t.Error("at once")
	}
	if !later(aloneTime / 2) {
		t.Error("not after aloneTime beside another client")
	}
	if later(time.Second / 2) {
		t.Error("twice without a sleep between")
	}
	c.spin.woken()
	c.spin.away = now
	if later(companyTime) {
		t.Error("long after the other client")
	}
	if quiet = false; !later(aloneTime) {
		t.Error("not beside a peer")
	}
	if c.spin.wants() {
		t.Error("it spins beside a peer")
	}
}

// TestCompanyIsNoted: two clients of a server are company for each other, one alone is not.
func TestCompanyIsNoted(t *testing.T) {
	r, _ := memRig(t)
	a := r.ready(t, "", simpleReplies)
	for range 8 {
		a.ask(cmdFlush, 0, 0, 0)
	}
	if r.srv.company.Load() != 0 {
		t.Error("one client has company")
	}
	b := r.ready(t, "", simpleReplies)
	b.ask(cmdFlush, 0, 0, 0)
	if r.srv.company.Load() == 0 {
		t.Error("the second client is no company")
	}
}
