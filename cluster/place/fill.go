package place

import (
	"cmp"
	"slices"
)

// fill brings every node to its quota.
func (p *plan) fill() {
	if !slices.ContainsFunc(p.load, func(n int) bool { return n > 0 }) {
		p.deal()
		return
	}
	p.fillHoles(true)
	p.shift()
	p.chains()
	p.fillHoles(false)
}

// deal fills empty groups, one after the other, with nodes drawn at random (by a hash, so always the same) by what is left of their quotas. A node or
// zone that would otherwise be left with more than the groups to come can take is drawn first; so it always comes out even.
func (p *plan) deal() {
	left := slices.Clone(p.quota)
	zoneLeft := make([]int, len(p.zones))
	for n, q := range left {
		zoneLeft[p.nodes[n].zone] += q
	}
	for g := range p.sets {
		toCome := len(p.sets) - g - 1
		for i := range p.spread.copies {
			n := p.draw(g, left, func(n int) int {
				z := p.nodes[n].zone
				switch {
				case left[n] > toCome:
					return 2
				case zoneLeft[z] > toCome*min(len(p.zones[z].nodes), p.spread.perZone):
					return 1
				}
				return 0
			}, uint64(g)<<8|uint64(i))
			if n < 0 {
				break
			}
			p.add(g, n)
			left[n]--
			zoneLeft[p.nodes[n].zone]--
		}
	}
	p.chains()
	p.fillHoles(false)
}

// draw picks a node that fits a group: of the greatest urgency there is, with the probability that its share of tickets gives it; -1 if none has any.
func (p *plan) draw(g int, tickets []int, urgency func(n int) int, salt uint64) int {
	best, total := 0, uint64(0)
	for pass := range 2 {
		point := uint64(0)
		if pass == 1 {
			if total == 0 {
				return -1
			}
			point = mix(salt^p.salt) % total
		}
		for n, t := range tickets {
			if t <= 0 {
				continue
			}
			u := urgency(n)
			if u < best || !p.fits(g, n, -1) {
				continue
			}
			switch {
			case pass == 0 && u > best:
				best, total = u, uint64(t)
			case pass == 0:
				total += uint64(t)
			case point < uint64(t):
				return n
			default:
				point -= uint64(t)
			}
		}
	}
	return -1
}

// fillHoles gives groups what they lack. With inQuota only by nodes below their quota; otherwise by whoever fits and is the least full.
func (p *plan) fillHoles(inQuota bool) {
	wants := make([]int, len(p.nodes))
	for g := range p.sets {
		for len(p.sets[g]) < p.spread.copies {
			n := -1
			if inQuota {
				for i := range wants {
					wants[i] = p.quota[i] - p.load[i]
				}
				n = p.draw(g, wants, func(int) int { return 0 }, uint64(g)<<8|uint64(len(p.sets[g])))
			} else {
				n = p.leastFull(g)
			}
			if n < 0 {
				break
			}
			p.add(g, n)
		}
	}
}

func (p *plan) leastFull(g int) int {
	best := -1
	for n := range p.nodes {
		if p.fits(g, n, -1) && (best < 0 || uint64(p.load[n]+1)*p.nodes[best].weight < uint64(p.load[best]+1)*p.nodes[n].weight) {
			best = n
		}
	}
	return best
}

// shift moves replicas from nodes above their quota straight to nodes below theirs.
func (p *plan) shift() {
	var short []int
	for n := range p.nodes {
		if p.load[n] < p.quota[n] {
			short = append(short, n)
		}
	}
	for _, g := range shuffled(len(p.sets), p.salt) {
		size := len(p.sets[g])
		for i := 0; i < size && len(short) > 0; i++ {
			leaver := p.sets[g][(i+int(mix(uint64(g)^p.salt)%uint64(size)))%size]
			if p.load[leaver] <= p.quota[leaver] {
				continue
			}
			best := -1 // the one that lacks most, for its quota
			for j, n := range short {
				if p.fits(g, n, leaver) && (best < 0 || p.lacksMore(n, short[best])) {
					best = j
				}
			}
			if best < 0 {
				continue
			}
			n := short[best]
			p.replace(g, leaver, n)
			if p.load[n] == p.quota[n] {
				short = slices.Delete(short, best, best+1)
			}
		}
	}
}

func (p *plan) lacksMore(a, b int) bool {
	return (p.quota[a]-p.load[a])*p.quota[b] > (p.quota[b]-p.load[b])*p.quota[a]
}

// chains does what no straight move can: a node below its quota takes the place of a node that is at its own, which takes the place of …
// one that is above, or fills a hole. Each chain is the one that moves the least data: what has only just been given to a node is not there yet
// and costs nothing to give to another.
func (p *plan) chains() {
	for n := range p.nodes {
		for p.load[n] < p.quota[n] && p.chain(n) {
		}
	}
}

// link says who takes a node's place, and in which group.
type link struct{ taker, group int }

// chain is a breadth-first search with two queues, one for each cost, 0 and 1.
func (p *plan) chain(from int) bool {
	links := make([]link, len(p.nodes))
	cost := make([]int, len(p.nodes))
	done := make([]bool, len(p.nodes))
	for i := range links {
		links[i], cost[i] = link{-1, -1}, len(p.nodes)
	}
	cost[from] = 0
	now, later := []int{from}, []int(nil)
	for len(now) > 0 || len(later) > 0 {
		if len(now) == 0 {
			now, later = later, nil
		}
		x := now[0]
		now = now[1:]
		if done[x] {
			continue
		}
		done[x] = true
		if p.load[x] > p.quota[x] && x != from && p.walk(links, from, x) {
			return true
		}
		for g := range p.sets {
			if len(p.sets[g]) < p.spread.copies && p.fits(g, x, -1) && p.walk(links, from, x) {
				if p.fits(g, x, -1) { // the walk may have been through here
					p.add(g, x)
				}
				return true
			}
			for _, y := range p.sets[g] {
				c := cost[x]
				if slices.Contains(p.kept[g], y) && !slices.Contains(p.kept[g], x) {
					c++
				}
				if c >= cost[y] || !p.fits(g, x, y) {
					continue
				}
				links[y], cost[y] = link{x, g}, c
				if c == cost[x] {
					now = append(now, y)
				} else {
					later = append(later, y)
				}
			}
		}
	}
	return false
}

// walk makes the moves of a chain that ends at last. Moves in one group can get into each other's way: then nothing is done.
func (p *plan) walk(links []link, from, last int) bool {
	type move struct{ group, leaver, taker int }
	var done []move
	for y := last; y != from; y = links[y].taker {
		l := links[y]
		if !p.fits(l.group, l.taker, y) || !slices.Contains(p.sets[l.group], y) {
			for i := len(done) - 1; i >= 0; i-- {
				p.replace(done[i].group, done[i].taker, done[i].leaver)
			}
			return false
		}
		p.replace(l.group, y, l.taker)
		done = append(done, move{l.group, y, l.taker})
	}
	return true
}

// shuffled are the numbers below n in an order that has no system, but is the same for the same salt.
func shuffled(n int, salt uint64) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	slices.SortFunc(list, func(a, b int) int { return cmp.Compare(mix(uint64(a)^salt), mix(uint64(b)^salt)) }) // mix is one to one: never equal
	return list
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
