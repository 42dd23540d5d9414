package consensus

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes raft's own messages on for debugging: what raft calls an error (a peer that does not answer, several times a second) is daily life
// here, and what matters of it is said by us.
func raftLogger(l *slog.Logger) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: io.Discard})
	h.RegisterSink(sink{l})
	return h
}

type sink struct{ l *slog.Logger }

func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	s.l.Log(context.Background(), slog.LevelDebug, "raft: "+msg, append(args, "raftLevel", level.String())...)
}
