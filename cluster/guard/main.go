package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

const (
	// Nodes are told in parallel, this many at a time: one that has it through the leader is enough.
	toldAtOnce  = 5
	tellTimeout = 3 * time.Second
	dialTimeout = 500 * time.Millisecond
	// How long the guardian tries. Leases have long run out by then.
	tellFor   = 10 * time.Second
	tellPause = 50 * time.Millisecond
	// What the daemon wrote in its last moment is in the pipe already.
	lastWordWait = 50 * time.Millisecond
	// lineBytesMax bounds a line: a thousand addresses.
	lineBytesMax = 1 << 20
)

// Main is the guardian's program. It returns its exit code.
func Main() int {
	if err := run(os.Stdin, wire.TCP{}); err != nil {
		fmt.Fprintln(os.Stderr, "sheep guardian:", err)
		return 1
	}
	return 0
}

func run(in io.Reader, n wire.Network) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	fd, err := parent()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fmt.Print(readyWord)
	os.Stdout.Close()
	heard := make(chan line, 1)
	go listen(in, heard)
	died := make(chan error, 1)
	go func() { died <- waitDead(fd) }()
	var last line
	for {
		select {
		case l, ok := <-heard:
			if !ok {
				heard = nil // the daemon's death follows, or its last word was the last
				continue
			}
			if l.Bye {
				return nil
			}
			last = l
		case err := <-died:
			if err != nil {
				return err
			}
			if last, ok := lastWord(heard, last); ok {
				return report(n, last)
			}
			return nil
		}
	}
}

// lastWord reads what the daemon wrote before it died; false: it said goodbye. It waits for the end of the pipe, but not for ever: somebody else
// may have inherited the other end.
func lastWord(heard <-chan line, last line) (line, bool) {
	late := time.After(lastWordWait)
	for heard != nil {
		select {
		case l, ok := <-heard:
			switch {
			case !ok:
				heard = nil
			case l.Bye:
				return l, false
			default:
				last = l
			}
		case <-late:
			heard = nil
		}
	}
	return last, true
}

// parent opens a pidfd of the daemon, and makes sure that it is the daemon's.
func parent() (fd int, err error) {
	pid, err := strconv.Atoi(os.Getenv(parentEnv))
	if err != nil {
		return -1, errors.New("this is started by `sheep daemon` only")
	}
	fd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("watch process %d: %w", pid, err)
	}
	if os.Getppid() != pid { // it died before, and the number may be another's by now
		unix.Close(fd)
		return -1, fmt.Errorf("process %d is not the parent any more", pid)
	}
	return fd, nil
}

// waitDead waits until the process is gone with all its threads.
func waitDead(fd int) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		k, err := unix.Poll(p, -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("watch the daemon: %w", err)
		case k > 0:
			return nil
		}
	}
}

// listen reads lines until the end.
func listen(in io.Reader, out chan<- line) {
	defer close(out)
	s := bufio.NewScanner(in)
	s.Buffer(nil, lineBytesMax)
	for s.Scan() {
		var l line
		if json.Unmarshal(s.Bytes(), &l) == nil {
			out <- l
		}
	}
}

// report tells nodes of the death until one says that the leader has it.
func report(n wire.Network, l line) error {
	if len(l.Addrs) == 0 || l.Member.Inc == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellFor)
	defer cancel()
	e := wire.Exited{Node: uint32(l.Member.Node), Inc: l.Member.Inc}
	for ctx.Err() == nil {
		for i := 0; i < len(l.Addrs); i += toldAtOnce {
			if tellSome(ctx, n, l.Addrs[i:min(i+toldAtOnce, len(l.Addrs))], e.Append(nil)) {
				return nil
			}
		}
		select {
		case <-time.After(tellPause):
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("nobody took the word that node %d is gone", l.Member.Node)
}

// tellSome tells some nodes at once; true as soon as one has it through the leader.
func tellSome(ctx context.Context, n wire.Network, addrs []string, meta []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	told := make(chan bool, len(addrs))
	var wg sync.WaitGroup
	for _, a := range addrs {
		wg.Go(func() { told <- tell(ctx, n, a, meta) })
	}
	go func() { wg.Wait(); close(told) }()
	for ok := range told {
		if ok {
			return true
		}
	}
	return false
}

func tell(ctx context.Context, n wire.Network, addr string, meta []byte) bool {
	c, err := wire.DialCaller(n, addr, dialTimeout)
	if err != nil {
		return false
	}
	defer c.Close()
	h, _, _, err := c.Do(ctx, wire.Header{Kind: wire.KindExited}, meta, nil)
	return err == nil && h.Status == wire.StatusOK
}
