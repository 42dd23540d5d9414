package lead

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestChooseVoters(t *testing.T) {
	// A node is written as name/zone and marks: v votes now, r ready, a away, s self.
	for _, c := range []struct{ nodes, want string }{
		{"a/1/vs", "a"},
		{"a/1/vs b/2/r", "a b"},
		{"a/1/vs b/2/", "a"},                                         // not caught up
		{"a/1/vs b/2/r c/3/r", "a b c"},                              //
		{"a/1/vs b/2/v c/3/v d/4/r", "a b c"},                        // no change for its own sake
		{"a/1/vs b/2/v c/2/v d/3/r", "a b d"},                        // but for another zone
		{"a/1/vs b/2/va c/3/v d/4/r", "a c d"},                       // an away voter is replaced
		{"a/1/vs b/2/va c/3/v d/4/", "a c b"},                        // not by one that is not ready
		{"a/1/vs b/2/va c/3/va", "a b c"},                            // by nobody: they stay
		{"a/1/vs b/1/r c/1/r d/2/r e/2/r f/3/r", "a d f b e"},        // five, zones first
		{"a/1/v b/2/v c/3/vs d/3/v e/1/v f/2/v g/4/r", "c a b g d"},  // self stays
		{"a/1/vs b/2/v c/3/v d/4/v e/5/va f/6/r g/7/r", "a b c d f"}, //
		{"a/1/vs b/2/v c/3/v d/4/v", "a b c"},                        // one too many after a removal
	} {
		var list []candidate
		for _, w := range strings.Fields(c.nodes) {
			f := strings.Split(w, "/")
			list = append(list, candidate{uuid: f[0], zone: f[1], voter: strings.Contains(f[2], "v"), ready: strings.Contains(f[2], "r"),
				away: strings.Contains(f[2], "a"), self: strings.Contains(f[2], "s")})
		}
		if got := strings.Join(chooseVoters(list), " "); got != c.want {
			t.Errorf("of %s chose %s, want %s", c.nodes, got, c.want)
		}
	}
}

// Whatever the nodes: never more than wanted, self among them, nobody without a vote who is not ready; and choosing again from the result changes nothing.
func TestChooseVotersSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []candidate
		for i := range rapid.IntRange(1, 9).Draw(t, "nodes") {
			list = append(list, candidate{uuid: fmt.Sprint("u", i), zone: fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "zone")), voter: i == 0 || rapid.Bool().Draw(t, "votes"),
				ready: rapid.Bool().Draw(t, "ready"), away: rapid.Bool().Draw(t, "away"), self: i == 0})
		}
		got := chooseVoters(list)
		if len(got) > votersFor(len(list)) || got[0] != "u0" {
			t.Fatalf("chose %v of %d", got, len(list))
		}
		for i := range list {
			c := &list[i]
			in := slices.Contains(got, c.uuid)
			if in && !c.voter && !c.ready {
				t.Fatalf("%s has no vote, is not ready and was chosen", c.uuid)
			}
			c.voter = in
		}
		again := chooseVoters(list)
		slices.Sort(got)
		slices.Sort(again)
		if !slices.Equal(got, again) {
			t.Fatalf("chose %v, and then %v", got, again)
		}
	})
}
