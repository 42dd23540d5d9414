package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
)

func (s *shell) recoverCommand() *cli.Command {
	return &cli.Command{Name: "recover", Usage: "the last word when nodes will never return", Subcommands: []*cli.Command{
		{Name: "force", Usage: "let groups go on without the nodes they wait for; may lose data", Flags: withAsk(forceFlag), Action: s.recoverForce},
	}}
}

// stuck is what waits for nodes that are not in service.
type stuck struct {
	short   []state.GroupTerm // members are missing, one in service has everything: nothing is lost but redundancy
	lost    []state.GroupTerm // nobody in service has all that was written
	missing []state.NodeID
}

// stuckGroups finds them.
func stuckGroups(m *state.Map) stuck {
	var k stuck
	for _, g := range m.Groups {
		serving := 0
		var away []state.NodeID
		for _, member := range g.InSync {
			if m.InService(member) {
				serving++
			} else {
				away = append(away, member.Node)
			}
		}
		switch {
		case len(away) == 0:
			continue
		case serving > 0:
			k.short = append(k.short, state.GroupTerm{Group: g.ID, Term: g.Term})
		default:
			k.lost = append(k.lost, state.GroupTerm{Group: g.ID, Term: g.Term})
		}
		for _, id := range away {
			if !slices.Contains(k.missing, id) {
				k.missing = append(k.missing, id)
			}
		}
	}
	slices.Sort(k.missing)
	return k
}

// warning says plainly what may be lost.
func (k *stuck) warning(m *state.Map) string {
	var names []string
	for _, id := range k.missing {
		if n := m.Node(id); n != nil {
			names = append(names, n.Addr)
		}
	}
	text := fmt.Sprintf("%d groups wait for %s. If these nodes can still be started, start them instead.", len(k.short)+len(k.lost), strings.Join(names, ", "))
	if len(k.short) > 0 {
		text += fmt.Sprintf(" %d groups will go on with fewer copies; nothing is lost in them as long as no more nodes fail.", len(k.short))
	}
	if len(k.lost) > 0 {
		text += fmt.Sprintf(" %d groups will go on with older copies, or with none: what was written since, flushed or not, IS LOST FOR EVER in them,"+
			" and disks that lie on them may be damaged.", len(k.lost))
	}
	return text
}

func (s *shell) recoverForce(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	var k stuck
	var warning string
	err := s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		if !m.Formatted() {
			return fmt.Errorf("Failed to recover: %w", state.ErrUnformatted)
		}
		k = stuckGroups(m)
		warning = k.warning(m)
		return nil
	})
	if err != nil {
		return err
	}
	groups := slices.Concat(k.short, k.lost)
	if len(groups) == 0 {
		s.printf("Nothing to recover: no group waits for a node that is not in service\n")
		return nil
	}
	if err := s.confirm(c, warning); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		if _, err := propose(ctx, a, &state.Command{ID: rand.Text(), Time: time.Now(), Force: &state.Force{Groups: groups}}); err != nil {
			return fmt.Errorf("Failed to recover: %w", err)
		}
		return nil
	})
}
