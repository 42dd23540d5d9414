package attach

import (
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
)

// The generic netlink family and its numbers: include/uapi/linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdStatus      = 5

	attrIndex       = 1  // u32; left out of cmdConnect: the kernel picks one
	attrSizeBytes   = 2  // u64
	attrBlockSize   = 3  // u64
	attrTimeout     = 4  // u64, seconds
	attrServerFlags = 5  // u64, the transmission flags of the export
	attrClientFlags = 6  // u64, below
	attrSockets     = 7  // nested: sockItem{sockFD} ...
	attrDeadTimeout = 8  // u64, seconds
	attrDeviceList  = 9  // nested: deviceItem{deviceIndex, deviceConnected} ...
	attrBackend     = 10 // string; since Linux 5.14, ignored before

	sockItem = 1 // nested
	sockFD   = 1 // u32

	deviceItem      = 1 // nested
	deviceIndex     = 1 // u32
	deviceConnected = 2 // u8
)

// ClientFlags say what the kernel does by itself.
type ClientFlags uint64

const (
	DestroyOnDisconnect ClientFlags = 1 << 0 // remove the device node, too
	DisconnectOnClose   ClientFlags = 1 << 1 // detach when the last one who has it open closes it
)

// Transmission flags that the kernel understands (include/uapi/linux/nbd.h); what it does not know it need not be told.
const (
	flagHasFlags    = 1 << 0
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagRotational  = 1 << 4
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6 // since Linux 6.12; ignored before
	flagMultiConn   = 1 << 8

	kernelFlags = flagHasFlags | flagReadOnly | flagFlush | flagFUA | flagRotational | flagTrim | flagWriteZeroes | flagMultiConn
)

// Request is what the kernel is told of a device. Zero fields are left out, which in Reconfigure means: as before.
type Request struct {
	Size        uint64 // bytes
	BlockSize   uint64 // bytes, the device's sector
	Flags       uint16 // the export's transmission flags
	ClientFlags ClientFlags
	IOTimeout   time.Duration // a request without an answer for so long is sent again, on another connection
	DeadTimeout time.Duration // without any connection requests wait so long for a new one before they fail
	Backend     string        // who may bring new sockets
	Sockets     []int         // descriptors; the kernel takes references of its own
}

// encodeRequest makes the attributes of cmdConnect and cmdReconfigure. A negative index is left out.
func encodeRequest(index int, r *Request) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if index >= 0 {
		e.Uint32(attrIndex, uint32(index))
	}
	number := func(attr uint16, v uint64) {
		if v != 0 {
			e.Uint64(attr, v)
		}
	}
	number(attrSizeBytes, r.Size)
	number(attrBlockSize, r.BlockSize)
	number(attrTimeout, seconds(r.IOTimeout))
	number(attrServerFlags, uint64(r.Flags&kernelFlags))
	number(attrClientFlags, uint64(r.ClientFlags))
	number(attrDeadTimeout, seconds(r.DeadTimeout))
	if len(r.Sockets) > 0 {
		e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
			for _, fd := range r.Sockets {
				list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
					item.Uint32(sockFD, uint32(fd))
					return nil
				})
			}
			return nil
		})
	}
	if r.Backend != "" {
		e.String(attrBackend, r.Backend)
	}
	return e.Encode()
}

// seconds rounds up: what is not zero must not become "none".
func seconds(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	return uint64((d + time.Second - 1) / time.Second)
}

// encodeIndex makes the attributes of cmdDisconnect, and of cmdStatus about one device; negative: about all.
func encodeIndex(index int) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if index >= 0 {
		e.Uint32(attrIndex, uint32(index))
	}
	return e.Encode()
}

// decodeConnect reads which device the kernel took.
func decodeConnect(data []byte) (index int, err error) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return 0, fmt.Errorf("read the kernel's answer: %w", err)
	}
	found := false
	for d.Next() {
		if d.Type() == attrIndex {
			index, found = int(d.Uint32()), true
		}
	}
	if err := d.Err(); err != nil {
		return 0, fmt.Errorf("read the kernel's answer: %w", err)
	}
	if !found {
		return 0, errors.New("the kernel does not say which device it took")
	}
	return index, nil
}

// Status is whether a device has a configuration.
type Status struct {
	Index     int
	Connected bool
}

// decodeStatus reads the answer to cmdStatus.
func decodeStatus(data []byte) (list []Status, err error) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, fmt.Errorf("read the kernel's list of devices: %w", err)
	}
	for d.Next() {
		if d.Type() != attrDeviceList {
			continue
		}
		d.Nested(func(items *netlink.AttributeDecoder) error {
			for items.Next() {
				if items.Type() != deviceItem {
					continue
				}
				items.Nested(func(item *netlink.AttributeDecoder) error {
					var s Status
					for item.Next() {
						switch item.Type() {
						case deviceIndex:
							s.Index = int(item.Uint32())
						case deviceConnected:
							s.Connected = item.Uint8() != 0
						}
					}
					list = append(list, s)
					return nil
				})
			}
			return nil
		})
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("read the kernel's list of devices: %w", err)
	}
	return list, nil
}
