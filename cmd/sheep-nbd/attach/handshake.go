package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

// Numbers of the NBD specification's handshake.
const (
	magicHello  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9

	helloFixedNewstyle = 1 << 0
	helloNoZeroes      = 1 << 1

	optGo = 7

	repAck    = 1
	repInfo   = 3
	repErrBit = 1 << 31
	repPolicy = repErrBit | 2
	infoSize  = 0 // NBD_INFO_EXPORT

	replyMax = 64 << 10 // ours; the specification's strings are at most 4096 long
	infosMax = 64       // ours
)

// Export is what the server says of itself.
type Export struct {
	Size  uint64
	Flags uint16 // transmission flags
}

// shakeHands leads the handshake up to the transmission phase, as a client that wants simple replies and nothing else. What it reads ends exactly
// where the transmission phase begins: the next reader is the kernel.
func shakeHands(c net.Conn, export string, timeout time.Duration) (x Export, err error) {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return x, err
	}
	defer c.SetDeadline(time.Time{})
	// | "NBDMAGIC" | "IHAVEOPT" | flags 2 |
	var hello [18]byte
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return x, fmt.Errorf("NBD handshake: read the greeting: %w", err)
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	if binary.BigEndian.Uint64(hello[0:]) != magicHello || binary.BigEndian.Uint64(hello[8:]) != magicOption || flags&helloFixedNewstyle == 0 {
		return x, errors.New("NBD handshake: the other side does not speak fixed newstyle")
	}
	// | client flags 4 | "IHAVEOPT" | option 4 | length 4 | name length 4 | name | number of information requests 2 |
	say := binary.BigEndian.AppendUint32(nil, uint32(flags&(helloFixedNewstyle|helloNoZeroes)))
	say = binary.BigEndian.AppendUint64(say, magicOption)
	say = binary.BigEndian.AppendUint32(say, optGo)
	say = binary.BigEndian.AppendUint32(say, uint32(4+len(export)+2))
	say = binary.BigEndian.AppendUint32(say, uint32(len(export)))
	say = append(say, export...)
	say = binary.BigEndian.AppendUint16(say, 0)
	if _, err := c.Write(say); err != nil {
		return x, fmt.Errorf("NBD handshake: ask for export %q: %w", export, err)
	}
	return readGo(c, export)
}

// readGo reads the replies to GO.
func readGo(c io.Reader, export string) (x Export, err error) {
	known := false
	for range infosMax {
		kind, data, err := readReply(c)
		if err != nil {
			return x, err
		}
		switch {
		case kind == repAck && known:
			return x, nil
		case kind == repAck:
			return x, errors.New("NBD handshake: the server does not say how large the export is")
		case kind == repInfo && len(data) >= 12 && binary.BigEndian.Uint16(data) == infoSize:
			// | kind 2 | size 8 | transmission flags 2 |
			x, known = Export{binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:])}, true
		case kind == repInfo:
		case kind&repErrBit != 0:
			why := fmt.Errorf("open export %q: %s", export, refusal(kind, data))
			if kind == repPolicy {
				why = fmt.Errorf("%w: %w", why, syscall.EBUSY)
			}
			return x, why
		default:
			return x, fmt.Errorf("NBD handshake: unexpected reply %#x", kind)
		}
	}
	return x, errors.New("NBD handshake: the server does not come to an end")
}

// refusal is the server's own sentence, if it has one.
func refusal(kind uint32, data []byte) string {
	if text := strings.ToValidUTF8(string(data), "?"); text != "" {
		return text
	}
	return fmt.Sprintf("the server refused (error %d)", kind&^uint32(repErrBit))
}

// readReply reads one reply.
//
//	| magic 8 | option 4 | kind 4 | length 4 | data |
func readReply(c io.Reader) (kind uint32, data []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, nil, fmt.Errorf("NBD handshake: read a reply: %w", err)
	}
	n := binary.BigEndian.Uint32(head[16:])
	if binary.BigEndian.Uint64(head[0:]) != magicReply || binary.BigEndian.Uint32(head[8:]) != optGo || n > replyMax {
		return 0, nil, errors.New("NBD handshake: a reply that makes no sense")
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(c, data); err != nil {
		return 0, nil, fmt.Errorf("NBD handshake: read a reply: %w", err)
	}
	return binary.BigEndian.Uint32(head[12:]), data, nil
}
