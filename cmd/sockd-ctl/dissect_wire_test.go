package main

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// raw puts numbers and texts one after the other, in network byte order.
func raw(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch x := p.(type) {
		case string:
			b = append(b, x...)
		case []byte:
			b = append(b, x...)
		case int: // a byte
			b = append(b, byte(x))
		case uint16:
			b = binary.BigEndian.AppendUint16(b, x)
		case uint32:
			b = binary.BigEndian.AppendUint32(b, x)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, x)
		default:
			panic(fmt.Sprintf("raw: %T", p))
		}
	}
	return b
}

// name is a domain name as it stands in a message.
func name(text string) []byte {
	var b []byte
	for _, label := range strings.Split(text, ".") {
		if label != "" {
			b = append(append(b, byte(len(label))), label...)
		}
	}
	return append(b, 0)
}

// rr is a record of class IN, whose name is the question's.
func rr(kind uint16, parts ...any) []byte {
	data := raw(parts...)
	return raw(uint16(0xc00c), kind, uint16(1), uint32(93784), uint16(len(data)), data)
}

// answer is a response with records to a question of example.com.
func answer(flags uint16, counts [3]uint16, records ...[]byte) []byte {
	head := raw(uint16(0x1234), flags, uint16(1), counts[0], counts[1], counts[2], name("example.com"), uint16(255), uint16(1))
	return raw(head, slices.Concat(records...))
}

func answers(records ...[]byte) []byte {
	return answer(0x8180, [3]uint16{uint16(len(records)), 0, 0}, records...)
}

// edns is an OPT record with options.
func edns(flags uint32, options ...[]byte) []byte {
	data := slices.Concat(options...)
	return raw(0, uint16(41), uint16(1232), flags, uint16(len(data)), data)
}

func ednsOption(kind uint16, parts ...any) []byte {
	data := raw(parts...)
	return raw(kind, uint16(len(data)), data)
}

func port53(message []byte) []byte   { return udpFrame(53, 5000, string(message)) }
func port5353(message []byte) []byte { return udpFrame(5353, 5353, string(message)) }

// dnsWire are messages that gopacket does not build.
func dnsWire() [][]byte {
	question := raw(uint16(7), uint16(0x0100), uint16(1), uint16(0), uint16(0), uint16(1), name("example.com"), uint16(65), uint16(1))
	tcp := answers(rr(1, uint32(0x5db8d822)))
	return [][]byte{
		port53(answers(rr(6, name("ns.example.com"), name("admin.example.com"), uint32(1), uint32(2), uint32(3), uint32(4), uint32(5)))),
		port53(answers(rr(12, name("host.example.com")), rr(39, name("other.example")), rr(2, "\x02ns\xc0\x0c"), rr(5, uint16(0xc00c)))),
		port53(answers(rr(15, uint16(10), name("mx.example.com")), rr(33, uint16(1), uint16(2), uint16(443), name("s.example.com")))),
		port53(answers(rr(16, "\x05v=one\x03two"), rr(16, "\x00"), rr(16, "\x04\x1b[1m"), rr(99, "\x03spf"))),
		port53(answers(rr(28, []byte(ip6A)), rr(38, 64, "\x00\x00\x00\x00\x00\x00\x00\x01", name("p.example")), rr(38, 0, []byte(ip6A)))),
		port53(answers(rr(256, uint16(1), uint16(2), "https://example.com/"), rr(13, "\x03x86\x05Linux"), rr(35, "naptr"), rr(43, "ds"), rr(46, "rrsig"), rr(65, "https"), rr(104, "text"))),
		port53(answer(0x8583, [3]uint16{0, 1, 0}, rr(6, name("ns.example.com"), name("a.example.com"), uint32(1), uint32(2), uint32(3), uint32(4), uint32(5)))),
		port53(answer(0x81a0, [3]uint16{1, 1, 1}, rr(1, uint32(0x01020304)), rr(2, name("ns.example.com")), edns(0x8000, ednsOption(3, "id"), ednsOption(10, uint64(1)), ednsOption(10, uint64(1), uint64(2)), ednsOption(8, uint16(1), 24, 0, "\x0a\x00\x01")))),
		port53(answer(0x8180, [3]uint16{0, 0, 1}, edns(0x01000000, ednsOption(11, uint16(300)), ednsOption(12, "\x00\x00"), ednsOption(14, uint16(20326), uint16(19036)), ednsOption(9, uint32(60)), ednsOption(5, 8, 13, 15, 99), ednsOption(6, 1, 2, 9), ednsOption(7, 1, 7)))),
		port53(answer(0x8180, [3]uint16{0, 0, 1}, edns(0, ednsOption(8, "ab"), ednsOption(10, "abc"), ednsOption(11, "a"), ednsOption(14, "a"), ednsOption(65001, "xyz"), ednsOption(13, name("c.example")), ednsOption(15)))),
		port53(answer(0x8184, [3]uint16{0, 0, 0})), port53(answer(0x8385, [3]uint16{0, 0, 0})), port53(answer(0xa800, [3]uint16{0, 0, 0})),
		port53(answer(0x8180, [3]uint16{1, 0, 0})), port53(answers(rr(1, "abc"))), port53(answers(rr(2, "\xc0\xff"))), port53(answers(rr(2, "\x80abc"))), port53(answers(rr(5, "\x41\x08\xf0\x00"))),
		port53(answer(0x8180, [3]uint16{0, 0, 1}, raw(name("key"), uint16(250), uint16(255), uint32(0), uint16(40), name("hmac-sha256"), "\x00\x00\x01\x02\x03\x04", uint16(300), uint16(4), "mac!", uint16(5), uint16(0), uint16(0)))),
		udpFrame(5000, 53, string(raw(question, edns(0x8000)))), udpFrame(5000, 53, string(raw(uint16(7), uint16(0x0910), uint16(1), uint16(1), uint16(0), uint16(0), "\x00", uint16(252), uint16(3)))),
		udpFrame(5000, 53, "short"), udpFrame(5000, 53, string(raw(uint16(7), uint16(0), uint16(1), uint64(0)))),
		tcpFrame(53, true, layers.TCP{ACK: true, PSH: true, Seq: 1, Ack: 1}, string(raw(uint16(len(tcp)), tcp))),
		tcpFrame(53, true, layers.TCP{ACK: true, PSH: true, Seq: 1, Ack: 1}, "\x00\x99nothing"), tcpFrame(53, true, layers.TCP{ACK: true, PSH: true, Seq: 1, Ack: 1}, "x"),
		port5353(raw(uint16(0), uint16(0), uint16(2), uint16(0), uint16(0), uint16(0), name("_http._tcp.local"), uint16(12), uint16(1), name("a.local"), uint16(1), uint16(0x8001))),
		port5353(raw(uint16(0), uint16(0x8400), uint16(0), uint16(2), uint16(0), uint16(0), name("_http._tcp.local"), uint16(12), uint16(1), uint32(4500), uint16(4), "\x01a\xc0\x0c", name("a.local"), uint16(1), uint16(0x8001), uint32(120), uint16(4), uint32(0x0a000001))),
	}
}

func tcpOptions(flags layers.TCP, options ...[]byte) []byte {
	all := slices.Concat(options...)
	for len(all)%4 != 0 {
		all = append(all, 0)
	}
	head := raw(uint16(40000), uint16(7003), uint32(1), uint32(1), (len(all)/4+5)<<4, 0, uint16(502), uint16(0), uint16(0), all)
	for i, set := range []bool{flags.FIN, flags.SYN, flags.RST, flags.PSH, flags.ACK} {
		if set {
			head[13] |= 1 << i
		}
	}
	return build(eth4(false), ip4Layer(layers.IPProtocolTCP, false), data(string(head)))
}

func opt(kind int, body ...any) []byte {
	b := raw(body...)
	return raw(kind, len(b)+2, b)
}

func tcpWire() [][]byte {
	syn, ack := layers.TCP{SYN: true}, layers.TCP{ACK: true}
	return [][]byte{
		tcpOptions(syn, opt(2, uint16(1460)), opt(3, 7), opt(4), opt(8, uint32(1), uint32(0))),
		tcpOptions(syn, opt(34), opt(34, "cookie12"), opt(34, "odd")), tcpOptions(syn, opt(254, uint16(0xf989)), opt(254, uint16(0xf989), "cook"), opt(254, uint16(0x1234), "x")),
		tcpOptions(ack, opt(5, uint32(1), uint32(2), uint32(3), uint32(4))), tcpOptions(ack, opt(5, "odd")), tcpOptions(ack, opt(28, uint16(0x8005)), opt(28, uint16(6))),
		tcpOptions(ack, opt(19, "0123456789abcdef")), tcpOptions(ack, opt(29, 1, 2, "mac")), tcpOptions(ack, opt(29, 1)), tcpOptions(ack, opt(6, uint32(5)), opt(7, uint32(6)), opt(11, uint32(7)), opt(12, uint32(8)), opt(13, uint32(9))),
		tcpOptions(ack, opt(20, uint16(1)), opt(77, "abc"), opt(78)), tcpOptions(ack, opt(2, "abc")), tcpOptions(ack, opt(3)), tcpOptions(ack, raw(2, 1)), tcpOptions(ack, raw(1, 1, 2, 40)), tcpOptions(ack, raw(1, 0, 5, 5)),
		tcpOptions(syn, opt(30, 0x01, 0x81)), tcpOptions(syn, opt(30, 0x01, 0x01, uint64(5))), tcpOptions(ack, opt(30, 0x01, 0x01, uint64(5), uint64(6))), tcpOptions(syn, opt(30, 0x05, 0)),
		tcpOptions(syn, opt(30, 0x11, 3, uint32(4), uint32(5))), tcpOptions(layers.TCP{SYN: true, ACK: true}, opt(30, 0x10, 3, uint64(4), uint32(5))), tcpOptions(ack, opt(30, 0x10, 0, "01234567890123456789")),
		tcpOptions(ack, opt(30, 0x20, 0x01, uint32(9))), tcpOptions(ack, opt(30, 0x20, 0x1f, uint64(9), uint64(8), uint32(7), uint16(6), uint16(5))), tcpOptions(ack, opt(30, 0x20, 0x04, uint32(8), uint32(7), uint16(6))), tcpOptions(ack, opt(30, 0x20, 0x02)),
		tcpOptions(ack, opt(30, 0x34, 1, uint32(0x0a000001))), tcpOptions(ack, opt(30, 0x30, 1, uint32(0x0a000001), uint16(80), uint64(7))), tcpOptions(ack, opt(30, 0x31, 2, []byte(ip6A), uint16(80))), tcpOptions(ack, opt(30, 0x40, 1, 2)),
		tcpOptions(ack, opt(30, 0x51)), tcpOptions(ack, opt(30, 0x50, 4)), tcpOptions(ack, opt(30, 0x60, 0, uint64(77))), tcpOptions(ack, opt(30, 0x70, 0, uint64(77))), tcpOptions(ack, opt(30, 0xf0, 0)),
		tcpFrame(7004, true, layers.TCP{ACK: true, RST: true, Seq: 4, Ack: 1}, "go away"), tcpFrame(7004, true, layers.TCP{RST: true, Seq: 4}, strings.Repeat("go away\x01", 8)),
		build(eth4(false), ip4Layer(layers.IPProtocolTCP, false), data("\x00\x01\x00\x02\x00\x00\x00\x03\x00\x00\x00\x00\x10\x02\x00\x09\x00\x00\x00\x00")),
		build(eth4(false), ip4Layer(layers.IPProtocolTCP, false), data("\x00\x01\x00\x02\x00\x00\x00\x03\x00\x00\x00\x00\xf0\x02\x00\x09\x00\x00\x00\x00")),
	}
}

func textWire() [][]byte {
	at := func(port layers.TCPPort, text string) []byte {
		return tcpFrame(port, true, layers.TCP{ACK: true, PSH: true, Seq: 1, Ack: 1}, text)
	}
	return [][]byte{
		at(22, "SSH-2.0-OpenSSH_9.2\r\n"), at(22, "\x00\x00\x05\x6c"), at(25, "220 mail.example ESMTP\r\n250 more\r\n"), at(21, "230 Welcome\nand"), at(554, "OPTIONS * RTSP/1.0\r\n\r\n"), at(554, "RTSP/1.0 200 OK\r\n"),
		at(43, "example.com\r\n"), at(80, "PROPFIND /x HTTP/1.1\r\nA: b\r\n\r\nbody"), at(8080, "HTTP/1.0 200 OK\n\nbody\x00"), at(80, "\x16\x03\x01 not http"), at(80, " GET x"), at(80, "get /lower"), at(80, "HTTP/1.1 2000 x\r\n"), at(80, "G"),
	}
}

// ipxPacket is an IPX packet (RFC 1551) from one socket to another.
func ipxPacket(to uint16, body []byte) []byte {
	return raw(uint16(0xffff), uint16(30+len(body)), 1, 4, uint32(0x11), []byte(macB), to, uint32(0x10), []byte(macA), uint16(0x4001), body)
}

// ipxFramings are the four that Novell had.
func ipxFramings(packet []byte) [][]byte {
	pad := func(f []byte) []byte { return append(f, make([]byte, max(0, 60-len(f)))...) }
	ether := raw([]byte(macB), []byte(macA))
	return [][]byte{
		pad(raw(ether, uint16(0x8137), packet)), pad(raw(ether, uint16(len(packet)), packet)),
		pad(raw(ether, uint16(len(packet)+3), "\xe0\xe0\x03", packet)), pad(raw(ether, uint16(len(packet)+8), "\xaa\xaa\x03\x00\x00\x00\x81\x37", packet)),
	}
}

func ipxWire() [][]byte {
	service := raw(uint16(4), "SERVER\x07", make([]byte, 41), uint32(0x11), []byte(macB), uint16(0x451), uint16(2))
	var out [][]byte
	for _, p := range [][]byte{
		ipxPacket(0x4002, []byte("hello")), ipxPacket(0x451, []byte("ncp")), ipxPacket(0x455, []byte("nb")), ipxPacket(0x456, nil),
		ipxPacket(0x453, raw(uint16(1), uint32(0xffffffff), uint16(0), uint16(0))), ipxPacket(0x453, raw(uint16(2), uint32(0x11), uint16(1), uint16(2), uint32(0x12), uint16(2), uint16(3))),
		ipxPacket(0x453, raw(uint16(9))), ipxPacket(0x453, raw(uint16(1))), ipxPacket(0x453, raw(uint16(2), uint32(7))), ipxPacket(0x452, raw(uint16(1), uint16(4))), ipxPacket(0x452, raw(uint16(3), uint16(0x278))),
		ipxPacket(0x452, raw(uint16(2), service, service)), ipxPacket(0x452, raw(uint16(4), service)), ipxPacket(0x452, raw(uint16(4), service[:30])), ipxPacket(0x452, raw(uint16(7))),
	} {
		out = append(out, ipxFramings(p)...)
	}
	short := ipxPacket(0x4002, nil)
	short[3] = 12
	return append(out, ipxFramings(short)...)
}

func nd(kind uint8, body ...any) []byte { return neighbour(kind, raw(body...)) }

func discoveryWire() [][]byte {
	prefix := raw(3, 4, 64, 0xc0, uint32(86400), uint32(0xffffffff), uint32(0), []byte(ip6A))
	router := raw(64, 0xc8, uint16(1800), uint32(30000), uint32(1000))
	return [][]byte{
		nd(134, router, prefix, raw(1, 1, []byte(macA)), raw(5, 1, uint16(0), uint32(1480))),
		nd(134, router, raw(25, 3, uint16(0), uint32(600), []byte(ip6A)), raw(31, 3, uint16(0), uint32(600), name("a.example"), make([]byte, 5))),
		nd(134, router, raw(24, 1, 0, 0x08, uint32(60)), raw(24, 2, 64, 0x18, uint32(60), []byte(ip6A)[:8]), raw(24, 3, 128, 0, uint32(0xffffffff), []byte(ip6A))),
		nd(134, router, raw(7, 1, uint16(0), uint32(5000)), raw(8, 1, uint16(0), uint16(1), uint16(600)), raw(3, 3, make([]byte, 22))), nd(134, router, raw(9, 0)), nd(134, router, raw(9, 9)),
		nd(137, uint32(0), []byte(ip6A), []byte(ip6B), raw(2, 1, []byte(macB)), raw(4, 2, make([]byte, 14))), nd(137, uint32(0), []byte(ip6A), []byte(ip6B)),
		nd(130, uint16(10000), uint16(0), []byte(solicitedTo)), nd(131, uint16(0), uint16(0), []byte(solicitedTo)), nd(132, uint16(0), uint16(0), []byte(solicitedTo)), nd(130, uint32(0)),
		nd(130, uint16(0x8abc), uint16(0), []byte(solicitedTo), 0x0a, 0x9c, uint16(2), []byte(ip6A), []byte(ip6B)), nd(130, uint16(100), uint16(0), make([]byte, 16), 2, 125, uint16(0)), nd(130, uint16(100), uint16(0), make([]byte, 16), 2, 125, uint16(9)),
		nd(143, uint16(0), uint16(3), raw(4, 0, uint16(0), []byte(solicitedTo)), raw(1, 0, uint16(1), []byte(solicitedTo), []byte(ip6A)), raw(9, 0, uint16(0), []byte(solicitedTo))),
		nd(143, uint16(0), uint16(2), raw(4, 0, uint16(0), []byte(solicitedTo))), nd(143, uint16(0), uint16(1), raw(4, 0, uint16(7), []byte(solicitedTo))),
		icmp6(1, 1, quotedFrame6()), icmp6(1, 2, quotedFrame6()), icmp6(1, 3, quotedFrame6()), icmp6(1, 9, quotedFrame6()), icmp6(2, 0, quotedFrame6()), icmp6(3, 1, quotedFrame6()), icmp6(3, 7, quotedFrame6()),
		icmp6(4, 0, quotedFrame6()), icmp6(4, 1, quotedFrame6()), icmp6(4, 9, quotedFrame6()), icmp6(4, 0, data("1234")), icmp6(144, 0, data("\x00\x07\x00\x00")), icmp6(145, 0, data("\x00\x07\x00\x00"+string(ip6A))), icmp6(147, 0, data("\x00\x07\xc0\x00")), icmp6(199, 0, data("unknown!")), icmp6(1, 4, data("1234short")),
	}
}

// v6 is an IPv6 packet with headers as they are.
func v6(next layers.IPProtocol, parts ...any) []byte {
	return build(eth6(), ip6Layer(next), data(string(raw(parts...))))
}

func extensionWire() [][]byte {
	udp := raw(uint16(1000), uint16(2000), uint16(12), uint16(0x1234), "body")
	jumbo := v6(0, raw(17, 0, 0xc2, 4, uint32(70000)), udp)
	copy(jumbo[18:], "\x00\x00")
	return [][]byte{
		v6(0, raw(17, 0, 5, 2, uint16(0), 1, 0), udp), v6(0, raw(17, 1, 0, 0, 7, 6, "string", 1, 2, "\x00\x00"), udp), v6(0, raw(17, 0, 5, 1, 0, 1, 1, 0), udp), v6(0, raw(17, 0, 7, 9, "xxxx"), udp), jumbo,
		v6(0, raw(17, 0, 0xc2, 4, uint32(70000)), udp), v6(60, raw(17, 2, 0xc9, 16, []byte(ip6A), "\x01\x02\x00\x00"), udp), v6(60, raw(17, 0, 0xc2, 4, uint32(70000)), udp), v6(0, raw(0, 0, "\x01\x04\x00\x00\x00\x00"), raw(17, 0, "\x01\x04\x00\x00\x00\x00"), udp), v6(60, raw(0, 0, "\x01\x04\x00\x00\x00\x00"), udp),
		v6(43, raw(17, 2, 0, 1, uint32(0), []byte(ip6A)), udp), v6(43, raw(17, 2, 2, 1, uint32(7), []byte(ip6A)), udp), v6(43, raw(17, 4, 4, 1, 1, 0, uint16(5), []byte(ip6A), []byte(ip6B)), udp), v6(43, raw(17, 1, 0, 1, uint32(0), make([]byte, 8)), udp), v6(43, raw(17, 0, 9, 1, uint32(0)), udp),
		v6(44, raw(17, 0, uint16(1), uint32(0x1234)), udp), v6(44, raw(17, 0, uint16(8), uint32(0x1234)), udp), v6(59), v6(51, raw(17, 4, uint16(0), uint32(1), uint32(2), "0123456789ab"), udp), v6(51, raw(17, 1, uint16(5), uint32(1), uint32(2)), udp), v6(50, raw(uint32(0xdead), uint32(7), "secret")), v6(1, "x"), v6(2, "x"), v6(143, []byte(arpFrame(1, macB))), v6(41, []byte(build(ip6Layer(17), &layers.UDP{SrcPort: 1, DstPort: 2}, data("")))),
		build(eth4(false), ip4Layer(51, false), data(string(raw(6, 4, uint16(0), uint32(1), uint32(2), "0123456789ab", uint16(1), uint16(2), uint32(0), uint32(0), 0x50, 2, uint16(9), uint32(0))))), build(eth4(false), ip4Layer(50, false), data(string(raw(uint32(0xdead), uint32(7), "secret")))),
		build(eth4(false), ip4Layer(58, false), data("x")), build(eth4(false), ip4Layer(59, false), data("x")), build(eth4(false), ip4Layer(2, false), data(string(raw(0x11, 100, uint16(0xee9b), uint32(0))))),
	}
}

// v4 is an IPv4 packet with options as they are.
func v4(options []byte, proto int, parts ...any) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	body := raw(parts...)
	h := raw(0x45+len(options)/4, 0, uint16(20+len(options)+len(body)), uint16(7), uint16(0), 64, proto, uint16(0), []byte(ip4A), []byte(ip4B), options)
	binary.BigEndian.PutUint16(h[10:], fold(addWords(h)))
	return raw([]byte(macB), []byte(macA), uint16(0x0800), h, body)
}

func igmp(parts ...any) []byte {
	b := raw(parts...)
	binary.BigEndian.PutUint16(b[2:], fold(addWords(b)))
	return v4(raw(148, 4, uint16(0)), 2, b)
}

func optionsWire() [][]byte {
	udp := raw(uint16(1000), uint16(2000), uint16(12), uint16(0), "body")
	group := uint32(0xe0000016)
	length := func(n uint16) []byte {
		f := v4(nil, 17, udp)
		binary.BigEndian.PutUint16(f[16:], n)
		return f
	}
	version := v4(nil, 17, udp)
	version[14] = 0x65
	other := v4(nil, 17, udp)
	other[14] = 0x95
	header := v4(nil, 17, udp)
	header[14] = 0x44
	return [][]byte{
		v4(raw(7, 11, 8, uint32(0x0a000001), uint32(0)), 17, udp), v4(raw(131, 7, 4, uint32(0x0a000009)), 17, udp), v4(raw(137, 7, 8, uint32(0x0a000009)), 6, tcpFrame(1, false, layers.TCP{SYN: true}, "")[34:]),
		v4(raw(68, 12, 9, 1, uint32(0x0a000001), uint32(99)), 17, udp), v4(raw(68, 12, 5, 0x30, uint32(1), uint32(99)), 17, udp), v4(raw(68, 12, 5, 7, uint32(1), uint32(99)), 17, udp), v4(raw(68, 3, 5), 17, udp), v4(raw(1, 148, 4, uint16(7), 130, 3, 0, 99, 2), 17, udp), v4(raw(7, 1), 17, udp), v4(raw(7, 40, 4), 17, udp), v4(raw(7, 6, 3, "abc"), 17, udp),
		length(10), length(2000), version, other, header, igmp(0x11, 0, uint16(0), uint32(0)), igmp(0x11, 100, uint16(0), group), igmp(0x11, 50, uint16(0), group), igmp(0x12, 0, uint16(0), group), igmp(0x16, 0, uint16(0), group), igmp(0x17, 0, uint16(0), group),
		igmp(0x11, 0x9c, uint16(0), group, 2, 125, uint16(2), uint32(1), uint32(2)), igmp(0x11, 100, uint16(0), uint32(0), 2, 125, uint16(0)), igmp(0x11, 0xff, uint16(0), group, 2, 125, uint16(9)), igmp(0x22, 0, uint16(0), uint16(0), uint16(2), raw(4, 0, uint16(0), group), raw(6, 0, uint16(1), group, uint32(1))),
		igmp(0x22, 0, uint16(0), uint16(0), uint16(3), raw(4, 0, uint16(0), group), raw(6, 0, uint16(9), group)), igmp(0x77, 0, uint16(0), group),
		icmp4(0, 5, 1, 2, true, data("x")), icmp4(4, 0, 0, 0, false, quotedFrame(17)), icmp4(9, 0, 0x0202, 1800, false, data("\x0a\x00\x00\x01\x00\x00\x00\x05\x0a\x00\x00\x02\x00\x00\x00\x06")), icmp4(9, 0, 0x0103, 30, false, data("12345678")), icmp4(9, 0, 0x0102, 7265, false, data("\x0a\x00\x00\x01\x00\x00\x00\x05")),
		icmp4(10, 0, 0, 0, false, nil), icmp4(12, 0, 0x1400, 0, false, quotedFrame(17)), icmp4(12, 1, 0, 0, false, quotedFrame(17)), icmp4(13, 0, 1, 2, false, data("123456789012")), icmp4(14, 0, 1, 2, false, data("\x00\x00\x10\x00\x01\x00\x00\x00\x02\x00\x00\x00")), icmp4(14, 0, 1, 2, false, data("short")),
		icmp4(15, 0, 0, 0, false, nil), icmp4(17, 0, 0, 0, false, data("1234")), icmp4(18, 0, 0, 0, false, data("\xff\xff\xff\x00")), icmp4(42, 0, 0, 0, false, nil), icmp4(5, 2, 0x0a00, 1, false, quotedFrame(17)), icmp4(5, 9, 0x0a00, 1, false, quotedFrame(17)), icmp4(11, 9, 0, 0, false, quotedFrame(17)), icmp4(3, 3, 0, 0, false, quotedFrame(50)), icmp4(3, 77, 0, 0, false, quotedFrame(17)), icmp4(3, 4, 0, 0, false, quotedFrame(17)),
		icmp4(11, 0, 0x0020, 0, false, multipart("\x20\x00")), icmp4(11, 0, 0, 0, false, multipart("\x20\x00")), icmp4(11, 0, 0x0020, 0, false, multipart("\x10\x00")),
	}
}

// multipart is a quoted packet of 128 bytes with an MPLS label and an unknown object
// behind it (RFC 4884).
func multipart(version string) gopacket.Payload {
	quoted := append([]byte(quotedFrame(17)), make([]byte, 128)...)[:128]
	ext := raw(version, uint16(0), raw(uint16(8), 1, 1, uint32(0x12345fff)), raw(uint16(8), 9, 2, "data"))
	binary.BigEndian.PutUint16(ext[2:], fold(addWords(ext)))
	return append(quoted, ext...)
}

func lanWire() [][]byte {
	arp := func(op uint16) []byte { return arpFrame(op, macB) }
	rapid := raw(0, 0, 2, 2, 0x7c, "\x80\x00", []byte(macA), uint32(4), "\x80\x00", []byte(macB), uint16(0x8001), uint16(0x100), uint16(0x1400), uint16(0x200), uint16(0xf00), 0)
	dhcp := raw(1, 1, 6, 0, uint32(0x1234), make([]byte, 20), []byte(macA), make([]byte, 202), uint32(0x63825363), 53, 1, 1, 255)
	inner := build(eth4(false), ip4Layer(17, false), &layers.UDP{SrcPort: 1, DstPort: 2}, data("vx"))
	snap := func(oui string, kind uint16, body string) []byte {
		return llcFrame(0xaa, 0xaa, 0x03, raw(oui, kind, body)...)
	}
	return [][]byte{
		arp(3), arp(4), arp(8), arp(9), arp(10), build(ether(macA, broadcast, 0x8035), data(string(arp(3)[14:42]))), llcFrame(0x42, 0x42, 0x03, rapid...), llcFrame(0x42, 0x42, 0x03, 0, 7, 0, 0), llcFrame(0x42, 0x42, 0x03, 0, 0, 9, 0), llcFrame(0x42, 0x42, 0x03, 0, 0, 0, 9),
		snap("\x00\x00\x00", 0x0800, string(inner[14:])), snap("\x00\x00\x00", 0x88b5, "local"), snap("\x00\x00\x0c", 0x9999, "odd"), snap("\x00\x00\x0c", 0x010b, string(rapid)), snap("\x12\x34\x56", 1, "odd"),
		llcFrame(0x00, 0x01, 0xaf, 0x81, 1, 0), llcFrame(0x00, 0x01, 0xbf, 0x82), llcFrame(0x04, 0x04, 0xe3, 1, 2, 3), build(ether(macA, macB, 1501), data("a type, not a length")), build(ether(macA, macB, 0x88a8), data(string(tagged(5)[12:]))),
		udpFrame(1, 4789, string(raw(8, 0, 0, 0, 0, 1, 2, 0, inner))), udpFrame(1, 4789, string(raw(0, 0, 0, 0, 0, 1, 2, 0, inner))), greFrame(0x8000, raw(uint16(0xbeef), uint16(0)), inner[14:]), greFrame(0xb000, raw(uint16(0xbeef), uint16(0), uint32(7), uint32(8)), inner[14:]),
		build(eth4(false), ip4Layer(47, false), data(string(raw(uint16(0x3081), uint16(0x1234), uint16(4), uint16(9), uint32(1), uint32(2), "ppp!")))), build(eth4(false), ip4Layer(47, false), data(string(raw(uint16(0), uint16(0x6558), inner)))), build(eth4(false), ip4Layer(47, false), data(string(raw(uint16(0), uint16(0x8137), ipxPacket(5, nil))))),
		udpFrame(68, 67, string(dhcp)), udpFrame(123, 123, string(raw(0x23, make([]byte, 47)))),
	}
}

// wireScenes are built byte by byte: what senders seldom send, and what they should not.
func wireScenes() []scene {
	return []scene{
		{"DNS on the wire", dnsWire()}, {"TCP options", tcpWire()}, {"lines of text", textWire()}, {"IPX", ipxWire()}, {"neighbour discovery and listeners", discoveryWire()},
		{"IPv6 extension headers on the wire", extensionWire()}, {"IPv4 options, IGMP and ICMP", optionsWire()}, {"the LAN", lanWire()},
	}
}

// Flags with which DHCP and NTP are the same line: with -v tcpdump has more of them.
func withoutLong(s scene, flags string) scene {
	if s.name == "the LAN" && strings.Contains(flags, "v") {
		s.frames = s.frames[:len(s.frames)-2]
	}
	return s
}

func TestLinesOfTheWireAreThoseOfTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err)
	for _, s := range wireScenes() {
		for _, flags := range []string{"", "-e", "-q", "-v", "-vv", "-vvv", "-x", "-X", "-ev"} {
			t.Run(s.name+" "+flags, func(t *testing.T) { compare(t, tcpdump, withoutLong(s, flags), flags) })
		}
	}
}

// A packet may be cut anywhere: at the snapshot length, which is said in the line.
func TestLinesOfCutPacketsAreThoseOfTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err)
	for _, s := range slices.Concat(scenes(), newScenes(), wireScenes()) {
		for _, flags := range []string{"", "-v", "-vv", "-e", "-x"} {
			t.Run(s.name+" "+flags, func(t *testing.T) {
				cut := withoutLong(s, flags)
				var frames [][]byte
				var wire []int
				for _, f := range cut.frames {
					for n := 3; n < len(f) && n < 200; n += 5 {
						frames, wire = append(frames, f[:n]), append(wire, len(f))
					}
				}
				compareFrames(t, tcpdump, frames, wire, layers.LinkTypeEthernet, flags)
			})
		}
	}
}

// What a tunnel carries begins with IP.
func TestLinesOfRawPacketsAreThoseOfTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err)
	s := scene{name: "raw", frames: [][]byte{{0x95, 0}}}
	for _, f := range slices.Concat(handshake(7000)[:5], dnsWire()[:5], extensionWire(), [][]byte{icmp4(8, 0, 1, 2, false, data("x"))}) {
		s.frames = append(s.frames, f[14:])
	}
	for _, flags := range captureShape {
		t.Run(flags, func(t *testing.T) {
			compareLink(t, tcpdump, s, layers.LinkType(pcapng.Raw), flags)
		})
	}
}

func TestLinesOfCookedPacketsAreThoseOfTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err)
	for link, cook := range map[pcapng.LinkType]func(f []byte, way byte) []byte{pcapng.LinuxSLL2: sll2Frame, linkSLL: sllFrame} {
		s := scene{name: "cooked"}
		for i, f := range slices.Concat(ipxWire()[:4], lanWire()[:3], dnsWire()[:3], [][]byte{tagged(5, 6), build(ether(macA, macB, 0x88b5), data("local"))}) {
			kind := binary.BigEndian.Uint16(f[12:])
			switch {
			case kind <= maxLength && f[14] == 0xff:
				binary.BigEndian.PutUint16(f[12:], cooked8023)
			case kind <= maxLength:
				binary.BigEndian.PutUint16(f[12:], cooked8022)
			}
			s.frames = append(s.frames, cook(f, byte(i%6)))
		}
		for _, flags := range captureShape {
			t.Run(fmt.Sprint(link, flags), func(t *testing.T) { compareLink(t, tcpdump, s, layers.LinkType(link), flags) })
		}
	}
}

// sllFrame replaces a frame's Ethernet header by that of LINUX_SLL.
func sllFrame(frame []byte, packetType byte) []byte {
	return raw(0, int(packetType), uint16(1), uint16(6), frame[6:12], uint16(0), frame[12:14], frame[14:])
}
