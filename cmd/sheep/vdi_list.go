package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
)

// vdiRow is one line of `vdi list`.
type vdiRow struct {
	Kind    string    `json:"kind"` // s snapshot, c clone, = other
	Name    string    `json:"name"`
	ID      uint32    `json:"id"` // of a snapshot; 0: working
	Size    uint64    `json:"size"`
	Used    uint64    `json:"used"`   // what it holds itself
	Shared  uint64    `json:"shared"` // what it sees of its ancestors, at most
	Created time.Time `json:"created"`
	Vid     string    `json:"vid"`
	Copies  int       `json:"copies"`
	Tag     string    `json:"tag"`
}

func (s *shell) vdiList(c *cli.Context) error {
	if err := arguments(c, "[NAME]"); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		usage := admin.Usage{}
		if len(m.VDIs) > 0 {
			if usage, err = a.Usage(ctx, true); err != nil {
				return err
			}
		}
		return s.printVDIs(style(c), vdiRows(m, usage, c.Args().First()))
	})
}

// living are the VDIs and snapshots that somebody may still open, those of one name together: snapshots in their order, then the working VDI.
func living(m *state.Map) []*state.VDI {
	var list []*state.VDI
	for _, v := range m.VDIs {
		if v.State != state.Deleted {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b *state.VDI) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.SnapID-1, b.SnapID-1)) // 0, working, wraps around to the end
	})
	return list
}

func vdiRows(m *state.Map, usage admin.Usage, only string) []vdiRow {
	rows := []vdiRow{}
	for _, v := range living(m) {
		if only != "" && v.Name != only {
			continue
		}
		row := vdiRow{Kind: kindOf(m, v), Name: v.Name, ID: v.SnapID, Size: v.Size, Used: usage[v.Vid], Created: bornAt(v),
			Vid: fmt.Sprintf("%06x", v.Vid), Tag: v.Tag}
		if p := m.Pool(v.Pool); p != nil {
			row.Copies = p.Copies
		}
		for _, above := range m.Chain(v.Vid) {
			if above.Vid != v.Vid {
				row.Shared += usage[above.Vid]
			}
		}
		row.Shared = min(row.Shared, v.Size-min(v.Size, row.Used)) // blocks that it has overwritten are not told apart
		rows = append(rows, row)
	}
	return rows
}

// bornAt is when a snapshot was taken, or when a working VDI got the name it has.
func bornAt(v *state.VDI) time.Time {
	if v.SnapID > 0 {
		return v.Frozen
	}
	return v.Created
}

func kindOf(m *state.Map, v *state.VDI) string {
	if v.SnapID > 0 {
		return "s"
	}
	if parent := m.VDI(v.Parent); parent != nil && parent.Name != v.Name {
		return "c"
	}
	return "="
}

func (s *shell) printVDIs(st output.Style, rows []vdiRow) error {
	if st == output.JSON {
		return output.Value(s.out, rows)
	}
	right := func(title string, width, gap int) output.Column {
		return output.Column{Title: title, Width: width, Right: true, Gap: gap}
	}
	t := output.NewTable(output.Column{Width: 1}, output.Column{Title: "Name", Width: 8, Gap: 1}, right("Id", 5, 1), right("Size", 7, 1), right("Used", 7, 1),
		right("Shared", 7, 1), right("Creation time", 16, 1), right("VDI id", 7, 2), right("Copies", 6, 2), output.Column{Title: "Tag"})
	for _, r := range rows {
		if st == output.Raw {
			output.Fields(s.out, r.Kind, r.Name, r.ID, r.Size, r.Used, r.Shared, r.Created, r.Vid, r.Copies, r.Tag)
			continue
		}
		kind := r.Kind
		if kind == "=" {
			kind = ""
		}
		t.Row(kind, r.Name, fmt.Sprint(r.ID), units.Human(r.Size), units.Human(r.Used), units.Human(r.Shared), minute(r.Created), r.Vid, fmt.Sprint(r.Copies), r.Tag)
	}
	if st == output.Raw {
		return nil
	}
	return t.Write(s.out)
}

func minute(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }
