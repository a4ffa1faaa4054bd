package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// impatient is a Backend that waits for nothing and keeps little.
type impatient struct{ *ctltest.Backend }

func now(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

func (b impatient) Open(ctx context.Context, c model.Caller, family, typ string, protocol int, protocolName string, fd int) (model.Socket, error) {
	if b.Sockets() > 50 {
		if _, err := b.CloseAll(ctx, c); err != nil {
			return model.Socket{}, err
		}
	}
	return b.Backend.Open(ctx, c, family, typ, protocol, protocolName, fd)
}

func (b impatient) Accept(ctx context.Context, c model.Caller, id model.ID) (model.Socket, error) {
	return b.Backend.Accept(now(ctx), c, id)
}

func (b impatient) Recv(ctx context.Context, c model.Caller, id model.ID, spec model.RecvSpec) (model.Message, func(), error) {
	return b.Backend.Recv(now(ctx), c, id, spec)
}

func (b impatient) Watch(_ context.Context, _ model.Caller, f func(model.Event) error) error {
	return f(model.Event{Event: "ready"})
}

// FuzzParams gives every method parameters of any kind. The laws: each call is
// answered or its connection closed, nothing panics, and parameters that do not
// fit the interface description are never taken.
func FuzzParams(f *testing.F) {
	names := slices.Sorted(maps.Keys(methods))
	all := interfaces(f)
	for i, name := range names {
		for _, seed := range seeds(all[interfaceOf(name)], name) {
			f.Add(uint8(i), seed)
		}
	}
	path, _ := mustServe(f, impatient{ctltest.New(f)})
	f.Fuzz(func(t *testing.T, n uint8, parameters string) {
		name := names[int(n)%len(names)]
		if strings.ContainsRune(parameters, 0) || !json.Valid([]byte(parameters)) {
			t.Skip("not the parameters of one message") // the codec's own fuzz law has these
		}
		reply, err := askOnce(t, path, name, parameters)
		if err != nil {
			require.True(t, errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), "%s(%s): %v", name, parameters, err)
			require.True(t, mayClose(parameters), "%s(%s) was not answered", name, parameters)
			return
		}
		if reply.Error == varlink.NameInvalidParameter {
			return
		}
		iface := all[interfaceOf(name)]
		require.NoError(t, conforms(iface, iface.Method(name[len(iface.Name)+1:]).Type, decodeAny(t, parameters)), "%s took %s", name, parameters)
	})
}

// askOnce makes one call on a connection of its own, with the flag that the
// method wants, and reads all replies but the last away.
func askOnce(t *testing.T, path, name, parameters string) (*varlink.Reply, error) {
	c := mustDial(t, path)
	defer c.Close()
	flags := ""
	switch m := methods[name]; {
	case m.more:
		flags = `,"more":true`
	case m.upgrade:
		flags = `,"upgrade":true`
	}
	if _, err := fmt.Fprintf(c, "{\"method\":%q%s,\"parameters\":%s}\x00", name, flags, parameters); err != nil {
		return nil, err
	}
	for {
		text, err := c.r.ReadString(0)
		if err != nil {
			return nil, err
		}
		r, err := varlink.ParseReply([]byte(strings.TrimSuffix(text, "\x00")))
		require.NoError(t, err, "%s(%s)", name, parameters)
		if !r.Continues {
			return r, nil
		}
	}
}

// mayClose tells whether a message with these parameters has no well-defined
// answer (UAPI.20): it is too long, or its text is not sound.
func mayClose(parameters string) bool {
	return len(parameters) > varlink.MaxMessage-100 || !utf8.ValidString(parameters) || strings.Contains(parameters, `\u`) ||
		!strings.HasPrefix(strings.TrimLeft(parameters, " \t\r\n"), "{")
}

func decodeAny(t *testing.T, text string) any {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	require.NoError(t, d.Decode(&v))
	return v
}

// conforms compares a value with the description alone, without the Go types.
func conforms(i *varlink.Interface, want *varlink.Type, got any) error {
	var ok bool
	switch want.Kind {
	case varlink.TypeNamed:
		return conforms(i, i.Type(want.Name), got)
	case varlink.TypeOptional:
		if got == nil {
			return nil
		}
		return conforms(i, want.Elem, got)
	case varlink.TypeStruct:
		return structConforms(i, want, got)
	case varlink.TypeArray:
		list, isList := got.([]any)
		for _, e := range list {
			if err := conforms(i, want.Elem, e); err != nil {
				return err
			}
		}
		ok = isList
	case varlink.TypeBool:
		_, ok = got.(bool)
	case varlink.TypeString:
		_, ok = got.(string)
	case varlink.TypeInt:
		if n, isNumber := got.(json.Number); isNumber {
			_, err := strconv.ParseInt(n.String(), 10, 64)
			ok = err == nil
		}
	default:
		return fmt.Errorf("no method takes a %s: teach this test", want.Kind)
	}
	if !ok {
		return fmt.Errorf("%v is no %s", got, want.Kind)
	}
	return nil
}

func structConforms(i *varlink.Interface, want *varlink.Type, got any) error {
	if got == nil && len(want.Fields) == 0 {
		return nil // no parameters are the same as null
	}
	members, ok := got.(map[string]any)
	if got != nil && !ok {
		return fmt.Errorf("%v is no object", got)
	}
	known := map[string]bool{}
	for _, f := range want.Fields {
		known[f.Name] = true
		v, there := members[f.Name]
		if !there && f.Type.Kind != varlink.TypeOptional {
			return fmt.Errorf("%s is missing", f.Name)
		}
		if err := conforms(i, f.Type, v); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	for name := range members {
		if !known[name] {
			return fmt.Errorf("%s is unknown", name)
		}
	}
	return nil
}

// seeds are parameters of a method that fit, and some that do not.
func seeds(i *varlink.Interface, name string) []string {
	want := i.Method(name[len(i.Name)+1:]).Type
	full := example(i, want).(map[string]any)
	texts := []string{`{}`, `null`, `[]`, `{"nonsense":1}`, `{"id":1e99}`, `{"id":-1}`, `{"ID":1}`, `{"id":1,"id":2}`}
	add := func(v any) {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		texts = append(texts, string(text))
	}
	add(full)
	for field := range full {
		less := maps.Clone(full)
		delete(less, field)
		add(less)
		for _, odd := range []any{nil, "x", -1, true, []any{nil}, map[string]any{"x": 1}} {
			less[field] = odd
			add(less)
		}
	}
	return texts
}

// example is a value that fits a type.
func example(i *varlink.Interface, t *varlink.Type) any {
	switch t.Kind {
	case varlink.TypeNamed:
		return example(i, i.Type(t.Name))
	case varlink.TypeOptional:
		return example(i, t.Elem)
	case varlink.TypeStruct:
		fields := map[string]any{}
		for _, f := range t.Fields {
			fields[f.Name] = example(i, f.Type)
		}
		return fields
	case varlink.TypeArray:
		return []any{example(i, t.Elem)}
	case varlink.TypeBool:
		return true
	case varlink.TypeInt:
		return 1
	}
	return "tcp:127.0.0.1:80"
}
