package gossip

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	joinPeriod    = time.Second
	joinFast      = 100 * time.Millisecond // at first: the others may be starting in the same moment
	joinFastTries = 20

	conflictPeriod = 10 * time.Second
	streamTimeout  = 2 * time.Second
	updateTimeout  = time.Second
	leaveTimeout   = 300 * time.Millisecond
)

// Meta is what a node says of itself.
type Meta struct {
	UUID    string `json:"u"`
	Addr    string `json:"a"`
	Cluster string `json:"c,omitempty"` // "": none yet
	Node    uint32 `json:"n,omitempty"`
	Inc     uint64 `json:"i,omitempty"`
	Zone    string `json:"z,omitempty"`
	VNodes  int    `json:"w,omitempty"`
}

// Config is what Start needs.
type Config struct {
	Host    string   // address to listen on
	Known   string   // IP address to be known by; "": Host
	Port    int      // TCP and UDP
	Join    []string // host or host:port
	Self    Meta
	Changed func()                     // somebody came, left or changed; must not block. May be nil
	Refused func(addr, cluster string) // a node of another cluster answered where we were to join. May be nil
	Logger  *slog.Logger
}

// Gossip is this node's part.
type Gossip struct {
	cfg Config
	ml  *memberlist.Memberlist
	log *slog.Logger

	mu       sync.Mutex // guards what follows
	self     Meta
	refused  map[string]bool // clusters that were complained about
	conflict time.Time       // when one was last told of
	foreign  Meta            // the last node that was refused
	met      map[string]peer // by memberlist's name: memberlist changes its own nodes while one looks at them

	closing chan struct{}
	wg      sync.WaitGroup
	once    sync.Once
}

// peer is a node that was met.
type peer struct {
	meta Meta
	at   string // its gossip address
}

// Start listens and begins to look for others.
func Start(cfg Config) (*Gossip, error) {
	g := &Gossip{cfg: cfg, log: cfg.Logger, self: cfg.Self, refused: map[string]bool{}, met: map[string]peer{}, closing: make(chan struct{})}
	mc := memberlist.DefaultLANConfig()
	mc.Name = cfg.Self.UUID
	mc.BindAddr, mc.BindPort = cfg.Host, cfg.Port
	mc.AdvertiseAddr, mc.AdvertisePort = cfg.Known, cfg.Port
	mc.Label = "sheepdog"
	mc.TCPTimeout = streamTimeout
	mc.PushPullInterval = 10 * time.Second
	mc.DeadNodeReclaimTime = time.Second // a node that moved to another address is the same node
	mc.Delegate, mc.Events, mc.Alive, mc.Merge, mc.Conflict = delegate{g}, delegate{g}, delegate{g}, delegate{g}, delegate{g}
	mc.Logger = log.New(logWriter{cfg.Logger}, "", 0)
	ml, err := memberlist.Create(mc)
	if err != nil {
		return nil, fmt.Errorf("gossip on %s port %d: %w", cfg.Host, cfg.Port, err)
	}
	g.ml = ml
	g.wg.Add(1)
	go g.join()
	return g, nil
}

// Close leaves. It may be called more than once.
func (g *Gossip) Close() {
	g.once.Do(func() {
		close(g.closing)
		g.wg.Wait()
		if err := g.ml.Leave(leaveTimeout); err != nil {
			g.log.Debug("gossip: leave", "err", err)
		}
		g.ml.Shutdown()
	})
}

// Update tells the others what this node is now.
func (g *Gossip) Update(m Meta) {
	g.mu.Lock()
	same := g.self == m
	g.self = m
	g.mu.Unlock()
	if same {
		return
	}
	if err := g.ml.UpdateNode(updateTimeout); err != nil {
		g.log.Debug("gossip: update", "err", err)
	}
}

// Met is everybody who seems to be there, but this node.
func (g *Gossip) Met() []Meta {
	g.mu.Lock()
	list := make([]Meta, 0, len(g.met))
	for _, p := range g.met {
		if p.meta.UUID != g.cfg.Self.UUID {
			list = append(list, p.meta)
		}
	}
	g.mu.Unlock()
	slices.SortFunc(list, func(a, b Meta) int { return strings.Compare(a.UUID, b.UUID) })
	return list
}

// Addr is where a node seems to be; "": not met.
func (g *Gossip) Addr(uuid string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.met[uuid].meta.Addr
}

func parseMeta(b []byte) (m Meta, err error) {
	if err = json.Unmarshal(b, &m); err == nil && (m.UUID == "" || m.Addr == "") {
		err = fmt.Errorf("gossip: a node says neither who nor where it is: %.60q", b)
	}
	return m, err
}

// join tries the given addresses for as long as nobody answers from there.
func (g *Gossip) join() {
	defer g.wg.Done()
	wait := joinFast
	for try := 1; ; try++ {
		for _, a := range g.cfg.Join {
			if a = g.withPort(a); !g.reached(a) {
				g.tryJoin(a)
			}
			select {
			case <-g.closing:
				return
			default:
			}
		}
		if try >= joinFastTries {
			wait = joinPeriod
		}
		select {
		case <-time.After(wait):
		case <-g.closing:
			return
		}
	}
}

// tryJoin talks to one address. That a node of another cluster answers there is told; that such a node talks to us is not: it may be its mistake.
func (g *Gossip) tryJoin(a string) {
	g.mu.Lock()
	g.foreign = Meta{}
	g.mu.Unlock()
	_, err := g.ml.Join([]string{a})
	if err == nil {
		return
	}
	g.log.Debug("gossip: join", "addr", a, "err", err)
	g.mu.Lock()
	m := g.foreign
	g.mu.Unlock()
	if m.Cluster != "" && g.cfg.Refused != nil {
		g.cfg.Refused(m.Addr, m.Cluster)
	}
}

// withPort adds the gossip port to a bare host.
func (g *Gossip) withPort(a string) string {
	if _, _, err := net.SplitHostPort(a); err == nil {
		return a
	}
	return net.JoinHostPort(strings.Trim(a, "[]"), strconv.Itoa(g.cfg.Port))
}

// reached says whether a node at that address is known to be there.
func (g *Gossip) reached(addr string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.met {
		if p.at == addr {
			return true
		}
	}
	return false
}

// delegate is what memberlist calls.
type delegate struct{ g *Gossip }

func (d delegate) NodeMeta(limit int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	b, err := json.Marshal(d.g.self)
	if err != nil || len(b) > limit {
		d.g.log.Error("gossip: what this node says of itself is too long", "bytes", len(b), "limit", limit)
		return nil
	}
	return b
}

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

func (d delegate) changed() {
	if d.g.cfg.Changed != nil {
		d.g.cfg.Changed()
	}
}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.note(n) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.note(n) }

func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.g.mu.Lock()
	delete(d.g.met, n.Name)
	d.g.mu.Unlock()
	d.changed()
}

// note keeps what a node says of itself. A node whose name is not what it says it is, is nobody.
func (d delegate) note(n *memberlist.Node) {
	m, err := parseMeta(n.Meta)
	d.g.mu.Lock()
	if err == nil && m.UUID == n.Name {
		d.g.met[n.Name] = peer{m, n.Address()}
	} else {
		delete(d.g.met, n.Name)
	}
	d.g.mu.Unlock()
	d.changed()
}

// NotifyAlive refuses nodes of another cluster.
func (d delegate) NotifyAlive(n *memberlist.Node) error { return d.g.judge(n) }

// NotifyMerge refuses to mix with another cluster.
func (d delegate) NotifyMerge(peers []*memberlist.Node) error {
	for _, n := range peers {
		if err := d.g.judge(n); err != nil {
			return err
		}
	}
	return nil
}

// NotifyConflict tells, now and then, that two nodes at different addresses have one identity: a directory was copied.
func (d delegate) NotifyConflict(a, b *memberlist.Node) {
	d.g.mu.Lock()
	now := time.Now()
	late := now.Sub(d.g.conflict) > conflictPeriod
	if late {
		d.g.conflict = now
	}
	d.g.mu.Unlock()
	if late {
		d.g.log.Warn("two nodes have the same identity: one runs on a copy of the other's directory", "uuid", a.Name, "at", a.Address(), "and", b.Address())
	}
}

// judge says whether n may be met.
func (g *Gossip) judge(n *memberlist.Node) error {
	if len(n.Meta) == 0 {
		return nil // left, or not heard of yet
	}
	m, err := parseMeta(n.Meta)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.Cluster == "" || g.self.Cluster == "" || m.Cluster == g.self.Cluster {
		return nil
	}
	g.foreign = m
	if !g.refused[m.Cluster] && len(g.refused) < 64 {
		g.refused[m.Cluster] = true
		g.log.Warn("refused a node of another cluster: look at --join here and there", "node", m.Addr, "cluster", m.Cluster, "ours", g.self.Cluster)
	}
	return fmt.Errorf("node %s belongs to cluster %s", m.Addr, m.Cluster)
}

// logWriter passes memberlist's log on: its "[WARN] memberlist: …" is our debug.
type logWriter struct{ l *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.l.Debug("gossip: " + strings.TrimSpace(string(b)))
	return len(b), nil
}

var _ io.Writer = logWriter{}
