package objstore

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Unit is all versions of one object, without the bytes: what resync
// compares and then installs.
type Unit struct {
	Key      Key
	Version  Number
	Versions []UnitVersion // by vid
}

// UnitVersion is one version's blocks that are not Absent, by block.
type UnitVersion struct {
	Vid    Vid
	Gen    uint64
	Blocks []UnitBlock
}

type UnitBlock struct {
	Block uint16
	State State
	CRC   uint32 // of a Present block
}

// Unit describes an object; nil and no error if there is none.
func (g *Group) Unit(key Key) (*Unit, error) {
	o, unlock, err := g.lockLoaded(key)
	if err != nil || o == nil {
		return nil, err
	}
	defer unlock()
	if o.damaged {
		return nil, &BlockError{Group: g.id, Key: key, Err: ErrDamaged}
	}
	if !o.exists() {
		return nil, nil
	}
	u := &Unit{Key: key, Version: o.version}
	for _, v := range o.t.list {
		uv := UnitVersion{Vid: v.vid, Gen: v.gen}
		for b, c := range v.cells {
			if st := c.state(); st != Absent {
				ub := UnitBlock{Block: uint16(b), State: st}
				if st == Present {
					ub.CRC = c.sum
				}
				uv.Blocks = append(uv.Blocks, ub)
			}
		}
		u.Versions = append(u.Versions, uv)
	}
	slices.SortFunc(u.Versions, func(a, b UnitVersion) int { return int(a.Vid) - int(b.Vid) })
	return u, nil
}

// lockLoaded returns the object with its tables in memory and the group
// locked, or nil with nothing locked.
func (g *Group) lockLoaded(key Key) (*object, func(), error) {
	if err := g.s.Err(); err != nil {
		return nil, nil, err
	}
	g.mu.Lock()
	for {
		if g.dropped {
			g.mu.Unlock()
			return nil, nil, fmt.Errorf("object %v: group %d: %w", key, g.id, ErrDropped)
		}
		o := g.objects[key]
		if o == nil {
			g.mu.Unlock()
			return nil, nil, nil
		}
		if o.t != nil {
			o.t.recent = true
			return o, g.mu.Unlock, nil
		}
		g.mu.Unlock()
		if err := g.s.load(o); err != nil {
			return nil, nil, err
		}
		g.mu.Lock()
	}
}

// VersionOf is the number of the last entry that changed an object, whole or
// damaged; zero where there is none.
func (g *Group) VersionOf(key Key) Number {
	g.mu.Lock()
	defer g.mu.Unlock()
	if o := g.objects[key]; o != nil {
		return o.version
	}
	return Number{}
}

// Has says whether an object has a version of a vid. An object that cannot be read has none.
func (g *Group) Has(key Key, vid Vid) bool {
	o, unlock, err := g.lockLoaded(key)
	if err != nil || o == nil {
		return false
	}
	defer unlock()
	return !o.damaged && o.t.find(vid) != nil
}

// A unit on the wire:
//
//	 0  format   u32 = 1
//	 4  crc      u32   CRC-32C of all that follows
//	 8  key      u64
//	16  term     u64 | lsn u64
//	32  versions u32 | zero u32
//	40  { vid u32 | blocks u32 | gen u64 | { block u16 | state u8 | zero u8 | crc u32 } × blocks } × versions
const (
	unitFormat      = 1
	unitHead        = 40
	unitVersionHead = 16
	unitBlockSize   = 8
)

// Append appends the encoded unit.
func (u *Unit) Append(dst []byte) []byte {
	at := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, unitFormat)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(u.Key))
	dst = binary.LittleEndian.AppendUint64(dst, u.Version.Term)
	dst = binary.LittleEndian.AppendUint64(dst, u.Version.LSN)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(u.Versions)))
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	for _, v := range u.Versions {
		dst = binary.LittleEndian.AppendUint32(dst, v.Vid)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(v.Blocks)))
		dst = binary.LittleEndian.AppendUint64(dst, v.Gen)
		for _, b := range v.Blocks {
			dst = binary.LittleEndian.AppendUint16(dst, b.Block)
			dst = append(dst, byte(b.State), 0)
			dst = binary.LittleEndian.AppendUint32(dst, b.CRC)
		}
	}
	binary.LittleEndian.PutUint32(dst[at+4:], Checksum(dst[at+8:]))
	return dst
}

// ParseUnit decodes a unit that takes all of b. What it accepts is valid:
// vids and blocks rise, states are known.
func ParseUnit(b []byte) (*Unit, error) {
	if len(b) < unitHead {
		return nil, fmt.Errorf("unit: %d bytes: %w", len(b), ErrFormat)
	}
	if f := binary.LittleEndian.Uint32(b); f != unitFormat {
		return nil, fmt.Errorf("unit: format %d is unknown: %w", f, ErrFormat)
	}
	if Checksum(b[8:]) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, fmt.Errorf("unit: %w", ErrChecksum)
	}
	u := &Unit{
		Key:     Key(binary.LittleEndian.Uint64(b[8:])),
		Version: Number{binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])},
	}
	n := binary.LittleEndian.Uint32(b[32:])
	zero := binary.LittleEndian.Uint32(b[36:])
	b = b[unitHead:]
	for range n {
		v, used, ok := parseUnitVersion(b)
		if !ok {
			return nil, fmt.Errorf("unit %v: version %d: %w", u.Key, len(u.Versions), ErrFormat)
		}
		u.Versions = append(u.Versions, v)
		b = b[used:]
	}
	if len(b) != 0 || zero != 0 {
		return nil, fmt.Errorf("unit %v: %d bytes too many: %w", u.Key, len(b), ErrFormat)
	}
	return u, u.Validate()
}

func parseUnitVersion(b []byte) (v UnitVersion, n int, ok bool) {
	if len(b) < unitVersionHead {
		return v, 0, false
	}
	v.Vid, v.Gen = binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[8:])
	count := int(binary.LittleEndian.Uint32(b[4:]))
	n = unitVersionHead + unitBlockSize*count
	if count > BlocksPerObject || len(b) < n {
		return v, 0, false
	}
	for at := unitVersionHead; at < n; at += unitBlockSize {
		if b[at+3] != 0 {
			return v, 0, false
		}
		v.Blocks = append(v.Blocks, UnitBlock{
			Block: binary.LittleEndian.Uint16(b[at:]), State: State(b[at+2]), CRC: binary.LittleEndian.Uint32(b[at+4:]),
		})
	}
	return v, n, true
}

// Validate holds the refusals of a unit.
func (u *Unit) Validate() error {
	last := Vid(0)
	for _, v := range u.Versions {
		if v.Vid <= last || v.Vid > vidMax {
			return fmt.Errorf("unit %v: vid %06x after %06x: %w", u.Key, v.Vid, last, ErrFormat)
		}
		last = v.Vid
		next := 0
		for _, b := range v.Blocks {
			if int(b.Block) < next || b.Block >= BlocksPerObject || b.State == Absent || b.State > Bad || b.State != Present && b.CRC != 0 {
				return fmt.Errorf("unit %v: vid %06x block %d %v: %w", u.Key, v.Vid, b.Block, b.State, ErrFormat)
			}
			next = int(b.Block) + 1
		}
	}
	return nil
}
