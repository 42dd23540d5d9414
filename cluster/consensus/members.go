package consensus

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// configTimeout bounds how long a change of raft's configuration may wait for its turn.
const configTimeout = 5 * time.Second

// Server is one entry of raft's configuration.
type Server struct {
	UUID  string
	Addr  string
	Voter bool
}

// Servers is raft's latest configuration as this node knows it.
func (c *Consensus) Servers() []Server {
	conf := c.raft.GetConfiguration().Configuration()
	list := make([]Server, len(conf.Servers))
	for i, s := range conf.Servers {
		_, addr := splitServer(s.Address)
		list[i] = Server{UUID: string(s.ID), Addr: addr, Voter: s.Suffrage == raft.Voter}
	}
	return list
}

// Voters are the uuids of those who vote in raft's latest configuration.
func (c *Consensus) Voters() []string {
	conf := c.raft.GetConfiguration().Configuration()
	list := make([]string, 0, len(conf.Servers))
	for _, s := range conf.Servers {
		if s.Suffrage == raft.Voter {
			list = append(list, string(s.ID))
		}
	}
	return list
}

// OneChange runs f, which may change raft's members, while nobody else does.
func (c *Consensus) OneChange(ctx context.Context, f func() error) error {
	if err := c.changing.take(ctx); err != nil {
		return err
	}
	defer c.changing.pass()
	return f()
}

// AddLearner has the leader send a node what is agreed, without a vote; or changes a server's address.
func (c *Consensus) AddLearner(uuid, addr string) error {
	for _, s := range c.Servers() {
		if s.UUID == uuid && s.Voter {
			return c.AddVoter(uuid, addr) // AddNonvoter leaves a voter's address as it is
		}
	}
	return c.changed("add", uuid, c.raft.AddNonvoter(raft.ServerID(uuid), serverAddress(uuid, addr), 0, configTimeout))
}

// AddVoter gives a node a vote.
func (c *Consensus) AddVoter(uuid, addr string) error {
	return c.changed("give a vote to", uuid, c.raft.AddVoter(raft.ServerID(uuid), serverAddress(uuid, addr), 0, configTimeout))
}

// Demote takes a node's vote.
func (c *Consensus) Demote(uuid string) error {
	return c.changed("take the vote of", uuid, c.raft.DemoteVoter(raft.ServerID(uuid), 0, configTimeout))
}

// Remove takes a node out of raft.
func (c *Consensus) Remove(uuid string) error {
	return c.changed("remove", uuid, c.raft.RemoveServer(raft.ServerID(uuid), 0, configTimeout))
}

// HandOver has a leader make another voter lead before it stops. It is best effort and bounded: a transfer may hang in raft for good (hashicorp/raft#696).
func (c *Consensus) HandOver(timeout time.Duration) {
	if c.raft.State() != raft.Leader || len(c.Voters()) < 2 {
		return
	}
	done := make(chan error, 1)
	go func() { done <- c.raft.LeadershipTransfer().Error() }()
	select {
	case err := <-done:
		if err != nil {
			c.log.Debug("hand the lead over", "err", err)
		}
	case <-time.After(timeout):
		c.log.Info("nobody took the lead over in time")
	}
}

func (c *Consensus) changed(what, uuid string, f raft.IndexFuture) error {
	if err := f.Error(); err != nil {
		return fmt.Errorf("raft: %s node %s: %w", what, uuid, err)
	}
	return nil
}
