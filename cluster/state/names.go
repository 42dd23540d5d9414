package state

import (
	"unicode"
	"unicode/utf8"
)

const (
	nameBytesMax = 255
	// SectorSize is what sizes of VDIs are multiples of.
	SectorSize = 512
	// SizeMax is 2^32 objects of 4 MiB: 16 PiB.
	SizeMax = 1 << 54
)

// CheckName says whether a VDI may be called so: 1 to 255 bytes of UTF-8 without '/', ':' (which divides name and tag in an NBD export
// name) and control characters.
func CheckName(name string) error {
	if err := checkWord("VDI name", name); err != nil {
		return err
	}
	return nil
}

// CheckTag says whether a snapshot may be called so: like a name; "" is allowed (it then has its number alone), all digits are not.
func CheckTag(tag string) error {
	if tag == "" {
		return nil
	}
	if err := checkWord("snapshot tag", tag); err != nil {
		return err
	}
	if allDigits(tag) {
		return refuse(Invalid, textIntegerTag)
	}
	return nil
}

// RoundSize says how large a VDI becomes that is asked to have size bytes: rounded up to whole sectors, as QEMU does with odd files.
func RoundSize(size uint64) (uint64, error) {
	if size == 0 {
		return 0, refuse(Invalid, "Invalid size 0: a VDI has at least %d bytes", SectorSize)
	}
	if size > SizeMax {
		return 0, refuse(Invalid, "Invalid size %d: a VDI has at most %d bytes (16 PiB)", size, uint64(SizeMax))
	}
	return (size + SectorSize - 1) &^ (SectorSize - 1), nil
}

// checkWord returns a plain error value: a typed nil would not be nil.
func checkWord(what, s string) error {
	if s == "" {
		return refuse(Invalid, "Invalid %s: it is empty", what)
	}
	if len(s) > nameBytesMax {
		return refuse(Invalid, "Invalid %s: it is longer than %d bytes", what, nameBytesMax)
	}
	if !utf8.ValidString(s) {
		return refuse(Invalid, "Invalid %s %q: it is not UTF-8", what, s)
	}
	for _, r := range s {
		if r == '/' || r == ':' || unicode.IsControl(r) {
			return refuse(Invalid, "Invalid %s %q: it may not hold %q", what, s, r)
		}
	}
	return nil
}

func allDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
