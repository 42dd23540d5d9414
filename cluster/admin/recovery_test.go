package admin

import (
	"strings"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// lackingMap is a map in which node 0 lacks so many of ten groups.
func lackingMap(index uint64, lacks int) *state.Map {
	m := &state.Map{Index: index, Nodes: []*state.Node{{ID: 0, Inc: 5, Up: true}}}
	for i := range 10 {
		g := &state.Group{ID: state.GroupID(i), Target: []state.NodeID{0}}
		if i >= lacks {
			g.InSync = []state.Member{{Node: 0, Inc: 5}}
		}
		m.Groups = append(m.Groups, g)
	}
	return m
}

// TestTimeLeft: the pace of the last samples tells how long the rest will take.
func TestTimeLeft(t *testing.T) {
	var s sampler
	now := time.Now()
	if p := s.progress(now, lackingMap(1, 8))[0]; p.Left != 8 || p.Total != 10 || p.Seconds != -1 {
		t.Errorf("without samples: %+v", p)
	}
	for i := range 5 { // one group a second
		s.take(now.Add(time.Duration(i)*time.Second), lackingMap(uint64(i+1), 8-i), uint64(i)<<20)
	}
	p := s.progress(now.Add(4*time.Second), lackingMap(9, 4))[0]
	if p.Left != 4 || p.Seconds < 4 || p.Seconds > 5 {
		t.Errorf("after five samples: %+v", p)
	}
	if got := s.perSec(); got != 1<<20 {
		t.Errorf("%d bytes a second", got)
	}
	for i := range 3 * samplesMax { // stuck
		s.take(now.Add(time.Duration(5+i)*time.Second), lackingMap(9, 4), 5<<20)
	}
	if p := s.progress(now.Add(time.Minute), lackingMap(9, 4))[0]; p.Seconds != -1 {
		t.Errorf("stuck: %+v", p)
	}
	if len(s.ring) != samplesMax || s.perSec() != 0 {
		t.Errorf("%d samples, %d bytes a second", len(s.ring), s.perSec())
	}
	if all := s.progress(now, lackingMap(10, 0)); len(all) != 0 {
		t.Errorf("nothing is lacking: %+v", all)
	}
}

// TestNoLease: a node that has no lease says who does not answer, and how many must.
func TestNoLease(t *testing.T) {
	there, gone := Node{UUID: "a", Host: "10.0.0.1", Port: 7000, Self: &Self{}}, Node{UUID: "b", Host: "10.0.0.2", Port: 7000}
	third, other := Node{UUID: "c", Host: "10.0.0.3", Port: 7000, Self: &Self{}}, Node{UUID: "d", Host: "10.0.0.4", Port: 7000}
	for _, c := range []struct {
		nodes  []Node
		voters []string
		want   []string
		never  string
	}{
		{[]Node{there, gone}, []string{"a", "b"}, []string{"only 1 of the 2", "2 are needed", "Start 10.0.0.2:7000", "--vnodes 0"}, "10.0.0.1"},
		{[]Node{there, gone, other}, []string{"a", "b", "d"}, []string{"only 1 of the 3", "10.0.0.2:7000, 10.0.0.4:7000"}, "--vnodes 0"},
		{[]Node{there, gone, third}, []string{"a", "b", "c"}, []string{"just started"}, "Start"},
		{[]Node{there, third, gone}, []string{"a", "c"}, []string{"just started"}, "Start"},
	} {
		got := noLease(c.nodes, c.voters)
		for _, w := range c.want {
			if !strings.Contains(got, w) || strings.Contains(got, c.never) {
				t.Errorf("%v: %s", c.voters, got)
			}
		}
	}
}
