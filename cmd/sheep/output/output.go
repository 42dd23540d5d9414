// Package output prints what commands have to say, in the three ways that every listing command knows: a table for people, raw
// lines for scripts (fields by single spaces, sizes in bytes, times in Unix seconds) and JSON.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Style is one of the three ways.
type Style int

const (
	Text Style = iota
	Raw
	JSON
)

// Column is one column of a table. The width grows with what is in it, so columns never drift.
type Column struct {
	Title string
	Width int  // at least
	Right bool // aligned to the right
	Gap   int  // spaces before it; 0: two
}

// Table gathers rows and prints them under a heading.
type Table struct {
	columns []Column
	rows    [][]string
}

// NewTable returns a table of these columns.
func NewTable(columns ...Column) *Table { return &Table{columns: columns} }

// Row adds a row: one cell for each column.
func (t *Table) Row(cells ...string) { t.rows = append(t.rows, cells) }

// Write prints heading and rows, without spaces at the ends of lines.
func (t *Table) Write(w io.Writer) error {
	widths := make([]int, len(t.columns))
	head := make([]string, len(t.columns))
	for i, c := range t.columns {
		widths[i] = max(c.Width, utf8.RuneCountInString(c.Title))
		head[i] = c.Title
	}
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range append([][]string{head}, t.rows...) {
		if _, err := fmt.Fprintln(w, t.line(row, widths)); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) line(row []string, widths []int) string {
	var b strings.Builder
	for i, cell := range row {
		c := t.columns[i]
		if i > 0 {
			gap := c.Gap
			if gap == 0 {
				gap = 2
			}
			b.WriteString(strings.Repeat(" ", gap))
		}
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if c.Right {
			b.WriteString(pad + cell)
		} else {
			b.WriteString(cell + pad)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// Fields prints one raw record. A space inside a field is written \040, an empty field -, so that the number of fields never changes.
func Fields(w io.Writer, fields ...any) error {
	words := make([]string, len(fields))
	for i, f := range fields {
		if t, ok := f.(time.Time); ok {
			f = t.Unix()
		}
		word := fmt.Sprint(f)
		if word == "" {
			word = "-"
		}
		words[i] = rawEscape.Replace(word)
	}
	_, err := fmt.Fprintln(w, strings.Join(words, " "))
	return err
}

var rawEscape = strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`)

// Value prints v as indented JSON.
func Value(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
