package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// Maps is where a client sees the agreed map: the node it is part of, or a Watcher.
type Maps interface {
	// Map is the newest one known. It is called for every request: no lock, no allocation.
	Map() *state.Map
	// Subscribe returns a channel with room for one that gets a value after each change, and a function that ends that. Changes
	// that come while a value waits share it.
	Subscribe() (changed <-chan struct{}, cancel func())
}

// Config is what a Client stands on. Zero values of the optional fields mean their defaults.
type Config struct {
	Maps Maps
	Net  wire.Network
	// Propose has a command agreed on; it keeps trying until ctx ends.
	Propose func(ctx context.Context, cmd *state.Command) (state.Result, error)
	// Latest is the index of the map that the leader has. Asked about names that are not known here; nil: they do not exist.
	Latest func(ctx context.Context) (index uint64, err error)

	// Local is the primary side of the node this client is part of, which is LocalNode. nil: a program of its own.
	Local     wire.Submitter
	LocalNode state.NodeID

	ID     string       // who this client is, unique per process; default: random
	Owner  string       // who holds a VDI, for people: host:port or a program's name; default: ID
	Logger *slog.Logger // default: slog.Default()

	// RetainBytesMax bounds what is kept of acknowledged and not yet flushed writes (R17): from there on the client flushes by itself, and from twice as much on
	// writers wait. Bytes, default 64 MiB.
	RetainBytesMax int64
	// SilenceMax is how long a primary that owes an answer may say nothing before the connection is given up. Default 3 s.
	SilenceMax time.Duration
	// RelayAfter is how long a primary may be unreachable before requests go through another node (R18). Default 5 s.
	RelayAfter time.Duration
}

const (
	defaultRetainBytes = 64 << 20
	defaultSilence     = 3 * time.Second
	defaultRelayAfter  = 5 * time.Second
)

// ErrClosed says that the client was closed.
var ErrClosed = errors.New("cluster client is closed")

func (cfg *Config) complete() error {
	switch {
	case cfg.Maps == nil:
		return errors.New("cluster client: no source of maps")
	case cfg.Propose == nil:
		return errors.New("cluster client: no way to propose")
	case cfg.Net == nil:
		return errors.New("cluster client: no network")
	case len(cfg.ID) > 200:
		return fmt.Errorf("cluster client: an ID of %d bytes is too long", len(cfg.ID))
	}
	if cfg.Local == nil {
		cfg.LocalNode = state.NoNode
	}
	if cfg.ID == "" {
		cfg.ID = randomID()
	}
	if cfg.Owner == "" {
		cfg.Owner = cfg.ID
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.RetainBytesMax <= 0 {
		cfg.RetainBytesMax = defaultRetainBytes
	}
	if cfg.SilenceMax <= 0 {
		cfg.SilenceMax = defaultSilence
	}
	if cfg.RelayAfter <= 0 {
		cfg.RelayAfter = defaultRelayAfter
	}
	return nil
}

func randomID() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
