package attach

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketBuffer is asked for on the kernel's half; the server does the same for its own. Bytes.
const socketBuffer = 1 << 20

// pair makes two connected stream sockets.
func pair() (server, kernel *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			if i == 0 {
				unix.Close(fds[1])
			} else {
				ends[0].Close()
			}
			return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	_ = ends[1].SetWriteBuffer(socketBuffer)
	_ = ends[1].SetReadBuffer(socketBuffer)
	return ends[0], ends[1], nil
}

// forKernel makes a descriptor that the kernel can take: it waits in its own threads, so the socket must block.
func forKernel(c *net.UnixConn) (*os.File, error) {
	f, err := c.File() // a copy, of the same socket
	if err != nil {
		return nil, fmt.Errorf("hand a socket to the kernel: %w", err)
	}
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		f.Close()
		return nil, fmt.Errorf("hand a socket to the kernel: %w", err)
	}
	return f, nil
}
