package varlink

import (
	"reflect"
	"strings"
	"sync"
)

// A structField is one member of a Go struct as JSON has it.
type structField struct {
	name     string
	index    []int
	typ      reflect.Type
	optional bool // may be absent or null: a pointer, or tagged omitempty or omitzero
}

var fieldCache sync.Map // reflect.Type → []structField

// structFields lists the members of t in their order. Embedded structs without a
// name of their own are flattened, as encoding/json does it.
func structFields(t reflect.Type) []structField {
	if cached, ok := fieldCache.Load(t); ok {
		return cached.([]structField)
	}
	var fields []structField
	for f := range t.Fields() {
		fields = append(fields, fieldsOf(f)...)
	}
	fieldCache.Store(t, fields)
	return fields
}

func fieldsOf(f reflect.StructField) []structField {
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	if f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct {
		return embeddedFields(f)
	}
	if !f.IsExported() || name == "-" && options == "" {
		return nil
	}
	if name == "" {
		name = f.Name
	}
	optional := f.Type.Kind() == reflect.Pointer
	for option := range strings.SplitSeq(options, ",") {
		optional = optional || option == "omitempty" || option == "omitzero"
	}
	return []structField{{name: name, index: f.Index, typ: f.Type, optional: optional}}
}

func embeddedFields(f reflect.StructField) []structField {
	var fields []structField
	for _, inner := range structFields(f.Type) {
		inner.index = append(append([]int(nil), f.Index...), inner.index...)
		fields = append(fields, inner)
	}
	return fields
}
