package varlink

// Interface is a parsed interface description.
type Interface struct {
	Name    string
	Doc     string // the comment before it, lines separated by \n
	Members []*Member
}

// MemberKind says what a member of an interface is.
type MemberKind string

// The kinds of members, by their keywords.
const (
	KindType   MemberKind = "type"
	KindMethod MemberKind = "method"
	KindError  MemberKind = "error"
)

// Member is a type, method or error of an interface.
type Member struct {
	Kind MemberKind
	Name string
	Doc  string
	// Type is the structure or enumeration of a type, the parameters of an error,
	// the input of a method.
	Type *Type
	Out  *Type // of a method
}

// TypeKind says what a type is.
type TypeKind string

// The kinds of types; the simple ones by their keywords.
const (
	TypeBool   TypeKind = "bool"
	TypeInt    TypeKind = "int"
	TypeFloat  TypeKind = "float"
	TypeString TypeKind = "string"
	TypeObject TypeKind = "object"
	TypeAny    TypeKind = "any"

	TypeArray    TypeKind = "[]"       // of Elem
	TypeMap      TypeKind = "[string]" // of Elem
	TypeOptional TypeKind = "?"        // of Elem, which is not optional itself
	TypeStruct   TypeKind = "struct"   // of Fields; () is one without
	TypeEnum     TypeKind = "enum"     // of Fields, at least one, without types
	TypeNamed    TypeKind = "named"    // Name of a type of the same interface
)

// Type is a type as an interface description writes it.
type Type struct {
	Kind   TypeKind
	Elem   *Type
	Fields []*Field
	Name   string
}

// Field is a member of a structure, or a value of an enumeration.
type Field struct {
	Name string
	Doc  string
	Type *Type // nil in an enumeration
}

// Method finds a method by its unqualified name, or returns nil.
func (i *Interface) Method(name string) *Member { return i.member(KindMethod, name) }

// Type finds the structure or enumeration of that name, or returns nil.
func (i *Interface) Type(name string) *Type {
	if m := i.member(KindType, name); m != nil {
		return m.Type
	}
	return nil
}

// ErrorType finds the parameters of an error by its unqualified name, or returns
// nil.
func (i *Interface) ErrorType(name string) *Type {
	if m := i.member(KindError, name); m != nil {
		return m.Type
	}
	return nil
}

func (i *Interface) member(kind MemberKind, name string) *Member {
	for _, m := range i.Members {
		if m.Kind == kind && m.Name == name {
			return m
		}
	}
	return nil
}

// resolve follows names to what they stand for. ParseInterface has checked that
// every name is a type.
func (i *Interface) resolve(t *Type) *Type {
	if t.Kind == TypeNamed {
		return i.Type(t.Name)
	}
	return t
}
