package consensus

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes raft's own messages on, one level down: what raft calls an error (a peer that does not answer) is daily life here.
func raftLogger(l *slog.Logger) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: io.Discard})
	h.RegisterSink(sink{l})
	return h
}

type sink struct{ l *slog.Logger }

func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	if level >= hclog.Error {
		to = slog.LevelInfo
	}
	s.l.Log(context.Background(), to, "raft: "+msg, args...)
}
