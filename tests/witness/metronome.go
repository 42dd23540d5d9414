package main

import (
	"fmt"
	"sync"
	"time"
)

const (
	beatEvery = 10 * time.Millisecond
	// A beat that comes later than this was not late because others had the processors: the machine stood still, as virtual machines do whose host is busy.
	stillMin = 250 * time.Millisecond
)

// metronome knows when the machine stood still. It does nothing but sleep and look at the clock, so that nothing a server does makes it late.
type metronome struct {
	mu     sync.Mutex
	last   time.Time // the newest beat
	stills []span
}

// span is a time without a beat.
type span struct{ from, to time.Time }

func startMetronome() *metronome {
	m := &metronome{last: time.Now()}
	go func() {
		for {
			time.Sleep(beatEvery)
			m.hit(time.Now())
		}
	}()
	return m
}

// hit is one beat.
func (m *metronome) hit(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.last) > stillMin {
		m.stills = append(m.stills, span{m.last, now})
	}
	m.last = now
}

// still is how much of the time from one moment to another the machine stood still, as far as that is known at the second.
func (m *metronome) still(from, to time.Time) (sum time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.stills) - 1; i >= 0 && m.stills[i].to.After(from); i-- {
		sum += overlap(m.stills[i], from, to)
	}
	if to.Sub(m.last) > stillMin { // it just woke up, and the beat is not here yet
		sum += overlap(span{m.last, to}, from, to)
	}
	return sum
}

func overlap(s span, from, to time.Time) time.Duration {
	if s.from.After(from) {
		from = s.from
	}
	if s.to.Before(to) {
		to = s.to
	}
	return max(0, to.Sub(from))
}

// stillMain: witness still. Runs until it is killed.
func stillMain([]string) error {
	for last := time.Now(); ; {
		time.Sleep(beatEvery)
		now := time.Now()
		if now.Sub(last) > stillMin {
			fmt.Printf("STILL %.3f %.3f\n", float64(last.UnixMilli())/1000, float64(now.UnixMilli())/1000)
		}
		last = now
	}
}
