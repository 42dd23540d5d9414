package vdi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/nbd"
)

// Backend serves every VDI and snapshot of a cluster.
type Backend struct {
	c *client.Client
	o BackendOptions
}

// BackendOptions narrow what a Backend serves.
type BackendOptions struct {
	ReadOnly bool   // working VDIs too are only read, without a session
	Only     string // serve this one (NAME or NAME:SNAPSHOT) alone, and as the default export too; "": all
	As       string // with Only: the name it is exported by; "": its own
	// Identity, with Only, is that of the one meant (state.VDI): what has its name after it is not opened. 0: whatever has the name.
	Identity uint64

	Description string // what clients are told of an export; "": its number and age
}

// NewBackend serves the VDIs that c sees.
func NewBackend(c *client.Client, o BackendOptions) *Backend { return &Backend{c: c, o: o} }

// SplitName divides NAME:SNAPSHOT. A VDI's name holds no colon.
func SplitName(export string) (name, snap string) {
	name, snap, _ = strings.Cut(export, ":")
	return name, snap
}

// List names all working VDIs and snapshots.
func (b *Backend) List(context.Context) ([]nbd.ExportInfo, error) {
	m := b.c.Map()
	if b.o.Only != "" {
		info, _, err := b.info(m, b.o.Only)
		if err != nil {
			return nil, err
		}
		return []nbd.ExportInfo{info}, nil
	}
	var list []nbd.ExportInfo
	for _, v := range sorted(m) {
		list = append(list, b.describe(v))
	}
	return list, nil
}

// Info describes one export from the directory alone.
func (b *Backend) Info(ctx context.Context, export string) (nbd.ExportInfo, error) {
	target, err := b.resolve(export)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	name, snap := SplitName(target)
	_, m, _ := b.c.Lookup(ctx, name, snap)
	info, _, err := b.info(m, target)
	return info, err
}

// Open opens an export for one connection.
func (b *Backend) Open(ctx context.Context, export string) (nbd.Device, nbd.ExportInfo, error) {
	target, err := b.resolve(export)
	if err != nil {
		return nil, nbd.ExportInfo{}, err
	}
	name, snap := SplitName(target)
	d, err := b.c.Open(ctx, name, snap, client.OpenOptions{ReadOnly: b.o.ReadOnly, Identity: b.o.Identity})
	if err != nil {
		return nil, nbd.ExportInfo{}, err
	}
	m := b.c.Map()
	info, v, err := b.info(m, target)
	if err == nil && v.Identity() != d.Identity() {
		err = fmt.Errorf("export %q: it was deleted just now, and made anew: %w", target, errNotExist)
	}
	if err != nil {
		d.Close(ctx)
		return nil, nbd.ExportInfo{}, err
	}
	info.Size = d.Size()
	info.ReadOnly = d.ReadOnly()
	dev := NewDevice(d)
	dev.maps, dev.pins = b.c.Map, pinned(m, v)
	context.AfterFunc(ctx, func() { dev.gone.Store(true) })
	return dev, info, nil
}

// resolve says which VDI an export name means.
func (b *Backend) resolve(export string) (string, error) {
	if strings.HasSuffix(export, ":") { // who may open snapshots alone would get the working VDI by it
		return "", fmt.Errorf("export %q: the snapshot's tag or number is missing: %w", export, errNotExist)
	}
	if b.o.Only == "" {
		return export, nil
	}
	if export != "" && export != b.name() {
		return "", fmt.Errorf("export %q: this server has only %q: %w", export, b.name(), errNotExist)
	}
	return b.o.Only, nil
}

func (b *Backend) name() string { return cmp.Or(b.o.As, b.o.Only) }

func (b *Backend) info(m *state.Map, target string) (nbd.ExportInfo, *state.VDI, error) {
	name, snap := SplitName(target)
	v, err := m.Lookup(name, snap)
	if err != nil {
		return nbd.ExportInfo{}, nil, fmt.Errorf("export %q: %w", target, err)
	}
	info := b.describe(v)
	if b.o.Only != "" {
		info.Name = b.name()
	}
	for _, p := range pinned(m, v) {
		info.Contexts = append(info.Contexts, p.context)
	}
	return info, v, nil
}

func (b *Backend) describe(v *state.VDI) nbd.ExportInfo {
	info := nbd.ExportInfo{
		Name: v.Name, Description: cmp.Or(b.o.Description, description(v)), Size: v.Size, ReadOnly: b.o.ReadOnly || v.State == state.Frozen, MultiConn: true,
		CanTrim: true, CanZero: true, CanFastZero: true, CanCache: true, BlockStatus: true,
	}
	if v.State == state.Frozen {
		info.Name += ":" + cmp.Or(v.Tag, strconv.FormatUint(uint64(v.SnapID), 10))
	}
	return info
}

func description(v *state.VDI) string {
	if v.State == state.Frozen {
		return fmt.Sprintf("snapshot %d, %s", v.SnapID, v.Frozen.Local().Format("2006-01-02 15:04"))
	}
	return fmt.Sprintf("vid %06x, created %s", v.Vid, v.Created.Local().Format("2006-01-02 15:04"))
}

// sorted are all VDIs that have a name, each followed by its snapshots in order.
func sorted(m *state.Map) []*state.VDI {
	var list []*state.VDI
	for _, v := range m.VDIs {
		if v.State != state.Deleted && v.Name != "" {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b *state.VDI) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(order(a), order(b)))
	})
	return list
}

// order puts the working VDI, whose number is 0, first.
func order(v *state.VDI) uint32 { return v.SnapID }
