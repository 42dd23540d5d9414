package objstore

import (
	"fmt"
	"slices"
)

// resolved remembers, for one chain of versions, which of them each block of
// an object is in, so that reading through a thousand snapshots costs no more
// than through three.
type resolved struct {
	chain []VidGen
	order []*table                // those of the chain that the object has
	at    [BlocksPerObject]uint16 // index in order, plus one; 0 unknown
}

const (
	resolveFrom = 5      // shorter chains are walked
	nowhere     = 0xffff // no version has the block
)

// through finds a block's newest version in the chain; nil if none has it.
// Holds the group's mutex.
func (t *tables) through(key Key, chain []VidGen, block int) (*table, error) {
	if len(chain) < resolveFrom {
		for _, vg := range chain {
			v := t.find(vg.Vid)
			if v == nil {
				continue
			}
			if v.gen != vg.Gen {
				return nil, generationError(key, v, vg)
			}
			if v.cells[block].at != cellAbsent {
				return v, nil
			}
		}
		return nil, nil
	}
	r := t.res
	if r == nil || !slices.Equal(r.chain, chain) {
		var err error
		if r, err = t.resolve(key, chain); err != nil {
			return nil, err
		}
		t.res = r
	}
	switch i := r.at[block]; i {
	case 0:
	case nowhere:
		return nil, nil
	default:
		return r.order[i-1], nil
	}
	for i, v := range r.order {
		if v.cells[block].at != cellAbsent {
			r.at[block] = uint16(min(i+1, nowhere-1))
			if i+1 >= nowhere {
				r.at[block] = 0
			}
			return v, nil
		}
	}
	r.at[block] = nowhere
	return nil, nil
}

func (t *tables) resolve(key Key, chain []VidGen) (*resolved, error) {
	r := &resolved{chain: slices.Clone(chain)}
	here := make(map[Vid]*table, len(t.list))
	for _, v := range t.list {
		here[v.vid] = v
	}
	for _, vg := range chain {
		v := here[vg.Vid]
		if v == nil {
			continue
		}
		if v.gen != vg.Gen {
			return nil, generationError(key, v, vg)
		}
		r.order = append(r.order, v)
	}
	return r, nil
}

func generationError(key Key, v *table, vg VidGen) error {
	return fmt.Errorf("read object %v: vid %06x has generation %d, not %d: %w", key, v.vid, v.gen, vg.Gen, ErrGeneration)
}
