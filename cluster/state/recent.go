package state

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"
)

const (
	// recentFor is how long an outcome is remembered for a proposer who could not see it: it asks again within seconds. Proposers' clocks are what it is
	// measured by, so it is a wish; recentMin and recentMax are promises.
	recentFor = time.Minute
	recentMin = 256  // so many newest outcomes are remembered whatever the clocks say
	recentMax = 4096 // and not more than so many
	// A command costs a copy of the last, unfinished part.
	recentPart = 64
)

// recent are the outcomes of the newest commands, oldest first. It is persistent like the Map: adding gives a new one that shares all parts but the last.
type recent struct {
	parts [][]CommandResult // none is empty; all but the first and the last hold recentPart
	n     int
}

// find is the outcome of a command that was applied before.
func (r recent) find(id string) (Result, bool) {
	if id == "" {
		return Result{}, false
	}
	for i := len(r.parts) - 1; i >= 0; i-- {
		for j := len(r.parts[i]) - 1; j >= 0; j-- {
			if c := &r.parts[i][j]; c.ID == id {
				return c.Result, true
			}
		}
	}
	return Result{}, false
}

// with returns the list with c added, and without what is too old by c's time.
func (r recent) with(c CommandResult) recent {
	r = r.added(c)
	for r.n > recentMax || r.n > recentMin && r.parts[0][0].At < c.At-recentFor.Milliseconds() {
		r.n--
		if r.parts[0] = r.parts[0][1:]; len(r.parts[0]) == 0 { // parts is a copy of our own
			r.parts = r.parts[1:]
		}
	}
	return r
}

func (r recent) added(c CommandResult) recent {
	parts := make([][]CommandResult, len(r.parts), len(r.parts)+1)
	copy(parts, r.parts)
	if k := len(parts) - 1; k >= 0 && len(parts[k]) < recentPart {
		parts[k] = append(slices.Clip(parts[k]), c)
	} else {
		parts = append(parts, []CommandResult{c})
	}
	return recent{parts, r.n + 1}
}

// MarshalJSON writes a plain list: where parts end depends on when a node read the list, and must not show.
func (r recent) MarshalJSON() ([]byte, error) {
	return json.Marshal(slices.Concat(r.parts...))
}

// UnmarshalJSON reads one.
func (r *recent) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var list []CommandResult
	if err := d.Decode(&list); err != nil {
		return err
	}
	r.parts, r.n = slices.Collect(slices.Chunk(list, recentPart)), len(list)
	return nil
}
