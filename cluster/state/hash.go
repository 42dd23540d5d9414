package state

import "math/bits"

// MaxVid is the largest vid: 24 bits.
const MaxVid = 1<<24 - 1

// GroupOf says which group of a pool keeps an object. It is part of the format of a cluster: it may never change.
func GroupOf(pool *Pool, root, index uint32) GroupID {
	// The finalizer of SplitMix64 (Steele, Lea, Flood 2014; constants by Stafford, "Mix13"): every input bit changes every output bit
	// with a probability of one half, so the top bits are as good as any.
	h := uint64(root)<<32 | uint64(index)
	h += 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	h ^= h >> 31
	return GroupID(uint32(pool.ID)<<16 | uint32(h>>(64-bits.TrailingZeros(uint(pool.PGs)))))
}

// NewGroupID composes a group's number of its pool's and its index in the pool.
func NewGroupID(pool uint16, index int) GroupID { return GroupID(uint32(pool)<<16 | uint32(index)) }

// Pool is the number of the group's pool.
func (g GroupID) Pool() uint16 { return uint16(g >> 16) }

// Index is the group's place in its pool.
func (g GroupID) Index() int { return int(g & 0xffff) }

// fnv1a is the 64-bit FNV-1a hash (Fowler, Noll, Vo), as the original has it: the same names get the same vids.
func fnv1a(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// HashName is the vid a name would like to have.
func HashName(name string) uint32 { return uint32(fnv1a(name) & MaxVid) }
