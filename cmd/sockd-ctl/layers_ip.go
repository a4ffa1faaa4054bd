package main

type ipv4Layer struct {
	Layer          string   `json:"layer"`
	Src            string   `json:"src"`
	Dst            string   `json:"dst"`
	Protocol       int      `json:"protocol"`
	TTL            int      `json:"ttl"`
	TOS            int      `json:"tos"`
	ID             int      `json:"id"`
	Flags          []string `json:"flags"`           // df mf reserved
	FragmentOffset int      `json:"fragment_offset"` // bytes
	TotalLength    int      `json:"total_length"`
	HeaderLength   int      `json:"header_length"`
	Checksum       int      `json:"checksum"`
	Options        string   `json:"options,omitempty"` // hexadecimal
}

// flagNames are the names of the flags that are set.
func flagNames(table []bitName, v uint32) []string {
	set := []string{}
	for _, b := range table {
		if v&b.bits != 0 {
			set = append(set, b.name)
		}
	}
	return set
}

var ipv4FlagNames = []bitName{{ipv4Dont, "df"}, {ipv4More, "mf"}, {ipv4Reserved, "reserved"}}

func (l *layering) ipv4(data []byte, full int) {
	l.begin("ipv4", data)
	need(data, ipv4Header)
	field, length, header := u16(data, 6), int(u16(data, 2)), int(data[0]&0xf)*4
	if length == 0 {
		length = full // a segment that the network card will cut up
	}
	if data[0]>>4 != 4 || header < ipv4Header || length < header {
		panic(cutShort{})
	}
	ip := ipv4Layer{
		Layer: "ipv4", Src: ip4(data, 12), Dst: ip4(data, 16), Protocol: int(data[9]), TTL: int(data[8]), TOS: int(data[1]), ID: int(u16(data, 4)),
		Flags: flagNames(ipv4FlagNames, uint32(field)), FragmentOffset: int(field&ipv4Offset) * 8, TotalLength: int(u16(data, 2)), HeaderLength: header,
		Checksum: int(u16(data, 10)), Options: hexOf(part(data, ipv4Header, header-ipv4Header)),
	}
	l.ends(ip.Src, ip.Dst)
	l.add(ip)
	body := first(data, length)[header:]
	if ip.FragmentOffset != 0 {
		l.ported = true // the ports are in the first fragment
		l.payload(length - header)
		return
	}
	l.transport(ip.Protocol, body, length-header)
}

type ipv6Layer struct {
	Layer         string `json:"layer"`
	Src           string `json:"src"`
	Dst           string `json:"dst"`
	NextHeader    int    `json:"next_header"`
	HopLimit      int    `json:"hop_limit"`
	TrafficClass  int    `json:"traffic_class"`
	FlowLabel     int    `json:"flow_label"`
	PayloadLength int    `json:"payload_length"`
}

func (l *layering) ipv6(data []byte, full int) {
	l.begin("ipv6", data)
	need(data, ipv6Header)
	if data[0]>>4 != 6 {
		panic(cutShort{})
	}
	length := int(u16(data, 4))
	ip := ipv6Layer{
		Layer: "ipv6", Src: ip6(data, 8), Dst: ip6(data, 24), NextHeader: int(data[6]), HopLimit: int(data[7]),
		TrafficClass: int(u16(data, 0) >> 4 & 0xff), FlowLabel: int(u32(data, 0) & 0xfffff), PayloadLength: length,
	}
	l.ends(ip.Src, ip.Dst)
	l.add(ip)
	if length == 0 {
		length = max(full-ipv6Header, 0) // a jumbogram, or a segment that the network card will cut up
	}
	l.transport(ip.NextHeader, first(data[ipv6Header:], length), length)
}

// extensionLayer is one of ipv6_hop_by_hop, ipv6_destination, ipv6_routing and
// ipv6_fragment.
type extensionLayer struct {
	Layer        string   `json:"layer"`
	NextHeader   int      `json:"next_header"`
	Length       int      `json:"length"`
	Options      string   `json:"options,omitempty"`       // hexadecimal
	Type         *int     `json:"type,omitempty"`          // of a routing header
	SegmentsLeft *int     `json:"segments_left,omitempty"` // likewise
	Addresses    []string `json:"addresses,omitempty"`     // likewise
	Offset       *int     `json:"offset,omitempty"`        // of a fragment, bytes
	More         *bool    `json:"more,omitempty"`          // likewise
	ID           *int     `json:"id,omitempty"`            // likewise
}

var extensionNames = names{protoHopByHop: "ipv6_hop_by_hop", protoDestOpts: "ipv6_destination", protoRouting: "ipv6_routing", protoFragment: "ipv6_fragment"}

// extension decodes an extension header; false when what follows is not the beginning
// of a packet.
func (l *layering) extension(proto int, d []byte) (e extensionLayer, first bool) {
	l.begin(extensionNames[proto], d)
	e = extensionLayer{Layer: l.name, NextHeader: int(u8(d, 0)), Length: fragment6Header}
	if proto == protoFragment {
		field := u16(d, 2)
		more := field&1 != 0
		e.Offset, e.More, e.ID = number(field&^7), &more, number(u32(d, 4))
		return e, *e.Offset == 0
	}
	e.Length = int(u8(d, 1))*8 + 8
	header := part(d, 0, e.Length)
	if proto != protoRouting {
		e.Options = hexOf(header[2:])
		return e, true
	}
	e.Type, e.SegmentsLeft = number(header[2]), number(header[3])
	if kind := *e.Type; kind == routeSource || kind == routeHome || kind == routeSegment {
		for at := 8; at+16 <= len(header); at += 16 {
			e.Addresses = append(e.Addresses, ip6(header, at))
		}
	}
	return e, true
}

// transport decodes what an IP packet carries.
func (l *layering) transport(proto int, d []byte, length int) {
	for extensionNames[proto] != "" {
		e, first := l.extension(proto, d)
		l.add(e)
		d, length, proto = skip(d, e.Length), length-e.Length, e.NextHeader
		if !first {
			l.ported = true // the ports are in the first fragment
			l.payload(length)
			return
		}
	}
	switch proto {
	case protoTCP:
		l.tcp(d, length)
	case protoUDP:
		l.udp(d, length)
	case protoICMP:
		l.icmp(d, length)
	case protoICMPv6:
		l.icmp6(d, length)
	case protoIGMP:
		l.igmp(d, length)
	case protoIPv4:
		l.ipv4(d, length)
	case protoIPv6:
		l.ipv6(d, length)
	case protoGRE:
		l.gre(d, length)
	case protoAH:
		l.ah(d, length)
	case protoESP:
		l.esp(d, length)
	default:
		l.payload(length)
	}
}

type securityLayer struct {
	Layer      string `json:"layer"` // ah or esp
	SPI        int    `json:"spi"`
	Seq        int    `json:"seq"`
	NextHeader *int   `json:"next_header,omitempty"` // ah
}

func (l *layering) ah(d []byte, length int) {
	l.begin("ah", d)
	next, size := u8(d, 0), (int(u8(d, 1))+2)*4
	l.add(securityLayer{"ah", int(u32(d, 4)), int(u32(d, 8)), number(next)})
	l.transport(int(next), skip(d, size), length-size)
}

func (l *layering) esp(d []byte, length int) {
	l.begin("esp", d)
	l.add(securityLayer{Layer: "esp", SPI: int(u32(d, 0)), Seq: int(u32(d, 4))})
	l.payload(length - espHeader)
}

type greLayer struct {
	Layer    string `json:"layer"`
	Version  int    `json:"version"`
	Protocol int    `json:"protocol"` // an ethertype
	Key      *int   `json:"key,omitempty"`
	Sequence *int   `json:"sequence,omitempty"`
}

func (l *layering) gre(d []byte, length int) {
	l.begin("gre", d)
	flags := u16(d, 0)
	g, size := greLayer{Layer: "gre", Version: int(flags & greVersion), Protocol: int(u16(d, 2))}, 4
	next := func(bits uint16) *int {
		if flags&bits == 0 {
			return nil
		}
		size += 4
		return number(u32(d, size-4))
	}
	if g.Version == 0 {
		next(greChecksum | greRouting)
	}
	g.Key, g.Sequence = next(greKey), next(greSequence)
	l.add(g)
	switch {
	case g.Version != 0 || flags&greRouting != 0:
		l.payload(length - size)
	case g.Protocol == typeTEB:
		l.ethernet(skip(d, size), length-size)
	default:
		l.etherPayload(g.Protocol, skip(d, size), length-size)
	}
}

type tcpLayer struct {
	Layer        string      `json:"layer"`
	SrcPort      int         `json:"src_port"`
	DstPort      int         `json:"dst_port"`
	Seq          uint32      `json:"seq"` // as in the segment
	Ack          uint32      `json:"ack"`
	Flags        []string    `json:"flags"` // fin syn rst psh ack urg ece cwr
	Window       int         `json:"window"`
	Checksum     int         `json:"checksum"`
	Urgent       int         `json:"urgent"`
	HeaderLength int         `json:"header_length"`
	Options      []tcpOption `json:"options"`
	Length       int         `json:"length"` // of what it carries
}

var tcpFlagNames = []bitName{{tcpFIN, "fin"}, {tcpSYN, "syn"}, {tcpRST, "rst"}, {tcpPSH, "psh"}, {tcpACK, "ack"}, {tcpURG, "urg"}, {tcpECE, "ece"}, {tcpCWR, "cwr"}}

func (l *layering) tcp(d []byte, length int) {
	l.begin("tcp", d)
	sport, dport := u16(d, 0), u16(d, 2)
	l.ports(sport, dport)
	need(d, tcpHeader)
	header := int(d[12]>>4) * 4
	if header < tcpHeader || header > length {
		panic(cutShort{})
	}
	t := tcpLayer{
		Layer: "tcp", SrcPort: int(sport), DstPort: int(dport), Seq: u32(d, 4), Ack: u32(d, 8), Flags: flagNames(tcpFlagNames, uint32(d[13])),
		Window: int(u16(d, 14)), Checksum: int(u16(d, 16)), Urgent: int(u16(d, 18)), HeaderLength: header, Length: length - header,
		Options: readTCPOptions(part(d, tcpHeader, header-tcpHeader)),
	}
	l.add(t)
	body := first(d, length)[header:]
	if (sport == 53 || dport == 53) && has(body, 2) && int(u16(body, 0)) == t.Length-2 {
		l.dns(body[2:], t.Length-2)
		return
	}
	l.payload(t.Length)
}

// tcpOption is one option, with what it says where that is known.
type tcpOption struct {
	Kind   int         `json:"kind"`
	Name   string      `json:"name,omitempty"`   // as in the text lines
	Value  *int        `json:"value,omitempty"`  // of mss and wscale
	Val    *int        `json:"val,omitempty"`    // of TS
	Ecr    *int        `json:"ecr,omitempty"`    // of TS
	Blocks [][2]uint32 `json:"blocks,omitempty"` // of sack
	Data   string      `json:"data,omitempty"`   // of the others, hexadecimal
}

// readTCPOptions reads options until one does not add up.
func readTCPOptions(o []byte) []tcpOption {
	list := []tcpOption{}
	for len(o) > 0 {
		kind, size := int(o[0]), 1
		if kind != optEnd && kind != optNop {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				break
			}
			size = int(o[1])
		}
		list = append(list, readTCPOption(kind, skip(o[:size], 2)))
		if kind == optEnd {
			break
		}
		o = o[size:]
	}
	return list
}

func readTCPOption(kind int, body []byte) tcpOption {
	t := tcpOption{Kind: kind, Name: tcpOptionNames[kind]}
	switch {
	case kind == optMSS && len(body) == 2:
		t.Value = number(u16(body, 0))
	case kind == optScale && len(body) == 1:
		t.Value = number(body[0])
	case kind == optStamps && len(body) == 8:
		t.Val, t.Ecr = number(u32(body, 0)), number(u32(body, 4))
	case kind == optSack && len(body)%8 == 0:
		for ; len(body) > 0; body = body[8:] {
			t.Blocks = append(t.Blocks, [2]uint32{u32(body, 0), u32(body, 4)})
		}
	default:
		t.Data = hexOf(body)
	}
	return t
}

type udpLayer struct {
	Layer    string `json:"layer"`
	SrcPort  int    `json:"src_port"`
	DstPort  int    `json:"dst_port"`
	Length   int    `json:"length"` // with its header
	Checksum int    `json:"checksum"`
}

func (l *layering) udp(d []byte, length int) {
	l.begin("udp", d)
	sport, dport := u16(d, 0), u16(d, 2)
	l.ports(sport, dport)
	u := udpLayer{"udp", int(sport), int(dport), int(u16(d, 4)), int(u16(d, 6))}
	if u.Length != 0 && u.Length < udpHeader {
		panic(cutShort{})
	}
	l.add(u)
	if u.Length != 0 {
		length = min(length, u.Length)
	}
	body := first(d, length)[udpHeader:]
	length -= udpHeader
	port := func(n uint16) bool { return sport == n || dport == n }
	switch {
	case port(53) || port(5353):
		l.dns(body, length)
	case port(4789):
		l.vxlan(body, length)
	default:
		l.payload(length)
	}
}

type vxlanLayer struct {
	Layer string `json:"layer"`
	Flags int    `json:"flags"`
	VNI   int    `json:"vni"`
}

func (l *layering) vxlan(d []byte, length int) {
	l.begin("vxlan", d)
	l.add(vxlanLayer{"vxlan", int(u8(d, 0)), int(u24(d, 4))})
	need(d, vxlanHeader)
	l.ethernet(d[vxlanHeader:], length-vxlanHeader)
}
