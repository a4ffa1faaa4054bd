package ctl

import (
	"flag"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// NoLimit is the duration "none".
const NoLimit time.Duration = -1

// A unit of a quantity: its letter and how much of the smallest it is.
type unit struct {
	name string
	size int64
}

// Largest first, so that printing finds the largest one that fits.
var (
	timeUnits = []unit{
		{"d", int64(24 * time.Hour)}, {"h", int64(time.Hour)}, {"m", int64(time.Minute)},
		{"s", int64(time.Second)}, {"ms", int64(time.Millisecond)},
	}
	sizeUnits = []unit{{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"k", 1 << 10}}
)

// ParseDuration reads D: a number with ms, s, m, h or d, several in a row
// ("1h30m"), bare seconds, or "none", which is NoLimit. It is never negative
// otherwise. Parts below a nanosecond are an error, not rounded.
func ParseDuration(s string) (time.Duration, error) {
	if s == "none" {
		return NoLimit, nil
	}
	if s == "" {
		return 0, badDuration(s)
	}
	var total int64
	for rest := s; rest != ""; {
		number, after := cutNumber(rest)
		letters := after[:len(after)-len(strings.TrimLeft(after, "dhms"))]
		size, ok := unitSize(timeUnits, letters)
		if letters == "" && rest == s && after == "" {
			size, ok = int64(time.Second), true // bare: seconds
		}
		n, exact := scale(number, size)
		if !ok || !exact || n > math.MaxInt64-total {
			return 0, badDuration(s)
		}
		total += n
		rest = after[len(letters):]
	}
	return time.Duration(total), nil
}

func badDuration(s string) error {
	return &UsageError{Why: fmt.Sprintf("duration %q does not parse", s), Hint: "500ms, 10s, 5m, 2h, 1d, bare is seconds, none"}
}

// FormatDuration writes d so that ParseDuration reads the same: in the largest
// unit of which it is a whole number, else in decimal seconds.
func FormatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "none"
	case d == 0:
		return "0"
	}
	for _, u := range timeUnits {
		if int64(d)%u.size == 0 {
			return strconv.FormatInt(int64(d)/u.size, 10) + u.name
		}
	}
	whole, nanos := d/time.Second, d%time.Second
	return strings.TrimRight(fmt.Sprintf("%d.%09d", whole, nanos), "0") + "s"
}

// ParseSize reads SIZE: bytes, or a number with k, M, G or T (powers of 1024, in
// either case).
func ParseSize(s string) (int64, error) {
	number, letter := cutNumber(s)
	size, ok := int64(1), letter == ""
	for _, u := range sizeUnits {
		if strings.EqualFold(letter, u.name) {
			size, ok = u.size, true
		}
	}
	n, exact := scale(number, size)
	if !ok || !exact {
		return 0, &UsageError{Why: fmt.Sprintf("size %q does not parse", s), Hint: "bytes, or a number with k, M, G or T (powers of 1024)"}
	}
	return n, nil
}

// FormatSize writes n so that ParseSize reads the same.
func FormatSize(n int64) string {
	for _, u := range sizeUnits {
		if n != 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// cutNumber splits a decimal number off the front of s.
func cutNumber(s string) (number, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

func unitSize(units []unit, name string) (int64, bool) {
	for _, u := range units {
		if u.name == name {
			return u.size, true
		}
	}
	return 0, false
}

// maxDigits is more than any quantity needs (int64 has 19, nanoseconds of a day
// 15 places more); it bounds the arithmetic on what a user may type.
const maxDigits = 40

// scale multiplies a decimal number by size. ok is false when number is none, or
// when the product is not a whole int64.
func scale(number string, size int64) (n int64, ok bool) {
	if len(number) == 0 || len(number) > maxDigits || strings.Trim(number, ".") == "" {
		return 0, false
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, false
	}
	r.Mul(r, new(big.Rat).SetInt64(size))
	if !r.IsInt() || !r.Num().IsInt64() {
		return 0, false
	}
	return r.Num().Int64(), true
}

// durationValue is a flag that takes a D.
type durationValue struct {
	d   *time.Duration
	set *bool // may be nil; tells that the flag was given
}

func (v durationValue) String() string {
	if v.d == nil {
		return ""
	}
	return FormatDuration(*v.d)
}

func (v durationValue) Set(s string) error {
	d, err := ParseDuration(s)
	if err != nil {
		return err
	}
	*v.d = d
	if v.set != nil {
		*v.set = true
	}
	return nil
}

// optionalDuration is a flag that takes a D and tells whether it was given: nil
// when not.
type optionalDuration struct{ d **time.Duration }

// OptionalDuration is a flag.Value that sets *d to what was given.
func OptionalDuration(d **time.Duration) flag.Value { return optionalDuration{d} }

func (v optionalDuration) String() string {
	if v.d == nil || *v.d == nil {
		return ""
	}
	return FormatDuration(**v.d)
}

func (v optionalDuration) Set(s string) error {
	d, err := ParseDuration(s)
	if err != nil {
		return err
	}
	*v.d = &d
	return nil
}

// listValue is a flag that may be given several times.
type listValue struct{ list *[]string }

func (v listValue) String() string {
	if v.list == nil {
		return ""
	}
	return strings.Join(*v.list, " ")
}

func (v listValue) Set(s string) error {
	*v.list = append(*v.list, s)
	return nil
}

// countValue is a switch that counts how often it was given (-tt).
type countValue struct{ n *int }

func (v countValue) String() string {
	if v.n == nil {
		return ""
	}
	return strconv.Itoa(*v.n)
}

func (v countValue) Set(string) error { *v.n++; return nil }

// IsBoolFlag tells the flag parser that no argument follows.
func (countValue) IsBoolFlag() bool { return true }
