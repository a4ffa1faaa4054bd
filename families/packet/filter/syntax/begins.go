package syntax

import "strings"

// BeginsFilter tells whether a word of a command line is the beginning of a filter rather than the name
// of an interface, a pattern of such names, or another name: "tcp", "!tcp", "ip6[0]=1", "10.0.0.1", and
// also "and", which no filter begins with, but which is an error of one. A name that is a
// word of filters is one; "vlan*", "ppp[0-9]" and "ip,eth0" are none. A blank word is the filter that
// takes all.
func BeginsFilter(word string) bool {
	s := scanner{text: word, o: Options{Fragments: true, Owners: true}}
	first := s.next()
	end := s.at
	next := s.next()
	if first.class >= andTok && next.column == end+1 {
		return goesOn(first, next)
	}
	switch first.class {
	case badTok, openIndexTok, closeIndexTok, colonTok:
		return false
	case nameTok:
		return strings.HasPrefix(strings.TrimSpace(word), `\`)
	case opTok:
		return first.val == uint8(Sub)
	}
	return true
}

// goesOn tells whether what stands right behind a word of filters can stand there, or makes the name of
// something else of both.
func goesOn(word, next token) bool {
	switch next.class {
	case badTok, colonTok, closeIndexTok:
		return false
	case openIndexTok:
		// ppp[0-9] and wlan[01] are interfaces more often than bytes of a header that has another name.
		return word.class == protoTok && (Proto(word.val) != Link || word.text == "ether" || word.text == "link")
	case opTok:
		return word.class == lenTok || word.class == notTok
	}
	return true
}
