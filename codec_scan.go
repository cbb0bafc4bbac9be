package ssmmp

import (
	"math"
	"net/netip"
	"strings"
)

// Classes of bytes, as bits.
const (
	inName    = 1 << iota // may stand in a name
	firstName             // may stand first in a name
	inAddr                // may stand in an IP address
	notText               // may stand nowhere
)

var class = func() (t [256]uint8) {
	const digits, letters = "0123456789", "abcdefghijklmnopqrstuvwxyz"
	add := func(bits uint8, chars string) {
		for i := range len(chars) {
			t[chars[i]] |= bits
		}
	}
	add(inName|firstName, digits+letters+strings.ToUpper(letters)+"_")
	add(inName, ".-")
	add(inAddr, digits+"abcdefABCDEF.:")
	add(notText, "\r\n\x00")
	return t
}()

// ValidName reports whether s matches [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}, as
// every name does (PROTOCOL section 2).
func ValidName(s string) bool { return s != "" && nameLen(s) == len(s) }

// nameLen returns the length of the name that s begins with, 0 when it begins
// with none.
func nameLen(s string) int {
	if s == "" || class[s[0]]&firstName == 0 {
		return 0
	}
	n := 1
	for n < len(s) && class[s[n]]&inName != 0 {
		n++
	}
	if n > MaxName {
		return 0
	}
	return n
}

// validExtension reports whether this can be an extension line: "x_" and a
// name, and contents that keep to their line.
func validExtension(name, value string) bool {
	rest, ok := strings.CutPrefix(name, "x_")
	return ok && ValidName(rest) && validText(value)
}

// validText reports whether s can be the contents of a line: with the spaces
// that may stand around it, it holds no separator.
func validText(s string) bool {
	for i := range len(s) {
		if class[s[i]]&notText != 0 {
			return false
		}
		if s[i] == '~' && (i == 0 || s[i-1] == ' ') && (i == len(s)-1 || s[i+1] == ' ') {
			return false
		}
	}
	return true
}

// digits returns the positive integer that s begins with and its length, which
// is 0 when there is none, or it has a leading zero or more than 19 digits.
func digits(s string) (v uint64, n int) {
	for n < len(s) && s[n]-'0' <= 9 {
		v = v*10 + uint64(s[n]-'0')
		n++
	}
	if n == 0 || n > 19 || s[0] == '0' {
		return 0, 0
	}
	return v, n
}

func parseID(s string) (int64, bool) {
	v, n := digits(s)
	if n == 0 || n < len(s) || v > math.MaxInt64 {
		return 0, false
	}
	return int64(v), true
}

func parsePort(s string) (uint16, bool) {
	v, n := digits(s)
	if n == 0 || n < len(s) || v > math.MaxUint16 {
		return 0, false
	}
	return uint16(v), true
}

// scanStatus returns the status whose digits s begins with.
func scanStatus(s string) (Status, bool) {
	if len(s) < 3 || s[1]-'0' > 9 || s[2]-'0' > 9 {
		return 0, false
	}
	v := Status(s[0]-'0')*100 + Status(s[1]-'0')*10 + Status(s[2]-'0')
	return v, v.Valid()
}

// scanAddr returns the IP address that s begins with and its length, 0 when
// there is none. An address has no zone, and is not IPv4 within IPv6.
func scanAddr(s string) (netip.Addr, int) {
	if a, n := scanIPv4(s); n > 0 {
		return a, n
	}
	n := 0
	for n < len(s) && class[s[n]]&inAddr != 0 {
		n++
	}
	if n == 0 || n > len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255") {
		return netip.Addr{}, 0
	}
	a, err := netip.ParseAddr(s[:n])
	if err != nil {
		return netip.Addr{}, 0
	}
	return a.Unmap(), n
}

// scanIPv4 is scanAddr for most addresses.
func scanIPv4(s string) (netip.Addr, int) {
	var addr, octet uint32
	dots, digits, n := 0, 0, 0 // the digits are the octet's
	for ; n < len(s); n++ {
		if d := s[n] - '0'; d <= 9 {
			octet = octet*10 + uint32(d)
			digits++
			if octet > 255 || digits > 1 && octet < 10 {
				return netip.Addr{}, 0
			}
		} else if s[n] == '.' && digits > 0 {
			addr = addr<<8 | octet
			dots++
			octet, digits = 0, 0
		} else {
			break
		}
	}
	if dots != 3 || digits == 0 {
		return netip.Addr{}, 0
	}
	addr = addr<<8 | octet
	return netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)}), n
}
