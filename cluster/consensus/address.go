package consensus

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// ServerAddr finds a peer for raft's transport.
func (c *Consensus) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if string(id) == c.cfg.UUID {
		return serverAddress(c.cfg.UUID, c.cfg.Addr), nil
	}
	if addr := c.Addr(string(id)); addr != "" {
		return serverAddress(string(id), addr), nil
	}
	return "", fmt.Errorf("address of node %s is not known", id)
}

// Addr is a node's address: as gossip, or else the map, or else raft's configuration has it. "": unknown.
func (c *Consensus) Addr(uuid string) string {
	if uuid == "" {
		return ""
	}
	if uuid == c.cfg.UUID {
		return c.cfg.Addr
	}
	if addr := c.cfg.Lookup(uuid); addr != "" {
		return addr
	}
	if n := c.Map().NodeByUUID(uuid); n != nil {
		return n.Addr
	}
	if c.raft != nil { // raft asks for addresses while it starts
		for _, s := range c.raft.GetConfiguration().Configuration().Servers {
			if string(s.ID) == uuid {
				_, addr := splitServer(s.Address)
				return addr
			}
		}
	}
	return ""
}
