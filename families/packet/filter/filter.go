// Package filter compiles packet filters: words of the pcap-filter(7) language
// become a Program that judges frames in user space and, where it can, in the
// kernel. daemon/capture runs it; sockd-ctl never needs it.
//
// The words so far, with libpcap's meaning of each:
//
//	expr  = term { ("and" | "&&" | "or" | "||") term }   left to right, both bind alike
//	term  = ("not" | "!") term | "(" expr ")" | word
//	word  = [ether|ip|ip6|arp|rarp] [dir] [host] ADDRESS | [ip|ip6|arp|rarp] [dir] net NET[/LEN] [mask MASK]
//	      | [tcp|udp|sctp] [dir] port PORT | [tcp|udp|sctp] [dir] portrange FIRST-LAST
//	      | [ether|ip|ip6] proto PROTOCOL | vlan [ID] | less N | greater N
//	      | ip ip6 arp rarp ipx stp tcp udp sctp icmp icmp6 igmp ah esp pim vrrp
//	      | [ether] broadcast | [ether|ip|ip6] multicast
//	dir   = src | dst | "src or dst" | "src and dst"
//
// After "and" or "or" a bare value takes the words before the last one again:
// "port 80 or 443". Host names are not looked up.
//
// A Program judges the frame as it was on the wire, its VLAN tag in place, which
// is how libpcap judges frames of a file. So "ip" does not match a tagged frame,
// "vlan and ip" does, and, as pcap-filter(7) warns, the first "vlan" shifts all
// that is written to its right.
//
// Frames of pcapng.Raw begin with the IP header, which tells its version: words of
// hardware addresses and VLANs are errors there, and other protocols match nothing.
package filter

import (
	"fmt"
	"strings"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/net/bpf"
)

// Program is a compiled filter. It is immutable; its methods may be called from
// any goroutine.
type Program struct {
	text string
	link pcapng.LinkType
	code []insn
}

// Compile reads a filter for frames of a link type. An empty text takes every
// frame. Errors are *families.SyntaxError with the column.
func Compile(text string, link pcapng.LinkType) (*Program, error) {
	p := &Program{text: strings.TrimSpace(text), link: link}
	if p.text == "" {
		p.code = []insn{{op: opReturn, k: accept}}
		return p, nil
	}
	tree, err := parse(text, link)
	if err != nil {
		return nil, err
	}
	if p.code = generate(tree); len(p.code) > maxCode {
		return nil, &families.SyntaxError{What: "filter", Text: text, Why: fmt.Sprintf("compiles to %d instructions, more than %d", len(p.code), maxCode), Hint: "net CIDR and portrange A-B say much in little"}
	}
	return p, nil
}

// String is the filter's text.
func (p *Program) String() string { return p.text }

// Match tells whether the filter takes a frame of which length bytes were on the
// wire. As in the kernel, a filter that looks beyond the end of data rejects
// the frame, also below a "not".
func (p *Program) Match(data []byte, length int) bool { return run(p.code, data, uint32(length)) }

// Kernel is Union of this program alone, for a socket that is bound to one interface.
func (p *Program) Kernel() []bpf.RawInstruction { return Union([]*Program{p}, Scope{}) }

// accept is what an accepting program returns: how many bytes are to be kept.
const accept = 0xffffffff

// maxCode bounds a program: a jump of insn reaches no further, and a frame is not
// worth more steps.
const maxCode = 1 << 14
