package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
)

type listIn struct {
	Kinds []string `json:"kinds"`
}

// The kinds of objects as ls and List name them, in the order of List's lists.
var listKinds = []string{"sockets", "relays", "sessions", "captures", "recorders"}

var _ = addMethod(method{
	name: "io.sockd.Manager.List", in: listIn{}, out: Listing{},
	serve: serveList,
})

func serveList(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in listIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	for _, k := range in.Kinds {
		if !slices.Contains(listKinds, k) {
			return fmt.Errorf("list %q: want %s: %w", k, strings.Join(listKinds, ", "), families.ErrSyntax)
		}
	}
	l, err := s.backend.List(ctx, s.caller(c), in.Kinds)
	if err != nil {
		return err
	}
	if !c.More {
		return replyWhole(c, l)
	}
	parts := splitListing(l, listRoom)
	last := len(parts) - 1
	for _, p := range parts[:last] {
		if err := c.Continue(p); err != nil {
			return err
		}
	}
	return c.Reply(parts[last])
}

func replyWhole(c *varlink.ServerCall, l Listing) error {
	err := c.Reply(l)
	if errors.Is(err, varlink.ErrTooLarge) {
		return fmt.Errorf("list: %w: call it with more", err)
	}
	return err
}

// listRoom is how much of a list one message carries. It leaves room for a last
// object that is large: a relay's endpoints came in one message, too.
const listRoom = varlink.MaxMessage / 4

// splitListing cuts a listing into parts of about room bytes of JSON; there is
// always one.
func splitListing(l Listing, room int) []Listing {
	s := splitter{room: room, parts: []Listing{{}}}
	for _, o := range l.Sockets {
		p := s.part(o)
		p.Sockets = append(p.Sockets, o)
	}
	for _, o := range l.Relays {
		p := s.part(o)
		p.Relays = append(p.Relays, o)
	}
	for _, o := range l.Sessions {
		p := s.part(o)
		p.Sessions = append(p.Sessions, o)
	}
	for _, o := range l.Captures {
		p := s.part(o)
		p.Captures = append(p.Captures, o)
	}
	for _, o := range l.Recorders {
		p := s.part(o)
		p.Recorders = append(p.Recorders, o)
	}
	return s.parts
}

type splitter struct {
	room, used int
	parts      []Listing
}

// part is the part that has room for one more object.
func (s *splitter) part(object any) *Listing {
	text, err := json.Marshal(object)
	if err != nil {
		panic(fmt.Sprintf("ctl: %T does not encode: %v", object, err)) // a mistake in the program
	}
	if s.used > 0 && s.used+len(text) > s.room {
		s.parts, s.used = append(s.parts, Listing{}), 0
	}
	s.used += len(text)
	return &s.parts[len(s.parts)-1]
}

// list asks for the objects of one kind, or all.
func (e *Env) list(ctx context.Context, kind string) (Listing, error) {
	kinds := []string{kind}
	if kind == kindAll {
		kinds = listKinds
	}
	c, err := e.Dial(ctx)
	if err != nil {
		return Listing{}, err
	}
	defer c.Close()
	ctx, cancel := e.bound(ctx, "io.sockd.Manager.List")
	defer cancel()
	var l Listing
	err = c.More(ctx, "io.sockd.Manager.List", listIn{kinds}, func(raw json.RawMessage) error {
		var p Listing
		if err := json.Unmarshal(raw, &p); err != nil {
			return fmt.Errorf("list: %w", err)
		}
		l.Sockets = append(l.Sockets, p.Sockets...)
		l.Relays = append(l.Relays, p.Relays...)
		l.Sessions = append(l.Sessions, p.Sessions...)
		l.Captures = append(l.Captures, p.Captures...)
		l.Recorders = append(l.Recorders, p.Recorders...)
		return nil
	})
	return l, err
}
