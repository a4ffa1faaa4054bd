package varlink

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

var (
	interfaceRE = regexp.MustCompile(`^` + interfacePattern + `$`)
	memberRE    = regexp.MustCompile(`^` + memberPattern + `$`)
	fieldRE     = regexp.MustCompile(`^[A-Za-z](?:_?[A-Za-z0-9])*$`)
)

// maxTypeDepth bounds how deep a type nests: descriptions come from strangers too,
// and people stop reading at four.
const maxTypeDepth = 64

// ParseInterface reads an interface description (UAPI.20, Interface Definition).
// A comment documents what follows it when it stands on lines of its own with no
// empty line between. Names that stand for no type, and names that come twice, are
// errors. Errors say line and column.
func ParseInterface(text string) (*Interface, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("parse interface: invalid UTF-8")
	}
	p := &idlParser{text: text}
	iface, err := p.parse()
	if err != nil {
		line, column := p.position()
		return nil, fmt.Errorf("parse interface: line %d, column %d: %w", line, column, err)
	}
	if err := iface.check(); err != nil {
		return nil, fmt.Errorf("parse interface %s: %w", iface.Name, err)
	}
	return iface, nil
}

// idlParser walks through a description. After skip, doc and broke tell of the
// space that was skipped.
type idlParser struct {
	text  string
	at    int
	doc   string // the comment that documents what comes now
	broke bool   // a line ended
}

func (p *idlParser) position() (line, column int) {
	before := p.text[:p.at]
	return 1 + strings.Count(before, "\n"), 1 + p.at - (strings.LastIndexByte(before, '\n') + 1)
}

func (p *idlParser) parse() (*Interface, error) {
	p.skip()
	iface := &Interface{Doc: p.doc}
	if err := p.keyword("interface"); err != nil {
		return nil, err
	}
	name, err := p.name(interfaceRE, "an interface name", ".-")
	if err != nil {
		return nil, err
	}
	iface.Name = name
	for p.skip(); p.at < len(p.text); p.skip() {
		if !p.broke {
			return nil, errors.New("want the end of the line")
		}
		m, err := p.member()
		if err != nil {
			return nil, err
		}
		iface.Members = append(iface.Members, m)
	}
	if len(iface.Members) == 0 {
		return nil, errors.New("want a type, method or error")
	}
	return iface, nil
}

func (p *idlParser) member() (*Member, error) {
	m := &Member{Doc: p.doc, Kind: MemberKind(p.word(""))}
	if m.Kind != KindType && m.Kind != KindMethod && m.Kind != KindError {
		return nil, errors.New("want type, method or error")
	}
	if err := p.keyword(string(m.Kind)); err != nil {
		return nil, err
	}
	var err error
	if m.Name, err = p.name(memberRE, "a name that begins with a capital letter", ""); err != nil {
		return nil, err
	}
	p.skip()
	if m.Type, err = p.structure(m.Kind == KindType, 0); err != nil {
		return nil, err
	}
	if m.Kind == KindMethod {
		m.Out, err = p.output()
	}
	return m, err
}

func (p *idlParser) output() (*Type, error) {
	p.skip()
	if !p.take("->") {
		return nil, errors.New("want ->")
	}
	p.skip()
	return p.structure(false, 0)
}

// parseType reads a type where skip has been.
func (p *idlParser) parseType(depth int) (*Type, error) {
	if depth > maxTypeDepth {
		return nil, fmt.Errorf("types nest deeper than %d", maxTypeDepth)
	}
	for _, prefix := range []TypeKind{TypeOptional, TypeArray, TypeMap} {
		if p.take(string(prefix)) {
			return p.prefixed(prefix, depth)
		}
	}
	if strings.HasPrefix(p.text[p.at:], "(") {
		return p.structure(true, depth)
	}
	word := p.word("")
	switch kind := TypeKind(word); {
	case kind == TypeBool, kind == TypeInt, kind == TypeFloat, kind == TypeString, kind == TypeObject, kind == TypeAny:
		p.at += len(word)
		return &Type{Kind: kind}, nil
	case memberRE.MatchString(word):
		p.at += len(word)
		return &Type{Kind: TypeNamed, Name: word}, nil
	}
	return nil, errors.New("want a type")
}

func (p *idlParser) prefixed(kind TypeKind, depth int) (*Type, error) {
	p.skip()
	if kind == TypeOptional && strings.HasPrefix(p.text[p.at:], string(TypeOptional)) {
		return nil, errors.New("?? says no more than ?")
	}
	elem, err := p.parseType(depth + 1)
	if err != nil {
		return nil, err
	}
	return &Type{Kind: kind, Elem: elem}, nil
}

// structure reads (name: type, ...), and (name, ...) where an enumeration may be.
// The first field decides which it is.
func (p *idlParser) structure(mayEnum bool, depth int) (*Type, error) {
	if !p.take("(") {
		return nil, errors.New("want (")
	}
	t := &Type{Kind: TypeStruct}
	if p.skip(); p.take(")") {
		return t, nil
	}
	for {
		f, err := p.field(depth)
		if err != nil {
			return nil, err
		}
		if len(t.Fields) == 0 && f.Type == nil && mayEnum {
			t.Kind = TypeEnum
		}
		if (f.Type == nil) != (t.Kind == TypeEnum) {
			return nil, fmt.Errorf("%s: a structure has types and an enumeration has none", f.Name)
		}
		t.Fields = append(t.Fields, f)
		if p.take(")") {
			return t, nil
		}
		if !p.take(",") {
			return nil, errors.New("want , or )")
		}
		p.skip()
	}
}

// field reads one field and the space behind it.
func (p *idlParser) field(depth int) (*Field, error) {
	f := &Field{Doc: p.doc}
	word := p.word("_")
	if !fieldRE.MatchString(word) {
		return nil, errors.New("want the name of a field")
	}
	f.Name = word
	p.at += len(word)
	if p.skip(); !p.take(":") {
		return f, nil
	}
	p.skip()
	t, err := p.parseType(depth + 1)
	if err != nil {
		return nil, err
	}
	f.Type = t
	p.skip()
	return f, nil
}

// keyword takes a word that white space must follow.
func (p *idlParser) keyword(word string) error {
	if p.word("") != word {
		return fmt.Errorf("want %s", word)
	}
	p.at += len(word)
	before := p.at
	if p.skip(); p.at == before {
		return fmt.Errorf("want a space after %s", word)
	}
	return nil
}

func (p *idlParser) name(re *regexp.Regexp, what, also string) (string, error) {
	word := p.word(also)
	if !re.MatchString(word) {
		return "", fmt.Errorf("want %s", what)
	}
	p.at += len(word)
	return word, nil
}

// word looks at the letters, digits and characters of also that come now.
func (p *idlParser) word(also string) string {
	rest := p.text[p.at:]
	end := strings.IndexFunc(rest, func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !letter && !strings.ContainsRune(also, r)
	})
	if end < 0 {
		return rest
	}
	return rest[:end]
}

func (p *idlParser) take(token string) bool {
	if !strings.HasPrefix(p.text[p.at:], token) {
		return false
	}
	p.at += len(token)
	return true
}

// skip steps over white space and comments.
func (p *idlParser) skip() {
	p.doc, p.broke = "", false
	var doc []string
	fresh := p.at == 0 // nothing but space stands on this line so far
	for p.at < len(p.text) {
		if n := lineEnd(p.text[p.at:]); n > 0 {
			if fresh {
				doc = nil // an empty line parts a comment from what follows
			}
			p.at += n
			p.broke, fresh = true, true
			continue
		}
		if p.text[p.at] == '#' {
			line := p.comment()
			if fresh {
				doc = append(doc, line)
			}
			fresh = true
			continue
		}
		r, n := utf8.DecodeRuneInString(p.text[p.at:])
		if !isBlank(r) {
			break
		}
		p.at += n
	}
	p.doc = strings.Join(doc, "\n")
}

// comment takes a comment with its line end, and returns its text.
func (p *idlParser) comment() string {
	rest := p.text[p.at+1:]
	end := strings.IndexAny(rest, "\n\r\u2028\u2029")
	if end < 0 {
		end = len(rest)
	}
	p.at += 1 + end
	p.at += lineEnd(p.text[p.at:])
	p.broke = true
	return strings.TrimPrefix(rest[:end], " ")
}

// lineEnd is the length of the line end at the beginning of s, or 0.
func lineEnd(s string) int {
	for _, eol := range []string{"\r\n", "\n", "\r", "\u2028", "\u2029"} {
		if strings.HasPrefix(s, eol) {
			return len(eol)
		}
	}
	return 0
}

// isBlank is the white space of the grammar in UAPI.20.
func isBlank(r rune) bool {
	switch r {
	case ' ', '\t', '\u00a0', '\ufeff', '\u1680', '\u180e', '\u202f', '\u205f', '\u3000':
		return true
	}
	return r >= '\u2000' && r <= '\u200a'
}

// check looks for names that come twice or stand for nothing.
func (i *Interface) check() error {
	seen := map[string]bool{}
	for _, m := range i.Members {
		if seen[m.Name] {
			return fmt.Errorf("%s comes twice", m.Name)
		}
		seen[m.Name] = true
		for _, t := range []*Type{m.Type, m.Out} {
			if err := i.checkType(t); err != nil {
				return fmt.Errorf("%s: %w", m.Name, err)
			}
		}
	}
	return nil
}

func (i *Interface) checkType(t *Type) error {
	if t == nil {
		return nil
	}
	if t.Kind == TypeNamed && i.Type(t.Name) == nil {
		return fmt.Errorf("there is no type %s", t.Name)
	}
	seen := map[string]bool{}
	for _, f := range t.Fields {
		if seen[f.Name] {
			return fmt.Errorf("field %s comes twice", f.Name)
		}
		seen[f.Name] = true
		if err := i.checkType(f.Type); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return i.checkType(t.Elem)
}
