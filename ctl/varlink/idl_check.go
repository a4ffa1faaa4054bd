package varlink

import (
	"errors"
	"fmt"
	"reflect"
	"time"
)

var (
	durationType = reflect.TypeFor[time.Duration]()
	anyType      = reflect.TypeFor[any]()
)

// CheckStruct compares a Go struct with a structure of an interface description,
// for tests that keep the two equal. It reports every difference: a field that
// only one of them has, another type, and a field that is optional on one side
// only. A Go field is optional when Decode takes it as such.
//
//	int      every int and uint kind, time.Duration (nanoseconds)
//	string   string kinds, time.Time, []byte (base64), what has MarshalText
//	object   json.RawMessage, a map with string keys and any values
//	any      any, json.RawMessage
//	(a, b)   string kinds
//	[]T      slices          [string]T  maps with string keys
//	(a: T)   structs
func CheckStruct(iface *Interface, want *Type, got reflect.Type) error {
	c := checker{iface: iface, seen: map[checkedPair]bool{}}
	if got.Kind() == reflect.Pointer {
		got = got.Elem()
	}
	c.check(want, got, got.String())
	return errors.Join(c.errs...)
}

type checkedPair struct {
	want *Type
	got  reflect.Type
}

type checker struct {
	iface *Interface
	seen  map[checkedPair]bool // types may hold themselves
	errs  []error
}

func (c *checker) report(path, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
}

func (c *checker) check(want *Type, got reflect.Type, path string) {
	want = c.iface.resolve(want)
	if c.seen[checkedPair{want, got}] {
		return
	}
	c.seen[checkedPair{want, got}] = true
	if got.Kind() == reflect.Pointer {
		got = got.Elem()
	}
	if !fits(want.Kind, got) {
		c.report(path, "Go has %s, the description has %s", got, want)
		return
	}
	switch want.Kind {
	case TypeStruct:
		c.fields(want, got, path)
	case TypeArray, TypeMap:
		c.element(want.Elem, got.Elem(), path+"[]")
	}
}

// element checks what a list or map holds: there a pointer alone is optional.
func (c *checker) element(want *Type, got reflect.Type, path string) {
	optional := want.Kind == TypeOptional
	if optional != (got.Kind() == reflect.Pointer) {
		c.report(path, "optional in one of Go (%s) and the description (%s) only", got, want)
	}
	if optional {
		want = want.Elem
	}
	c.check(want, got, path)
}

func (c *checker) fields(want *Type, got reflect.Type, path string) {
	byName := map[string]structField{}
	for _, f := range structFields(got) {
		byName[f.name] = f
	}
	for _, w := range want.Fields {
		f, ok := byName[w.Name]
		if !ok {
			c.report(path+"."+w.Name, "only the description has it")
			continue
		}
		delete(byName, w.Name)
		c.field(w, f, path+"."+w.Name)
	}
	for _, f := range structFields(got) {
		if _, left := byName[f.name]; left {
			c.report(path+"."+f.name, "only Go has it")
		}
	}
}

func (c *checker) field(want *Field, got structField, path string) {
	t := want.Type
	optional := t.Kind == TypeOptional
	if optional != got.optional {
		c.report(path, "optional in one of Go (%t) and the description (%t) only", got.optional, optional)
	}
	if optional {
		t = t.Elem
	}
	c.check(t, got.typ, path)
}

// fits tells whether a Go type can stand for a kind of type.
func fits(kind TypeKind, t reflect.Type) bool {
	k := t.Kind()
	switch kind {
	case TypeBool:
		return k == reflect.Bool
	case TypeInt:
		return isInt(t)
	case TypeFloat:
		return k == reflect.Float32 || k == reflect.Float64
	case TypeString:
		return isString(t)
	case TypeEnum:
		return k == reflect.String
	case TypeObject:
		return t == rawType || k == reflect.Map && t.Key().Kind() == reflect.String && (t.Elem() == anyType || t.Elem() == rawType)
	case TypeAny:
		return t == anyType || t == rawType
	case TypeArray:
		return k == reflect.Slice && t != rawType && !isString(t)
	case TypeMap:
		return k == reflect.Map && t.Key().Kind() == reflect.String
	case TypeStruct:
		return k == reflect.Struct && !encodesItself(t)
	}
	return false
}

func isInt(t reflect.Type) bool {
	return t == durationType || t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64 && !encodesItself(t)
}

func isString(t reflect.Type) bool {
	if t == rawType {
		return false
	}
	bytes := t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
	return t.Kind() == reflect.String || bytes || t.Implements(textMarshaler)
}
