package ctl

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families/model"
)

// The interface descriptions are served as they stand here, comments and all.
//
//go:embed *.varlink
var descriptions embed.FS

// Descriptions are the interface descriptions by their file names.
func Descriptions() map[string]string {
	files, err := fs.Glob(descriptions, "*.varlink")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	texts := make(map[string]string, len(files))
	for _, f := range files {
		text, err := descriptions.ReadFile(f)
		if err != nil {
			panic(err) // the files are part of the program
		}
		texts[f] = string(text)
	}
	return texts
}

// Server answers the control socket's callers by asking a Backend.
type Server struct {
	backend  Backend
	varlink  *varlink.Server
	supplies supplies // of captures to files
}

// ServerOptions are what a Server may be told. The zero value is usable.
type ServerOptions struct {
	Version string
	// Served, when set, is told of each call after it, with the error it was
	// answered with. It is called from the connection's goroutine.
	Served func(c model.Caller, method string, err error)
	// Starved, when set, is told of each caller whose connection could not be
	// accepted, for want of descriptors as a rule, and whether it was told so.
	Starved func(err error, told bool)
}

// NewServer makes a server of b. It panics when an interface description does not
// parse or lacks a method, which is a mistake in the program.
func NewServer(b Backend, o ServerOptions) *Server {
	s := &Server{backend: b, varlink: varlink.NewServer(varlink.Info{
		Vendor: "sockd", Product: "sockd", Version: o.Version, URL: "https://github.com/sockd/sockd",
	})}
	s.varlink.MapError = mapError
	s.varlink.Authorize = func(c varlink.Creds, method string) error {
		return b.Authorize(modelCaller(c), method)
	}
	s.varlink.Starved = o.Starved
	if o.Served != nil {
		s.varlink.Served = func(c varlink.Creds, method string, err error) { o.Served(modelCaller(c), method, err) }
	}
	for _, text := range Descriptions() {
		if err := s.register(text); err != nil {
			panic(fmt.Sprintf("ctl: %v", err))
		}
	}
	return s
}

// register registers one interface with the methods that stand in it.
func (s *Server) register(text string) error {
	i, err := varlink.ParseInterface(text)
	if err != nil {
		return err
	}
	var serve []varlink.Method
	for name, found := range methods {
		if interfaceOf(name) != i.Name {
			continue
		}
		serve = append(serve, varlink.Method{
			Name: found.name, NeedsMore: found.more, NeedsUpgrade: found.upgrade,
			Serve: func(ctx context.Context, c *varlink.ServerCall) error { return found.serve(ctx, s, c) },
		})
	}
	return s.varlink.Register(text, serve...)
}

// interfaceOf is the interface that a method stands in.
func interfaceOf(method string) string { return method[:strings.LastIndexByte(method, '.')] }

// Serve answers l's callers until Shutdown, and then returns nil. It owns l.
func (s *Server) Serve(l *net.UnixListener) error { return s.varlink.Serve(l) }

// Shutdown stops accepting, ends the calls that wait, lets them answer, and
// returns when all connections are gone; when ctx ends first they are closed.
func (s *Server) Shutdown(ctx context.Context) error { return s.varlink.Shutdown(ctx) }

// Close closes all connections under their calls, and waits for these. Twice is
// nil.
func (s *Server) Close() error { return s.varlink.Close() }

// Stats counts what the server did; its Conns are the callers of now.
func (s *Server) Stats() varlink.Stats { return s.varlink.Stats() }

// caller is who makes a call.
func (s *Server) caller(c *varlink.ServerCall) model.Caller { return modelCaller(c.Caller) }

func modelCaller(c varlink.Creds) model.Caller {
	return model.Caller{UID: c.UID, GID: c.GID, Groups: c.Groups, PID: c.PID}
}

func mapError(err error) *varlink.Error {
	e := describe(err)
	return &varlink.Error{Name: e.Name, Parameters: e.wire()}
}

// request is one call as a method's serve sees it: the Backend to ask, and for
// whom.
type request struct {
	Backend
	caller model.Caller
	call   *varlink.ServerCall
}

func (s *Server) request(c *varlink.ServerCall) request {
	return request{Backend: s.backend, caller: s.caller(c), call: c}
}

// takeFile takes the descriptor that the parameter descriptor names, or model.NoFD
// for none. The caller owns it.
func (r request) takeFile(index *int) (int, error) { return r.takeFileOf("descriptor", index) }

// takeFileOf is takeFile for a parameter of another name.
func (r request) takeFileOf(parameter string, index *int) (int, error) {
	if index == nil {
		return model.NoFD, nil
	}
	fd, err := r.call.TakeFile(*index)
	var invalid *varlink.InvalidParameterError
	if errors.As(err, &invalid) {
		return model.NoFD, &varlink.InvalidParameterError{Parameter: parameter, Why: invalid.Why}
	}
	return fd, err
}

// unary makes a method of the common kind: parameters in, one reply out.
func unary[In, Out any](name string, serve func(ctx context.Context, r request, in In) (Out, error)) method {
	var noIn In
	var noOut Out
	return method{name: name, in: noIn, out: noOut, serve: func(ctx context.Context, s *Server, c *varlink.ServerCall) error {
		var in In
		if err := c.Decode(&in); err != nil {
			return err
		}
		out, err := serve(ctx, s.request(c), in)
		if err != nil {
			return err
		}
		return c.Reply(out)
	}}
}

// withTimeout bounds ctx by a timeout parameter in nanoseconds: nil or negative is
// none, and with 0 ctx has ended already, which leaves one attempt.
func withTimeout(ctx context.Context, timeout *int64) (context.Context, context.CancelFunc) {
	if timeout == nil || *timeout < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(*timeout))
}

// orZero is what an optional parameter points to, or its zero value.
func orZero[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// closeFile closes a descriptor that may be model.NoFD.
func closeFile(fd int) {
	if fd >= 0 {
		_ = syscall.Close(fd) // nothing was written through it
	}
}

// notNil is a list that JSON writes as [].
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
