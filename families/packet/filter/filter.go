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

// Kernel is a program for the kernel's socket filter that takes every frame that
// Match takes, and as few others as it can. nil stands for all frames.
//
// The kernel sees the frame without a VLAN tag that the card or the driver took
// out, so that "not ip" would reject there what Match takes: frames with such a
// tag are all taken. Others look to the kernel as they do to Match.
func (p *Program) Kernel() []bpf.RawInstruction {
	if p.text == "" || p.link != pcapng.Ethernet {
		return nil // in cooked mode the kernel has no header to look at
	}
	out := []bpf.RawInstruction{
		{Op: opLoadWord, K: extVLANTagPresent},
		{Op: opJumpEqual, K: 0, Jt: 1},
		{Op: opReturn, K: accept},
	}
	for _, i := range p.code {
		if i.jt > 0xff || i.jf > 0xff {
			return nil
		}
		out = append(out, bpf.RawInstruction{Op: i.op, Jt: uint8(i.jt), Jf: uint8(i.jf), K: i.k})
	}
	if len(out) > maxInstructions {
		return nil
	}
	return out
}

// accept is what an accepting program returns: how many bytes are to be kept.
const accept = 0xffffffff

// maxCode bounds a program: a jump of insn reaches no further, and a frame is not
// worth more steps.
const maxCode = 1 << 14

// maxInstructions is BPF_MAXINSNS of linux/bpf_common.h.
const maxInstructions = 4096

// extVLANTagPresent is SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT of linux/filter.h: a load
// from there tells whether the tag is in the metadata.
const extVLANTagPresent = 0xfffff000 + 48
