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
	gone    []state.GroupTerm // their last copies were on disks that failed
	missing []state.NodeID
	failed  []state.NodeID // whose disks
}

// groups is all of them.
func (k *stuck) groups() []state.GroupTerm { return slices.Concat(k.short, k.lost, k.gone) }

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
		case g.Lost():
			k.gone = append(k.gone, state.GroupTerm{Group: g.ID, Term: g.Term})
			if !slices.Contains(k.failed, g.Primary.Node) {
				k.failed = append(k.failed, g.Primary.Node)
			}
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
	var text []string
	add := func(format string, args ...any) { text = append(text, fmt.Sprintf(format, args...)) }
	if n := len(k.short) + len(k.lost); n > 0 {
		add("%d groups wait for %s. If these nodes can still be started, start them instead.", n, addresses(m, k.missing))
	}
	if len(k.short) > 0 {
		add("%d groups will go on with fewer copies; nothing is lost in them as long as no more nodes fail.", len(k.short))
	}
	if len(k.lost) > 0 {
		add("%d groups will go on with older copies, or with none: what was written since, flushed or not, IS LOST FOR EVER in them,"+
			" and disks that lie on them may be damaged.", len(k.lost))
	}
	if len(k.gone) > 0 {
		add("The only copies of %d groups were on disks of %s that failed. They will go on with what older copies other nodes have, or EMPTY:"+
			" what was written to them IS LOST FOR EVER, and reads as zeros or as it was long ago.", len(k.gone), addresses(m, k.failed))
	}
	if len(k.lost)+len(k.gone) > 0 {
		add("%s", k.hit(m))
	}
	return strings.Join(text, " ")
}

func addresses(m *state.Map, nodes []state.NodeID) string {
	slices.Sort(nodes)
	var names []string
	for _, id := range nodes {
		if n := m.Node(id); n != nil {
			names = append(names, n.Addr)
		}
	}
	return strings.Join(names, ", ")
}

const (
	hitNamesMax   = 20      // disks and snapshots that a warning names
	hitObjectsMax = 1 << 20 // objects of one that are looked at: 4 TiB
)

// hit says what lies on groups that lose something.
func (k *stuck) hit(m *state.Map) string {
	names := damaged(m, slices.Concat(k.lost, k.gone))
	if names == "" {
		return "No disk lies on them."
	}
	return "Hit are: " + names + "."
}

// damaged names the disks and snapshots of which objects lie in these groups.
func damaged(m *state.Map, groups []state.GroupTerm) string {
	in := map[state.GroupID]bool{}
	for _, g := range groups {
		in[g.Group] = true
	}
	var names []string
	more := 0
	for _, v := range m.VDIs {
		if v.State == state.Deleted {
			continue
		}
		all := (v.Size + objectBytes - 1) / objectBytes
		looked := min(all, hitObjectsMax)
		hit := 0
		for i := range looked {
			if in[m.GroupFor(v, uint32(i))] {
				hit++
			}
		}
		if hit == 0 {
			continue
		}
		if len(names) == hitNamesMax {
			more++
			continue
		}
		name := v.Name
		if v.Tag != "" {
			name += ":" + v.Tag
		}
		names = append(names, fmt.Sprintf("%s (as far as written, %d of its first %d objects of 4 MiB)", name, hit, looked))
	}
	if more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

func (s *shell) recoverForce(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	var k stuck
	var warning, hit string
	err := s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		if !m.Formatted() {
			return fmt.Errorf("Failed to recover: %w", state.ErrUnformatted)
		}
		k = stuckGroups(m)
		warning, hit = k.warning(m), k.hit(m)
		return nil
	})
	if err != nil {
		return err
	}
	groups := k.groups()
	if len(groups) == 0 {
		s.printf("Nothing to recover: no group waits for a node that is not in service, or has lost its only copy\n")
		return nil
	}
	if err := s.confirm(c, warning); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		if _, err := propose(ctx, a, &state.Command{ID: rand.Text(), Time: time.Now(), Force: &state.Force{Groups: groups}}); err != nil {
			return fmt.Errorf("Failed to recover: %w", err)
		}
		if n := len(k.lost) + len(k.gone); n > 0 {
			s.printf("%d groups go on without what was lost. %s Check the file systems in their guests.\n", n, hit)
		}
		return nil
	})
}
