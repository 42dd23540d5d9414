package admin

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// Health counts groups by how well they are.
type Health struct {
	Groups   int `json:"groups"`
	Full     int `json:"full"`     // all copies in sync, where they shall be
	Moving   int `json:"moving"`   // all copies in sync, but not yet where they shall be
	Degraded int `json:"degraded"` // fewer copies in sync than asked for; reads and writes go on
	Stalled  int `json:"stalled"`  // fewer than min-copies: writes wait, reads go on
	Waiting  int `json:"waiting"`  // no primary: reads and writes wait
	Lost     int `json:"lost"`     // the disks of all who answer have failed under them: reads and writes wait
	Copies   int `json:"copies"`   // the largest number of copies asked for: for the words
}

// HealthOf counts the groups of m.
func HealthOf(m *state.Map) Health {
	pools := make(map[uint16]*state.Pool, len(m.Pools))
	h := Health{Groups: len(m.Groups)}
	for _, p := range m.Pools {
		pools[p.ID] = p
		h.Copies = max(h.Copies, p.Copies)
	}
	for _, g := range m.Groups {
		p := pools[uint16(g.ID>>16)]
		switch {
		case g.Lost():
			h.Lost++
		case g.Primary.Node == state.NoNode:
			h.Waiting++
		case p != nil && len(g.InSync) < p.MinCopies:
			h.Stalled++
		case p != nil && len(g.InSync) < p.Copies:
			h.Degraded++
		case !inPlace(g):
			h.Moving++
		default:
			h.Full++
		}
	}
	return h
}

func inPlace(g *state.Group) bool {
	if len(g.InSync) != len(g.Target) {
		return false
	}
	for _, m := range g.InSync {
		if !slices.Contains(g.Target, m.Node) {
			return false
		}
	}
	return true
}

// describe finds the state's name and line, with what is being done about it.
func describe(now time.Time, m *state.Map, cluster string, h Health, p Progress) (name, text string) {
	switch {
	case !m.Formatted() && cluster != "":
		return "joining", "waiting for the other nodes of the cluster: a majority must be up"
	case !m.Formatted():
		return "unformatted", state.ErrUnformatted.Error()
	case m.ShutDown:
		return "shutting down", "shutting down"
	case h.Lost > 0:
		name = "waiting"
		text = fmt.Sprintf("degraded: %d of %d groups wait, the disks with their only copies have failed: start nodes that are down and have one, or `sheep cluster recover force` gives them up%s",
			h.Lost, h.Groups, downNodes(now, m))
	case h.Waiting > 0:
		name = "waiting"
		text = fmt.Sprintf("degraded: %d of %d groups wait, none of their last in-sync replicas is in service%s", h.Waiting, h.Groups, downNodes(now, m))
	case h.Stalled > 0:
		name = "waiting"
		text = fmt.Sprintf("degraded: writes to %d of %d groups wait, too few copies are in sync%s", h.Stalled, h.Groups, downNodes(now, m))
	case h.Degraded > 0:
		name = "degraded"
		text = fmt.Sprintf("degraded: %d of %d groups have fewer than %d copies in sync%s", h.Degraded, h.Groups, h.Copies, downNodes(now, m))
	default:
		name, text = "running", "running"
		if h.Moving > 0 {
			text = fmt.Sprintf("running, %d of %d groups are being moved", h.Moving, h.Groups)
		}
	}
	return name, text + p.words()
}

// downNodes names who is missing, as far as a line has room.
func downNodes(now time.Time, m *state.Map) string {
	var down []*state.Node
	up := 0
	for _, n := range m.Nodes {
		switch {
		case n.Removed || n.VNodes == 0:
		case n.Up:
			up++
		default:
			down = append(down, n)
		}
	}
	switch {
	case len(down) > 3:
		return fmt.Sprintf("; %d of %d nodes are down", len(down), up+len(down))
	case len(down) == 1:
		return fmt.Sprintf("; %s is down%s", down[0].Addr, givenUp(now, m, down[0], up))
	case len(down) > 1:
		return fmt.Sprintf("; %s are down", joinAddrs(down))
	case up < maxCopies(m):
		return fmt.Sprintf("; there are only %d nodes", up)
	}
	return ""
}

func joinAddrs(nodes []*state.Node) string {
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.Addr)
	}
	return strings.Join(addrs, ", ")
}

// givenUp says when a node's groups will be given to others, if there are others that could take them.
func givenUp(now time.Time, m *state.Map, n *state.Node, up int) string {
	wait := m.Settings.RebuildAfter - now.Sub(n.Since)
	if up < maxCopies(m) || n.Out || wait <= 0 {
		return ""
	}
	return fmt.Sprintf(", its groups go to others in %v", wait.Round(time.Second))
}

func maxCopies(m *state.Map) int {
	n := 0
	for _, p := range m.Pools {
		n = max(n, p.Copies)
	}
	return n
}

// epochsOf writes the history with the newest first.
func epochsOf(m *state.Map) []Epoch {
	out := make([]Epoch, 0, len(m.Epochs))
	for _, e := range slices.Backward(m.Epochs) {
		names := make([]string, 0, len(e.Nodes))
		for _, id := range e.Nodes {
			if n := m.Node(id); n != nil {
				names = append(names, fmt.Sprintf("%s:%d", n.Addr, n.VNodes))
			}
		}
		out = append(out, Epoch{Epoch: e.Epoch, Time: e.Time, Nodes: names})
	}
	return out
}

// nodesOf says what the map says of each node that was not removed.
func nodesOf(m *state.Map) []Node {
	at := make(map[state.NodeID]int)
	var out []Node
	for _, n := range m.Nodes {
		if n.Removed {
			continue
		}
		host, port := splitAddr(n.Addr)
		at[n.ID] = len(out)
		out = append(out, Node{ID: n.ID, UUID: n.UUID, Host: host, Port: port, NBD: n.NBD, Zone: n.Zone, VNodes: n.VNodes, State: nodeState(n),
			Since: n.Since, Incarnation: n.Inc})
	}
	for _, g := range m.Groups {
		if i, ok := at[g.Primary.Node]; ok {
			out[i].Primaries++
		}
		for _, member := range g.InSync {
			if i, ok := at[member.Node]; ok && out[i].Incarnation == member.Inc {
				out[i].InSync++
			}
		}
		for _, id := range g.Target {
			if i, ok := at[id]; ok {
				out[i].Target++
			}
		}
	}
	return out
}

// metNodes are nodes that only gossip knows yet, numbered by address for the moment.
func metNodes(met []Peer) []Node {
	slices.SortFunc(met, func(a, b Peer) int { return strings.Compare(a.Addr, b.Addr) })
	out := make([]Node, len(met))
	for i, p := range met {
		host, port := splitAddr(p.Addr)
		out[i] = Node{ID: state.NodeID(i), UUID: p.UUID, Host: host, Port: port, Zone: p.Zone, VNodes: p.VNodes, State: "unformatted"}
	}
	return out
}

func splitAddr(addr string) (host string, port int) {
	host, text, _ := net.SplitHostPort(addr)
	port, _ = strconv.Atoi(text)
	return host, port
}

func nodeState(n *state.Node) string {
	switch {
	case n.Draining:
		return "draining"
	case n.Out:
		return "out"
	case n.Up:
		return "up"
	}
	return "down"
}
