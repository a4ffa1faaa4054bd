package main

import (
	"strings"

	"github.com/sockd/sockd/ctl"
)

type dnsLayer struct {
	Layer              string            `json:"layer"`
	ID                 int               `json:"id"`
	Response           bool              `json:"response"`
	Opcode             int               `json:"opcode"`
	Authoritative      bool              `json:"authoritative"`
	Truncated          bool              `json:"truncated"`
	RecursionDesired   bool              `json:"recursion_desired"`
	RecursionAvailable bool              `json:"recursion_available"`
	Rcode              int               `json:"rcode"`
	Questions          []dnsQuestion     `json:"questions"`
	Answers            []dnsRecordMember `json:"answers"`
	Authorities        []dnsRecordMember `json:"authorities"`
	Additionals        []dnsRecordMember `json:"additionals"`
}

type dnsQuestion struct {
	Name  string `json:"name"` // without its last dot; the root is "."
	Type  string `json:"type"` // "A", or "Type65"
	Class string `json:"class"`
}

type dnsRecordMember struct {
	dnsQuestion
	TTL  int    `json:"ttl"`
	Data string `json:"data"` // as in the text lines, or hexadecimal
}

// dns decodes a DNS message. Records that do not decode leave those before them.
func (l *layering) dns(d []byte, length int) {
	l.begin("dns", d)
	need(d, dnsHeader)
	flags := u16(d, 2)
	m := &dnsMessage{data: d}
	for i := range m.counts {
		m.counts[i] = int(u16(d, 4+2*i))
	}
	layer := &dnsLayer{
		Layer: "dns", ID: int(u16(d, 0)), Response: flags&dnsResponse != 0, Opcode: int(flags >> dnsOperation & 0xf), Authoritative: flags&dnsAuthoritative != 0,
		Truncated: flags&dnsTruncated != 0, RecursionDesired: flags&dnsRecursion != 0, RecursionAvailable: flags&dnsAvailable != 0, Rcode: m.code(),
		Questions: []dnsQuestion{}, Answers: []dnsRecordMember{}, Authorities: []dnsRecordMember{}, Additionals: []dnsRecordMember{},
	}
	l.add(layer)
	at := dnsHeader
	for range m.counts[0] {
		var q dnsQuestion
		q, at = readQuestion(d, at)
		layer.Questions = append(layer.Questions, q)
	}
	for i, list := range []*[]dnsRecordMember{&layer.Answers, &layer.Authorities, &layer.Additionals} {
		for range m.counts[1+i] {
			var r dnsRecordMember
			r, at = readRecord(m, at)
			*list = append(*list, r)
		}
	}
}

// readQuestion reads what questions and records begin with.
func readQuestion(d []byte, at int) (q dnsQuestion, next int) {
	var p printer
	next, ok := p.dnsName(d, at)
	if !ok {
		panic(cutShort{})
	}
	q.Name = p.line.String()
	if q.Name != "." {
		q.Name = strings.TrimSuffix(q.Name, ".")
	}
	q.Type = dnsTypes.or(int(u16(d, next)), "Type%d")
	q.Class = dnsClasses.or(int(u16(d, next+2)&^dnsTopBit), "Class%d")
	return q, next + 4
}

func readRecord(m *dnsMessage, at int) (r dnsRecordMember, next int) {
	r.dnsQuestion, at = readQuestion(m.data, at)
	r.TTL = int(u32(m.data, at))
	field := dnsRecord{kind: int(u16(m.data, at-4)), class: u16(m.data, at-2), ttl: u32(m.data, at), at: at + 6}
	field.end = field.at + int(u16(m.data, at+4))
	raw := part(m.data, field.at, field.end-field.at)
	p := printer{opts: &ctl.PacketOptions{Verbose: 1}} // all that there is
	if !p.dnsData(m, field) {
		panic(cutShort{})
	}
	if r.Data = strings.TrimPrefix(p.line.String(), " "); r.Data == "" {
		r.Data = hexOf(raw)
	}
	return r, field.end
}
