package attach

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
)

// TestEncodeRequest: the bytes as a kernel would take them apart, written out for a little-endian machine.
func TestEncodeRequest(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("written out for little-endian machines")
	}
	got, err := encodeRequest(3, &Request{Size: 1 << 30, BlockSize: 512, Flags: 0xffff, IOTimeout: 1500 * time.Millisecond, DeadTimeout: 10 * time.Minute,
		Backend: "s:x", Sockets: []int{7, 9}})
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{
		8, 0, 1, 0, 3, 0, 0, 0, // INDEX 3
		12, 0, 2, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, // SIZE_BYTES 1 GiB
		12, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0, 0, // BLOCK_SIZE_BYTES 512
		12, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0, // TIMEOUT, rounded up to 2 s
		12, 0, 5, 0, 0x7f, 1, 0, 0, 0, 0, 0, 0, // SERVER_FLAGS: DF, CACHE, FAST_ZERO and the like are not the kernel's
		12, 0, 8, 0, 0x58, 2, 0, 0, 0, 0, 0, 0, // DEAD_CONN_TIMEOUT 600 s
		28, 0, 7, 0x80, // SOCKETS, nested
		12, 0, 1, 0x80, 8, 0, 1, 0, 7, 0, 0, 0,
		12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0,
		8, 0, 10, 0, 's', ':', 'x', 0, // BACKEND_IDENTIFIER
	}
	if !bytes.Equal(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	if got, err := encodeRequest(AnyDevice, &Request{}); err != nil || len(got) != 0 {
		t.Errorf("nothing to say became %v, %v", got, err)
	}
}

func TestDecode(t *testing.T) {
	e := netlink.NewAttributeEncoder()
	e.Nested(attrDeviceList, func(list *netlink.AttributeEncoder) error {
		for i, connected := range []uint8{1, 0} {
			list.Nested(deviceItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(deviceIndex, uint32(i+4))
				item.Uint8(deviceConnected, connected)
				return nil
			})
		}
		return nil
	})
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	list, err := decodeStatus(data)
	if err != nil || len(list) != 2 || list[0] != (Status{4, true}) || list[1] != (Status{5, false}) {
		t.Errorf("%v, %v", list, err)
	}
	data, _ = encodeIndex(12)
	if index, err := decodeConnect(data); err != nil || index != 12 {
		t.Errorf("%d, %v", index, err)
	}
	if _, err := decodeConnect(nil); err == nil {
		t.Error("an answer without a device was accepted")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 3, 0, 0, 0})
	f.Add([]byte{28, 0, 9, 0x80, 24, 0, 1, 0x80, 8, 0, 1, 0, 1, 0, 0, 0, 5, 0, 2, 0, 1, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, data []byte) {
		decodeStatus(data)
		decodeConnect(data)
	})
}

func TestParseDevice(t *testing.T) {
	for text, want := range map[string]int{"/dev/nbd0": 0, "/dev/nbd15": 15, "nbd3": 3, "/dev/nbd": AnyDevice} {
		if got, err := ParseDevice(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/dev/sda", "/dev/nbd01", "/dev/nbd-1", "/dev/nbd0p1", "/dev/nbd99999999", "/dev/"} {
		if got, err := ParseDevice(text); err == nil {
			t.Errorf("%q became %d", text, got)
		}
	}
}
