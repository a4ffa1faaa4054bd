package main

import (
	"fmt"
	"strings"
)

// The header of a DNS message (RFC 1035).
const (
	dnsHeader = 12

	dnsResponse      = 0x8000
	dnsAuthoritative = 0x0400
	dnsTruncated     = 0x0200
	dnsRecursion     = 0x0100 // desired
	dnsAvailable     = 0x0080 // recursion
	dnsAuthentic     = 0x0020
	dnsUnchecked     = 0x0010

	// dnsOddFlags are the bits of a question that have no place in one.
	dnsOddFlags = 0x06cf
	// dnsTopBit of a class asks for a unicast answer, or flushes caches (RFC 6762).
	dnsTopBit = 0x8000
)

// The types of records that are decoded, and the classes.
const (
	dnsA       = 1
	dnsNS      = 2
	dnsCNAME   = 5
	dnsSOA     = 6
	dnsPTR     = 12
	dnsMX      = 15
	dnsTXT     = 16
	dnsAAAA    = 28
	dnsSRV     = 33
	dnsA6      = 38
	dnsDNAME   = 39
	dnsOPT     = 41
	dnsUnspecA = 104
	dnsTSIG    = 250
	dnsURI     = 256

	dnsIN        = 1
	dnsInverse   = 1 // an operation
	dnsOperation = 11
)

var (
	dnsOps = [...]string{
		"", " inv_q", " stat", " op3", " notify", " update", " op6", " op7", " op8", " updateA", " updateD", " updateDA", " updateM", " updateMA", " zoneInit", " zoneRef",
	}
	// dnsCodes are tcpdump's words, two of which lack their space.
	dnsCodes = names{
		0: "", 1: " FormErr", 2: " ServFail", 3: " NXDomain", 4: " NotImp", 5: " Refused", 6: " YXDomain", 7: " YXRRSet", 8: " NXRRSet", 9: " NotAuth",
		10: " NotZone", 15: " NoChange", 16: " BadVers", 17: "Resp17", 21: "Resp21", 23: " BadCookie",
	}
	dnsTypes = names{
		dnsA: "A", dnsNS: "NS", 3: "MD", 4: "MF", dnsCNAME: "CNAME", dnsSOA: "SOA", 7: "MB", 8: "MG", 9: "MR", 10: "NULL", 11: "WKS", dnsPTR: "PTR", 13: "HINFO",
		14: "MINFO", dnsMX: "MX", dnsTXT: "TXT", 17: "RP", 18: "AFSDB", 19: "X25", 20: "ISDN", 21: "RT", 22: "NSAP", 23: "NSAP_PTR", 24: "SIG", 25: "KEY", 26: "PX",
		27: "GPOS", dnsAAAA: "AAAA", 29: "LOC", 30: "NXT", 31: "EID", 32: "NIMLOC", dnsSRV: "SRV", 34: "ATMA", 35: "NAPTR", 36: "KX", 37: "CERT", dnsA6: "A6",
		dnsDNAME: "DNAME", 40: "SINK", dnsOPT: "OPT", 42: "APL", 43: "DS", 44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 99: "SPF", 100: "UINFO",
		101: "UID", 102: "GID", 103: "UNSPEC", dnsUnspecA: "UNSPECA", 249: "TKEY", dnsTSIG: "TSIG", 251: "IXFR", 252: "AXFR", 253: "MAILB", 254: "MAILA", 255: "ANY",
		dnsURI: "URI",
	}
	dnsClasses = names{dnsIN: "IN", 3: "CHAOS", 4: "HS", 255: "ANY"}
)

// A dnsMessage is what is known of a message while it is printed.
type dnsMessage struct {
	data      []byte // from the header on
	multicast bool
	counts    [4]int // of questions, answers, authorities, additional records
}

// dnsOverTCP writes a message behind its length; what is longer or shorter than that
// is not decoded.
func (p *printer) dnsOverTCP(data []byte, length int) {
	p.proto = "domain"
	if length < 2 {
		p.printf(" [DNS over TCP: length %d < 2]", length)
		p.invalid()
		return
	}
	if says := int(u16(data, 0)); says != length-2 {
		p.printf(" [prefix length(%d) != length(%d)]", says, length-2)
		p.invalid()
		return
	}
	p.line.WriteByte(' ')
	p.dns(data[2:], length-2, false)
}

// dns writes a DNS message: ID and flags, the question or the answers.
func (p *printer) dns(data []byte, length int, multicast bool) {
	p.proto = "domain"
	if length < dnsHeader {
		p.printf("domain [length %d < %d]", length, dnsHeader)
		p.invalid()
		return
	}
	if !has(data, dnsHeader) {
		p.truncated()
		return
	}
	m := &dnsMessage{data: data, multicast: multicast}
	for i := range m.counts {
		m.counts[i] = int(u16(data, 4+2*i))
	}
	ok := false
	if u16(data, 2)&dnsResponse != 0 {
		ok = p.dnsAnswer(m)
	} else {
		ok = p.dnsQuestion(m)
	}
	if !ok {
		p.truncated()
		return
	}
	p.printf(" (%d)", length)
}

func (p *printer) dnsQuestion(m *dnsMessage) bool {
	flags := u16(m.data, 2)
	operation := flags >> dnsOperation & 0xf
	p.printf("%d%s", u16(m.data, 0), dnsOps[operation])
	p.sayIf(flags&dnsRecursion != 0, "+")
	p.sayIf(flags&dnsUnchecked != 0, "%")
	if flags&dnsOddFlags != 0 {
		p.printf(" [b2&3=0x%x]", flags)
	}
	if operation == dnsInverse {
		p.dnsCount(m.counts[0], "q", 0)
		p.dnsCount(m.counts[1], "a", 1)
	} else {
		p.dnsCount(m.counts[1], "a", 0)
		p.dnsCount(m.counts[0], "q", 1)
	}
	p.dnsCount(m.counts[2], "n", 0)
	p.dnsCount(m.counts[3], "au", 0)
	at := dnsHeader
	for range m.counts[0] {
		next, ok := p.dnsQuery(m, at)
		if !ok {
			return false
		}
		at = next
	}
	return !p.verbose(2) || p.dnsSections(m, at, []string{"", " ns:", " ar:"})
}

// dnsCount writes a count that is not the usual one.
func (p *printer) dnsCount(n int, what string, usual int) {
	if n != usual {
		p.printf(" [%d%s]", n, what)
	}
}

func (p *printer) dnsAnswer(m *dnsMessage) bool {
	flags := u16(m.data, 2)
	p.printf("%d%s%s", u16(m.data, 0), dnsOps[flags>>dnsOperation&0xf], dnsCodes.or(m.code(), " Resp%d"))
	p.sayIf(flags&dnsAuthoritative != 0, "*")
	p.sayIf(flags&dnsAvailable == 0, "-")
	p.sayIf(flags&dnsTruncated != 0, "|")
	p.sayIf(flags&dnsAuthentic != 0, "$")
	p.dnsCount(m.counts[0], "q", 1)
	at := dnsHeader
	for i := range m.counts[0] {
		p.sayIf(i > 0, ",")
		ok := false
		if p.verbose(2) {
			p.say(" q:")
			at, ok = p.dnsQuery(m, at)
		} else if at, ok = dnsSkipName(m.data, at); ok {
			at += 4
		}
		if !ok {
			return false
		}
	}
	p.printf(" %d/%d/%d", m.counts[1], m.counts[2], m.counts[3])
	titles := []string{""}
	if p.verbose(2) {
		titles = []string{"", " ns:", " ar:"}
	}
	return p.dnsSections(m, at, titles)
}

// code is the response code, of which an OPT record has the upper bits.
func (m *dnsMessage) code() int {
	code, at := int(u16(m.data, 2)&0xf), dnsHeader
	ok := true
	for range m.counts[0] {
		if at, ok = dnsSkipName(m.data, at); !ok {
			return code
		}
		at += 4
	}
	for i := range m.counts[1] + m.counts[2] + m.counts[3] {
		if at, ok = dnsSkipName(m.data, at); !ok || at+5 > len(m.data) {
			return code
		}
		if i >= m.counts[1]+m.counts[2] && u16(m.data, at) == dnsOPT {
			return code | int(m.data[at+4])<<4
		}
		if at+10 > len(m.data) {
			return code
		}
		at += 10 + int(u16(m.data, at+8))
	}
	return code
}

// dnsSections writes the records of as many sections as have titles, beginning with
// the answers.
func (p *printer) dnsSections(m *dnsMessage, at int, titles []string) bool {
	for i, title := range titles {
		count := m.counts[1+i]
		if count == 0 {
			continue
		}
		if i > 0 && at >= len(m.data) {
			return false
		}
		p.say(title)
		for j := range count {
			if j > 0 {
				if at >= len(m.data) {
					return false
				}
				p.say(",")
			}
			next, ok := p.dnsRecord(m, at)
			if !ok {
				return false
			}
			at = next
		}
	}
	return true
}

// dnsQuery writes a question, and gives where the next is.
func (p *printer) dnsQuery(m *dnsMessage, at int) (next int, ok bool) {
	fields, ok := dnsSkipName(m.data, at)
	if !ok || fields+4 > len(m.data) {
		return 0, false
	}
	kind, class := u16(m.data, fields), u16(m.data, fields+2)
	p.printf(" %s", dnsTypes.or(int(kind), "Type%d"))
	p.dnsClass(m, class)
	if m.multicast {
		if class&dnsTopBit != 0 {
			p.say(" (QU)")
		} else {
			p.say(" (QM)")
		}
	}
	p.say("? ")
	_, ok = p.dnsName(m.data, at)
	return fields + 4, ok
}

// dnsClass writes a class, unless it is the usual one.
func (p *printer) dnsClass(m *dnsMessage, class uint16) {
	if m.multicast {
		class &^= dnsTopBit
	}
	if class != dnsIN {
		p.printf(" %s", dnsClasses.or(int(class), "(Class %d)"))
	}
}

// dnsRecord writes a record, and gives where the next is.
func (p *printer) dnsRecord(m *dnsMessage, at int) (next int, ok bool) {
	if p.verbose(1) {
		p.line.WriteByte(' ')
		at, ok = p.dnsName(m.data, at)
		if !ok {
			return 0, false
		}
	} else if at, ok = dnsSkipName(m.data, at); !ok {
		at = len(m.data)
	}
	if at+10 > len(m.data) {
		return len(m.data), true
	}
	r := dnsRecord{kind: int(u16(m.data, at)), class: u16(m.data, at+2), ttl: u32(m.data, at+4), at: at + 10}
	r.end = r.at + int(u16(m.data, at+8))
	if r.kind != dnsOPT {
		p.dnsClass(m, r.class)
	}
	if m.multicast && r.class&dnsTopBit != 0 {
		p.say(" (Cache flush)")
	}
	if r.kind != dnsOPT && p.verbose(3) {
		p.printf(" [%s]", lifetime(r.ttl))
	}
	p.printf(" %s", dnsTypes.or(r.kind, "Type%d"))
	if r.end > len(m.data) || !p.dnsData(m, r) {
		return 0, false
	}
	return r.end, true
}

// dnsRecord is a record behind its name; its data is from at to end.
type dnsRecord struct {
	kind    int
	class   uint16
	ttl     uint32
	at, end int
}

// dnsData writes the part of a record's data that is shown; false when it is cut or
// contradicts itself. As in tcpdump a field may reach beyond the record's end, but not
// beyond the message.
func (p *printer) dnsData(m *dnsMessage, r dnsRecord) bool {
	d := m.data
	switch r.kind {
	case dnsA:
		return p.dnsAddress(d, r.at, 4)
	case dnsAAAA:
		return p.dnsAddress(d, r.at, 16)
	case dnsNS, dnsCNAME, dnsPTR, dnsDNAME:
		return p.dnsNameBehind(d, r.at, 0)
	case dnsSOA:
		return !p.verbose(1) || p.dnsAuthority(d, r.at)
	case dnsMX:
		if !p.dnsNameBehind(d, r.at, 2) {
			return false
		}
		p.printf(" %d", u16(d, r.at))
	case dnsTXT:
		return p.dnsTexts(d, r)
	case dnsSRV:
		if !p.dnsNameBehind(d, r.at, 6) {
			return false
		}
		p.printf(":%d %d %d", u16(d, r.at+4), u16(d, r.at), u16(d, r.at+2))
	case dnsA6:
		return p.dnsA6(d, r.at)
	case dnsURI:
		p.printf(" %d %d ", u16(d, r.at), u16(d, r.at+2))
		p.text(d[min(r.at+4, r.end):r.end])
	case dnsOPT:
		return p.dnsOptions(m, r)
	case dnsUnspecA:
		p.text(d[r.at:r.end])
	case dnsTSIG:
		return !p.verbose(1) || p.dnsSignature(d, r.at)
	}
	return true
}

func (p *printer) dnsAddress(d []byte, at, size int) bool {
	if at+size > len(d) {
		return false
	}
	p.printf(" %s", addr(d[at:at+size]))
	return true
}

// dnsNameBehind writes the name behind so many bytes, which are there then.
func (p *printer) dnsNameBehind(d []byte, at, size int) bool {
	p.line.WriteByte(' ')
	_, ok := p.dnsName(d, at+size)
	return ok
}

// dnsAuthority writes the start of authority: server, mailbox and five numbers.
func (p *printer) dnsAuthority(d []byte, at int) bool {
	ok := true
	for range 2 {
		p.line.WriteByte(' ')
		if at, ok = p.dnsName(d, at); !ok {
			return false
		}
	}
	if at+20 > len(d) {
		return false
	}
	for i := range 5 {
		p.printf(" %d", u32(d, at+4*i))
	}
	return true
}

func (p *printer) dnsTexts(d []byte, r dnsRecord) bool {
	for at := r.at; at < r.end; {
		p.say(` "`)
		size := int(u8(d, at))
		p.text(first(d[at+1:], size))
		if at += 1 + size; at > len(d) {
			return false
		}
		p.say(`"`)
	}
	return true
}

// dnsA6 writes an address of which another name has the first bits (RFC 2874).
func (p *printer) dnsA6(d []byte, at int) bool {
	if at >= len(d) {
		return false
	}
	bits := int(d[at])
	if bits > 128 {
		p.printf(" %d(bad plen)", bits)
		return true
	}
	whole := bits / 8
	if bits < 128 {
		a := make([]byte, 16)
		copy(a[whole:], part(d, at+1, 16-whole))
		p.printf(" %d %s", bits, addr(a))
	}
	return bits == 0 || p.dnsNameBehind(d, at, 1+16-whole)
}

// dnsSignature writes a transaction's signature (RFC 8945), all but the time and the
// signature itself.
func (p *printer) dnsSignature(d []byte, at int) bool {
	p.line.WriteByte(' ')
	at, ok := p.dnsName(d, at)
	if !ok {
		return false
	}
	at += 6
	for _, field := range []string{"fudge", "maclen", "origid", "error", "otherlen"} {
		if at+2 > len(d) {
			return false
		}
		n := int(u16(d, at))
		p.printf(" %s=%d", field, n)
		if at += 2; field == "maclen" {
			at += n
		}
	}
	return true
}

// The options of EDNS (RFC 6891) that are decoded, and the names of all.
const (
	ednsDAU       = 5
	ednsDHU       = 6
	ednsN3U       = 7
	ednsSubnet    = 8
	ednsExpire    = 9
	ednsCookie    = 10
	ednsKeepalive = 11
	ednsPadding   = 12
	ednsChain     = 13
	ednsKeyTag    = 14

	ednsDO = 0x8000 // of the flags: DNSSEC is understood
)

var (
	ednsNames = names{
		1: "LLQ", 2: "UL", 3: "NSID", ednsDAU: "DAU", ednsDHU: "DHU", ednsN3U: "N3U", ednsSubnet: "ECS", ednsExpire: "EXPIRE", ednsCookie: "COOKIE",
		ednsKeepalive: "KEEPALIVE", ednsPadding: "PADDING", ednsChain: "CHAIN", ednsKeyTag: "KEY-TAG", 16: "CLIENT-TAG", 17: "SERVER-TAG",
	}
	// ednsAlgorithms are the words for the numbers in three of the options. DSA is
	// spelled as tcpdump has it.
	ednsAlgorithms = map[int]names{
		ednsDAU: {
			0: "DELETE", 1: "RSAMD5", 2: "DH", 3: "DS", 5: "RSASHA1", 6: "DSA-NSEC3-SHA1", 7: "RSASHA1-NSEC3-SHA1", 8: "RSASHA256", 10: "RSASHA512", 12: "ECC-GOST",
			13: "ECDSAP256SHA256", 14: "ECDSAP384SHA384", 15: "ED25519", 16: "ED448", 252: "INDIRECT", 253: "PRIVATEDNS", 254: "PRIVATEOID",
		},
		ednsDHU: {1: "SHA-1", 2: "SHA-256", 3: "GOST_R_34.11-94", 4: "SHA-384"},
		ednsN3U: {1: "SHA-1"},
	}
)

// dnsOptions writes an OPT record: how long an answer may be, and options.
func (p *printer) dnsOptions(m *dnsMessage, r dnsRecord) bool {
	class := r.class
	if m.multicast {
		class &^= dnsTopBit
	}
	p.printf(" UDPsize=%d", class)
	p.sayIf(r.ttl&ednsDO != 0, " DO")
	if r.at == r.end {
		return true
	}
	p.say(" [")
	for at := r.at; at < r.end; {
		if at+4 > len(m.data) {
			return false
		}
		kind, size := int(u16(m.data, at)), int(u16(m.data, at+2))
		p.say(ednsNames.or(kind, "Opt%d"))
		if at += 4; at+size > len(m.data) {
			return false
		}
		if size > 0 {
			p.line.WriteByte(' ')
			p.dnsOption(kind, m.data[at:at+size])
		}
		at += size
		p.sayIf(at < r.end, ",")
	}
	p.say("]")
	return true
}

// dnsOption writes the bytes of an option, of which there are some.
func (p *printer) dnsOption(kind int, o []byte) {
	switch {
	case kind == ednsSubnet:
		p.dnsSubnet(o)
	case kind == ednsCookie && (len(o) == 8 || len(o) >= 16 && len(o) <= 40):
		p.say(hexOf(o[:8]))
		if len(o) > 8 {
			p.say(" " + hexOf(o[8:]))
		}
	case kind == ednsKeepalive && len(o) == 2:
		p.printf("%.1f sec", float64(u16(o, 0))/10)
	case kind == ednsExpire && len(o) == 4:
		p.printf("%d sec", u32(o, 0))
	case kind == ednsPadding:
		p.printf("(%d)", len(o))
	case kind == ednsKeyTag && len(o)%2 == 0:
		var tags []string
		for i := 0; i < len(o); i += 2 {
			tags = append(tags, fmt.Sprint(u16(o, i)))
		}
		p.say(strings.Join(tags, " "))
	case kind == ednsCookie, kind == ednsKeepalive, kind == ednsExpire, kind == ednsKeyTag:
		p.invalid()
	case ednsAlgorithms[kind] != nil:
		words := make([]string, len(o))
		for i, n := range o {
			words[i] = ednsAlgorithms[kind].or(int(n), "Alg_%d")
		}
		p.say(strings.Join(words, " "))
	case kind == ednsChain:
		_, _ = p.dnsName(o, 0) // what does not decode stands there as far as it does
	default:
		p.say(hexOf(o))
	}
}

// dnsSubnet writes the client's network (RFC 7871).
func (p *printer) dnsSubnet(o []byte) {
	bits := 0
	if len(o) >= 4 {
		bits = map[uint16]int{1: 32, 2: 128}[u16(o, 0)]
	}
	if bits == 0 || len(o)-4 > bits/8 || int(o[2]) > bits || int(o[3]) > bits || (int(o[2])+7)/8 != len(o)-4 {
		p.invalid()
		return
	}
	a := make([]byte, bits/8)
	copy(a, o[4:])
	p.printf("%s/%d/%d", addr(a), o[2], o[3])
}

// The two highest bits of a label's length: a pointer to the rest of the name, or the
// obsolete bit string (RFC 2673).
const (
	labelMask    = 0xc0
	labelPointer = 0xc0
	labelBits    = 0x41
	labelOdd     = 0x40
)

// dnsSkipName gives where what follows a name is.
func dnsSkipName(d []byte, at int) (next int, ok bool) {
	for at < len(d) {
		n := int(d[at])
		at++
		switch {
		case n == 0:
			return at, true
		case n&labelMask == labelPointer:
			return at + 1, true
		case n&labelMask == 0:
			at += n
		case n == labelBits && at < len(d):
			at += 1 + (bitLabel(d[at])+7)/8
		default:
			return 0, false
		}
	}
	return 0, false
}

// bitLabel is the number of bits of such a label.
func bitLabel(n byte) int {
	if n == 0 {
		return 256
	}
	return int(n)
}

// maxName is the longest name that DNS allows; more of one is not shown.
const maxName = 255

// nameWalk goes through a name.
type nameWalk struct {
	data   []byte
	begin  int
	at     int
	limit  int // a pointer must point to before it: so the walk ends
	chars  int // were written, with the dots
	jumped bool
	next   int // where what follows the name is
}

// dnsName writes the name at at of a message with its last dot, following pointers,
// and gives where what follows the name is. A pointer must point back, before where
// the name or the last pointer was.
func (p *printer) dnsName(d []byte, at int) (next int, ok bool) {
	w := nameWalk{data: d, begin: at, at: at, limit: at}
	for {
		more, ok := p.dnsStep(&w)
		if !more || !ok {
			return w.next, ok
		}
	}
}

// dnsStep writes one label, or follows one pointer.
func (p *printer) dnsStep(w *nameWalk) (more, ok bool) {
	if w.at >= len(w.data) {
		return false, false
	}
	n := int(w.data[w.at])
	w.at++
	switch {
	case n == 0:
		p.dnsEnd(w)
		return false, true
	case n&labelMask == labelPointer:
		return true, p.dnsJump(w, n)
	case n&labelMask == 0:
		ok = p.dnsLabel(w.data, w.at, n, w.chars)
		w.at, w.chars = w.at+n, w.chars+n
	case n == labelBits:
		var size int
		size, ok = p.dnsBits(w.data, w.at)
		w.at += size
	case n&labelMask == labelOdd:
		p.printf("<ELT %d>", n&^labelMask)
	default:
		p.say("<BAD LABEL TYPE>")
	}
	if ok {
		p.sayIf(w.chars <= maxName, ".")
		w.chars++
	}
	return true, ok
}

// dnsEnd ends a name; the root is a dot.
func (p *printer) dnsEnd(w *nameWalk) {
	p.sayIf(w.at == w.begin+1 && !w.jumped, ".")
	p.sayIf(w.chars > maxName, "<DOMAIN NAME TOO LONG>")
	if !w.jumped {
		w.next = w.at
	}
}

// dnsJump follows a pointer of which n is the first byte.
func (p *printer) dnsJump(w *nameWalk, n int) bool {
	if w.at >= len(w.data) {
		return false
	}
	if !w.jumped {
		w.next, w.jumped = w.at+1, true
	}
	to := (n&^labelMask)<<8 | int(w.data[w.at])
	if to >= w.limit {
		p.say("<BAD PTR>")
		return false
	}
	w.at, w.limit = to, to
	return true
}

// dnsLabel writes a label of a name of which chars were written; false when it is cut.
func (p *printer) dnsLabel(d []byte, at, n, chars int) bool {
	if chars+n > maxName {
		n = max(maxName-chars, 0)
	}
	p.text(first(d[at:], n))
	return at+n <= len(d)
}

// dnsBits writes a bit string label, and gives its size.
func (p *printer) dnsBits(d []byte, at int) (size int, ok bool) {
	if at >= len(d) {
		return 0, false
	}
	bits := bitLabel(d[at])
	size = 1 + (bits+7)/8
	p.printf("\\[x%s/%d]", hexOf(part(d, at+1, size-1)), bits)
	return size, true
}

// lifetime is a time in seconds as 1w2d3h4m5s.
func lifetime(seconds uint32) string {
	if seconds == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		letter byte
		size   uint32
	}{{'w', 604800}, {'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}} {
		if n := seconds / u.size; n > 0 {
			fmt.Fprintf(&b, "%d%c", n, u.letter)
			seconds %= u.size
		}
	}
	return b.String()
}
