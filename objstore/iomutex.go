package objstore

// ioMutex is a mutex that may be held across I/O. It is a channel so that a
// simulated clock can pass while somebody waits for it.
type ioMutex chan struct{}

func newIOMutex() ioMutex { return make(ioMutex, 1) }

func (m ioMutex) Lock()   { m <- struct{}{} }
func (m ioMutex) Unlock() { <-m }
