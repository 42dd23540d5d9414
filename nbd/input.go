package nbd

import "sync"

// input is the bytes that have arrived and are not yet understood. Its memory comes from a pool, and goes back whenever
// the connection is idle, so that a thousand idle connections cost a thousand goroutines and nothing else.
type input struct {
	size int
	mem  *[]byte // nil while idle
	r, w int     // mem[r:w] is there

	dst   []byte // the payload being read past the buffer, straight to where it stays; nil for none
	ahead int    // with dst: how much of what follows the payload is welcome
	large bool   // the last request had a large payload: the next may have one too, which should not come to be copied

	within  bool   // the bytes awaited belong to a request that has begun
	stalled func() // called before waiting in the middle of a request
}

// inputPools is keyed by size; servers of one process rarely use more than one.
var inputPools sync.Map

func inputPool(size int) *sync.Pool {
	if p, ok := inputPools.Load(size); ok {
		return p.(*sync.Pool)
	}
	p, _ := inputPools.LoadOrStore(size, &sync.Pool{New: func() any { b := make([]byte, size); return &b }})
	return p.(*sync.Pool)
}

func (in *input) buffered() int { return in.w - in.r }

// next returns the next n bytes, which must be there, and consumes them.
func (in *input) next(n int) []byte {
	b := (*in.mem)[in.r : in.r+n]
	in.r += n
	return b
}

// space implements intake. While a payload is being read, the rest of it comes first, and a little of what follows
// second: the next header costs no system call then, and the next payload is still not copied.
func (in *input) space() (a, b []byte) {
	if in.mem == nil {
		in.mem = inputPool(in.size).Get().(*[]byte)
		in.r, in.w = 0, 0
	}
	switch {
	case in.r == in.w:
		in.r, in.w = 0, 0
	case in.dst == nil && len(*in.mem)-in.w < extendedRequestSize:
		in.w = copy(*in.mem, (*in.mem)[in.r:in.w])
		in.r = 0
	}
	if in.dst != nil {
		return in.dst, (*in.mem)[in.w : in.w+in.ahead]
	}
	if in.large {
		return (*in.mem)[in.w:min(in.w+aheadMax, len(*in.mem))], nil
	}
	return (*in.mem)[in.w:], nil
}

// filled accounts for n bytes that were read into space, and returns how many of them are payload.
func (in *input) filled(n int) int {
	k := min(n, len(in.dst))
	in.w += n - k
	return k
}

// idle implements intake.
func (in *input) idle() {
	if in.within || in.buffered() > 0 {
		in.stalled()
	}
	if in.buffered() == 0 && in.dst == nil {
		in.drop()
	}
}

func (in *input) drop() {
	if in.mem != nil {
		inputPool(in.size).Put(in.mem)
		in.mem = nil
	}
	in.r, in.w = 0, 0
}
