package ctl

import (
	"context"

	"github.com/sockd/sockd/ctl/varlink"
)

// A method is the daemon's half of a verb: it reads its parameters, asks the
// Backend, and replies.
type method struct {
	name string // "io.sockd.Manager.Bind"
	// in and out are values of the parameter and reply types, for the test that
	// compares them with the interface description.
	in, out any
	more    bool // must be called with more
	upgrade bool // must be called with upgrade
	serve   func(ctx context.Context, s *Server, c *varlink.ServerCall) error
}

var methods = map[string]method{}

func addMethod(m method) struct{} {
	if _, dup := methods[m.name]; dup {
		panic("ctl: two methods are called " + m.name)
	}
	methods[m.name] = m
	return struct{}{}
}
