package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

const (
	fanOutMax  = 32              // nodes asked at the same time
	fanOutWait = 3 * time.Second // for one node's answer to a short question
)

// peer returns the client of another node, made once.
func (s *Server) peer(addr string) *Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.peers[addr]
	if c == nil {
		c = NewClient(addr)
		s.peers[addr] = c
	}
	return c
}

// each calls f for all of nodes, some at a time, and returns when all are done.
func each(nodes []Node, f func(i int, n *Node)) {
	var wg sync.WaitGroup
	tokens := make(chan struct{}, fanOutMax)
	for i := range nodes {
		tokens <- struct{}{}
		wg.Go(func() {
			f(i, &nodes[i])
			<-tokens
		})
	}
	wg.Wait()
}

func (n *Node) addr() string { return net.JoinHostPort(n.Host, strconv.Itoa(n.Port)) }

// allNodes asks every node of the map for itself.
func (s *Server) allNodes(ctx context.Context) []Node {
	m := s.node.Map()
	if !m.Formatted() {
		return s.strangers(ctx)
	}
	nodes := nodesOf(m)
	self := s.node.ID()
	each(nodes, func(_ int, n *Node) {
		if n.ID == self {
			own := s.self()
			n.Self = &own
			return
		}
		ctx, cancel := context.WithTimeout(ctx, fanOutWait)
		defer cancel()
		answer, err := s.peer(n.addr()).Node(ctx)
		if err == nil && answer.ID != n.ID {
			err = fmt.Errorf("node %d answers at the address of node %d", answer.ID, n.ID)
		}
		if err != nil {
			n.Fault = err.Error()
			return
		}
		n.Self = answer.Self
	})
	return nodes
}

// strangers are the nodes that a format would make a cluster of.
func (s *Server) strangers(ctx context.Context) []Node {
	nodes := metNodes(s.node.Met())
	each(nodes, func(_ int, n *Node) {
		ctx, cancel := context.WithTimeout(ctx, fanOutWait)
		defer cancel()
		answer, err := s.peer(n.addr()).Node(ctx)
		if err != nil {
			n.Fault = err.Error()
			return
		}
		n.Self = answer.Self
	})
	return nodes
}

// allUsage sums what VDIs hold over all nodes that are primary of something. A node that does not answer makes it fail: a sum that lacks
// a part looks like a true one.
func (s *Server) allUsage(ctx context.Context) (Usage, error) {
	nodes := nodesOf(s.node.Map())
	sum := Usage{}
	var mu sync.Mutex
	var failed error
	each(nodes, func(_ int, n *Node) {
		if n.Primaries == 0 {
			return
		}
		u, err := s.usageOf(ctx, n)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = fmt.Errorf("ask %s for its usage: %w", n.addr(), err)
		}
		for vid, bytes := range u {
			sum[vid] += bytes
		}
	})
	return sum, failed
}

func (s *Server) usageOf(ctx context.Context, n *Node) (Usage, error) {
	if n.ID == s.node.ID() {
		return s.node.Usage(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, fanOutWait)
	defer cancel()
	return s.peer(n.addr()).Usage(ctx, false)
}

// postCheck streams the check of this node's primaries, or of everybody's.
func (s *Server) postCheck(w http.ResponseWriter, r *http.Request) {
	if !s.node.Map().Formatted() {
		s.answer(w, r, func(http.ResponseWriter, *http.Request) (any, error) { return nil, state.ErrUnformatted })
		return
	}
	var req CheckRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		s.answer(w, r, func(http.ResponseWriter, *http.Request) (any, error) {
			return nil, fmt.Errorf("understand the request: %w", err)
		})
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	var mu sync.Mutex // one line at a time
	out := json.NewEncoder(w)
	flusher := http.NewResponseController(w)
	event := func(e CheckEvent) {
		mu.Lock()
		defer mu.Unlock()
		out.Encode(e)
		flusher.Flush()
	}
	if r.URL.Query().Get("self") != "" {
		s.checkSelf(r.Context(), req.Groups, event)
		return
	}
	s.checkAll(r.Context(), event)
}

// checkPasses is how often groups are looked for again that got another primary while it was their turn.
const checkPasses = 5

// checkAll has every node check its primaries. Groups that nobody checked, because no primary serves them now, are an error.
func (s *Server) checkAll(ctx context.Context, event func(CheckEvent)) {
	self := s.node.ID()
	var missing []uint32 // none: all, in the first pass
	for range checkPasses {
		m := s.node.Map()
		left := make(map[uint32]bool, len(m.Groups))
		for _, g := range m.Groups {
			left[uint32(g.ID)] = len(missing) == 0 || slices.Contains(missing, uint32(g.ID))
		}
		var mu sync.Mutex // guards left
		counted := func(e CheckEvent) {
			mu.Lock()
			for _, id := range e.Checked {
				left[id] = false
			}
			mu.Unlock()
			event(e)
		}
		each(nodesOf(m), func(i int, n *Node) {
			switch {
			case n.ID == self:
				s.checkSelf(ctx, missing, counted)
			case n.Primaries == 0:
			default:
				if err := s.peer(n.addr()).Check(ctx, true, missing, counted); err != nil {
					event(CheckEvent{Node: n.ID, Error: fmt.Sprintf("check the groups of %s: %v", n.addr(), err), End: true})
				}
			}
		})
		missing = missing[:0]
		for id, yes := range left {
			if yes {
				missing = append(missing, id)
			}
		}
		if len(missing) == 0 || ctx.Err() != nil {
			return
		}
	}
	event(CheckEvent{Node: self, Error: fmt.Sprintf("%d groups were not checked: no primary serves them now", len(missing)), End: true})
}

func (s *Server) checkSelf(ctx context.Context, only []uint32, event func(CheckEvent)) {
	id := s.node.ID()
	if err := s.node.Check(ctx, only, func(e CheckEvent) { e.Node = id; event(e) }); err != nil {
		event(CheckEvent{Node: id, Error: err.Error(), End: true})
		return
	}
	event(CheckEvent{Node: id, End: true})
}

// postShutdown tells every node to stop, this one last, so that it can still say how it went.
func (s *Server) postShutdown(_ http.ResponseWriter, r *http.Request) (any, error) {
	if !s.node.Map().Formatted() {
		return nil, state.ErrUnformatted
	}
	ctx, cancel := context.WithTimeout(r.Context(), proposeWait)
	defer cancel()
	cmd := &state.Command{ID: newID(), Time: time.Now(), Shutdown: &state.Shutdown{Down: true}}
	if _, err := s.node.Propose(ctx, cmd); err != nil {
		return nil, fmt.Errorf("agree to shut down: %w", err)
	}
	nodes := nodesOf(s.node.Map())
	faults := make([]error, len(nodes))
	self := s.node.ID()
	each(nodes, func(i int, n *Node) {
		if n.ID == self {
			return
		}
		if n.State == "down" {
			s.stopStarting(ctx, n)
			return
		}
		ctx, cancel := context.WithTimeout(ctx, fanOutWait)
		defer cancel()
		if err := s.peer(n.addr()).Stop(ctx); err != nil {
			faults[i] = fmt.Errorf("stop %s: %w", n.addr(), err)
		}
	})
	s.node.Stop()
	return map[string]bool{"ok": true}, errors.Join(faults...)
}

// startingWait bounds how long a node that is down, by the map, is waited for.
const startingWait = time.Second

// stopStarting stops a node that is down, by the map, and starting at this moment: it would wait for the others for ever. By now its address may be
// that of another cluster's node, which this is nothing to.
func (s *Server) stopStarting(ctx context.Context, n *Node) {
	ctx, cancel := context.WithTimeout(ctx, startingWait)
	defer cancel()
	if answer, err := s.peer(n.addr()).Node(ctx); err == nil && answer.UUID == n.UUID {
		s.peer(n.addr()).Stop(ctx)
	}
}
