package guard

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// parentEnv tells the guardian whose it is.
const parentEnv = "SHEEP_GUARDIAN_OF"

// readyWord is what the guardian writes to stdout once it watches.
const readyWord = "ready\n"

const readyTimeout = 10 * time.Second

// pipeTimeout bounds the wait for a guardian that does not read: it was stopped, and the pipe is full.
const pipeTimeout = 500 * time.Millisecond

// byeTimeout bounds the wait for a guardian that was told to go.
const byeTimeout = time.Second

// line is what the daemon tells.
type line struct {
	Member state.Member `json:"member"`
	Addrs  []string     `json:"addrs"`
	Bye    bool         `json:"bye,omitempty"`
}

// Guard is the daemon's handle on its guardian.
type Guard struct {
	cmd  *exec.Cmd
	in   pipe
	done chan struct{} // closed when the process has ended

	mu      sync.Mutex // guards what follows, and writes
	stopped bool
}

// pipe is the guardian's standard input.
type pipe interface {
	io.WriteCloser
	SetWriteDeadline(time.Time) error
}

// Start runs a guardian for this process: argv is a command that calls Main. It watches when Start returns.
func Start(argv []string, log *slog.Logger) (*Guard, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), parentEnv+"="+strconv.Itoa(os.Getpid()))
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guardian: %w", err)
	}
	in, ok := stdin.(pipe)
	if !ok {
		return nil, fmt.Errorf("start the guardian: a %T has no deadlines", stdin)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guardian: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guardian: %w", err)
	}
	late := time.AfterFunc(readyTimeout, func() { cmd.Process.Kill() })
	_, err = io.ReadFull(out, make([]byte, len(readyWord)))
	late.Stop()
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("start the guardian %q: it does not get ready: %w", argv, err)
	}
	g := &Guard{cmd: cmd, in: in, done: make(chan struct{})}
	go func() {
		err := cmd.Wait()
		g.mu.Lock()
		stopped := g.stopped
		g.mu.Unlock()
		if !stopped {
			log.Error("the guardian ended", "err", err)
		}
		close(g.done)
	}()
	return g, nil
}

// Pid is the guardian's.
func (g *Guard) Pid() int { return g.cmd.Process.Pid }

// Tell says who the daemon is now and whom to tell of its death.
func (g *Guard) Tell(m state.Member, addrs []string) error {
	return g.write(line{Member: m, Addrs: addrs})
}

func (g *Guard) write(l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return nil
	}
	g.stopped = l.Bye
	if err := g.in.SetWriteDeadline(time.Now().Add(pipeTimeout)); err != nil {
		return fmt.Errorf("tell the guardian: %w", err)
	}
	if _, err := g.in.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("tell the guardian: %w", err)
	}
	return nil
}

// Stop sends the guardian away. It may be called more than once.
func (g *Guard) Stop() {
	g.write(line{Bye: true})
	g.in.Close()
	select {
	case <-g.done:
	case <-time.After(byeTimeout):
		g.cmd.Process.Kill()
		<-g.done
	}
}
