package syntax

import (
	"fmt"
	"strconv"
)

// Printing writes the words out that a filter only implied, and no parenthesis that is not
// needed.

func (e *Binary) String() string    { return string(appendExpr(nil, e)) }
func (e *Not) String() string       { return string(appendExpr(nil, e)) }
func (e *Match) String() string     { return string(appendExpr(nil, e)) }
func (e *Protocol) String() string  { return string(appendExpr(nil, e)) }
func (e *Relation) String() string  { return string(appendExpr(nil, e)) }
func (e *Cast) String() string      { return string(appendExpr(nil, e)) }
func (e *Length) String() string    { return string(appendExpr(nil, e)) }
func (e *Byte) String() string      { return string(appendExpr(nil, e)) }
func (e *Direction) String() string { return string(appendExpr(nil, e)) }
func (e *Interface) String() string { return string(appendExpr(nil, e)) }
func (e *Encap) String() string     { return string(appendExpr(nil, e)) }
func (e *LLC) String() string       { return string(appendExpr(nil, e)) }
func (e *Owner) String() string     { return string(appendExpr(nil, e)) }
func (e *Fragments) String() string { return string(appendExpr(nil, e)) }

func (a *Constant) String() string  { return string(appendArith(nil, a)) }
func (a *FrameLen) String() string  { return string(appendArith(nil, a)) }
func (a *Load) String() string      { return string(appendArith(nil, a)) }
func (a *Operation) String() string { return string(appendArith(nil, a)) }
func (a *Negate) String() string    { return string(appendArith(nil, a)) }

var (
	boolNames      = []string{And: " and ", Or: " or "}
	dirNames       = []string{Src: "src", Dst: "dst", SrcOrDst: "src or dst", SrcAndDst: "src and dst"}
	kindNames      = []string{AnyKind: "", Host: "host", Net: "net", Port: "port", PortRange: "portrange", ProtoNumber: "proto", ProtoChain: "protochain", Gateway: "gateway"}
	relNames       = []string{Equal: " = ", NotEqual: " != ", Greater: " > ", GreaterEqual: " >= ", Less: " < ", LessEqual: " <= "}
	byteNames      = []string{ByteEqual: " = ", ByteLess: " < ", ByteGreater: " > ", ByteAnd: " & ", ByteOr: " | "}
	arithNames     = []string{Add: " + ", Sub: " - ", Mul: " * ", Div: " / ", Mod: " % ", BitAnd: " & ", BitOr: " | ", BitXor: " ^ ", ShiftLeft: " << ", ShiftRight: " >> "}
	castNames      = map[bool]string{false: "broadcast", true: "multicast"}
	lengthNames    = map[bool]string{false: "less ", true: "greater "}
	directionNames = map[bool]string{false: "inbound", true: "outbound"}
)

// String is the protocol's name in a filter, empty for Any.
func (p Proto) String() string { return protoNames[p] }

// String is the kind's word in a filter, empty for AnyKind.
func (k Kind) String() string { return kindNames[k] }

// String is the header's name in a filter.
func (k EncapKind) String() string { return encapNames[k] }

func appendExpr(b []byte, e Expr) []byte {
	switch e := e.(type) {
	case *Binary:
		b = append(appendExpr(b, e.X), boolNames[e.Op]...)
		return appendOne(b, e.Y)
	case *Not:
		return appendOne(append(b, "not "...), e.X)
	case *Match:
		return appendMatch(b, e)
	case *Relation:
		b = append(appendArith(b, e.X), relNames[e.Op]...)
		return appendArith(b, e.Y)
	case *Encap:
		b = append(b, encapNames[e.Kind]...)
		if e.HasID {
			b = appendNumber(append(b, ' '), e.ID)
		}
		return b
	case *LLC:
		b = append(b, "llc"...)
		if e.Type != "" {
			b = append(append(b, ' '), e.Type...)
		}
		return b
	}
	return appendPlain(b, e)
}

// appendPlain prints the primitives of one form.
func appendPlain(b []byte, e Expr) []byte {
	switch e := e.(type) {
	case *Protocol:
		return append(b, protoNames[e.Proto]...)
	case *Cast:
		return append(appendWord(b, protoNames[e.Proto]), castNames[e.Multicast]...)
	case *Length:
		return appendNumber(append(b, lengthNames[e.Greater]...), e.N)
	case *Byte:
		return fmt.Appendf(b, "byte %d%s%d", e.Offset, byteNames[e.Op], e.N)
	case *Direction:
		return append(b, directionNames[e.Outbound]...)
	case *Interface:
		return appendNumber(append(b, "ifindex "...), e.Index)
	case *Owner:
		return appendOwner(b, e)
	}
	return append(b, "fragments"...)
}

// appendOne puts parentheses around what "and" and "or" would tear apart.
func appendOne(b []byte, e Expr) []byte {
	if _, ok := e.(*Binary); ok {
		return append(appendExpr(append(b, '('), e), ')')
	}
	return appendExpr(b, e)
}

func appendMatch(b []byte, m *Match) []byte {
	b = appendWord(b, protoNames[m.Proto])
	b = appendWord(b, dirNames[m.Dir])
	b = appendWord(b, kindNames[m.Kind])
	return append(b, m.Value.String()...)
}

func appendOwner(b []byte, o *Owner) []byte {
	b = appendWord(b, ownerNames[o.Field])
	switch {
	case o.Text == "":
		return appendNumber(b, o.N)
	case o.Field == UID:
		return append(b, Name(o.Text).String()...)
	case isToken(o.Text, func(c class) bool { return c == numberTok || isValue(c) }):
		return append(b, o.Text...)
	}
	return appendQuoted(b, o.Text)
}

// appendQuoted prints a text in quotes.
func appendQuoted(b []byte, text string) []byte {
	b = append(b, '"')
	for i := range len(text) {
		if text[i] == '"' || text[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, text[i])
	}
	return append(b, '"')
}

// appendWord prints a word and a space, nothing when there is none.
func appendWord(b []byte, word string) []byte {
	if word == "" {
		return b
	}
	return append(append(b, word...), ' ')
}

func appendNumber(b []byte, n uint32) []byte { return strconv.AppendUint(b, uint64(n), 10) }

func appendArith(b []byte, a Arith) []byte {
	switch a := a.(type) {
	case *Constant:
		return appendNumber(b, a.N)
	case *Load:
		b = appendArith(append(append(b, protoNames[a.Proto]...), '['), a.Index)
		if a.Size != 1 {
			b = strconv.AppendInt(append(b, ':'), int64(a.Size), 10)
		}
		return append(b, ']')
	case *Operation:
		b = appendGroup(b, a.X, !goesLeft(a.X, a.Op))
		b = append(b, arithNames[a.Op]...)
		return appendGroup(b, a.Y, !goesRight(a.Y, a.Op))
	case *Negate:
		_, group := a.X.(*Operation)
		return appendGroup(append(b, '-'), a.X, group)
	}
	return append(b, "len"...)
}

func appendGroup(b []byte, a Arith, group bool) []byte {
	if !group {
		return appendArith(b, a)
	}
	return append(appendArith(append(b, '('), a), ')')
}

// goesLeft tells whether a can be to the left of op without parentheses.
func goesLeft(a Arith, op ArithOp) bool {
	switch a := a.(type) {
	case *Operation:
		return bindings[a.Op] != greedy && bindings[op] <= bindings[a.Op]
	case *Negate:
		return bindings[op] != greedy
	}
	return true
}

// goesRight tells whether a can be to the right of op without parentheses. A greedy
// operation cannot, though it would be read right: nobody would see where it ends.
func goesRight(a Arith, op ArithOp) bool {
	o, ok := a.(*Operation)
	return !ok || bindings[op] == greedy || bindings[o.Op] != greedy && bindings[o.Op] > bindings[op]
}

// String is the name, with a backslash where it would not be read as one otherwise.
func (n Name) String() string {
	if isToken(string(n), func(c class) bool { return c == nameTok }) {
		return string(n)
	}
	return `\` + string(n)
}

// isToken tells whether a text is one token of a class, whatever words the options give.
func isToken(text string, of func(class) bool) bool {
	if text == "" || text[0] == '\\' {
		return false
	}
	s := scanner{text: text, o: Options{Fragments: true, Owners: true}}
	t := s.next()
	return of(t.class) && t.text == text
}

// String is the number, decimal.
func (n Number) String() string { return strconv.FormatUint(uint64(n), 10) }

// String is the address as it was given: its parts, and the mask or the prefix.
func (a IPv4) String() string {
	var b []byte
	for i := range a.Parts {
		if i > 0 {
			b = append(b, '.')
		}
		b = strconv.AppendUint(b, uint64(a.Addr[i]), 10)
	}
	switch {
	case a.Mask != nil:
		return string(append(append(b, " mask "...), a.Mask.String()...))
	case a.Bits >= 0:
		return string(strconv.AppendInt(append(b, '/'), int64(a.Bits), 10))
	}
	return string(b)
}

// String is the address in its shortest form, and the prefix.
func (a IPv6) String() string {
	if a.Bits < 0 {
		return a.Addr.String()
	}
	return a.Addr.String() + "/" + strconv.Itoa(a.Bits)
}

// String is six pairs of digits with colons.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// String is $ and two digits.
func (a ARCnet) String() string { return fmt.Sprintf("$%02x", uint8(a)) }
