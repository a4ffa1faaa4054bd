package varlink

import "strings"

// maxLine is how long a structure may become on one line.
const maxLine = 100

// String prints the description as text that ParseInterface reads back to the
// same. Comments that document nothing are not kept.
func (i *Interface) String() string {
	var b strings.Builder
	writeDoc(&b, i.Doc, "")
	b.WriteString("interface " + i.Name + "\n")
	for _, m := range i.Members {
		b.WriteString("\n" + m.String() + "\n")
	}
	return b.String()
}

// String prints one member with its comment.
func (m *Member) String() string {
	var b strings.Builder
	writeDoc(&b, m.Doc, "")
	b.WriteString(string(m.Kind) + " " + m.Name)
	if m.Kind != KindMethod {
		b.WriteString(" ")
	}
	m.Type.write(&b, "")
	if m.Out != nil {
		b.WriteString(" -> ")
		m.Out.write(&b, "")
	}
	return b.String()
}

// String prints a type.
func (t *Type) String() string {
	var b strings.Builder
	t.write(&b, "")
	return b.String()
}

// write prints a type whose lines after the first begin with indent.
func (t *Type) write(b *strings.Builder, indent string) {
	switch t.Kind {
	case TypeStruct, TypeEnum:
		t.writeFields(b, indent)
	case TypeArray, TypeMap, TypeOptional:
		b.WriteString(string(t.Kind))
		t.Elem.write(b, indent)
	case TypeNamed:
		b.WriteString(t.Name)
	default:
		b.WriteString(string(t.Kind))
	}
}

func (t *Type) writeFields(b *strings.Builder, indent string) {
	if line, ok := t.oneLine(maxLine - len(indent)); ok {
		b.WriteString(line)
		return
	}
	b.WriteString("(\n")
	inner := indent + "  "
	for i, f := range t.Fields {
		writeDoc(b, f.Doc, inner)
		b.WriteString(inner + f.Name)
		if f.Type != nil {
			b.WriteString(": ")
			f.Type.write(b, inner)
		}
		if i < len(t.Fields)-1 {
			b.WriteString(",")
		}
		b.WriteString("\n")
	}
	b.WriteString(indent + ")")
}

// oneLine prints a type on one line of at most room bytes, if that is possible:
// comments need lines of their own.
func (t *Type) oneLine(room int) (string, bool) {
	switch t.Kind {
	case TypeStruct, TypeEnum:
		return t.fieldsOneLine(room)
	case TypeArray, TypeMap, TypeOptional:
		elem, ok := t.Elem.oneLine(room - len(t.Kind))
		return string(t.Kind) + elem, ok
	}
	text := t.String()
	return text, len(text) <= room
}

func (t *Type) fieldsOneLine(room int) (string, bool) {
	line := "("
	for i, f := range t.Fields {
		if f.Doc != "" {
			return "", false
		}
		if i > 0 {
			line += ", "
		}
		line += f.Name
		if f.Type != nil {
			text, ok := f.Type.oneLine(room - len(line) - 2)
			if !ok {
				return "", false
			}
			line += ": " + text
		}
		if len(line) >= room {
			return "", false
		}
	}
	return line + ")", true
}

func writeDoc(b *strings.Builder, doc, indent string) {
	if doc == "" {
		return
	}
	for line := range strings.SplitSeq(doc, "\n") {
		b.WriteString(indent + "#")
		if line != "" {
			b.WriteString(" " + line)
		}
		b.WriteString("\n")
	}
}
