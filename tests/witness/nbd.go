package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// nbdOptions are the flags of `witness nbd`.
type nbdOptions struct {
	export, state string
	size          uint64
	seconds       float64
	depth         int
	flushEvery    int64
	reads         int
	reconnect     time.Duration
	noSpace       time.Duration
	strict        bool
	volatile      bool
	rate          float64
	seed          uint64
	every         time.Duration
	upper, log    string
	targets       []string
}

// nbdMain:
//
//	witness nbd write [flags] TARGET...    writes (and reads) random 4 KiB blocks until SECONDS are over, INT, or the connection ends
//	witness nbd check [flags] TARGET...    reads every block and compares with the ledger
//
// A TARGET is unix:PATH or HOST:PORT. With -reconnect the next target is tried when a connection ends, and what was not
// answered is sent again there, for as long as given. TERM ends at once, without waiting for answers: for power cuts. USR1
// saves the ledger as it stands to FILE.1, FILE.2 ... and says "SAVED n": for pictures (snapshots) taken between two of them.
func nbdMain(args []string) error {
	if len(args) < 1 || (args[0] != "write" && args[0] != "check") {
		return fmt.Errorf("usage: witness nbd write|check [flags] TARGET...")
	}
	var o nbdOptions
	fs := flag.NewFlagSet("witness nbd "+args[0], flag.ExitOnError)
	fs.StringVar(&o.export, "export", "", "export name")
	fs.StringVar(&o.state, "state", "ledger", "file that remembers what was sent, acknowledged and flushed; continued if it is there")
	fs.Func("size", "bytes to use, from the start (such as 64M; all of the export when not given)", func(s string) (err error) {
		o.size, err = parseSize(s)
		return err
	})
	fs.Float64Var(&o.seconds, "seconds", 10, "how long to write")
	fs.IntVar(&o.depth, "depth", 1, "requests in flight")
	fs.Int64Var(&o.flushEvery, "flush-every", 64, "flush after so many writes (0: only at the end)")
	fs.IntVar(&o.reads, "reads", 20, "percent of requests that are verified reads")
	fs.DurationVar(&o.reconnect, "reconnect", 0, "on a lost connection, try the targets in turn for so long")
	fs.DurationVar(&o.noSpace, "no-space", 0, "send again for so long what is refused for want of space, as a virtual machine that waits for some")
	fs.BoolVar(&o.volatile, "volatile", false, "with -reconnect: a connection is lost with all that was acknowledged on it and not flushed, as when the server and all disks lose their power")
	fs.BoolVar(&o.strict, "strict", false, "expect all that was acknowledged, not only what was flushed")
	fs.Float64Var(&o.rate, "rate", 0, "requests a second at most (0: no limit)")
	fs.DurationVar(&o.every, "every", time.Second, "say so often how far it is")
	fs.Uint64Var(&o.seed, "seed", 1, "of the content and of the order")
	fs.StringVar(&o.upper, "upper", "", "check: the ledger as it stood after the picture was taken; -state is the one before")
	fs.StringVar(&o.log, "log", "", "write: note when each write was sent and answered; check: use that to judge the picture's order")
	_ = fs.Parse(args[1:])
	if o.targets = fs.Args(); len(o.targets) == 0 || o.depth < 1 || o.every <= 0 {
		return fmt.Errorf("needs a target, a depth of at least 1 and an -every above 0")
	}
	c, err := newNBDClient(&o)
	if err != nil {
		return err
	}
	if args[0] == "check" {
		return c.check()
	}
	return c.write()
}

// parseSize reads a number of bytes that may end in K, M or G.
func parseSize(s string) (uint64, error) {
	shift := 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMG", s[n-1]); i >= 0 {
			s, shift = s[:n-1], 10*(i+1)
		}
	}
	v, err := strconv.ParseUint(s, 10, 64-shift)
	return v << shift, err
}

type nbdClient struct {
	o      *nbdOptions
	blocks uint64
	ledger *ledger

	mu         sync.Mutex // guards conn, target, reconnects
	conn       *nbdConn
	target     int
	reconnects int

	writes, readsDone, flushes atomic.Int64
	noSpace                    atomic.Int64 // answers that there is no space
	stopping                   atomic.Bool
	failure                    atomic.Pointer[error]
	gaps                       gapMeter
	beat                       *metronome
	order                      *orderLog // nil without -log
	saved                      int       // by USR1
}

func newNBDClient(o *nbdOptions) (*nbdClient, error) {
	c := &nbdClient{o: o}
	conn, err := dialNBD(o.targets[0], o.export)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	if o.size == 0 || o.size > conn.size {
		o.size = conn.size
	}
	c.blocks = o.size / recordSize
	if c.blocks == 0 || c.blocks > ledgerBlocksMax {
		return nil, fmt.Errorf("%d bytes: choose a -size from one block to %d bytes", o.size, uint64(ledgerBlocksMax)*recordSize)
	}
	if c.ledger, err = loadLedger(o.state); errors.Is(err, os.ErrNotExist) {
		c.ledger, err = newLedger(o.seed, c.blocks), nil
	}
	if err != nil {
		return nil, err
	}
	if uint64(len(c.ledger.issued)) < c.blocks {
		c.blocks = uint64(len(c.ledger.issued))
	}
	c.ledger.expect(o.strict)
	if o.upper != "" {
		upper, err := loadLedger(o.upper)
		if err == nil {
			err = c.ledger.bound(upper)
		}
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// gapMeter measures how long nothing at all was answered, and the longest that one request took.
type gapMeter struct {
	mu                   sync.Mutex
	start, last          time.Time
	longest, longestCall time.Duration
	at                   time.Duration
	what                 string        // the request that took longest,
	whatAt               time.Duration // and when it was answered
}

// answered notes one answer. What the machine stood still is not the server's.
func (g *gapMeter) answered(what string, sent time.Time, beat *metronome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if gap := now.Sub(g.last) - beat.still(g.last, now); gap > g.longest {
		g.longest, g.at = gap, now.Sub(g.start)
	}
	if took := now.Sub(sent) - beat.still(sent, now); took > g.longestCall {
		g.longestCall, g.what, g.whatAt = took, what, now.Sub(g.start)
	}
	g.last = now
}

func (c *nbdClient) write() error {
	c.gaps.start, c.gaps.last = time.Now(), time.Now()
	c.beat = startMetronome()
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, os.Interrupt, syscall.SIGTERM, syscall.SIGUSR1)
	if c.o.log != "" {
		c.order = newOrderLog(c.o.log)
		defer c.order.close()
	}
	done := make(chan struct{})
	var workers sync.WaitGroup
	for w := range c.o.depth {
		workers.Go(func() { c.work(rand.New(rand.NewPCG(c.o.seed, uint64(w)+uint64(time.Now().UnixNano())))) })
	}
	go func() { workers.Wait(); close(done) }()
	reason := c.supervise(sigs, done)
	if reason == "TERM" {
		return c.report(reason) // whatever is under way stays unanswered
	}
	if err := c.failure.Load(); err != nil && errors.Is(*err, errLost) && c.o.reconnect == 0 {
		return c.report("connection-lost")
	} else if err != nil {
		_ = c.report("error")
		return *err
	}
	if err := c.flushNow(); err != nil {
		_ = c.report("flush-error")
		return err
	}
	return c.report(reason)
}

// supervise waits for the end of a run, telling every so often how far it is.
func (c *nbdClient) supervise(sigs <-chan os.Signal, done <-chan struct{}) string {
	end := time.NewTimer(time.Duration(c.o.seconds * float64(time.Second)))
	tick := time.NewTicker(c.o.every)
	reason := "stopped"
	for {
		select {
		case <-done:
			return reason
		case <-end.C:
			reason = "time"
			c.stopping.Store(true)
		case s := <-sigs:
			switch s {
			case syscall.SIGTERM:
				return "TERM"
			case syscall.SIGUSR1:
				c.saved++
				err := c.ledger.save(fmt.Sprintf("%s.%d", c.o.state, c.saved))
				fmt.Printf("SAVED %d %v\n", c.saved, err)
				continue
			}
			reason = "INT"
			c.stopping.Store(true)
		case <-tick.C:
			fmt.Printf("NBD-AT %.2f writes=%d reads=%d flushes=%d\n", time.Since(c.gaps.start).Seconds(), c.writes.Load(), c.readsDone.Load(), c.flushes.Load())
		}
	}
}

func (c *nbdClient) report(reason string) error {
	c.gaps.mu.Lock()
	longest, at, call, what, whatAt := c.gaps.longest, c.gaps.at, c.gaps.longestCall, c.gaps.what, c.gaps.whatAt
	c.gaps.mu.Unlock()
	c.mu.Lock()
	reconnects := c.reconnects
	c.mu.Unlock()
	fmt.Printf("NBD-END reason=%s writes=%d reads=%d flushes=%d reconnects=%d longest-gap=%.3f at=%.1f longest-request=%.3f no-space=%d stood-still=%.3f longest-was=%s@%.1f\n",
		reason, c.writes.Load(), c.readsDone.Load(), c.flushes.Load(), reconnects, longest.Seconds(), at.Seconds(), call.Seconds(), c.noSpace.Load(), c.beat.still(c.gaps.start, time.Now()).Seconds(), what, whatAt.Seconds())
	return c.ledger.save(c.o.state)
}

// work is one of depth workers: one request at a time, until told to stop or an error.
func (c *nbdClient) work(r *rand.Rand) {
	var pace <-chan time.Time
	if c.o.rate > 0 {
		t := time.NewTicker(time.Duration(float64(time.Second) * float64(c.o.depth) / c.o.rate))
		defer t.Stop()
		pace = t.C
	}
	for !c.stopping.Load() {
		if pace != nil {
			<-pace
		}
		if err := c.one(r); err != nil {
			c.failure.CompareAndSwap(nil, &err)
			c.stopping.Store(true)
		}
	}
}

func (c *nbdClient) one(r *rand.Rand) error {
	block := r.Uint64N(c.blocks)
	for !c.ledger.take(block) {
		block = r.Uint64N(c.blocks)
	}
	defer c.ledger.release(block)
	sent := time.Now()
	if r.IntN(100) < c.o.reads {
		if err := c.readBlock(block); err != nil {
			return err
		}
		c.readsDone.Add(1)
		c.gaps.answered("read", sent, c.beat)
		return nil
	}
	version := c.ledger.issue(block)
	data := blockBytes(c.ledger.seed, block, version)
	if err := c.retry(func(n *nbdConn) error { return n.write(block*recordSize, data) }); err != nil {
		return fmt.Errorf("write block %d version %d: %w", block, version, err)
	}
	c.ledger.ack(block, version)
	c.order.note(block, version, sent)
	c.gaps.answered("write", sent, c.beat)
	if n := c.writes.Add(1); c.o.flushEvery > 0 && n%c.o.flushEvery == 0 {
		return c.flushNow()
	}
	return nil
}

func (c *nbdClient) readBlock(block uint64) error {
	b := make([]byte, recordSize)
	if err := c.retry(func(n *nbdConn) error { return n.read(block*recordSize, b) }); err != nil {
		return fmt.Errorf("read block %d: %w", block, err)
	}
	v, err := blockVersion(c.ledger.seed, block, b)
	if err != nil {
		return err
	}
	return c.ledger.judge(block, v)
}

func (c *nbdClient) flushNow() error {
	sent := time.Now()
	covered := c.ledger.beginFlush()
	if err := c.retry((*nbdConn).flush); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	c.ledger.endFlush(covered)
	c.flushes.Add(1)
	c.gaps.answered("flush", sent, c.beat)
	return nil
}

// retry runs one request, and again on a new connection when its own was lost and -reconnect allows, or when there was no space and -no-space does.
func (c *nbdClient) retry(request func(*nbdConn) error) error {
	for began := time.Now(); ; {
		c.mu.Lock()
		conn := c.conn
		c.mu.Unlock()
		err := request(conn)
		if errors.Is(err, syscall.ENOSPC) && time.Since(began) < c.o.noSpace {
			c.noSpace.Add(1)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err == nil || !errors.Is(err, errLost) || c.o.reconnect == 0 {
			return err
		}
		if err := c.redial(conn, err); err != nil {
			return err
		}
	}
}

// redial replaces a lost connection, unless another worker has done so.
func (c *nbdClient) redial(lost *nbdConn, why error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != lost {
		return nil
	}
	for deadline := time.Now().Add(c.o.reconnect); ; {
		c.target = (c.target + 1) % len(c.o.targets)
		conn, err := dialNBD(c.o.targets[c.target], c.o.export)
		if err == nil {
			c.conn = conn
			c.reconnects++
			if c.o.volatile {
				c.ledger.lose()
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w; no other connection in %v: %v", why, c.o.reconnect, err)
		}
		time.Sleep(50 * time.Millisecond) // a refused connection answers at once: don't spin
	}
}

// check reads every block of the ledger, sixteen at once.
func (c *nbdClient) check() error {
	var (
		next         atomic.Uint64
		mu           sync.Mutex // guards what is below
		checked, bad int
		lost         error
		readers      sync.WaitGroup
	)
	for range 16 {
		readers.Go(func() {
			for block := next.Add(1) - 1; block < c.blocks; block = next.Add(1) - 1 {
				if c.ledger.issued[block] == 0 {
					continue
				}
				err := c.readBlock(block)
				mu.Lock()
				checked++
				if errors.Is(err, errLost) {
					lost = err
				} else if err != nil {
					if bad++; bad <= 5 {
						fmt.Println("BAD", err)
					}
				}
				stop := lost != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	readers.Wait()
	if lost != nil {
		return lost
	}
	fmt.Printf("NBD-CHECKED blocks=%d bad=%d strict=%v\n", checked, bad, c.o.strict)
	if bad > 0 {
		return fmt.Errorf("%d of %d blocks are not what they must be", bad, checked)
	}
	if c.o.log != "" {
		picture := map[uint64]uint32{}
		for block, sent := range c.ledger.issued[:c.blocks] {
			if sent > 0 {
				picture[uint64(block)] = c.ledger.seen[block]
			}
		}
		return checkOrder(c.o.log, picture)
	}
	return nil
}
