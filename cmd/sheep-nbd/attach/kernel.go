package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// Kernel is the kernel's side of NBD devices.
type Kernel interface {
	// Connect configures a device that has no configuration, a free one for a negative index, and says which one.
	Connect(index int, r *Request) (int, error)
	// Reconfigure gives a configured device new sockets in place of dead ones, and other values.
	Reconfigure(index int, r *Request) error
	// Disconnect takes the configuration away.
	Disconnect(index int) error
	// Status lists devices, all for a negative index.
	Status(index int) ([]Status, error)
}

// ErrNoModule says that the kernel has no NBD client at this moment.
var ErrNoModule = errors.New("the kernel's nbd module is not loaded: `modprobe nbd` as root loads it, a line `nbd` in /etc/modules-load.d/nbd.conf " +
	"does so at every boot (and the kernel must have been built with it)")

// netlinkKernel talks to the true one.
type netlinkKernel struct {
	conn   *genetlink.Conn
	family uint16
}

// OpenKernel finds the kernel's NBD client.
func OpenKernel() (Kernel, func(), error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("talk to the kernel by netlink: %w", err)
	}
	family, err := conn.GetFamily(familyName)
	if err != nil {
		conn.Close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, ErrNoModule
		}
		return nil, nil, fmt.Errorf("ask the kernel for its NBD client: %w", err)
	}
	return &netlinkKernel{conn, family.ID}, func() { conn.Close() }, nil
}

func (k *netlinkKernel) Connect(index int, r *Request) (int, error) {
	data, err := encodeRequest(index, r)
	if err != nil {
		return 0, err
	}
	answer, err := k.ask(cmdConnect, data, 0)
	if err != nil {
		return 0, err
	}
	return decodeConnect(answer)
}

func (k *netlinkKernel) Reconfigure(index int, r *Request) error {
	data, err := encodeRequest(index, r)
	if err != nil {
		return err
	}
	_, err = k.ask(cmdReconfigure, data, netlink.Acknowledge)
	return err
}

func (k *netlinkKernel) Disconnect(index int) error {
	data, err := encodeIndex(index)
	if err != nil {
		return err
	}
	_, err = k.ask(cmdDisconnect, data, netlink.Acknowledge)
	return err
}

func (k *netlinkKernel) Status(index int) ([]Status, error) {
	data, err := encodeIndex(index)
	if err != nil {
		return nil, err
	}
	answer, err := k.ask(cmdStatus, data, 0)
	if err != nil {
		return nil, err
	}
	return decodeStatus(answer)
}

// ask sends one command and returns what its answer carries. Commands that have an answer of their own ask for no acknowledgement: it would be a
// second message.
func (k *netlinkKernel) ask(cmd uint8, data []byte, ack netlink.HeaderFlags) ([]byte, error) {
	m := genetlink.Message{Header: genetlink.Header{Command: cmd, Version: familyVersion}, Data: data}
	list, err := k.conn.Execute(m, k.family, netlink.Request|ack)
	if err != nil {
		return nil, kernelError(err)
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list[0].Data, nil
}

// kernelError is the errno alone, with a hint where there is one: package netlink says at length what it was doing.
func kernelError(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	switch errno {
	case syscall.EPERM:
		return fmt.Errorf("%w: this needs root (CAP_SYS_ADMIN)", errno)
	case syscall.EBUSY:
		return fmt.Errorf("%w: the device is attached already, or no device is free (module parameter nbds_max)", errno)
	}
	return errno
}
