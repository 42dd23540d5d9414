package lease

import (
	"syscall"
	"time"
	"unsafe"
)

const (
	// Length is how long a lease runs from when the node asked.
	Length = 2 * time.Second
	// Margin is what clocks may differ in rate over one Length, and then some.
	Margin = 100 * time.Millisecond
	// Period is how often a node asks. The answer to one asking usually grants the one before, sometimes the one before that: while the leader lives a lease
	// is never older than three Periods. So 1.6 s are left for electing another.
	Period = 125 * time.Millisecond
)

// Clock is a clock that only moves forward, also while the machine is suspended.
type Clock func() time.Duration

const clockBoottime = 7

// Boottime is CLOCK_BOOTTIME (R13). It is called on the hot path: a bare system call, some 100 ns.
func Boottime() time.Duration {
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		panic("CLOCK_BOOTTIME: " + errno.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}
