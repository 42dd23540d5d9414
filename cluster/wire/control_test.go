package wire

import (
	"reflect"
	"testing"
)

func TestControlMessagesComeBack(t *testing.T) {
	check := func(name string, in, out any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(in, out) {
			t.Errorf("%s: %+v came back as %+v (%v)", name, in, out, err)
		}
	}
	r, r2 := Renew{1, 2, -3, 4, 5, 6, 7}, Renew{}
	check("renew", &r, &r2, r2.Parse(r.Append(nil)))
	g, g2 := Grant{1, 2, 3, 4}, Grant{}
	check("grant", &g, &g2, g2.Parse(g.Append(nil)))
	e, e2 := Exited{1, 2}, Exited{}
	check("exited", &e, &e2, e2.Parse(e.Append(nil)))
	c, c2 := ClosedReport{1, 2, []ClosedGroup{{3, 4}, {5, 6}}}, ClosedReport{}
	check("closed", &c, &c2, c2.Parse(c.Append(nil)))
	w, w2 := Who{UUID: "u", Addr: "a", Cluster: "c", Node: 3, Lead: true}, Who{}
	check("who", &w, &w2, w2.Parse(w.Append(nil)))
	if i, cmd, err := ParseCommand(AppendCommand(nil, 9, []byte("x"))); i != 9 || string(cmd) != "x" || err != nil {
		t.Errorf("command came back as %d %q %v", i, cmd, err)
	}
}

func FuzzControl(f *testing.F) {
	f.Add((&Renew{Node: 1}).Append(nil))
	f.Add((&ClosedReport{Groups: []ClosedGroup{{1, 2}}}).Append(nil))
	f.Add((&Who{UUID: "x"}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		new(Renew).Parse(b)
		new(Grant).Parse(b)
		new(Exited).Parse(b)
		new(ClosedReport).Parse(b)
		new(Who).Parse(b)
		ParseCommand(b)
	})
}
