package main

import (
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// compileFilter compiles a filter with sockd's own words. Errors are *families.SyntaxError.
func compileFilter(o filter.Options, text string, link filter.LinkType) (*filter.Program, error) {
	o.Fragments, o.Owners = true, true
	p, err := o.Compile(text, link)
	var wrong *filter.Error
	if errors.As(err, &wrong) {
		return nil, &families.SyntaxError{What: "filter", Text: text, Column: wrong.Column, Why: wrong.Why, Hint: wrong.Hint()}
	}
	return p, err
}

// packetFilter is ctl.Env.Filter.
func packetFilter(text string, link pcapng.LinkType) (ctl.PacketFilter, error) {
	p, err := compileFilter(filter.Options{Stored: true}, text, filter.LinkType(link))
	if err != nil {
		return nil, err
	}
	return &fileFilter{program: p, ifaces: map[uint32]*filter.Follower[*pcapng.Packet]{}}, nil
}

// fileFilter is a ctl.PacketFilter.
type fileFilter struct {
	program *filter.Program
	ifaces  map[uint32]*filter.Follower[*pcapng.Packet]
}

// Undecided counts.
func (f *fileFilter) Undecided() (n uint64) {
	for _, i := range f.ifaces {
		s := i.Stats()
		n += s.Lost + uint64(s.Waiting)
	}
	return n
}

// Judge yields a packet that passes, and before it those that waited for it.
func (f *fileFilter) Judge(p *pcapng.Packet, yield func(*pcapng.Packet) error) error {
	i := f.ifaces[p.Interface]
	if i == nil {
		i = filter.NewFollower[*pcapng.Packet](f.program, filter.FollowLimits{})
		f.ifaces[p.Interface] = i
	}
	asked := filter.Packet{Data: p.Data, Length: p.Len, Direction: filter.Direction(p.Direction)}
	switch i.Judge(&asked, p.Time) {
	case filter.Take:
		for _, held := range i.Released() {
			if err := yield(held); err != nil {
				return err
			}
		}
		return yield(p)
	case filter.Hold:
		held := *p // the reader uses its memory again
		held.Data = slices.Clone(p.Data)
		i.Keep(&held)
	}
	return nil
}

// linkTypes are those that filters can be compiled for, by their names in pcap.
var linkTypes = map[string]filter.LinkType{
	"EN10MB": filter.Ethernet, "RAW": filter.Raw, "IPV4": filter.IPv4, "IPV6": filter.IPv6, "NULL": filter.Null, "LOOP": filter.Loop,
	"LINUX_SLL": filter.LinuxSLL, "LINUX_SLL2": filter.LinuxSLL2,
}

// programStyles are by how many d the flag has.
var programStyles = map[int]filter.Style{1: filter.ListText, 2: filter.ListC, 3: filter.ListDecimal}

// printProgram is ctl.Env.Compile.
func printProgram(w io.Writer, o ctl.CompileOptions) error {
	link, ok := linkTypes[strings.ToUpper(o.Link)]
	switch {
	case o.Link == "":
		link = filter.Ethernet
	case !ok:
		return &families.SyntaxError{What: "link type", Text: o.Link, Why: "is none that filters are for", Hint: "EN10MB, RAW, IPV4, IPV6, NULL, LOOP, LINUX_SLL or LINUX_SLL2"}
	}
	p, err := compileFilter(filter.Options{Plain: o.Plain}, o.Filter, link)
	if err != nil {
		return err
	}
	return p.List(w, programStyles[o.Style])
}
