package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
)

// vdiNode is a VDI or snapshot and what descends from it.
type vdiNode struct {
	vdi   *state.VDI
	Name  string     `json:"name"`
	ID    uint32     `json:"id"`
	Tag   string     `json:"tag"`
	Vid   string     `json:"vid"`
	Below []*vdiNode `json:"children,omitempty"`
}

// forest hangs every living VDI below its nearest living ancestor; the deleted ones between are left out.
func forest(m *state.Map) []*vdiNode {
	list := living(m)
	nodes := make(map[uint32]*vdiNode, len(list))
	for _, v := range list {
		nodes[v.Vid] = &vdiNode{vdi: v, Name: v.Name, ID: v.SnapID, Tag: v.Tag, Vid: fmt.Sprintf("%06x", v.Vid)}
	}
	var roots []*vdiNode
	for _, v := range list { // by name and age; but what goes on under the same name comes before clones
		if up := livingParent(m, nodes, v); up != nil {
			up.Below = append(up.Below, nodes[v.Vid])
		} else {
			roots = append(roots, nodes[v.Vid])
		}
	}
	for _, n := range nodes {
		slices.SortStableFunc(n.Below, func(a, b *vdiNode) int { return order(a.Name != n.Name) - order(b.Name != n.Name) })
	}
	return roots
}

func order(later bool) int {
	if later {
		return 1
	}
	return 0
}

func livingParent(m *state.Map, nodes map[uint32]*vdiNode, v *state.VDI) *vdiNode {
	for _, above := range m.Chain(v.Vid) {
		if up := nodes[above.Vid]; up != nil && above.Vid != v.Vid {
			return up
		}
	}
	return nil
}

// withMap fetches the map for a command that needs nothing else.
func (s *shell) withMap(c *cli.Context, f func(m *state.Map) error) error {
	if err := arguments(c); err != nil {
		return err
	}
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		return f(m)
	})
}

func (s *shell) vdiTree(c *cli.Context) error {
	return s.withMap(c, func(m *state.Map) error {
		roots := forest(m)
		if style(c) == output.JSON {
			return output.Value(s.out, roots)
		}
		for _, root := range roots {
			drawTree(s.out, root)
		}
		return nil
	})
}

// drawTree draws one family on its side, as Sheepdog does:
//
//	alpha---[2026-11-22 08:25]-+-[2026-11-22 08:25]---(you are here)
//	                           `-clone---(you are here)
func drawTree(w io.Writer, root *vdiNode) {
	fmt.Fprint(w, root.Name)
	drawBelow(w, root.Name, []*vdiNode{root}, utf8.RuneCountInString(root.Name), nil)
}

// drawBelow draws the siblings in nodes: the first on this line, the others on lines of their own. bars are the columns where lines of
// outer siblings pass.
func drawBelow(w io.Writer, name string, nodes []*vdiNode, column int, bars []int) {
	for i, n := range nodes {
		joint, passing := "---", bars
		switch {
		case len(nodes) > 1 && i == 0:
			joint = "-+-"
		case i > 0:
			indent(w, column+1, bars)
			joint = "`-"
			if i < len(nodes)-1 {
				joint = "+-"
			}
		}
		if i < len(nodes)-1 {
			passing = append(bars[:len(bars):len(bars)], column+1)
		}
		label := nodeLabel(n.vdi)
		if n.Name != name {
			label = n.Name + "---" + label
		}
		fmt.Fprint(w, joint, label)
		if len(n.Below) == 0 {
			fmt.Fprintln(w)
			continue
		}
		drawBelow(w, n.Name, n.Below, column+3+utf8.RuneCountInString(label), passing)
	}
}

func indent(w io.Writer, to int, bars []int) {
	line := []byte(strings.Repeat(" ", to))
	for _, b := range bars {
		line[b] = '|'
	}
	w.Write(line)
}

func nodeLabel(v *state.VDI) string {
	if v.SnapID == 0 {
		return "(you are here)"
	}
	return "[" + minute(bornAt(v)) + "]"
}

func (s *shell) vdiGraph(c *cli.Context) error {
	return s.withMap(c, func(m *state.Map) error {
		drawGraph(s.out, m)
		return nil
	})
}

// drawGraph writes the families in Graphviz' language.
func drawGraph(w io.Writer, m *state.Map) {
	fmt.Fprint(w, "digraph G {\n  node [shape = \"box\", fontname = \"Courier\"];\n\n  \"0\" [shape = \"ellipse\", label = \"root\"];\n\n")
	var draw func(above string, n *vdiNode)
	draw = func(above string, n *vdiNode) {
		v := n.vdi
		tag := v.Tag
		if tag == "" {
			tag = fmt.Sprint(v.SnapID)
		}
		fmt.Fprintf(w, "  \"%s\" -> \"%s\";\n  \"%s\" [\n    group = %s,\n    label = \"", above, n.Vid, n.Vid, dotQuote(v.Name))
		fmt.Fprintf(w, "Name: %10s\\nTag:  %10s\\nSize: %10s\\nDate: %10s\\nTime: %10s\"", dotEscape(v.Name), dotEscape(tag), units.Human(v.Size),
			bornAt(v).Local().Format("2006-01-02"), bornAt(v).Local().Format("15:04:05"))
		if v.SnapID == 0 {
			fmt.Fprint(w, ",\n    color=\"red\"")
		}
		fmt.Fprint(w, "\n  ];\n\n")
		for _, below := range n.Below {
			draw(n.Vid, below)
		}
	}
	for _, root := range forest(m) {
		draw("0", root)
	}
	fmt.Fprint(w, "}\n")
}

func dotQuote(s string) string { return `"` + dotEscape(s) + `"` }

func dotEscape(s string) string { return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) }
