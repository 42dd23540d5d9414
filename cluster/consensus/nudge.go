package consensus

import (
	"sync"

	"github.com/hashicorp/raft"
)

// nudgedMax is the greatest cluster in which every change is pressed on. In a larger one followers learn a little later, with raft's own next message.
const nudgedMax = 24

// nudger tells followers at once what is committed. Raft tells them with its next message, which an idle leader sends after CommitTimeout: a change of
// in-sync sets proposed by a follower would take ten times as long as the commit itself.
//
// It sends what raft might send: an AppendEntries without entries, whose previous entry is the committed one. A follower that has that entry has all
// before it, and takes its commit index; one that has not refuses. The term is one that this node was elected in, and a commit stays true, so a late
// nudge does no harm. One is under way to each peer at most.
type nudger struct {
	c *Consensus

	mu    sync.Mutex // guards what follows
	index uint64     // newest applied here, and the term of its entry
	term  uint64
	peers map[raft.ServerID]uint64 // a nudge with this index is under way; 0: none
}

// applied notes an entry that was applied here, which raft calls with every command. It does not block.
func (n *nudger) applied(index, term uint64) {
	lead := n.c.ready.Load()
	if lead == 0 {
		return
	}
	servers := n.c.raft.GetConfiguration().Configuration().Servers
	if len(servers) > nudgedMax {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.index, n.term = index, term
	for _, s := range servers {
		if string(s.ID) != n.c.cfg.UUID && n.peers[s.ID] == 0 {
			n.peers[s.ID] = index
			go n.send(s.ID, s.Address, lead)
		}
	}
}

// send nudges one peer until it was told the newest.
func (n *nudger) send(id raft.ServerID, addr raft.ServerAddress, lead uint64) {
	self := n.c.trans.EncodePeer(raft.ServerID(n.c.cfg.UUID), n.c.trans.LocalAddr())
	for {
		n.mu.Lock()
		index, term := n.index, n.term
		n.peers[id] = index
		n.mu.Unlock()
		req := raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.c.cfg.UUID), Addr: self},
			Term:      lead, Leader: self, PrevLogEntry: index, PrevLogTerm: term, LeaderCommitIndex: index}
		var resp raft.AppendEntriesResponse
		err := n.c.trans.AppendEntries(id, addr, &req, &resp)
		n.mu.Lock()
		if err != nil || n.index == index || n.c.ready.Load() != lead {
			n.peers[id] = 0
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
	}
}
