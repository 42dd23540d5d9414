package client

import "github.com/sheepdog-go/sheepdog/cluster/planted"

// overlap holds the changes of a session that are not answered yet, so that there is at most one for any 4 KiB block (R15): a later one waits
// behind all earlier ones that it touches. Each bucket is a chain, oldest first.
type overlap struct {
	buckets [overlapBuckets]*piece
}

const overlapBuckets = 128

// add takes p in and says whether it may go at once.
func (o *overlap) add(p *piece) bool {
	p.chain, p.blockers = nil, 0
	at := &o.buckets[p.index%overlapBuckets]
	for q := *at; q != nil; q = *at {
		if q.index == p.index && q.touches(p) && !planted.Broken("R15b") {
			p.blockers++
		}
		at = &q.chain
	}
	*at = p
	return p.blockers == 0
}

// remove takes a settled piece out and returns those that may go now.
func (o *overlap) remove(p *piece) (free pieceList) {
	at := &o.buckets[p.index%overlapBuckets]
	for *at != p {
		if *at == nil {
			return free
		}
		at = &(*at).chain
	}
	*at = p.chain
	for q := p.chain; q != nil; q = q.chain {
		if q.index == p.index && q.touches(p) && !planted.Broken("R15b") {
			if q.blockers--; q.blockers == 0 {
				free.push(q)
			}
		}
	}
	p.chain = nil
	return free
}

// touches says whether two pieces of one object have a block in common.
func (p *piece) touches(q *piece) bool {
	a, b := p.blocks()
	c, d := q.blocks()
	return a < d && c < b
}
