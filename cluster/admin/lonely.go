package admin

import (
	"fmt"
	"strings"
)

// noLease says why a node serves nothing at present, and what to do about it: nodes are all that the map knows, those that answered with their own words; voters are the uuids
// of those that decide.
func noLease(nodes []Node, voters []string) string {
	var silent []string
	answer := 0
	for i := range nodes {
		n := &nodes[i]
		for _, v := range voters {
			if v != n.UUID {
				continue
			}
			if n.Self != nil {
				answer++
			} else {
				silent = append(silent, n.addr())
			}
		}
	}
	need := len(voters)/2 + 1
	if answer >= need || len(silent) == 0 {
		return "waiting for a lease: this node was just started, or its cluster is choosing who leads"
	}
	s := fmt.Sprintf("waiting: this node serves nothing, since only %d of the %d nodes that vote answer it and %d are needed. Start %s, or mend the network to there; nothing that was flushed is lost meanwhile",
		answer, len(voters), need, strings.Join(silent, ", "))
	if len(voters) == 2 {
		s += ". (Two nodes alone can't tell a dead peer from a cut cable; a third with --vnodes 0 can decide and stores nothing)"
	}
	return s
}
