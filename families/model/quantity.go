package model

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/sockd/sockd/families"
)

// NoLimit is the duration "none".
const NoLimit time.Duration = -1

// timeUnits are the units of a duration, largest first, so that printing finds
// the largest that fits.
var timeUnits = []struct {
	name string
	size time.Duration
}{
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
	{"s", time.Second},
	{"ms", time.Millisecond},
}

// ParseDuration reads a duration as users write it: numbers with ms, s, m, h or d
// ("90s", "1h30m", "0.2s"), a bare number of seconds, or "none", which is NoLimit.
// Others are never negative. The error is a *families.SyntaxError.
func ParseDuration(s string) (time.Duration, error) {
	if s == "none" {
		return NoLimit, nil
	}
	total, rest, bare := time.Duration(0), s, true
	for rest != "" || s == "" {
		number, after := cutNumber(rest)
		unit := after[:len(after)-len(strings.TrimLeft(after, "dhms"))]
		size := durationUnit(unit)
		if unit == "" && bare && after == "" {
			size = time.Second
		}
		n, ok := scale(number, int64(size))
		if size == 0 || !ok || time.Duration(n) > math.MaxInt64-total {
			return 0, &families.SyntaxError{What: "duration", Text: s, Why: "want a number with ms, s, m, h or d, bare seconds, or none", Hint: "500ms, 10s, 1h30m"}
		}
		total, rest, bare = total+time.Duration(n), after[len(unit):], false
	}
	return total, nil
}

func durationUnit(name string) time.Duration {
	for _, u := range timeUnits {
		if u.name == name {
			return u.size
		}
	}
	return 0
}

// FormatDuration writes d so that ParseDuration reads the same.
func FormatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "none"
	case d == 0:
		return "0"
	}
	for _, u := range timeUnits {
		if d%u.size == 0 {
			return strconv.FormatInt(int64(d/u.size), 10) + u.name
		}
	}
	fraction := strconv.FormatInt(int64(time.Second+d%time.Second), 10)[1:] // nine digits
	return strconv.FormatInt(int64(d/time.Second), 10) + "." + strings.TrimRight(fraction, "0") + "s"
}

// ParseSize reads a size in bytes, or with k, M, G or T (powers of 1024, in
// either case). The error is a *families.SyntaxError.
func ParseSize(s string) (int64, error) {
	number, unit := cutNumber(s)
	size := int64(0)
	switch strings.ToLower(unit) {
	case "":
		size = 1
	case "k":
		size = 1 << 10
	case "m":
		size = 1 << 20
	case "g":
		size = 1 << 30
	case "t":
		size = 1 << 40
	}
	n, ok := scale(number, size)
	if size == 0 || !ok {
		return 0, &families.SyntaxError{What: "size", Text: s, Why: "want bytes, or a number with k, M, G or T"}
	}
	return n, nil
}

// FormatSize writes n so that ParseSize reads the same.
func FormatSize(n int64) string {
	if n == 0 {
		return "0"
	}
	letters := []string{"", "k", "M", "G", "T"}
	i := 0
	for n%1024 == 0 && i < len(letters)-1 {
		n /= 1024
		i++
	}
	return strconv.FormatInt(n, 10) + letters[i]
}

// cutNumber splits a decimal number off the front of s.
func cutNumber(s string) (number, rest string) {
	rest = strings.TrimLeft(s, "0123456789.")
	return s[:len(s)-len(rest)], rest
}

// scale multiplies a decimal number by size, exactly: what does not come out
// whole, or does not fit, is not ok.
func scale(number string, size int64) (n int64, ok bool) {
	whole, fraction, _ := strings.Cut(number, ".")
	fraction = strings.TrimRight(fraction, "0")
	if whole+fraction == "" && !strings.Contains(number, "0") || strings.Contains(fraction, ".") {
		return 0, false
	}
	for _, digit := range whole {
		d := int64(digit - '0')
		if n > (math.MaxInt64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	if size != 0 && n > math.MaxInt64/size {
		return 0, false
	}
	part, ok := scaleFraction(fraction, size)
	if !ok || part > math.MaxInt64-n*size {
		return 0, false
	}
	return n*size + part, true
}

// scaleFraction is 0.digits times size, digit by digit: each one needs size to be
// divisible by ten once more.
func scaleFraction(digits string, size int64) (int64, bool) {
	var value, of int64 = 0, 1 // value/of of size
	for _, digit := range digits {
		if of > math.MaxInt64/1000 {
			return 0, false
		}
		value, of = value*10+int64(digit-'0'), of*10
	}
	for value%10 == 0 && of > 1 {
		value, of = value/10, of/10
	}
	// size/of and value share what is left: reduce before multiplying.
	for _, p := range []int64{2, 5} {
		for value%p == 0 && of%p == 0 && value != 0 {
			value, of = value/p, of/p
		}
	}
	if size%of != 0 || value > math.MaxInt64/max(size/of, 1) {
		return 0, false
	}
	return value * (size / of), true
}
