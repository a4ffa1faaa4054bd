package main

import (
	"bytes"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// A scene is a conversation whose lines must equal tcpdump's.
type scene struct {
	name   string
	frames [][]byte
}

var (
	macA, macB   = mustMAC("02:00:00:00:00:01"), mustMAC("02:00:00:00:00:02")
	broadcast    = mustMAC("ff:ff:ff:ff:ff:ff")
	ip4A, ip4B   = net.IPv4(10, 0, 0, 1).To4(), net.IPv4(10, 0, 0, 2).To4()
	ip6A, ip6B   = net.ParseIP("2001:db8::1"), net.ParseIP("fe80::2")
	solicitedTo  = net.ParseIP("ff02::1:ff00:2")
	at0          = time.Date(2026, 3, 4, 5, 6, 7, 123456000, time.UTC)
	captureShape = []string{"", "-e", "-q", "-v", "-x", "-X", "-xx", "-XX", "-A", "-t", "-tt", "-ttt", "-tttt", "-ttttt", "-vv", "-vvv", "-vX", "-eq"}
)

func mustMAC(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// build makes a frame of layers, with lengths and checksums right.
func build(ls ...gopacket.SerializableLayer) []byte {
	var network gopacket.NetworkLayer
	for _, l := range ls {
		switch x := l.(type) {
		case *layers.IPv4:
			network = x
		case *layers.IPv6:
			network = x
		case *layers.TCP:
			_ = x.SetNetworkLayerForChecksum(network) // the network layer is one of two
		case *layers.UDP:
			_ = x.SetNetworkLayerForChecksum(network)
		case *layers.ICMPv6:
			_ = x.SetNetworkLayerForChecksum(network)
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func ether(src, dst net.HardwareAddr, kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: kind}
}

func ip4Layer(proto layers.IPProtocol, back bool) *layers.IPv4 {
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Id: 4711, Flags: layers.IPv4DontFragment, Protocol: proto, SrcIP: ip4A, DstIP: ip4B}
	if back {
		ip.SrcIP, ip.DstIP = ip4B, ip4A
	}
	return ip
}

func ip6Layer(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, FlowLabel: 0x12345, NextHeader: next, SrcIP: ip6A, DstIP: ip6B}
}

func eth4(back bool) *layers.Ethernet {
	if back {
		return ether(macB, macA, layers.EthernetTypeIPv4)
	}
	return ether(macA, macB, layers.EthernetTypeIPv4)
}

func eth6() *layers.Ethernet { return ether(macA, macB, layers.EthernetTypeIPv6) }

func data(s string) gopacket.Payload { return gopacket.Payload(s) }

func arpFrame(op uint16, dstMAC net.HardwareAddr) []byte {
	return build(ether(macA, broadcast, layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
		SourceHwAddress: macA, SourceProtAddress: ip4A, DstHwAddress: dstMAC, DstProtAddress: ip4B,
	})
}

func icmp4(kind, code uint8, id, seq uint16, back bool, body gopacket.Payload) []byte {
	return build(eth4(back), ip4Layer(layers.IPProtocolICMPv4, back), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Id: id, Seq: seq}, body)
}

func option(kind layers.TCPOptionKind, body ...byte) layers.TCPOption {
	o := layers.TCPOption{OptionType: kind, OptionLength: uint8(len(body) + 2), OptionData: body}
	if kind == layers.TCPOptionKindNop {
		o.OptionLength = 1
	}
	return o
}

var timestamps = option(layers.TCPOptionKindTimestamps, 0, 0, 1, 0, 0, 0, 0, 7)

// tcpFrame makes a segment between port 40000 of A and port of B.
func tcpFrame(port layers.TCPPort, back bool, t layers.TCP, body string) []byte {
	t.SrcPort, t.DstPort, t.Window = 40000, port, 502
	if back {
		t.SrcPort, t.DstPort = port, 40000
	}
	return build(eth4(back), ip4Layer(layers.IPProtocolTCP, back), &t, data(body))
}

func udpFrame(src, dst layers.UDPPort, body string) []byte {
	return build(eth4(false), ip4Layer(layers.IPProtocolUDP, false), &layers.UDP{SrcPort: src, DstPort: dst}, data(body))
}

func handshake(port layers.TCPPort) [][]byte {
	syn := []layers.TCPOption{option(layers.TCPOptionKindMSS, 5, 0xb4), option(layers.TCPOptionKindSACKPermitted), timestamps, option(layers.TCPOptionKindNop), option(layers.TCPOptionKindWindowScale, 7)}
	stamped := []layers.TCPOption{option(layers.TCPOptionKindNop), option(layers.TCPOptionKindNop), timestamps}
	return [][]byte{
		tcpFrame(port, false, layers.TCP{SYN: true, Seq: 1000, Options: syn}, ""),
		tcpFrame(port, true, layers.TCP{SYN: true, ACK: true, Seq: 4294967290, Ack: 1001, Options: syn}, ""),
		tcpFrame(port, false, layers.TCP{ACK: true, Seq: 1001, Ack: 4294967291, Options: stamped}, ""),
		tcpFrame(port, false, layers.TCP{ACK: true, PSH: true, Seq: 1001, Ack: 4294967291, Options: stamped}, "hello, world\r\nand more\x00\x1b[31m"),
		tcpFrame(port, true, layers.TCP{ACK: true, PSH: true, Seq: 4294967291, Ack: 1030, Options: stamped}, "an answer"),
		tcpFrame(port, false, layers.TCP{ACK: true, Seq: 1030, Ack: 4, Options: []layers.TCPOption{option(layers.TCPOptionKindNop), option(layers.TCPOptionKindNop), option(layers.TCPOptionKindSACK, 0, 0, 0, 9, 0, 0, 0, 20)}}, ""),
		tcpFrame(port, false, layers.TCP{ACK: true, FIN: true, Seq: 1030, Ack: 4}, ""),
		tcpFrame(port, true, layers.TCP{ACK: true, RST: true, Seq: 4, Ack: 1031}, ""),
		tcpFrame(port, true, layers.TCP{RST: true, Seq: 4}, ""),
		tcpFrame(port, false, layers.TCP{ACK: true, URG: true, Urgent: 1, ECE: true, CWR: true, Seq: 1031, Ack: 4}, "!"),
		tcpFrame(port, false, layers.TCP{Seq: 5}, ""),
	}
}

func dnsFrame(src, dst layers.UDPPort, d *layers.DNS) []byte {
	return build(eth4(false), ip4Layer(layers.IPProtocolUDP, false), &layers.UDP{SrcPort: src, DstPort: dst}, d)
}

func question(name string, kind layers.DNSType) []layers.DNSQuestion {
	return []layers.DNSQuestion{{Name: []byte(name), Type: kind, Class: layers.DNSClassIN}}
}

func record(name string, kind layers.DNSType, set func(*layers.DNSResourceRecord)) layers.DNSResourceRecord {
	r := layers.DNSResourceRecord{Name: []byte(name), Type: kind, Class: layers.DNSClassIN, TTL: 93784}
	set(&r)
	return r
}

func dnsFrames() [][]byte {
	return [][]byte{
		dnsFrame(5000, 53, &layers.DNS{ID: 4660, RD: true, Questions: question("example.com", layers.DNSTypeA)}),
		dnsFrame(5000, 53, &layers.DNS{ID: 4661, Questions: question("example.com", layers.DNSTypeAAAA)}),
		dnsFrame(53, 5000, &layers.DNS{ID: 4660, QR: true, RD: true, RA: true, Questions: question("example.com", layers.DNSTypeA), Answers: []layers.DNSResourceRecord{
			record("example.com", layers.DNSTypeCNAME, func(r *layers.DNSResourceRecord) { r.CNAME = []byte("www.example.com") }),
			record("www.example.com", layers.DNSTypeA, func(r *layers.DNSResourceRecord) { r.IP = net.IPv4(93, 184, 216, 34).To4() }),
		}}),
		dnsFrame(53, 5000, &layers.DNS{ID: 4661, QR: true, AA: true, ResponseCode: layers.DNSResponseCodeNXDomain, Questions: question("nx.example.com", layers.DNSTypeAAAA)}),
		dnsFrame(53, 5000, &layers.DNS{ID: 7, QR: true, RA: true, Questions: question("example.com", layers.DNSTypeMX), Answers: []layers.DNSResourceRecord{
			record("example.com", layers.DNSTypeMX, func(r *layers.DNSResourceRecord) {
				r.MX = layers.DNSMX{Preference: 10, Name: []byte("mx.example.com")}
			}),
			record("example.com", layers.DNSTypeTXT, func(r *layers.DNSResourceRecord) { r.TXTs = [][]byte{[]byte("v=1")} }),
			record("example.com", layers.DNSTypeNS, func(r *layers.DNSResourceRecord) { r.NS = []byte("ns.example.com") }),
			record("example.com", layers.DNSTypeAAAA, func(r *layers.DNSResourceRecord) { r.IP = ip6A }),
			record("_s._tcp.example.com", layers.DNSTypeSRV, func(r *layers.DNSResourceRecord) {
				r.SRV = layers.DNSSRV{Priority: 1, Weight: 2, Port: 3, Name: []byte("srv.example.com")}
			}),
		}}),
	}
}

func neighbour(kind uint8, body []byte) []byte {
	ip := ip6Layer(layers.IPProtocolICMPv6)
	ip.HopLimit, ip.FlowLabel, ip.DstIP = 255, 0, solicitedTo
	return build(eth6(), ip, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}, gopacket.Payload(body))
}

func quotedFrame(proto layers.IPProtocol) gopacket.Payload {
	ip := ip4Layer(proto, true)
	return build(ip, &layers.UDP{SrcPort: 1234, DstPort: 9}, data("quoted"))
}

func quotedFrame6() gopacket.Payload {
	ip := ip6Layer(layers.IPProtocolUDP)
	return append(make([]byte, 4), build(ip, &layers.UDP{SrcPort: 1, DstPort: 9}, data("quoted"))...)
}

func icmp6(kind, code uint8, body gopacket.Payload) []byte {
	return build(eth6(), ip6Layer(layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)}, body)
}

func badSum(frame []byte, at int) []byte {
	frame[at] ^= 0x5a
	return frame
}

func fragment(offset uint16, more bool) []byte {
	ip := ip4Layer(layers.IPProtocolUDP, false)
	ip.Flags, ip.FragOffset = 0, offset
	if more {
		ip.Flags = layers.IPv4MoreFragments
	}
	if offset == 0 {
		return build(eth4(false), ip, &layers.UDP{SrcPort: 1000, DstPort: 2000}, data(strings.Repeat("x", 1472)))
	}
	return build(eth4(false), ip, data(strings.Repeat("y", 600)))
}

func tagged(ids ...uint16) []byte {
	ls := []gopacket.SerializableLayer{ether(macA, macB, layers.EthernetTypeDot1Q)}
	for i, id := range ids {
		kind := layers.EthernetTypeIPv4
		if i < len(ids)-1 {
			kind = layers.EthernetTypeDot1Q
		}
		ls = append(ls, &layers.Dot1Q{VLANIdentifier: id, Priority: uint8(i), Type: kind})
	}
	return build(append(ls, ip4Layer(layers.IPProtocolUDP, false), &layers.UDP{SrcPort: 1, DstPort: 2}, data("tagged"))...)
}

func scenes() []scene {
	return []scene{
		{"ARP request and reply", [][]byte{arpFrame(1, make([]byte, 6)), arpFrame(1, macB), arpFrame(2, macB)}},
		{"ping", [][]byte{icmp4(8, 0, 77, 1, false, data("abcdefgh")), icmp4(0, 0, 77, 1, true, data("abcdefgh"))}},
		{"ICMP errors", [][]byte{
			icmp4(3, 3, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(3, 3, 0, 0, false, quotedFrame(layers.IPProtocolTCP)),
			icmp4(3, 0, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(3, 1, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(3, 2, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(3, 4, 0, 1400, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(3, 10, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(3, 13, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(11, 0, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(11, 1, 0, 0, false, quotedFrame(layers.IPProtocolUDP)),
			icmp4(5, 1, 0x0a00, 0x00fe, false, quotedFrame(layers.IPProtocolUDP)),
		}},
		{"TCP from SYN to reset", handshake(7000)},
		{"TCP seen from the middle", handshake(7001)[3:]},
		{"HTTP", [][]byte{
			tcpFrame(80, false, layers.TCP{ACK: true, PSH: true, Seq: 1, Ack: 1}, "GET /index.html HTTP/1.1\r\nHost: example.com\r\n\r\n"),
			tcpFrame(80, true, layers.TCP{ACK: true, PSH: true, Seq: 1, Ack: 47}, "HTTP/1.1 304 Not Modified\r\nServer: x\r\n\r\n"),
			tcpFrame(80, true, layers.TCP{ACK: true, PSH: true, Seq: 41, Ack: 47}, "and the rest of it"),
		}},
		{"TCP over IPv6", [][]byte{
			build(eth6(), ip6Layer(layers.IPProtocolTCP), &layers.TCP{SrcPort: 1234, DstPort: 7000, SYN: true, Seq: 9, Window: 100}, data("")),
			build(eth6(), ip6Layer(layers.IPProtocolTCP), &layers.TCP{SrcPort: 1234, DstPort: 7000, ACK: true, PSH: true, Seq: 10, Ack: 5, Window: 100}, data("v6")),
		}},
		{"UDP", [][]byte{udpFrame(1000, 2000, ""), udpFrame(1000, 2000, "x"), udpFrame(1000, 2000, strings.Repeat("datagram", 100)), build(eth6(), ip6Layer(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}, data("six"))}},
		{"wrong checksums", [][]byte{
			badSum(udpFrame(1000, 2000, "xyz"), 40), badSum(tcpFrame(7002, false, layers.TCP{ACK: true, Seq: 1, Ack: 1}, "x"), 51),
			badSum(icmp4(8, 0, 77, 1, false, data("abcdefgh")), 36), badSum(udpFrame(1000, 2000, "xyz"), 24),
		}},
		{"fragments", [][]byte{fragment(0, true), fragment(185, true), fragment(260, false)}},
		{"VLAN tags", [][]byte{tagged(5), tagged(7, 4094)}},
		{"DNS", dnsFrames()},
		{"ICMPv6", [][]byte{
			icmp6(128, 0, data("\x00\x07\x00\x01abcdefgh")),
			icmp6(129, 0, data("\x00\x07\x00\x01abcdefgh")),
			icmp6(1, 4, quotedFrame6()),
			icmp6(1, 0, quotedFrame6()),
			icmp6(3, 0, quotedFrame6()),
			badSum(icmp6(128, 0, data("\x00\x07\x00\x01abcdefgh")), 57),
		}},
		{"other protocols", [][]byte{
			build(eth4(false), ip4Layer(253, false), data("experiment")),
			build(eth4(false), ip4Layer(layers.IPProtocolIPv4, false), ip4Layer(layers.IPProtocolUDP, true), &layers.UDP{SrcPort: 3, DstPort: 4}, data("inner")),
		}},
	}
}

func TestLinesAreThoseOfTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err, "tcpdump is what the lines are compared with: apt-get install tcpdump")
	for _, s := range slices.Concat(scenes(), newScenes()) {
		for _, flags := range captureShape {
			t.Run(s.name+" "+flags, func(t *testing.T) { compare(t, tcpdump, s, flags) })
		}
	}
}

// sll2Frame replaces a frame's Ethernet header by that of LINUX_SLL2.
func sll2Frame(frame []byte, packetType byte) []byte {
	return slices.Concat(frame[12:14], []byte{0, 0, 0, 0, 0, 1, 0, 1, packetType, 6}, frame[6:12], []byte{0, 0}, frame[14:])
}

func TestLinesOfAnyInterfaceAreThoseOfTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err)
	s := scene{name: "cooked"}
	for i, f := range slices.Concat(handshake(7000)[:5], dnsFrames(), [][]byte{arpFrame(1, make([]byte, 6)), tagged(5)}) {
		s.frames = append(s.frames, sll2Frame(f, byte(i%5)))
	}
	for _, flags := range captureShape {
		t.Run(flags, func(t *testing.T) { compareLink(t, tcpdump, s, layers.LinkType(pcapng.LinuxSLL2), flags) })
	}
}

func compare(t *testing.T, tcpdump string, s scene, flags string) {
	t.Helper()
	compareLink(t, tcpdump, s, layers.LinkTypeEthernet, flags)
}

func compareLink(t *testing.T, tcpdump string, s scene, link layers.LinkType, flags string) {
	t.Helper()
	wire := make([]int, len(s.frames))
	for i, f := range s.frames {
		wire[i] = len(f)
	}
	compareFrames(t, tcpdump, s.frames, wire, link, flags)
}

// compareFrames compares the lines of frames of which wire bytes were on the wire.
func compareFrames(t *testing.T, tcpdump string, frames [][]byte, wire []int, link layers.LinkType, flags string) {
	t.Helper()
	var file, got bytes.Buffer
	w := pcapgo.NewWriter(&file)
	require.NoError(t, w.WriteFileHeader(65536, link))
	p := newPacketPrinter(&got, packetOptions(flags))
	eth0 := &pcapng.Interface{Link: pcapng.LinkType(link), Name: "eth0"}
	for i, f := range frames {
		at := at0.Add(time.Duration(i) * 1500 * time.Microsecond)
		require.NoError(t, w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(f), Length: wire[i]}, f))
		require.NoError(t, p.Print(eth0, &pcapng.Packet{Time: at.UnixNano(), Data: f, Len: wire[i]}))
	}
	// From stdin: tcpdump gives up root before it opens a file.
	args := []string{"-n", "-r", "-"}
	if flags != "" {
		args = append([]string{flags}, args...)
	}
	cmd := exec.Command(tcpdump, args...)
	cmd.Stdin = &file
	want, err := cmd.Output()
	require.NoError(t, err)
	wantLines, gotLines := strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")
	for i := range min(len(wantLines), len(gotLines)) {
		if wantLines[i] != gotLines[i] {
			t.Fatalf("line %d\n got %q\nwant %q", i+1, gotLines[i], wantLines[i])
		}
	}
	require.Equal(t, len(wantLines), len(gotLines), "lines")
}

// packetOptions are letters as flags of capture.
func packetOptions(flags string) *ctl.PacketOptions {
	n := func(letter string) int { return strings.Count(flags, letter) }
	return &ctl.PacketOptions{
		Ethernet: n("e") > 0, Quiet: n("q") > 0, Verbose: n("v"), ASCII: n("A") > 0,
		Hex: n("x") > 0, HexASCII: n("X") > 0, HexLink: n("x") > 1 || n("X") > 1, Times: n("t"),
	}
}
