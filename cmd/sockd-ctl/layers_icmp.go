package main

// quotedPacket is what an ICMP error says of the packet that it is about.
type quotedPacket struct {
	Src      string `json:"quoted_src,omitempty"`
	Dst      string `json:"quoted_dst,omitempty"`
	Protocol *int   `json:"quoted_protocol,omitempty"`
	SrcPort  *int   `json:"quoted_src_port,omitempty"`
	DstPort  *int   `json:"quoted_dst_port,omitempty"`
}

// quote4 reads as much of a quoted IPv4 packet as is there.
func quote4(d []byte) (q quotedPacket) {
	if !has(d, ipv4Header) {
		return q
	}
	q.Src, q.Dst, q.Protocol = ip4(d, 12), ip4(d, 16), number(d[9])
	if header := int(d[0]&0xf) * 4; hasPorts(int(d[9])) && has(d, header+4) {
		q.SrcPort, q.DstPort = number(u16(d, header)), number(u16(d, header+2))
	}
	return q
}

// quote6 reads as much of a quoted IPv6 packet as is there.
func quote6(d []byte) (q quotedPacket) {
	if !has(d, ipv6Header) {
		return q
	}
	q.Src, q.Dst, q.Protocol = ip6(d, 8), ip6(d, 24), number(d[6])
	if hasPorts(int(d[6])) && has(d, ipv6Header+4) {
		q.SrcPort, q.DstPort = number(u16(d, ipv6Header)), number(u16(d, ipv6Header+2))
	}
	return q
}

type icmpLayer struct {
	Layer    string `json:"layer"` // icmp or icmpv6
	Type     int    `json:"type"`
	Code     int    `json:"code"`
	Checksum int    `json:"checksum"`
	ID       *int   `json:"id,omitempty"`      // echo, time stamps
	Seq      *int   `json:"seq,omitempty"`     // likewise
	Gateway  string `json:"gateway,omitempty"` // of a redirect
	MTU      *int   `json:"mtu,omitempty"`     // where fragmentation is needed; packet too big
	Pointer  *int   `json:"pointer,omitempty"` // of a parameter problem
	quotedPacket
	Target      string            `json:"target,omitempty"`      // neighbour discovery
	Destination string            `json:"destination,omitempty"` // of a redirect
	Flags       []string          `json:"flags,omitempty"`       // of advertisements
	Lifetime    *int              `json:"lifetime,omitempty"`    // of a router, seconds
	Options     []neighbourOption `json:"options,omitempty"`
	Group       string            `json:"group,omitempty"` // of a listener
	Groups      []groupRecord     `json:"groups,omitempty"`
	Sources     []string          `json:"sources,omitempty"` // of a query
}

func readICMP(name string, d []byte) *icmpLayer {
	return &icmpLayer{Layer: name, Type: int(u8(d, 0)), Code: int(u8(d, 1)), Checksum: int(u16(d, 2))}
}

func (l *layering) icmp(d []byte, length int) {
	l.begin("icmp", d)
	i := readICMP("icmp", d)
	need(d, icmpHeader)
	switch i.Type {
	case icmpEcho, icmpEchoReply, icmpStamp, icmpStampReply:
		i.ID, i.Seq = number(u16(d, 4)), number(u16(d, 6))
	case icmpRedirect:
		i.Gateway = ip4(d, 4)
	case icmpParameter:
		i.Pointer = number(d[4])
	case icmpUnreachable:
		if i.Code == 4 {
			i.MTU = number(u16(d, 6))
		}
	}
	if isICMPError(i.Type) {
		i.quotedPacket = quote4(d[icmpHeader:])
	}
	l.add(i)
	l.payload(length - icmpHeader)
}

func (l *layering) icmp6(d []byte, length int) {
	l.begin("icmpv6", d)
	i := readICMP("icmpv6", d)
	need(d, icmpHeader)
	read := icmpHeader
	switch i.Type {
	case icmp6Echo, icmp6EchoReply:
		i.ID, i.Seq = number(u16(d, 4)), number(u16(d, 6))
	case icmp6TooBig:
		i.MTU = number(u32(d, 4))
	case icmp6Parameter:
		i.Pointer = number(u32(d, 4))
	case icmp6Solicit, icmp6Router, icmp6Neighbour, icmp6Advert, icmp6Redirect:
		i.discovery(d)
		read = length
	case icmp6Query, icmp6Report, icmp6Done:
		i.Group = ip6(d, 8)
		read = length
		if i.Type == icmp6Query && length >= listener2Size {
			i.Sources = addresses(d, listener2Size, int(u16(d, 26)), 16)
		}
	case icmp6Report2:
		i.Groups = readGroups(d, 16)
		read = length
	}
	if i.Type <= icmp6Parameter {
		i.quotedPacket = quote6(d[icmpHeader:])
	}
	l.add(i)
	l.payload(length - read)
}

var (
	routerFlagNames = []bitName{{0x80, "managed"}, {0x40, "other"}, {0x20, "home_agent"}}
	advertFlagNames = []bitName{{0x80, "router"}, {0x40, "solicited"}, {0x20, "override"}}
)

// discovery reads a message of neighbour discovery.
func (i *icmpLayer) discovery(d []byte) {
	switch i.Type {
	case icmp6Router:
		i.Flags, i.Lifetime = flagNames(routerFlagNames, uint32(u8(d, 5))), number(u16(d, 6))
	case icmp6Neighbour:
		i.Target = ip6(d, 8)
	case icmp6Advert:
		i.Target, i.Flags = ip6(d, 8), flagNames(advertFlagNames, uint32(u8(d, 4)))
	case icmp6Redirect:
		i.Target, i.Destination = ip6(d, 8), ip6(d, 24)
	}
	for o := skip(d, discoveryOptions[i.Type]); len(o) > 0; {
		size := int(u8(o, 1)) * 8
		if size == 0 {
			panic(cutShort{})
		}
		i.Options = append(i.Options, readNeighbourOption(part(o, 0, size)))
		o = o[size:]
	}
}

// neighbourOption is one option of neighbour discovery.
type neighbourOption struct {
	Type    int    `json:"type"`
	Name    string `json:"name,omitempty"`    // as in the text lines
	Address string `json:"address,omitempty"` // of the link
	Prefix  string `json:"prefix,omitempty"`
	MTU     *int   `json:"mtu,omitempty"`
	Data    string `json:"data,omitempty"` // of the others, hexadecimal
}

func readNeighbourOption(o []byte) neighbourOption {
	n := neighbourOption{Type: int(o[0]), Name: neighbourOptionNames[int(o[0])]}
	switch {
	case n.Type == ndSource || n.Type == ndTarget:
		n.Address = hardware(o[2:])
	case n.Type == ndPrefix && len(o) == 32:
		n.Prefix = ip6(o, 16) + "/" + names{}.or(int(o[2]), "%d")
	case n.Type == ndMTU && len(o) == 8:
		n.MTU = number(u32(o, 4))
	default:
		n.Data = hexOf(o[2:])
	}
	return n
}

// groupRecord is what a report says of a multicast group.
type groupRecord struct {
	Type    int      `json:"type"`
	Address string   `json:"address"`
	Sources []string `json:"sources"`
}

// readGroups reads a report of IGMPv3 or MLDv2.
func readGroups(d []byte, size int) (groups []groupRecord) {
	at := 8
	for range u16(d, 6) {
		count := int(u16(d, at+2))
		groups = append(groups, groupRecord{int(u8(d, at)), addr(part(d, at+4, size)), addresses(d, at+4+size, count, size)})
		at += 4 + size*(1+count)
	}
	return groups
}

// addresses reads a list of them.
func addresses(d []byte, at, count, size int) []string {
	need(d, at+count*size)
	list := make([]string, count)
	for i := range list {
		list[i] = addr(part(d, at+i*size, size))
	}
	return list
}

type igmpLayer struct {
	Layer       string        `json:"layer"`
	Type        int           `json:"type"`
	MaxResponse int           `json:"max_response"` // as in the message
	Checksum    int           `json:"checksum"`
	Group       string        `json:"group,omitempty"`
	Sources     []string      `json:"sources,omitempty"`
	Groups      []groupRecord `json:"groups,omitempty"`
}

func (l *layering) igmp(d []byte, length int) {
	l.begin("igmp", d)
	i := igmpLayer{Layer: "igmp", Type: int(u8(d, 0)), MaxResponse: int(u8(d, 1)), Checksum: int(u16(d, 2))}
	switch {
	case i.Type == igmpReport3:
		i.Groups = readGroups(d, 4)
	case i.Type == igmpQuery && length >= igmpQuery3:
		i.Group, i.Sources = ip4(d, 4), addresses(d, igmpQuery3, int(u16(d, 10)), 4)
	default:
		i.Group = ip4(d, 4)
	}
	l.add(i)
}
