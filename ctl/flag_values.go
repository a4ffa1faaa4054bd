package ctl

import (
	"flag"
	"strconv"
	"strings"
	"time"

	"github.com/sockd/sockd/families/model"
)

// The kinds of flags that package flag has not.

// durationValue is a flag that takes a D.
type durationValue struct {
	d   *time.Duration
	set *bool // may be nil; tells that the flag was given
}

func (v durationValue) String() string {
	if v.d == nil {
		return ""
	}
	return model.FormatDuration(*v.d)
}

func (v durationValue) Set(s string) error {
	d, err := model.ParseDuration(s)
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
	return model.FormatDuration(**v.d)
}

func (v optionalDuration) Set(s string) error {
	d, err := model.ParseDuration(s)
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
