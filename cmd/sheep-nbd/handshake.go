package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// What the kernel's driver cannot do itself: the NBD handshake, up to the point where transmission begins. Numbers are the specification's
// (fixed newstyle, NBD_OPT_GO); no structured replies are asked for, the kernel does not know them.
const (
	nbdMagic         = 0x4e42444d41474943 // NBDMAGIC
	nbdOptMagic      = 0x49484156454f5054 // IHAVEOPT
	nbdReplyMagic    = 0x0003e889045565a9
	nbdFixedNewstyle = 1 << 0
	nbdNoZeroes      = 1 << 1
	nbdOptGo         = 7
	nbdRepAck        = 1
	nbdRepInfo       = 3
	nbdRepErrPolicy  = 1<<31 | 2
	nbdInfoExport    = 0

	handshakeTimeout  = 40 * time.Second
	handshakeBytesMax = 64 << 10 // of one reply
)

// errPolicy says that the server does not let this client in now.
var errPolicy = errors.New("not allowed")

// handshake asks for an export on a new connection and returns its size and transmission flags. What the server sends next is transmission.
func handshake(conn net.Conn, export string) (size uint64, flags uint16, err error) {
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	defer conn.SetDeadline(time.Time{})
	var hello [18]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return 0, 0, fmt.Errorf("NBD handshake: %w", err)
	}
	be := binary.BigEndian
	if be.Uint64(hello[:]) != nbdMagic || be.Uint64(hello[8:]) != nbdOptMagic || be.Uint16(hello[16:])&nbdFixedNewstyle == 0 {
		return 0, 0, errors.New("NBD handshake: that is no fixed newstyle server")
	}
	ask := be.AppendUint32(nil, nbdFixedNewstyle|nbdNoZeroes)
	ask = be.AppendUint64(ask, nbdOptMagic)
	ask = be.AppendUint32(ask, nbdOptGo)
	ask = be.AppendUint32(ask, uint32(4+len(export)+2))
	ask = be.AppendUint32(ask, uint32(len(export)))
	ask = append(ask, export...)
	ask = be.AppendUint16(ask, 0)
	if _, err := conn.Write(ask); err != nil {
		return 0, 0, fmt.Errorf("NBD handshake: %w", err)
	}
	known := false
	for {
		kind, data, err := handshakeReply(conn)
		switch {
		case err != nil:
			return 0, 0, err
		case kind == nbdRepAck && known:
			return size, flags, nil
		case kind == nbdRepInfo && len(data) == 12 && be.Uint16(data) == nbdInfoExport:
			size, flags, known = be.Uint64(data[2:]), be.Uint16(data[10:]), true
		case kind == nbdRepInfo:
		case kind == nbdRepErrPolicy:
			return 0, 0, fmt.Errorf("%s: %w", data, errPolicy)
		default:
			return 0, 0, fmt.Errorf("open export %q: the server says %#x %q", export, kind, data)
		}
	}
}

func handshakeReply(conn net.Conn) (kind uint32, data []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return 0, nil, fmt.Errorf("NBD handshake: %w", err)
	}
	be := binary.BigEndian
	length := be.Uint32(head[16:])
	if be.Uint64(head[:]) != nbdReplyMagic || be.Uint32(head[8:]) != nbdOptGo || length > handshakeBytesMax {
		return 0, nil, errors.New("NBD handshake: a reply makes no sense")
	}
	data = make([]byte, length)
	if _, err := io.ReadFull(conn, data); err != nil {
		return 0, nil, fmt.Errorf("NBD handshake: %w", err)
	}
	return be.Uint32(head[12:]), data, nil
}
