package certs

import (
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"
)

// latest is what files said when they last made sense. They are read again when they have changed, which is looked at when somebody asks.
type latest[T any] struct {
	what  string // in the log
	files []string
	read  func() (T, error)
	log   *slog.Logger
	clock func() time.Time

	mu      sync.Mutex // guards what follows
	value   T
	stamps  []stamp // of what was read
	fault   string  // why what is there now cannot be used
	checked time.Time
}

// stamp is enough of a file to see that it is another one.
type stamp struct {
	inode            uint64
	written, changed time.Time // the bytes; the file, its owner and mode included
	size             int64
}

const (
	lookEvery = time.Second            // at most
	settle    = 500 * time.Millisecond // what was written a moment ago may be half there
)

// newLatest reads the files for the first time: now they have to make sense.
func newLatest[T any](what string, files []string, log *slog.Logger, read func() (T, error)) (*latest[T], error) {
	l := &latest[T]{what: what, files: files, read: read, log: log, clock: time.Now}
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
		var st syscall.Stat_t
		if syscall.Stat(f, &st) == nil {
			list[i] = stamp{st.Ino, time.Unix(st.Mtim.Unix()), time.Unix(st.Ctim.Unix()), st.Size}
		}
	}
	return list
}

func (s stamp) fresh(now time.Time) bool {
	age := now.Sub(s.changed)
	return age >= 0 && age < settle
}

func (l *latest[T]) now() T {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	if now.Sub(l.checked) < lookEvery {
		return l.value
	}
	l.checked = now
	stamps := l.look()
	if slices.Equal(stamps, l.stamps) || slices.ContainsFunc(stamps, func(s stamp) bool { return s.fresh(now) }) {
		return l.value
	}
	value, err := l.read()
	if err != nil { // it is tried again: the reason may be one that passes
		if l.fault != err.Error() {
			l.fault = err.Error()
			l.log.Error("the changed "+l.what+" cannot be used; what was read before still is", "err", err)
		}
		return l.value
	}
	l.value, l.stamps, l.fault = value, stamps, ""
	l.log.Info(l.what+" read again", "files", l.files)
	return value
}
