package units

import (
	"math"
	"testing"
)

func TestParseSize(t *testing.T) {
	good := map[string]uint64{
		"0": 0, "512": 512, "512B": 512, "4K": 4096, "4k": 4096, "10M": 10 << 20, "1.5G": 3 << 29, "2T": 2 << 40, "1P": 1 << 50, "0.5K": 512,
		".5K": 512, "1GiB": 1 << 30, "1gb": 1 << 30, "16P": 16 << 50, "1.0": 1, "18446744073709551615": math.MaxUint64, "15E": 15 << 60,
	}
	for text, want := range good {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", " ", "12x", "bogus", "-1", "+1", "1.5", "0.3K", "1.", "1..5G", ".", "K", "B", "iB", "1KK", "1 G", "1e3", "16E",
		"18446744073709551616", "99999999999999999999999", "1.0000000000000000001G", "0x10", "١"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", text, got)
		}
	}
}

func TestHuman(t *testing.T) {
	for bytes, want := range map[uint64]string{
		0: "0.0 MB", 64 << 20: "64 MB", 12 << 20: "12 MB", 4 << 20: "4.0 MB", 5 << 30: "5.0 GB", 8 << 40: "8.0 TB", 81385750528: "76 GB",
		244157251584: "227 GB", 192 << 20: "192 MB", 16 << 50: "16 PB",
	} {
		if got := Human(bytes); got != want {
			t.Errorf("Human(%d) = %q; want %q", bytes, got, want)
		}
	}
}

// FuzzParseSize: never a panic, and what is accepted is at most 64 bits and monotone under a suffix.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1.5G", "12x", "99P", ".5K", "1GiB", "18446744073709551615", "0.000000000000000001E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseSize(text)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Fatalf("error of %d bytes", len(err.Error()))
			}
			return
		}
		if digits(text) && n < 1<<50 {
			k, err := ParseSize(text + "K")
			if err != nil || k != n<<10 {
				t.Fatalf("ParseSize(%q+K) = %d, %v; want %d", text, k, err, n<<10)
			}
		}
	})
}
