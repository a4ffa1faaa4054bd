package syntax

import (
	"fmt"
	"net/netip"
	"unicode/utf8"
)

// class is what a token is to the grammar. A class of several words tells them apart
// by token.val.
type class uint8

const (
	endTok class = iota // behind the last
	badTok              // none; text tells why

	nameTok
	numberTok // n
	ip4Tok    // two to four parts; text
	ip6Tok    // addr
	macTok
	arcTok    // n
	quotedTok // text in quotes, with Options.Owners; only comm and unit have such values

	openTok
	closeTok
	openIndexTok
	closeIndexTok
	colonTok
	opTok  // val is an ArithOp
	relTok // val is a RelOp

	andTok
	orTok
	notTok
	protoTok      // val is a Proto
	dirTok        // val is a Dir, Src or Dst
	kindTok       // val is a Kind that may have a direction
	aloneKindTok  // val is a Kind that has none: proto, protochain, gateway
	maskTok       // mask
	castTok       // val 1: multicast
	lengthTok     // val 1: greater
	byteTok       // byte
	lenTok        // len
	directionTok  // val 1: outbound
	ifindexTok    // ifindex
	encapTok      // val is an EncapKind
	llcTok        // llc
	foreignTok    // of link types that sockd cannot capture
	foreignRNRTok // one of these that may stand behind llc, too
	fragmentsTok  // with Options.Fragments
	ownerTok      // with Options.Owners; val is an OwnerField
)

// token is the smallest part of a text that means something.
type token struct {
	class  class
	val    uint8
	n      uint32
	column int    // bytes from 1
	text   string // as it was written, but without the backslash of a name, and quotes; of a badTok why it is none
	hint   string // of a badTok what would be right
	addr   netip.Addr
}

// scanner cuts a text into tokens, the longest that there is at each place, as
// libpcap's does. It takes linear time: what one token looks ahead at, no more than
// one other looks at again.
type scanner struct {
	text string
	at   int
	o    Options
}

// next is the next token; at the end it is endTok again and again.
func (s *scanner) next() token {
	for s.at < len(s.text) && isSpace(s.text[s.at]) {
		s.at++
	}
	begin := s.at
	if begin == len(s.text) {
		return token{class: endTok, column: begin + 1}
	}
	t, size := s.token(s.text[begin:])
	s.at += size
	t.column = begin + 1
	if t.text == "" {
		t.text = s.text[begin:s.at]
	}
	return t
}

// token is the token that text begins with, and its size.
func (s *scanner) token(text string) (token, int) {
	switch c := text[0]; {
	case isAlnum(c):
		return s.word(text)
	case c == '\\':
		return escaped(text)
	case c == '$':
		return arcnet(text)
	case c == '"' && s.o.Owners:
		return quoted(text)
	}
	if n := ip6Size(text); n > 0 {
		return ip6Token(text[:n]), n
	}
	return sign(text)
}

// word is a token that begins with a letter or a digit. Where two are of one size,
// the first wins.
func (s *scanner) word(text string) (token, int) {
	size, read := 0, badNumber
	for _, form := range wordForms {
		if n := form.size(text); n > size {
			size, read = n, form.read
		}
	}
	if n := brokenMACSize(text); n > size {
		return badMAC(text[:n+run(text[n:], len(text), isMAC)]), n
	}
	if n := nameSize(text); n > size {
		return s.name(text[:n]), n
	}
	return read(text[:size]), size
}

// wordForms are the forms of what is no name. size is how much of a text is of the form, 0: nothing.
var wordForms = []struct {
	size func(string) int
	read func(string) token
}{
	{macSize, func(string) token { return token{class: macTok} }},
	{numberSize, number},
	{ip4Size, func(string) token { return token{class: ip4Tok} }},
	{ip6Size, ip6Token},
}

// name is a keyword, a named number, or any other name.
func (s *scanner) name(text string) token {
	if w, ok := keywords[text]; ok && s.has(w.class) {
		return w
	}
	if n, ok := namedNumbers[text]; ok {
		return token{class: numberTok, n: n}
	}
	return token{class: nameTok}
}

func (s *scanner) has(c class) bool {
	switch c {
	case fragmentsTok:
		return s.o.Fragments
	case ownerTok:
		return s.o.Owners
	}
	return true
}

// escaped is a name behind a backslash: up to a space, a parenthesis or an exclamation mark.
func escaped(text string) (token, int) {
	n := 1
	for n < len(text) && !endsEscaped(text[n]) {
		n++
	}
	if n == 1 {
		return bad("there is no name behind the backslash", `\tcp`), 1
	}
	return token{class: nameTok, text: text[1:n]}, n
}

// quoted is what stands in double quotes: \" is a quote in it, \\ a backslash, and any other
// backslash is itself, as in the names of units. They end on their line, so that a filter may be put on one.
func quoted(text string) (token, int) {
	var value []byte
	for n := 1; n < len(text); n++ {
		switch c := text[n]; {
		case c == '"' && len(value) == 0:
			return bad("there is nothing in the quotes", `"NAME"`), n + 1
		case c == '"':
			return token{class: quotedTok, text: string(value)}, n + 1
		case c == '\n' || c == 0:
			return bad("the quotes are not closed on their line", `"`), n
		case c == '\\' && n+1 < len(text) && (text[n+1] == '"' || text[n+1] == '\\'):
			n++
		}
		value = append(value, text[n])
	}
	return bad("the quotes are not closed", `"`), len(text)
}

func endsEscaped(c byte) bool {
	return c == ' ' || c == '!' || c == '(' || c == ')' || c == '\n' || c == '\t' || c == 0
}

func arcnet(text string) (token, int) {
	n := 1
	t := token{class: arcTok}
	for ; n < len(text) && n < 3 && isHex(text[n]); n++ {
		t.n = t.n<<4 | uint32(hexValue(text[n]))
	}
	if n == 1 {
		return bad("want two hexadecimal digits behind $", "$1f"), 1
	}
	return t, n
}

// sign is an operator, a bracket, or nothing that a filter knows.
func sign(text string) (token, int) {
	for _, size := range []int{2, 1} {
		if len(text) >= size {
			if t, ok := signs[text[:size]]; ok {
				return t, size
			}
		}
	}
	return unknown(text)
}

// unknown is an error about a character.
func unknown(text string) (token, int) {
	r, size := utf8.DecodeRuneInString(text)
	switch {
	case r == '"' || r == '\'' || r == '`':
		return bad(fmt.Sprintf("a filter has no quotes, and here is %s", text[:1]), ""), size
	case r == utf8.RuneError:
		return bad(fmt.Sprintf("a filter has no byte %#02x", text[0]), ""), size
	case r == '@' || r == '_':
		return bad(fmt.Sprintf("a filter has no %q", r), `a backslash before a name that has it or quotes around one of comm and unit`), size
	}
	return bad(fmt.Sprintf("a filter has no %q", r), ""), size
}

func bad(why, hint string) token { return token{class: badTok, text: why, hint: hint} }

func badNumber(text string) token { return bad(fmt.Sprintf("%s is no number", text), "") }

func badMAC(text string) token {
	return bad(fmt.Sprintf("%s is no hardware address", text), "six pairs of hexadecimal digits")
}

func ip6Token(text string) token {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return bad(fmt.Sprintf("%s is no IPv6 address", text), "")
	}
	return token{class: ip6Tok, addr: addr}
}

// number reads a decimal number, a hexadecimal one behind 0x, an octal one behind 0.
func number(text string) token {
	base, digits := uint64(10), text
	switch {
	case len(text) > 1 && (text[1] == 'x' || text[1] == 'X'):
		base, digits = 16, text[2:]
	case text[0] == '0':
		base = 8
	}
	var n uint64
	for i := range len(digits) {
		d := uint64(hexValue(digits[i]))
		if d >= base {
			return bad(fmt.Sprintf("%s is octal for its leading 0, and has the digit %d", text, d), "")
		}
		if n = n*base + d; n > 1<<32-1 {
			return bad(fmt.Sprintf("%s does not fit into 32 bits", text), "4294967295 at most")
		}
	}
	return token{class: numberTok, n: uint32(n)}
}

// nameSize is the size of a name: letters, digits, - _ and . but no - or _ at the end.
func nameSize(text string) int {
	end := 0
	for i := range len(text) {
		c := text[i]
		if isAlnum(c) || c == '.' {
			end = i + 1
		} else if c != '-' && c != '_' {
			break
		}
	}
	return end
}

// numberSize is the size of a number, 0 when there is none.
func numberSize(text string) int {
	if len(text) > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X') && isHex(text[2]) {
		return 2 + run(text[2:], len(text), isHex)
	}
	return run(text, len(text), isDigit)
}

// ip4Size is the size of two to four numbers with dots between them.
func ip4Size(text string) int {
	parts, size := numberParts(text)
	if parts < 2 {
		return 0
	}
	return size
}

// numberParts counts the numbers with dots between them that a text begins with, up to four.
func numberParts(text string) (parts, size int) {
	for at := 0; parts < 4; parts++ {
		n := numberSize(text[at:])
		if n == 0 {
			break
		}
		size = at + n
		if size == len(text) || text[size] != '.' {
			return parts + 1, size
		}
		at = size + 1
	}
	return parts, size
}

// macSize is the size of a hardware address: 12 hexadecimal digits, three groups of
// four, or six groups of one or two.
func macSize(text string) int {
	digits := run(text, 12, isHex)
	if digits == 12 {
		return 12
	}
	if digits == 4 && len(text) >= 14 && text[4] == '.' && run(text[5:], 4, isHex) == 4 &&
		text[9] == '.' && run(text[10:], 4, isHex) == 4 {
		return 14
	}
	for _, between := range []byte{':', '-', '.'} {
		if n := pairsSize(text, between); n > 0 {
			return n
		}
	}
	return 0
}

func pairsSize(text string, between byte) int {
	at := 0
	for i := range 6 {
		n := run(text[at:], 2, isHex)
		if n == 0 {
			return 0
		}
		at += n
		if i == 5 {
			break
		}
		if at == len(text) || text[at] != between {
			return 0
		}
		at++
	}
	return at
}

// brokenMACSize is the size of what only looks as if it became a hardware address: pairs with colons,
// and a colon at the end.
func brokenMACSize(text string) int {
	at, pairs := 0, 0
	for {
		n := run(text[at:], 2, isHex)
		colons := run(text[at+n:], len(text), func(c byte) bool { return c == ':' })
		if n == 0 || colons == 0 {
			break
		}
		at += n + colons
		pairs++
	}
	if pairs < 2 {
		return 0
	}
	return at
}

// ip6Size is the size of an IPv6 address: up to eight groups, :: for some of them, and
// an IPv4 address for the last two.
func ip6Size(text string) int {
	at, groups, size := 0, 0, 0
	short := len(text) > 1 && text[0] == ':' && text[1] == ':'
	if short {
		at, size = 2, 2
	}
	for {
		if groups == 6 && !short || groups < 6 && short {
			if parts, n := numberParts(text[at:]); parts == 4 {
				return at + n
			}
		}
		n := run(text[at:], 4, isHex)
		if n == 0 || short && groups == 7 {
			return size
		}
		at += n
		groups++
		if groups == 8 || short {
			size = at
		}
		colons := run(text[at:], 2, func(c byte) bool { return c == ':' })
		if groups == 8 || colons == 0 || short && colons == 2 {
			return size
		}
		at += colons
		if colons == 2 {
			short, size = true, at
		}
	}
}

// run counts the bytes that are of a set, up to a limit.
func run(text string, limit int, in func(byte) bool) int {
	n := 0
	for n < len(text) && n < limit && in(text[n]) {
		n++
	}
	return n
}

func isSpace(c byte) bool { return c == ' ' || c == '\r' || c == '\n' || c == '\t' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isHex(c byte) bool   { return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f' }
func isMAC(c byte) bool   { return isAlnum(c) || c == ':' }
func isAlnum(c byte) bool { return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'z' }

// hexValue is the value of a hexadecimal digit.
func hexValue(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}
