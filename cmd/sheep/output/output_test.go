package output

import (
	"bytes"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	table := NewTable(Column{Title: "Id", Width: 4, Right: true}, Column{Title: "Host:Port", Width: 21, Gap: 3}, Column{Title: "V-Nodes", Right: true},
		Column{Title: "Zone"})
	table.Row("0", "192.168.1.100:7000", "64", "")
	table.Row("1", "a-very-long-name.example:7000", "128", "rack-ü")
	var b bytes.Buffer
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"  Id   Host:Port                      V-Nodes  Zone\n" +
		"   0   192.168.1.100:7000                  64\n" +
		"   1   a-very-long-name.example:7000      128  rack-ü\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestFields(t *testing.T) {
	var b bytes.Buffer
	Fields(&b, "=", "my disk", 1<<30, "", time.Unix(1795335924, 5), `a\b`)
	if want := "= my\\040disk 1073741824 - 1795335924 a\\134b\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}
