// Package units reads and writes sizes the way Sheepdog's users know them.
//
// Sizes are powers of 1024. They are read as 512, 4K, 10M, 1.5G, 2T, 1P and written as 0.0 MB, 64 MB, 5.0 GB.
package units

import (
	"fmt"
	"math/bits"
	"strings"
)

// suffixes in rising order; the position is the power of 1024.
const suffixes = "BKMGTPE"

// sizeTextMax bounds what ParseSize looks at: no size worth typing is longer.
const sizeTextMax = 32

// ParseSize reads a size: digits, perhaps a decimal fraction, perhaps one suffix of B, K, M, G, T, P or E, in either case, and perhaps "iB" or "B"
// after that. The result is exact: a fraction must come to whole bytes.
func ParseSize(text string) (uint64, error) {
	bad := func(why string) (uint64, error) {
		if len(text) > sizeTextMax {
			text = text[:sizeTextMax] + "…"
		}
		return 0, fmt.Errorf("invalid size '%s': %s", text, why)
	}
	if len(text) > sizeTextMax {
		return bad("too long")
	}
	number, power := splitSuffix(text)
	whole, fraction, dotted := strings.Cut(number, ".")
	if whole == "" && fraction == "" || dotted && fraction == "" || !digits(whole) || !digits(fraction) {
		return bad("use a number with B, K, M, G, T or P, as in 512, 4K, 1.5G")
	}
	n, ok := scale(whole, power)
	if !ok {
		return bad("too large")
	}
	part, exact := scaleFraction(fraction, power)
	if !exact {
		return bad("not a whole number of bytes")
	}
	if n+part < n {
		return bad("too large")
	}
	return n + part, nil
}

// splitSuffix parts "1.5GiB" into "1.5" and 3.
func splitSuffix(text string) (number string, power int) {
	t := strings.ToUpper(text)
	if n := len(t); n > 2 && strings.HasSuffix(t, "IB") && strings.IndexByte(suffixes[1:], t[n-3]) >= 0 {
		t = t[:n-2]
	} else if n > 1 && strings.HasSuffix(t, "B") && strings.IndexByte(suffixes[1:], t[n-2]) >= 0 {
		t = t[:n-1]
	}
	if n := len(t); n > 0 {
		if p := strings.IndexByte(suffixes, t[n-1]); p >= 0 {
			return t[:n-1], p
		}
	}
	return t, 0
}

func digits(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// scale is decimal whole times 1024^power; not ok when that exceeds 64 bits.
func scale(whole string, power int) (uint64, bool) {
	var n uint64
	for _, c := range whole {
		hi, lo := bits.Mul64(n, 10)
		sum, carry := bits.Add64(lo, uint64(c-'0'), 0)
		if hi != 0 || carry != 0 {
			return 0, false
		}
		n = sum
	}
	if bits.Len64(n)+10*power > 64 {
		return 0, false
	}
	return n << (10 * power), true
}

// scaleFraction is 0.fraction times 1024^power, exact or not.
func scaleFraction(fraction string, power int) (uint64, bool) {
	fraction = strings.TrimRight(fraction, "0")
	if len(fraction) > 18 { // 10^18 is what fits; a longer one is no whole number of bytes but for freaks
		return 0, false
	}
	var num, den uint64 = 0, 1
	for _, c := range fraction {
		num, den = num*10+uint64(c-'0'), den*10
	}
	hi, lo := bits.Mul64(num, 1<<(10*power))
	quo, rem := bits.Div64(hi, lo, den) // num < den, so hi < den and this cannot overflow
	return quo, rem == 0
}

// Human writes a size as Sheepdog does: in MB at least, one decimal below ten.
func Human(bytes uint64) string {
	size := float64(bytes) / (1 << 20)
	unit := 0
	names := []string{"MB", "GB", "TB", "PB", "EB"}
	for size >= 1024 && unit < len(names)-1 {
		size /= 1024
		unit++
	}
	if size < 10 {
		return fmt.Sprintf("%.1f %s", size, names[unit])
	}
	return fmt.Sprintf("%.0f %s", size, names[unit])
}
