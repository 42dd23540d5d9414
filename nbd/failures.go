package nbd

import (
	"errors"
	"sync"
	"time"
)

// failureLog keeps a stream of failing requests from flooding the log: one line a second, saying how many more there were.
type failureLog struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

// logFailure is where the truth about a failed request is told; the client gets a number and a sentence.
func (s *Server) logFailure(c *Conn, r *Request, err error) {
	var ref *refusal
	if errors.As(err, &ref) {
		c.log.Debug("nbd request refused", "op", r.Op.String(), "offset", r.Offset, "length", r.Length, "why", ref.text)
		return
	}
	f := &s.failures
	f.mu.Lock()
	if time.Since(f.last) < time.Second {
		f.skipped++
		f.mu.Unlock()
		return
	}
	skipped := f.skipped
	f.last, f.skipped = time.Now(), 0
	f.mu.Unlock()
	c.log.Warn("nbd request failed", "op", r.Op.String(), "offset", r.Offset, "length", r.Length, "err", err, "more", skipped)
}
