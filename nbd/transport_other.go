//go:build !linux

package nbd

import (
	"net"
	"time"
)

func newTransport(nc net.Conn) transport { return newPlainTransport(nc) }

func peerLeft(net.Conn) bool { return false }

func tune(nc net.Conn, buffer int, _ time.Duration) {
	if s, ok := nc.(*net.TCPConn); ok {
		_ = s.SetNoDelay(true)
		_ = s.SetKeepAlive(true)
	}
	if s, ok := nc.(interface{ SetWriteBuffer(int) error }); ok && buffer > 0 {
		_ = s.SetWriteBuffer(buffer)
	}
}
