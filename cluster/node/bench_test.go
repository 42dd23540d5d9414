package node

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// BenchmarkPropose: three nodes on this machine, each with its log on disk. Through the leader, through a follower, and by many at once.
func BenchmarkPropose(b *testing.B) {
	dir := b.TempDir()
	nodes := threeNodes(b, dir)
	eventually(b, 5*time.Second, "gossip meets", func() bool { return len(nodes[1].Met()) == 3 })
	format(b, nodes[0], 3)
	eventually(b, 5*time.Second, "three voters", func() bool { return len(nodes[0].Voters()) == 3 && allServe(nodes...)() })
	var leader, follower *Node
	for _, n := range nodes {
		if n.IsLeader() {
			leader = n
		} else {
			follower = n
		}
	}
	i := 0
	var mu sync.Mutex
	propose := func(n *Node) {
		mu.Lock()
		i++
		cmd := &state.Command{Set: &state.Set{Key: "rebuild-after", Value: fmt.Sprintf("%ds", 600+i)}}
		mu.Unlock()
		if res, err := n.Propose(context.Background(), cmd); err != nil || res.Code != state.OK {
			b.Error(err, res.Error)
		}
	}
	b.Run("leader", func(b *testing.B) {
		for b.Loop() {
			propose(leader)
		}
	})
	b.Run("follower", func(b *testing.B) {
		for b.Loop() {
			propose(follower)
		}
	})
	b.Run("64 at once", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				propose(follower)
			}
		})
	})
}
