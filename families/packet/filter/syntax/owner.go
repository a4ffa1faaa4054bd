package syntax

import (
	"fmt"
	"strings"
)

// owner reads one of sockd's own words about the process at this end, and what it compares with. As
// behind other words, that may be several values.
func (p *parser) owner() phrase {
	t := p.advance()
	q := qualifiers{known: true, own: true, field: OwnerField(t.val)}
	x := p.settle(p.phrase(values, q), values)
	if o, ok := x.tree.(*Owner); ok {
		o.At = At(t.column)
	}
	return phrase{form: termForm, column: t.column, tree: x.tree, q: q}
}

var ownerWants = []string{
	UID: "a user's number or name", PID: "the number of a process",
	Comm: "the name of a process", Unit: "the name of a systemd unit",
}

// hasText tells whether the values are names of any bytes.
func (q qualifiers) hasText() bool { return q.own && (q.field == Comm || q.field == Unit) }

func (q qualifiers) isPID() bool { return q.own && q.field == PID }

// takes tells whether a token that is no number may be a value behind these words, by its class alone.
func (q qualifiers) takes(c class) bool {
	if c == quotedTok {
		return q.hasText()
	}
	return isValue(c) && !q.isPID()
}

func ownerOf(column int, q qualifiers, n uint32, text string) Expr {
	return &Owner{At: At(column), Field: q.field, N: n, Text: text, ValueAt: At(column)}
}

// ownerName reads a value that is no number.
func (p *parser) ownerName(q qualifiers) Expr {
	t := p.advance()
	p.isWhole(t, q)
	return ownerOf(t.column, q, 0, t.text)
}

// isWhole fails when a name of any bytes goes on right behind what the scanner takes for all of it,
// as user@1000.service does, with and without backslashes.
func (p *parser) isWhole(t token, q qualifiers) {
	next := p.tok
	switch next.class {
	case endTok, closeTok, andTok, orTok:
		return
	}
	if !q.hasText() || t.class == quotedTok || isSpace(p.text[next.column-2]) {
		return
	}
	all := p.text[t.column-1:]
	all = all[:run(all, len(all), func(c byte) bool { return !endsEscaped(c) })]
	p.fail(next.column, fmt.Sprintf("the name %q would end here: one with other signs in it stands in quotes", t.text),
		ownerNames[q.field]+" "+string(appendQuoted(nil, unescaped(all))))
}

// unescaped is a text without the backslashes before signs. Before letters they belong to the names of
// units: a\x2db.mount.
func unescaped(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if text[i] != '\\' || i+1 < len(text) && isAlnum(text[i+1]) {
			b.WriteByte(text[i])
		}
	}
	return b.String()
}

// notBracketed fails for one name alone in parentheses: (sd-pam) is what a process is called, and
// would not be found without them.
func (p *parser) notBracketed(x phrase, column int) {
	if o, ok := x.tree.(*Owner); ok && x.form == valueForm && x.q.hasText() {
		name := string(appendQuoted(nil, "("+o.Text+")"))
		p.fail(column, "one name in parentheses: quotes make these a part of it", ownerNames[o.Field]+" "+name)
	}
}
