package main

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// dns writes a DNS message as tcpdump does: ID and flags, the question or the
// answers. It returns false, with nothing written, when it does not decode.
func (p *printer) dns(data []byte, length int, multicast bool) bool {
	var d layers.DNS
	if err := d.DecodeFromBytes(data, gopacket.NilDecodeFeedback); err != nil {
		return false
	}
	if d.QR {
		p.dnsAnswer(&d, data, multicast)
	} else {
		p.dnsQuestion(&d, data, multicast)
	}
	p.printf(" (%d)", length)
	return true
}

// dnsOps and dnsCodes are tcpdump's words, by number.
var (
	dnsOps   = [...]string{"", " inv_q", " stat", " op3", " notify", " update"}
	dnsCodes = [...]string{"", " FormErr", " ServFail", " NXDomain", " NotImp", " Refused", " YXDomain", " YXRRSet", " NXRRSet", " NotAuth", " NotZone"}
)

func wordAt(words []string, n int, other string) string {
	if n < len(words) {
		return words[n]
	}
	return fmt.Sprintf(other, n)
}

// oddFlags are the bits of a question that have no place in one.
const oddFlags = 0x06cf

func (p *printer) dnsQuestion(d *layers.DNS, data []byte, multicast bool) {
	p.printf("%d%s", d.ID, wordAt(dnsOps[:], int(d.OpCode), " op%d"))
	if d.RD {
		p.line.WriteByte('+')
	}
	flags := binary.BigEndian.Uint16(data[2:])
	if flags&0x10 != 0 {
		p.line.WriteByte('%')
	}
	if flags&oddFlags != 0 {
		p.printf(" [b2&3=0x%x]", flags)
	}
	for _, c := range []struct {
		n    uint16
		word string
		show bool
	}{{d.ANCount, "a", d.ANCount > 0}, {d.QDCount, "q", d.QDCount != 1}, {d.NSCount, "n", d.NSCount > 0}, {d.ARCount, "au", d.ARCount > 0}} {
		if c.show {
			p.printf(" [%d%s]", c.n, c.word)
		}
	}
	for i, q := range d.Questions {
		if i > 0 {
			p.line.WriteByte(',')
		}
		p.dnsQuery(q, multicast)
	}
}

func (p *printer) dnsQuery(q layers.DNSQuestion, multicast bool) {
	class := q.Class
	p.printf(" %s", dnsType(q.Type))
	if multicast && class&0x8000 != 0 {
		p.line.WriteString(" (QU)")
		class &^= 0x8000
	}
	if class != layers.DNSClassIN {
		p.printf(" %s", dnsClass(class))
	}
	p.printf("? %s", dnsName(q.Name))
}

func (p *printer) dnsAnswer(d *layers.DNS, data []byte, multicast bool) {
	flags := binary.BigEndian.Uint16(data[2:])
	p.printf("%d%s%s", d.ID, wordAt(dnsOps[:], int(d.OpCode), " op%d"), wordAt(dnsCodes[:], int(flags&0xf), " Resp%d"))
	for _, f := range []struct {
		set    bool
		letter string
	}{{d.AA, "*"}, {!d.RA, "-"}, {d.TC, "|"}, {flags&0x20 != 0, "$"}} {
		if f.set {
			p.line.WriteString(f.letter)
		}
	}
	if d.QDCount != 1 {
		p.printf(" [%dq]", d.QDCount)
	}
	if p.opts.Verbose > 1 {
		p.line.WriteString(" q:")
		for i, q := range d.Questions {
			if i > 0 {
				p.line.WriteByte(',')
			}
			p.dnsQuery(q, multicast)
		}
	}
	p.printf(" %d/%d/%d", d.ANCount, d.NSCount, d.ARCount)
	p.dnsRecords("", d.Answers, multicast)
	if p.opts.Verbose > 1 {
		p.dnsRecords(" ns:", d.Authorities, multicast)
		p.dnsRecords(" ar:", d.Additionals, multicast)
	}
}

func (p *printer) dnsRecords(title string, records []layers.DNSResourceRecord, multicast bool) {
	if len(records) == 0 {
		return
	}
	p.line.WriteString(title)
	for i := range records {
		if i > 0 {
			p.line.WriteByte(',')
		}
		p.dnsRecord(&records[i], multicast)
	}
}

func (p *printer) dnsRecord(r *layers.DNSResourceRecord, multicast bool) {
	if p.opts.Verbose > 0 {
		p.printf(" %s", dnsName(r.Name))
	}
	class := r.Class
	if multicast && class&0x8000 != 0 {
		p.line.WriteString(" (Cache flush)")
		class &^= 0x8000
	}
	if class != layers.DNSClassIN && r.Type != layers.DNSTypeOPT {
		p.printf(" %s", dnsClass(class))
	}
	if p.opts.Verbose > 2 {
		p.printf(" [%s]", dnsTTL(r.TTL))
	}
	p.printf(" %s%s", dnsType(r.Type), dnsData(r))
}

// dnsData is the part of a record's data that is shown.
func dnsData(r *layers.DNSResourceRecord) string {
	switch r.Type {
	case layers.DNSTypeA, layers.DNSTypeAAAA:
		return " " + addr(r.Data)
	case layers.DNSTypeNS:
		return " " + dnsName(r.NS)
	case layers.DNSTypeCNAME:
		return " " + dnsName(r.CNAME)
	case layers.DNSTypePTR:
		return " " + dnsName(r.PTR)
	case layers.DNSTypeMX:
		return fmt.Sprintf(" %s %d", dnsName(r.MX.Name), r.MX.Preference)
	case layers.DNSTypeSRV:
		return fmt.Sprintf(" %s:%d %d %d", dnsName(r.SRV.Name), r.SRV.Port, r.SRV.Priority, r.SRV.Weight)
	case layers.DNSTypeTXT:
		var b strings.Builder
		for _, t := range r.TXTs {
			fmt.Fprintf(&b, ` "%s"`, visible(string(t)))
		}
		return b.String()
	case layers.DNSTypeOPT:
		return fmt.Sprintf(" UDPsize=%d", uint16(r.Class))
	}
	return ""
}

// dnsName is a name with its last dot, safe for a terminal.
func dnsName(name []byte) string { return visible(string(name)) + "." }

func dnsType(t layers.DNSType) string {
	if t == 255 {
		return "ANY"
	}
	if name := t.String(); name != "Unknown" {
		return name
	}
	return fmt.Sprintf("Type%d", uint16(t))
}

func dnsClass(c layers.DNSClass) string {
	switch c {
	case layers.DNSClassCH:
		return "CHAOS"
	case layers.DNSClassHS:
		return "HS"
	case layers.DNSClassAny:
		return "ANY"
	}
	return fmt.Sprintf("(Class %d)", uint16(c))
}

// dnsTTL is a time to live as 1w2d3h4m5s.
func dnsTTL(seconds uint32) string {
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
