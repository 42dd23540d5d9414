package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// The kernel's generic netlink family "nbd" (include/uapi/linux/nbd-netlink.h).
const (
	nbdFamily = "nbd"

	nbdCmdConnect     = 1
	nbdCmdDisconnect  = 2
	nbdCmdReconfigure = 3

	nbdAttrIndex           = 1
	nbdAttrSizeBytes       = 2
	nbdAttrBlockSizeBytes  = 3
	nbdAttrServerFlags     = 5
	nbdAttrSockets         = 7
	nbdAttrDeadConnTimeout = 8
	nbdAttrBackend         = 10
	nbdSockItem            = 1
	nbdSockFD              = 1
)

// kernel speaks with the kernel's nbd driver.
type kernel struct {
	conn   *genetlink.Conn
	family genetlink.Family
}

// device is what the kernel is told of a disk.
type device struct {
	index   uint32
	size    uint64
	flags   uint64 // transmission flags of the export
	backend string // identifies it across restarts
	sockets []int  // descriptors, past their handshake
	// deadTimeout is how many seconds requests wait for new sockets once the old ones are dead.
	deadTimeout uint64
}

func openKernel() (*kernel, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	family, err := conn.GetFamily(nbdFamily)
	if err != nil {
		conn.Close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New("this kernel has no NBD devices: load the module with `modprobe nbd`, or use -k and a client of its own")
		}
		return nil, fmt.Errorf("ask the kernel for NBD: %w", err)
	}
	return &kernel{conn, family}, nil
}

func (k *kernel) close() { k.conn.Close() }

// connect gives the kernel a device that is free.
func (k *kernel) connect(d *device) error {
	return k.execute(nbdCmdConnect, d, func(a *netlink.AttributeEncoder) {
		a.Uint64(nbdAttrSizeBytes, d.size)
		a.Uint64(nbdAttrBlockSizeBytes, sectorBytes)
	})
}

// reconfigure gives a device whose sockets are dead new ones.
func (k *kernel) reconfigure(d *device) error {
	return k.execute(nbdCmdReconfigure, d, nil)
}

// disconnect takes a device away.
func (k *kernel) disconnect(index uint32) error {
	return k.send(nbdCmdDisconnect, func(a *netlink.AttributeEncoder) { a.Uint32(nbdAttrIndex, index) })
}

func (k *kernel) execute(command uint8, d *device, more func(*netlink.AttributeEncoder)) error {
	return k.send(command, func(a *netlink.AttributeEncoder) {
		a.Uint32(nbdAttrIndex, d.index)
		if more != nil {
			more(a)
		}
		a.Uint64(nbdAttrServerFlags, d.flags)
		a.Uint64(nbdAttrDeadConnTimeout, d.deadTimeout)
		a.String(nbdAttrBackend, d.backend)
		a.Nested(nbdAttrSockets, func(list *netlink.AttributeEncoder) error {
			for _, fd := range d.sockets {
				list.Nested(nbdSockItem, func(item *netlink.AttributeEncoder) error {
					item.Uint32(nbdSockFD, uint32(fd))
					return nil
				})
			}
			return nil
		})
	})
}

func (k *kernel) send(command uint8, fill func(*netlink.AttributeEncoder)) error {
	a := netlink.NewAttributeEncoder()
	fill(a)
	data, err := a.Encode()
	if err != nil {
		return err
	}
	_, err = k.conn.Execute(genetlink.Message{Header: genetlink.Header{Command: command, Version: k.family.Version}, Data: data}, k.family.ID,
		netlink.Request|netlink.Acknowledge)
	var op *netlink.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// deviceIndex reads the number of /dev/nbdN.
func deviceIndex(path string) (uint32, error) {
	var n uint32
	var rest string
	if got, _ := fmt.Sscanf(path, "/dev/nbd%d%s", &n, &rest); got != 1 || n > math.MaxInt32 || path != fmt.Sprintf("/dev/nbd%d", n) {
		return 0, usageError{fmt.Errorf("'%s' is no NBD device: use /dev/nbdN", path)}
	}
	if _, err := os.Stat(path); err != nil {
		return 0, fmt.Errorf("open %s: %w; is the nbd module loaded, with enough devices (nbds_max)?", path, errDevice(err))
	}
	return n, nil
}

// errDevice keeps a missing device from looking like a missing VDI.
func errDevice(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return errors.New(path.Err.Error())
	}
	return err
}
