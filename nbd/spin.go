package nbd

import (
	"runtime"
	"sync/atomic"
	"time"
)

// The spin: a client with few requests under way sends the next one some microseconds after it has an answer. To sleep until then and be woken takes longer than that, most
// of all where the processor went to sleep too. So a reader that finds nothing looks again a few times before it sleeps, as QEMU's event loop does. It does so only
// while the client has all its answers, as long as that succeeds nearly always, and where nobody else asks this process for anything: a thread that is always awake makes
// those wait that wake up now and then, by some milliseconds in the worst case where processors are few.

const (
	spinTime  = 32 * time.Microsecond // as QEMU has it (poll-max-ns); with 20 even the first look comes too soon where the client was asleep
	spinLook  = 4 * time.Microsecond  // between looks: what a client with many requests under way sends meanwhile is taken together
	spinCalm  = 4096                  // how many sleeps go by without a try after somebody else asked for something: some 100 ms
	spinHits  = 16                    // in a row, for a miss to be forgiven
	spinParts = 16                    // within one request: a client that sends it byte by byte must meet the deadline that a sleep sets
	spinSkips = 1023                  // how many sleeps go by at most until it is tried again

	// The thread that waits for the network in Go's scheduler is replaced by no other when it gets something to do, for up to 10 ms. A reader that spins
	// does not go back there, and what came for others would lie so long. So after spinAlone hits another thread is woken: it finds nothing to do, and
	// waits for the network from then on. (To wake it takes the client's processor for a moment: 8 hits cost a quarter of the speed.)
	spinAlone = 64

	// The same holds for a reader that never has to sleep because its client has much under way, and for one that spins beside others: where others asked for something
	// within the last companyTime, another thread is woken as soon as this one has stayed away for aloneTime. (A thread that waits for the network is woken by what comes for this
	// reader too, to no use. Alone, that costs a client with 32 requests under way 17 %, so it is not done for nobody.)
	aloneTime   = 500 * time.Microsecond
	companyTime = time.Second
)

// spinner decides when a reader spins.
type spinner struct {
	hits  int // in a row
	skip  int // how many sleeps don't try first
	lapse int // how many did not after the last miss
	alone int // hits since the reader slept
	parts int // reads since a request began

	away     time.Time // when the reader's thread last left the network; or, if there was no company, when it was looked for
	attended bool      // another thread was woken since
}

// wants says whether to try, once for each sleep that may be spared.
func (s *spinner) wants() bool {
	if s.skip > 0 {
		s.skip--
		return false
	}
	return true
}

// hit takes that something came, and says whether to wake another thread.
func (s *spinner) hit() bool {
	s.hits++
	s.alone++
	return s.alone == spinAlone
}

// woken takes that the reader slept, and its thread waited for the network until now.
func (s *spinner) woken() { s.away, s.attended = time.Now(), false }

// disturbed takes that somebody else asked for something.
func (s *spinner) disturbed(calm int) { s.hits, s.skip = 0, calm }

// miss takes that nothing came.
func (s *spinner) miss() {
	if s.hits >= spinHits {
		s.lapse = 0
	} else {
		s.lapse = min(2*s.lapse+1, spinSkips)
	}
	s.hits, s.skip = 0, s.lapse
}

// spinners bounds how many readers of a server spin at once: one for two processors, since each has a client that needs one too.
type spinners struct {
	most int32
	calm int // spinCalm, but for tests
	now  atomic.Int32
}

func newSpinners() *spinners {
	return &spinners{most: int32(runtime.GOMAXPROCS(0) / 2), calm: spinCalm}
}

func (s *spinners) enter() bool {
	if s.now.Add(1) <= s.most {
		return true
	}
	s.now.Add(-1)
	return false
}

func (s *spinners) leave() { s.now.Add(-1) }

// await reads what is there, or comes.
func (c *Conn) await() (int, error) {
	n, err := c.tr.tryRead(&c.in, 0)
	if err != errAgain {
		return n, err
	}
	_, blind := c.tr.(*plainTransport)
	if !blind { // nothing was there: what comes is fresh
		if err := c.caughtUp(); err != nil {
			return 0, err
		}
	}
	s := &c.spin
	if s.parts++; s.parts <= spinParts && s.wants() && c.answeredAll() && c.srv.spinners.enter() {
		n, err = c.tr.tryRead(&c.in, spinTime)
		c.srv.spinners.leave()
		if err != errAgain {
			if s.hit() {
				go func() {}()
			}
			c.listen(time.Now())
			return n, err
		}
		s.miss()
	}
	s.alone = 0
	asleep := time.Now()
	n, err = c.tr.read(&c.in)
	s.woken()
	if blind && s.away.Sub(asleep) > time.Millisecond { // it waited
		c.late = false
	}
	return n, err
}

// listen asks whether others than the server's clients asked for something.
func (c *Conn) listen(now time.Time) {
	if quiet := c.srv.cfg.Quiet; quiet != nil && !quiet() {
		c.spin.disturbed(c.srv.spinners.calm)
		c.srv.company.Store(now.UnixNano())
	}
}

// unattended says whether this reader's thread has been away from the network for too long, where others than its client asked for something lately.
func (c *Conn) unattended(now time.Time) bool {
	s := &c.spin
	if s.attended || now.Sub(s.away) < aloneTime {
		return false
	}
	c.listen(now)
	s.away = now
	s.attended = now.UnixNano()-c.srv.company.Load() < int64(companyTime)
	return s.attended
}

// answeredAll says whether the client has all its answers.
func (c *Conn) answeredAll() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken == c.answered && !c.writing
}
