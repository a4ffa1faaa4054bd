package varlink

import (
	"encoding"
	"encoding/json"
	"reflect"
)

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// withoutNulls gives v with empty lists and maps where it has nil ones that are
// not optional: encoding/json writes them as null, which a field that is not
// nullable must not be. v itself is not changed.
func withoutNulls(v any) any {
	filled := fill(reflect.ValueOf(v))
	if !filled.IsValid() {
		return nil
	}
	return filled.Interface()
}

func fill(v reflect.Value) reflect.Value {
	if !v.IsValid() || encodesItself(v.Type()) {
		return v
	}
	switch v.Kind() {
	case reflect.Pointer:
		return fillPointer(v)
	case reflect.Interface:
		if v.IsNil() {
			return v
		}
		return fill(v.Elem())
	case reflect.Struct:
		return fillStruct(v)
	case reflect.Slice:
		return fillSlice(v)
	case reflect.Map:
		return fillMap(v)
	}
	return v
}

func encodesItself(t reflect.Type) bool {
	return t == rawType || t.Implements(jsonMarshaler) || t.Implements(textMarshaler)
}

func fillPointer(v reflect.Value) reflect.Value {
	if v.IsNil() || reflect.PointerTo(v.Type().Elem()).Implements(jsonMarshaler) {
		return v
	}
	p := reflect.New(v.Type().Elem())
	p.Elem().Set(fill(v.Elem()))
	return p
}

func fillStruct(v reflect.Value) reflect.Value {
	s := reflect.New(v.Type()).Elem()
	s.Set(v)
	for _, f := range structFields(v.Type()) {
		field := s.FieldByIndex(f.index)
		if f.optional && field.IsZero() {
			continue
		}
		field.Set(fill(field))
	}
	return s
}

func fillSlice(v reflect.Value) reflect.Value {
	elem := v.Type().Elem()
	if v.IsNil() {
		return reflect.MakeSlice(v.Type(), 0, 0)
	}
	if isScalar(elem.Kind()) {
		return v
	}
	list := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
	for i := range v.Len() {
		list.Index(i).Set(fill(v.Index(i)))
	}
	return list
}

func fillMap(v reflect.Value) reflect.Value {
	if v.IsNil() {
		return reflect.MakeMap(v.Type())
	}
	if isScalar(v.Type().Elem().Kind()) {
		return v
	}
	dict := reflect.MakeMapWithSize(v.Type(), v.Len())
	for key, elem := range v.Seq2() {
		dict.SetMapIndex(key, fill(elem))
	}
	return dict
}

// isScalar tells that values of this kind hold no list or map.
func isScalar(k reflect.Kind) bool {
	return k <= reflect.Complex128 || k == reflect.String
}
