package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Watcher is how a program that is no node follows the agreed map: from any node it was given or learned of, command by command, applying each as the
// nodes do. It proposes through any node too, and keeps the client's sessions alive.
//
//	connect to a node ─▶ watch from our index ─▶ map or commands … ─(lost, or silent)─▶ connect to the next
type Watcher struct {
	cfg WatchConfig
	log *slog.Logger

	cur    atomic.Pointer[state.Map]
	first  chan struct{} // closed with the first map
	ended  chan struct{}
	closed sync.Once
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows
	subs   map[chan struct{}]struct{}
	why    error  // why no node answers; nil: one does
	good   string // address that worked last
	caller *wire.Caller
	callee string // whose address caller has
}

// WatchConfig says whom to ask.
type WatchConfig struct {
	Nodes  []string // host:port of nodes to begin with
	Net    wire.Network
	ID     string // the client whose sessions are kept alive; "": none
	Logger *slog.Logger
}

const (
	watchDialTimeout = time.Second
	watchSilenceMax  = 3 * time.Second
	watchPause       = 200 * time.Millisecond // after all nodes failed
	complainEvery    = 5 * time.Second        // that all nodes fail is logged at once, and then so often
	keepInterval     = 2 * time.Second
	proposeTimeout   = 5 * time.Second // of one node's try
)

// Watch begins to follow the map, and returns when it has one. Close it.
func Watch(ctx context.Context, cfg WatchConfig) (*Watcher, error) {
	if len(cfg.Nodes) == 0 || cfg.Net == nil {
		return nil, errors.New("watch the cluster: no node to ask")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	w := &Watcher{cfg: cfg, log: cfg.Logger, first: make(chan struct{}), ended: make(chan struct{}), subs: map[chan struct{}]struct{}{}}
	w.wg.Go(w.follow)
	if cfg.ID != "" {
		w.wg.Go(w.keep)
	}
	select {
	case <-w.first:
		return w, nil
	case <-ctx.Done():
		w.Close()
		why := context.Cause(ctx)
		if w.why != nil {
			why = fmt.Errorf("%w (%w)", why, w.why)
		}
		return nil, fmt.Errorf("watch the cluster: no answer from any of %v: %w", cfg.Nodes, why)
	}
}

// Close ends it.
func (w *Watcher) Close() {
	w.closed.Do(func() { close(w.ended) })
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.caller != nil {
		w.caller.Close()
	}
}

// Map implements Maps.
func (w *Watcher) Map() *state.Map { return w.cur.Load() }

// Subscribe implements Maps.
func (w *Watcher) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	w.subs[ch] = struct{}{}
	w.mu.Unlock()
	return ch, func() {
		w.mu.Lock()
		delete(w.subs, ch)
		w.mu.Unlock()
	}
}

// publish makes m the newest map, unless a newer one is there.
func (w *Watcher) publish(m *state.Map) {
	old := w.cur.Load()
	if old != nil && m.Index <= old.Index {
		return
	}
	w.cur.Store(m)
	if old == nil {
		close(w.first)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// nodes are all addresses known, the one that worked last first, then those in service.
func (w *Watcher) nodes() []string {
	w.mu.Lock()
	list := make([]string, 0, 8)
	if w.good != "" {
		list = append(list, w.good)
	}
	w.mu.Unlock()
	var rest []string
	if m := w.Map(); m != nil {
		for _, n := range m.Nodes {
			switch {
			case n.Removed || n.Addr == "":
			case n.Up:
				list = append(list, n.Addr)
			default:
				rest = append(rest, n.Addr)
			}
		}
	}
	list = append(append(list, w.cfg.Nodes...), rest...)
	seen := map[string]bool{}
	return slices.DeleteFunc(list, func(a string) bool {
		was := seen[a]
		seen[a] = true
		return was
	})
}

// worked notes which node answers, or that it does no more.
func (w *Watcher) worked(addr string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		w.good = addr
	} else if w.good == addr {
		w.good = ""
	}
}

// follow keeps one connection to some node.
func (w *Watcher) follow() {
	var complained time.Time
	for {
		var why error
		for _, addr := range w.nodes() {
			if w.done() {
				return
			}
			s := &watchStream{w: w, ended: make(chan struct{})}
			if err := s.run(addr); err != nil {
				w.log.Debug("watch the cluster", "node", addr, "error", err)
				why = err
			}
			if s.useful.Load() {
				why = nil
				break // begin again with the one that is best now
			}
		}
		w.mu.Lock()
		w.why = why
		w.mu.Unlock()
		if now := time.Now(); why != nil && now.Sub(complained) >= complainEvery {
			complained = now
			w.log.Warn("no node of the cluster answers; trying on", "nodes", strings.Join(w.nodes(), ","), "error", why)
		}
		if w.pause(watchPause) {
			return
		}
	}
}

func (w *Watcher) done() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// pause waits, and says whether the Watcher ended meanwhile.
func (w *Watcher) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-w.ended:
		return true
	case <-t.C:
		return false
	}
}

// watchStream is one connection's stream of maps and commands.
type watchStream struct {
	w      *Watcher
	addr   string
	useful atomic.Bool
	frames atomic.Int64
	ended  chan struct{}
	err    error
}

// run follows the map by way of addr until that fails.
func (s *watchStream) run(addr string) error {
	s.addr = addr
	conn, err := wire.DialFrames(s.w.cfg.Net, addr, watchDialTimeout, s)
	if err != nil {
		s.w.worked(addr, false)
		return err
	}
	conn.Start()
	watch := make([]byte, 8) // from, and of which cluster
	if m := s.w.Map(); m != nil {
		binary.LittleEndian.PutUint64(watch, m.Index)
		watch = append(watch, m.Cluster...)
	}
	conn.Send(&wire.Header{Kind: wire.KindWatch, ID: 1}, watch, nil, nil)
	conn.Flush()
	every := time.NewTicker(watchSilenceMax / 3)
	defer every.Stop()
	heard, quiet := int64(0), 0
	for {
		select {
		case <-s.ended:
			s.w.worked(addr, false)
			return s.err
		case <-s.w.ended:
			conn.Close(ErrClosed)
			<-s.ended
			return ErrClosed
		case <-every.C:
		}
		if n := s.frames.Load(); n != heard {
			heard, quiet = n, 0
		} else if quiet++; quiet > 3 {
			conn.Close(fmt.Errorf("%s says nothing", addr))
			continue
		}
		conn.Send(&wire.Header{Kind: wire.KindPing, ID: 2}, nil, nil, nil)
		conn.Flush()
	}
}

// Frame takes a map, or one command more.
func (s *watchStream) Frame(conn *wire.Conn, f *wire.Frame, _ *wire.Batch) {
	s.frames.Add(1)
	var err error
	switch f.Kind {
	case wire.KindMap:
		var m *state.Map
		if m, err = state.DecodeMap(f.Meta); err == nil {
			if old := s.w.Map(); old != nil && old.Formatted() && m.Cluster != old.Cluster {
				err = fmt.Errorf("it belongs to cluster %q, not to %s", m.Cluster, old.Cluster)
				break
			}
			s.w.publish(m)
		}
	case wire.KindCommand:
		err = s.command(f.Meta)
	case wire.KindWatch | wire.KindAnswer: // it does not tell its map
		err = fmt.Errorf("%s: %s", f.Status, f.Meta)
	default:
		return
	}
	if err != nil {
		conn.Close(fmt.Errorf("watch by %s: %w", s.addr, err))
		return
	}
	if !s.useful.Load() {
		s.useful.Store(true)
		s.w.worked(s.addr, true)
	}
}

// command applies what was agreed next. Commands that we have are skipped: another node told us before.
func (s *watchStream) command(meta []byte) error {
	index, b, err := wire.ParseCommand(meta)
	if err != nil {
		return err
	}
	m := s.w.Map()
	if m == nil {
		return errors.New("a command before any map")
	}
	if index <= m.Index {
		return nil
	}
	cmd, err := state.DecodeCommand(b)
	if err != nil {
		return err
	}
	next, _ := m.Apply(index, cmd)
	s.w.publish(next)
	return nil
}

// Closed ends the stream.
func (s *watchStream) Closed(_ *wire.Conn, err error) {
	s.err = err
	close(s.ended)
}
