package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// LocalNode is what the API needs of the node it speaks for.
type LocalNode interface {
	// ID is the node's number; state.NoNode before it has one.
	ID() state.NodeID
	// UUID is the node's identity, which it has from its first start on.
	UUID() string
	// Map is the agreed map as this node has applied it; never nil.
	Map() *state.Map
	// Cluster is the cluster that this node belongs to; "" if to none yet. A node that was just started knows it before it has the map.
	Cluster() string
	// Wait returns nil once Map().Index is at least index.
	Wait(ctx context.Context, index uint64) error
	// Propose returns nil once the command's result is known.
	Propose(ctx context.Context, cmd *state.Command) (state.Result, error)
	// Format returns nil once the cluster is formatted and its nodes know.
	Format(ctx context.Context, r FormatRequest) error
	// Met are the nodes that gossip knows, this one among them: who a format would make a cluster of.
	Met() []Peer
	// Leader is the raft leader's address, "" if unknown.
	Leader() string
	// Voters are the uuids of the nodes that vote in raft, as this node knows.
	Voters() []string
	// Self is what only this node knows; it must not take long.
	Self() Self
	// ResyncBytes is how much this node has copied to others since its start, to bring them up to date.
	ResyncBytes() uint64
	// Usage is what VDIs hold on the groups that this node is primary of.
	Usage() Usage
	// Check compares the replicas of all groups (of those in only, if any) that this node is primary of. It returns nil when it came to the end, findings or not.
	Check(ctx context.Context, only []uint32, event func(CheckEvent)) error
	// AddDisk takes a directory in as another disk; nil once it is the node's.
	AddDisk(ctx context.Context, dir string) error
	// RemoveDisk begins to move a disk's groups to others; Self shows how far that is.
	RemoveDisk(disk string) error
	// Stop begins a clean stop of this node and returns at once.
	Stop()
}

// Peer is a node as gossip describes it.
type Peer struct {
	UUID, Addr, Zone string
	VNodes           int
}

const (
	mapWait       = 25 * time.Second // how long /v1/map?after waits at most
	proposeWait   = 30 * time.Second
	formatWait    = 60 * time.Second
	bodyBytesMax  = 1 << 20
	headerTimeout = 10 * time.Second
)

// Server is the API of one node.
type Server struct {
	node LocalNode
	log  *slog.Logger
	http *http.Server

	samples  sampler
	sampling context.Context
	cancel   context.CancelFunc

	mu    sync.Mutex // guards peers
	peers map[string]*Client
}

// NewServer returns the API of node; Serve it. What also collects is part of /metrics: Latencies, CertificateExpiry.
func NewServer(node LocalNode, log *slog.Logger, also ...Metrics) *Server {
	s := &Server{node: node, log: log, peers: map[string]*Client{}}
	s.sampling, s.cancel = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, h) })
	}
	handle("GET /v1/map", s.getMap)
	handle("GET /v1/status", s.getStatus)
	handle("GET /v1/node", s.getNode)
	handle("GET /v1/nodes", s.getNodes)
	handle("GET /v1/recovery", s.getRecovery)
	handle("GET /v1/usage", s.getUsage)
	handle("GET /v1/health", s.getHealth)
	handle("POST /v1/propose", s.postPropose)
	handle("POST /v1/format", s.postFormat)
	handle("POST /v1/shutdown", s.postShutdown)
	handle("POST /v1/stop", s.postStop)
	handle("POST /v1/disk/add", s.postDiskAdd)
	handle("POST /v1/disk/remove", s.postDiskRemove)
	mux.HandleFunc("POST /v1/check", s.postCheck)
	mux.Handle("GET /metrics", metricsHandler(node, &s.samples, also, log))
	s.http = &http.Server{
		Handler:           crashing(http.NewCrossOriginProtection().Handler(mux)),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until Shutdown, or until l is closed. It returns nil after that. Closing l is its owner's affair.
func (s *Server) Serve(l net.Listener) error {
	go s.samples.run(s.sampling, s.node)
	go s.tell(s.sampling)
	if err := s.http.Serve(newOwnListener(l)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve the admin API on %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown lets requests under way end, as long as ctx has time, then closes all.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel()
	err := s.http.Shutdown(ctx)
	s.http.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.peers {
		c.Close()
	}
	return err
}

// answer runs a handler and writes what it returns.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, h func(http.ResponseWriter, *http.Request) (any, error)) {
	v, err := h(w, r)
	status := http.StatusOK
	if err != nil {
		if r.Context().Err() != nil {
			return // nobody listens any more
		}
		v, status = encodeError(err)
		s.log.Debug("admin request refused", "request", r.Method+" "+r.URL.Path, "from", r.RemoteAddr, "error", err)
	}
	if b, ok := v.([]byte); ok { // JSON already
		w.Header().Set("Content-Type", "application/json")
		w.Write(b)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// body decodes a request's JSON, strictly.
func body(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("understand the body of %s: %v: %w", r.URL.Path, err, fs.ErrInvalid)
	}
	return nil
}

func (s *Server) getMap(_ http.ResponseWriter, r *http.Request) (any, error) {
	if after := r.URL.Query().Get("after"); after != "" {
		index, err := strconv.ParseUint(after, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("after=%.20q is no index: %w", after, fs.ErrInvalid)
		}
		ctx, cancel := context.WithTimeout(r.Context(), mapWait)
		defer cancel()
		s.node.Wait(ctx, index+1) // late or not, the map as it is goes out
	}
	return state.EncodeMap(s.node.Map())
}

func (s *Server) getStatus(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.status(r.Context()), nil
}

// status is the cluster as this node sees it; where something is missing it asks all nodes.
func (s *Server) status(ctx context.Context) Status {
	m := s.node.Map()
	st := Status{Cluster: m.Cluster, Created: m.Created, Index: m.Index, Epoch: m.Epoch, Epochs: epochsOf(m), Health: HealthOf(m), Settings: m.Settings,
		Leader: s.node.Leader()}
	for _, p := range m.Pools {
		st.Pools = append(st.Pools, Pool{ID: p.ID, Copies: p.Copies, MinCopies: p.MinCopies, Groups: p.PGs})
	}
	if st.Health.Full < st.Health.Groups {
		st.Moving = sum(s.samples.progress(time.Now(), m))
	}
	if m.Formatted() {
		for _, n := range s.allNodes(ctx) {
			if n.Self == nil {
				continue
			}
			if st.Health.Full < st.Health.Groups {
				st.Moving.PerSec += n.Self.CopyPerSec
			}
			st.Disks = append(st.Disks, troubles(&n)...)
		}
	}
	st.State, st.Text = describe(time.Now(), m, s.node.Cluster(), st.Health, st.Moving)
	if m.Formatted() && !m.ShutDown && !s.node.Self().Lease {
		// What was agreed may have moved on: a node that was just started knows its own log only.
		st.State, st.Text = "waiting", noLease(s.allNodes(ctx), s.node.Voters())
	}
	return st
}

func (s *Server) getNode(http.ResponseWriter, *http.Request) (any, error) {
	return s.thisNode(), nil
}

// thisNode joins the map's words about this node with its own.
func (s *Server) thisNode() Node {
	self := s.self()
	n := Node{ID: s.node.ID(), UUID: s.node.UUID(), State: "unformatted"}
	for _, known := range nodesOf(s.node.Map()) {
		if known.ID == n.ID {
			n = known
		}
	}
	n.Self = &self
	return n
}

func (s *Server) self() Self {
	self := s.node.Self()
	self.CopyPerSec = s.samples.perSec()
	return self
}

func (s *Server) getRecovery(http.ResponseWriter, *http.Request) (any, error) {
	m := s.node.Map()
	progress := s.samples.progress(time.Now(), m)
	rows := []Recovery{}
	for _, n := range nodesOf(m) {
		if p, ok := progress[n.ID]; ok {
			rows = append(rows, Recovery{n, p})
		}
	}
	return rows, nil
}

func (s *Server) getNodes(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.allNodes(r.Context()), nil
}

func (s *Server) getHealth(http.ResponseWriter, *http.Request) (any, error) {
	if !s.node.Self().Lease {
		return nil, errors.New("this node holds no lease: it serves nothing")
	}
	return map[string]bool{"ok": true}, nil
}

func (s *Server) getUsage(_ http.ResponseWriter, r *http.Request) (any, error) {
	if r.URL.Query().Get("all") == "" {
		return s.node.Usage(), nil
	}
	return s.allUsage(r.Context())
}

func (s *Server) postPropose(w http.ResponseWriter, r *http.Request) (any, error) {
	cmd := new(state.Command)
	if err := body(w, r, cmd); err != nil {
		return nil, err
	}
	if !allowed(cmd) {
		return nil, fmt.Errorf("this is no administrator's command: %w", fs.ErrPermission)
	}
	if !s.node.Map().Formatted() && s.node.Cluster() == "" {
		return nil, state.ErrUnformatted // there is nobody to agree with
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), proposeWait, fmt.Errorf("%w: is a majority of the voters up?", errTooSlow))
	defer cancel()
	result, err := s.node.Propose(ctx, cmd)
	if err != nil {
		if ctx.Err() != nil && r.Context().Err() == nil {
			return nil, fmt.Errorf("agree on it with the cluster: %w", context.Cause(ctx))
		}
		return nil, err
	}
	return result, nil
}

// allowed says which commands come from people. The others are nodes' own affair.
func allowed(c *state.Command) bool {
	return c.Set != nil || c.AddPool != nil || c.CreateVDI != nil || c.DeleteVDI != nil || c.CloseVDI != nil || c.CloneVDI != nil || c.Rollback != nil ||
		c.ResizeVDI != nil || c.Unlock != nil || c.NodeOut != nil || c.Force != nil
}

func (s *Server) postFormat(w http.ResponseWriter, r *http.Request) (any, error) {
	var f FormatRequest
	if err := body(w, r, &f); err != nil {
		return nil, err
	}
	if f.Copies < 1 || f.MinCopies < 0 || f.MinCopies > f.Copies || f.PGs < 0 || f.PGs&(f.PGs-1) != 0 || f.PGs > 1<<16 {
		return nil, fmt.Errorf("format with %d copies, at least %d, and %d groups: copies are at least 1 and not fewer than min-copies, groups a power of two up to 65536: %w",
			f.Copies, f.MinCopies, f.PGs, fs.ErrInvalid)
	}
	nodes := 0
	for _, p := range s.node.Met() {
		if p.VNodes > 0 {
			nodes++
		}
	}
	if f.Copies > nodes && !f.Few {
		return nil, fmt.Errorf("number of copies (%d) is larger than number of nodes (%d); wait for more, or say -f if they come later: %w", f.Copies, nodes, fs.ErrInvalid)
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), formatWait, errTooSlow)
	defer cancel()
	if err := s.node.Format(ctx, f); err != nil {
		return nil, err
	}
	return map[string]bool{"ok": true}, nil
}

func (s *Server) postStop(http.ResponseWriter, *http.Request) (any, error) {
	s.node.Stop()
	return map[string]bool{"ok": true}, nil
}

func (s *Server) postDiskAdd(w http.ResponseWriter, r *http.Request) (any, error) {
	var d DiskRequest
	if err := body(w, r, &d); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), proposeWait, errTooSlow)
	defer cancel()
	if err := s.node.AddDisk(ctx, d.Disk); err != nil {
		return nil, err
	}
	return map[string]bool{"ok": true}, nil
}

func (s *Server) postDiskRemove(w http.ResponseWriter, r *http.Request) (any, error) {
	var d DiskRequest
	if err := body(w, r, &d); err != nil {
		return nil, err
	}
	if err := s.node.RemoveDisk(d.Disk); err != nil {
		return nil, err
	}
	return map[string]bool{"ok": true}, nil
}

// troubles are the disks of a node that a person should look after.
func troubles(n *Node) (list []DiskTrouble) {
	for _, d := range n.Self.Disks {
		state := d.State
		switch {
		case d.Fault != "":
			state = "failed"
		case d.Full:
			state = "full"
		case d.Near:
			state = "near full"
		default:
			continue
		}
		list = append(list, DiskTrouble{Node: n.addr(), Path: d.Path, State: state, Avail: d.Avail, Size: d.Size, Fault: d.Fault})
	}
	return list
}
