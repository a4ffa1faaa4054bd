package varlink

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
)

var (
	rawType         = reflect.TypeFor[json.RawMessage]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// Decode reads the parameters of a call into a pointer to a struct, as strictly as
// a service should: a field that the struct has not, a required one that is
// absent or null, and a value of another type are each an
// *InvalidParameterError. A field is optional (?T) when it is a pointer or tagged
// omitempty or omitzero, and required otherwise. Names match exactly. Nil
// parameters are an empty object. Raw JSON aliases raw. On error into is not
// touched.
func Decode(raw json.RawMessage, into any) error {
	if len(raw) > 0 {
		if err := checkText(raw); err != nil {
			return &InvalidParameterError{Parameter: "parameters", Why: "is " + err.Error()}
		}
	}
	return decodeInto(decoder{}, raw, into)
}

// decodeLenient reads parameters of a reply: a client ignores fields that it does
// not know, and a service may be older than the client.
func decodeLenient(raw json.RawMessage, into any) error {
	if into == nil {
		return nil
	}
	return decodeInto(decoder{lenient: true}, raw, into)
}

func decodeInto(d decoder, raw json.RawMessage, into any) error {
	target := reflect.ValueOf(into)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return fmt.Errorf("decode parameters into %T: want a pointer", into)
	}
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	fresh := reflect.New(target.Type().Elem()).Elem()
	fresh.Set(target.Elem())
	if err := d.value(trimSpace(raw), fresh, "parameters"); err != nil {
		return err
	}
	target.Elem().Set(fresh)
	return nil
}

// A decoder puts checked JSON into Go values.
type decoder struct {
	lenient bool
}

func invalid(path, format string, args ...any) error {
	return &InvalidParameterError{Parameter: path, Why: fmt.Sprintf(format, args...)}
}

// value decodes one value without white space around it.
func (d decoder) value(raw json.RawMessage, v reflect.Value, path string) error {
	if isNull(raw) {
		return d.null(v, path)
	}
	if v.Type() == rawType {
		v.SetBytes(raw)
		return nil
	}
	if p := v.Addr().Type(); p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler) {
		return leaf(raw, v, path)
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(raw, v.Elem(), path)
	case reflect.Struct:
		return d.object(raw, v, path)
	case reflect.Map:
		return d.dictionary(raw, v, path)
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			return d.array(raw, v, path)
		}
		// encoding/json takes a list of numbers for bytes, too.
		if raw[0] != '"' {
			return invalid(path, "is not a string")
		}
	}
	return leaf(raw, v, path)
}

// null is for optional values alone; object has dealt with optional fields.
func (d decoder) null(v reflect.Value, path string) error {
	if v.Kind() != reflect.Pointer && !d.lenient {
		return invalid(path, "is null")
	}
	v.SetZero()
	return nil
}

// leaf leaves the rest to encoding/json: bool, numbers, strings, base64, and types
// that decode themselves.
func leaf(raw json.RawMessage, v reflect.Value, path string) error {
	if err := json.Unmarshal(raw, v.Addr().Interface()); err != nil {
		return invalid(path, "does not fit: %v", err)
	}
	return nil
}

func (d decoder) object(raw json.RawMessage, v reflect.Value, path string) error {
	members, err := membersAt(raw, path)
	if err != nil {
		return err
	}
	fields := structFields(v.Type())
	have := make([]bool, len(fields))
	for _, m := range members {
		at := slices.IndexFunc(fields, func(f structField) bool { return f.name == m.name })
		if at < 0 {
			if d.lenient {
				continue
			}
			return invalid(join(path, m.name), "is unknown")
		}
		f := fields[at]
		if f.optional && isNull(m.value) {
			continue
		}
		if err := d.value(m.value, v.FieldByIndex(f.index), join(path, f.name)); err != nil {
			return err
		}
		have[at] = true
	}
	return d.complete(fields, have, path)
}

func (d decoder) complete(fields []structField, have []bool, path string) error {
	for i, f := range fields {
		if !have[i] && !f.optional && !d.lenient {
			return invalid(join(path, f.name), "is missing")
		}
	}
	return nil
}

func (d decoder) dictionary(raw json.RawMessage, v reflect.Value, path string) error {
	members, err := membersAt(raw, path)
	if err != nil {
		return err
	}
	t := v.Type()
	if t.Key().Kind() != reflect.String {
		return fmt.Errorf("decode %s: a map with keys of type %s", path, t.Key())
	}
	dict := reflect.MakeMapWithSize(t, len(members))
	for _, m := range members {
		elem := reflect.New(t.Elem()).Elem()
		if err := d.value(m.value, elem, join(path, m.name)); err != nil {
			return err
		}
		dict.SetMapIndex(reflect.ValueOf(m.name).Convert(t.Key()), elem)
	}
	v.Set(dict)
	return nil
}

func (d decoder) array(raw json.RawMessage, v reflect.Value, path string) error {
	if raw[0] != '[' {
		return invalid(path, "is not an array")
	}
	elements := arrayElements(raw)
	list := reflect.MakeSlice(v.Type(), len(elements), len(elements))
	for i, element := range elements {
		if err := d.value(element, list.Index(i), fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
	}
	v.Set(list)
	return nil
}

func membersAt(raw json.RawMessage, path string) ([]member, error) {
	if raw[0] != '{' {
		return nil, invalid(path, "is not an object")
	}
	members, err := objectMembers(raw)
	if err != nil {
		return nil, invalid(path, "is unclear: %v", err)
	}
	return members, nil
}

// join names a field by its path from the top, where fields have no prefix.
func join(path, name string) string {
	if path == "parameters" {
		return name
	}
	return path + "." + name
}
