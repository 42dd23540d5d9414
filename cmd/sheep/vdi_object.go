package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
)

// objectBytes is how much of a disk one object holds.
const objectBytes = 4 << 20

// objectRow says where one object's group is kept.
type objectRow struct {
	Index   uint32   `json:"index"`
	Object  string   `json:"object"` // the file's name in the stores: root of the family and index
	Group   string   `json:"group"`
	Term    uint64   `json:"term"`
	Primary string   `json:"primary"`
	InSync  []string `json:"inSync"`
	Target  []string `json:"target"`
}

func (s *shell) vdiObject(c *cli.Context) error {
	if err := arguments(c, "NAME"); err != nil {
		return err
	}
	only := c.Int64("index")
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		v, err := lookup(m, c.Args().First(), c.String("snapshot"))
		if err != nil {
			return err
		}
		objects := int64((v.Size + objectBytes - 1) / objectBytes)
		if c.IsSet("index") && (only < 0 || only >= objects) {
			return usagef("Invalid index %d: VDI %s has objects 0 to %d", only, v.Name, objects-1)
		}
		return s.printObjects(style(c), m, v, only, objects)
	})
}

func (s *shell) printObjects(st output.Style, m *state.Map, v *state.VDI, only, objects int64) error {
	from, to := int64(0), objects
	if only >= 0 {
		from, to = only, only+1
	}
	rows := []objectRow{}
	t := output.NewTable(output.Column{Title: "Index", Width: 8}, output.Column{Title: "Object", Width: 16}, output.Column{Title: "Group", Width: 6},
		output.Column{Title: "Primary", Width: 18}, output.Column{Title: "In sync"})
	for i := from; i < to; i++ {
		row := locate(m, v, uint32(i))
		switch st {
		case output.Raw:
			fields := []any{row.Index, row.Object, row.Group, row.Primary}
			for _, n := range row.InSync {
				fields = append(fields, n)
			}
			output.Fields(s.out, fields...)
		case output.JSON:
			rows = append(rows, row)
		default:
			t.Row(fmt.Sprintf("%08x", row.Index), row.Object, row.Group, row.Primary, fmt.Sprint(row.InSync))
		}
	}
	switch st {
	case output.JSON:
		return output.Value(s.out, rows)
	case output.Raw:
		return nil
	}
	return t.Write(s.out)
}

// locate says who keeps an object, according to the map.
func locate(m *state.Map, v *state.VDI, index uint32) objectRow {
	id := m.GroupFor(v, index)
	row := objectRow{Index: index, Object: fmt.Sprintf("%08x%08x", v.Root, index), Group: fmt.Sprintf("%d.%d", id.Pool(), id.Index())}
	g := m.Group(id)
	if g == nil {
		return row
	}
	name := func(n state.NodeID) string {
		if node := m.Node(n); node != nil {
			return node.Addr
		}
		return "-"
	}
	row.Term, row.Primary = g.Term, name(g.Primary.Node)
	for _, member := range g.InSync {
		row.InSync = append(row.InSync, name(member.Node))
	}
	for _, n := range g.Target {
		row.Target = append(row.Target, name(n))
	}
	return row
}
