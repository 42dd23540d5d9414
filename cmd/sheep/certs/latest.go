package certs

import (
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// latest is what files said when they last made sense. They are read again when they have changed, which is looked at when somebody asks.
type latest[T any] struct {
	what  string // in the log
	files []string
	read  func() (T, error)
	log   *slog.Logger

	mu      sync.Mutex // guards what follows
	value   T
	stamps  []stamp // of what was last read, whether it made sense or not
	checked time.Time
}

// stamp is enough of a file to see that it is another one.
type stamp struct {
	changed time.Time
	size    int64
}

// lookEvery bounds how often the files are looked at.
const lookEvery = time.Second

// newLatest reads the files for the first time: now they have to make sense.
func newLatest[T any](what string, files []string, log *slog.Logger, read func() (T, error)) (*latest[T], error) {
	l := &latest[T]{what: what, files: files, read: read, log: log}
	l.stamps = l.look()
	value, err := read()
	if err != nil {
		return nil, err
	}
	l.value = value
	return l, nil
}

func (l *latest[T]) look() []stamp {
	list := make([]stamp, len(l.files))
	for i, f := range l.files {
		if st, err := os.Stat(f); err == nil {
			list[i] = stamp{st.ModTime(), st.Size()}
		}
	}
	return list
}

func (l *latest[T]) now() T {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.checked) < lookEvery {
		return l.value
	}
	l.checked = time.Now()
	stamps := l.look()
	if slices.Equal(stamps, l.stamps) {
		return l.value
	}
	l.stamps = stamps
	value, err := l.read()
	if err != nil {
		l.log.Error("the changed "+l.what+" cannot be used; what was read before still is", "err", err)
		return l.value
	}
	l.value = value
	l.log.Info(l.what+" read again", "files", l.files)
	return value
}
