package admin

import (
	"net"
	"sync"
)

// ownListener makes a listener that is shared with other protocols closable for HTTP alone: closing it ends Accept here and leaves the port open.
type ownListener struct {
	net.Listener
	conns chan net.Conn
	errs  chan error // gets the one error that ended accepting
	done  chan struct{}
	once  sync.Once
}

// newOwnListener begins to accept. Its goroutine ends when the shared listener is closed.
func newOwnListener(shared net.Listener) *ownListener {
	l := &ownListener{Listener: shared, conns: make(chan net.Conn), errs: make(chan error, 1), done: make(chan struct{})}
	go l.accept()
	return l
}

func (l *ownListener) accept() {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			l.errs <- err
			return
		}
		select {
		case l.conns <- c:
		case <-l.done:
			c.Close()
		}
	}
}

// Accept implements net.Listener.
func (l *ownListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	case err := <-l.errs:
		return nil, err
	}
}

// Close implements net.Listener.
func (l *ownListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}
