package objstore

import "encoding/binary"

// SetSyncing says durably that the group's content is a mixture from here
// on: Last is not comparable, and the next entry may have any number. It is
// in the journal before everything that follows it, so no crash shows the one
// without the other.
func (g *Group) SetSyncing() error {
	_, err := g.control(recSyncing, nil, func(place) { g.syncing, g.anyNext = true, true })
	if err != nil {
		return err
	}
	return g.s.j.commit()
}

// EndSyncing makes everything the group holds durable and then says, durably
// as well, that it is whole and last is its last number (R11); entries staged
// since SetSyncing that go beyond last count.
func (g *Group) EndSyncing(last Number) error {
	if !g.Syncing() {
		return ErrSyncing
	}
	if err := g.s.SyncWait(); err != nil {
		return err
	}
	if _, err := g.control(recSynced, appendNumber(nil, last), func(place) { g.synced(last) }); err != nil {
		return err
	}
	return g.s.SyncWait()
}

// synced takes the mark off. Entries staged under it may have gone beyond last.
func (g *Group) synced(last Number) {
	if !g.anyNext && last.LSN < g.last.LSN {
		last = g.last
	}
	g.syncing, g.anyNext, g.last = false, false, last
}

// SetTermStarts replaces the term history, by the resync source's.
func (g *Group) SetTermStarts(terms []Number) error {
	if n := len(terms); n > termsKept {
		terms = terms[n-termsKept:]
	}
	var body []byte
	for _, t := range terms {
		body = appendNumber(body, t)
	}
	terms = append([]Number(nil), terms...)
	_, err := g.control(recTerms, body, func(place) { g.terms = terms })
	return err
}

func appendNumber(b []byte, n Number) []byte {
	b = binary.LittleEndian.AppendUint64(b, n.Term)
	return binary.LittleEndian.AppendUint64(b, n.LSN)
}

func parseNumbers(b []byte) (list []Number, ok bool) {
	for ; len(b) >= 16; b = b[16:] {
		list = append(list, Number{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])})
	}
	return list, len(b) == 0
}
