package main

import "net"

type ethernetLayer struct {
	Layer  string `json:"layer"`
	Src    string `json:"src"`
	Dst    string `json:"dst"`
	Type   int    `json:"type,omitempty"`   // the ethertype
	Length int    `json:"length,omitempty"` // instead, in IEEE 802.3
}

type vlanLayer struct {
	Layer    string `json:"layer"`
	ID       int    `json:"id"`
	Priority int    `json:"priority"`
	DEI      bool   `json:"dei"`
	Type     int    `json:"type"` // the ethertype behind it
}

func (l *layering) ethernet(data []byte, full int) {
	l.begin("ethernet", data)
	kind := int(u16(data, 12))
	e := ethernetLayer{Layer: "ethernet", Src: mac(data, 6), Dst: mac(data, 0), Type: kind}
	if kind <= maxLength {
		e.Type, e.Length = 0, kind
	}
	l.add(e)
	l.behindTags(kind, data[ethernetHeader:], full-ethernetHeader)
}

// behindTags decodes what follows an ethertype, through VLAN tags.
func (l *layering) behindTags(kind int, data []byte, length int) {
	for isTag(uint16(kind)) {
		l.begin("vlan", data)
		tci := u16(data, 0)
		kind = int(u16(data, 2))
		l.add(vlanLayer{"vlan", int(tci & 0xfff), int(tci >> 13), tci&0x1000 != 0, kind})
		data, length = data[tagSize:], length-tagSize
	}
	if kind <= maxLength {
		length = min(length, kind)
		l.llc(first(data, length), length)
		return
	}
	l.etherPayload(kind, data, length)
}

func (l *layering) etherPayload(kind int, data []byte, length int) {
	switch kind {
	case typeIPv4:
		l.ipv4(data, length)
	case typeIPv6:
		l.ipv6(data, length)
	case typeARP, typeRARP:
		l.arp(data)
	case typeIPX:
		l.ipx(data)
	default:
		l.payload(length)
	}
}

type sllLayer struct {
	Layer      string `json:"layer"` // sll or sll2
	Protocol   int    `json:"protocol"`
	Ifindex    int    `json:"ifindex,omitempty"` // sll2
	Hardware   int    `json:"hardware_type"`     // ARPHRD_ of the interface
	PacketType string `json:"packet_type"`       // In B M P Out
	Address    string `json:"address"`           // of the sender
}

func (l *layering) sll2(data []byte, full int) {
	l.begin("sll2", data)
	kind := int(u16(data, 0))
	l.add(sllLayer{
		Layer: "sll2", Protocol: kind, Ifindex: int(u32(data, 4)), Hardware: int(u16(data, 8)),
		PacketType: packetTypes.or(int(u8(data, 10)), "?"), Address: cookedAddress(part(data, 12, 8), int(u8(data, 11))),
	})
	l.behindCooked(kind, data[sll2Header:], full-sll2Header)
}

func (l *layering) sll(data []byte, full int) {
	l.begin("sll", data)
	kind := int(u16(data, 14))
	l.add(sllLayer{
		Layer: "sll", Protocol: kind, Hardware: int(u16(data, 2)),
		PacketType: packetTypes.or(int(u16(data, 0)), "?"), Address: cookedAddress(part(data, 6, 8), int(u16(data, 4))),
	})
	l.behindCooked(kind, data[sllHeader:], full-sllHeader)
}

func cookedAddress(field []byte, length int) string {
	return net.HardwareAddr(first(field, length)).String()
}

func (l *layering) behindCooked(kind int, data []byte, length int) {
	switch {
	case kind == cooked8023:
		l.ipx(data)
	case kind == cooked8022:
		l.llc(data, length)
	case kind <= maxLength:
		l.payload(length)
	default:
		l.behindTags(kind, data, length)
	}
}

func (l *layering) raw(data []byte, full int) {
	l.begin("ip", data)
	if u8(data, 0)>>4 == 6 {
		l.ipv6(data, full)
	} else {
		l.ipv4(data, full)
	}
}

type llcLayer struct {
	Layer   string `json:"layer"`
	DSAP    int    `json:"dsap"`
	SSAP    int    `json:"ssap"`
	Control int    `json:"control"`
}

type snapLayer struct {
	Layer string `json:"layer"`
	OUI   int    `json:"oui"`
	Type  int    `json:"type"` // an ethertype where oui is 0
}

func (l *layering) llc(data []byte, length int) {
	l.begin("llc", data)
	h, ok := readLLC(data)
	if !ok {
		panic(cutShort{})
	}
	if rawIPX(data) {
		l.ipx(data)
		return
	}
	l.add(llcLayer{"llc", int(data[0]), int(data[1]), int(h.control)})
	body, length := data[h.size:], length-h.size
	switch {
	case h.carries(sapSNAP):
		l.snap(body, length)
	case h.carries(sapSTP):
		l.stp(body, length)
	case h.carries(sapIP):
		l.ipv4(body, length)
	case h.carries(sapIPX):
		l.ipx(body)
	default:
		l.payload(length)
	}
}

func (l *layering) snap(data []byte, length int) {
	l.begin("snap", data)
	oui, kind := int(u24(data, 0)), int(u16(data, 3))
	l.add(snapLayer{"snap", oui, kind})
	data, length = data[snapHeader:], length-snapHeader
	switch {
	case oui == ouiEthernet || oui == ouiCisco90:
		l.etherPayload(kind, data, length)
	case oui == ouiCisco && (kind == ciscoPVST || kind == ciscoBridge):
		l.stp(data, length)
	default:
		l.payload(length)
	}
}

type stpLayer struct {
	Layer    string `json:"layer"`
	Version  int    `json:"version"`
	Type     int    `json:"type"`
	Flags    *int   `json:"flags,omitempty"`
	RootID   string `json:"root_id,omitempty"`
	RootCost *int   `json:"root_cost,omitempty"`
	BridgeID string `json:"bridge_id,omitempty"`
	PortID   *int   `json:"port_id,omitempty"`
}

func (l *layering) stp(data []byte, length int) {
	l.begin("stp", data)
	if u16(data, 0) != 0 {
		l.payload(length)
		return
	}
	s := stpLayer{Layer: "stp", Version: int(u8(data, 2)), Type: int(u8(data, 3))}
	if s.Type == stpConfig || s.Type == stpRapidConfig && s.Version == stpRapid {
		s.Flags, s.RootCost, s.PortID = number(u8(data, 4)), number(u32(data, 13)), number(u16(data, 25))
		s.RootID, s.BridgeID = bridgeID(data, 5), bridgeID(data, 17)
	}
	l.add(s)
}

// number is a member that may be missing.
func number[N ~uint8 | ~uint16 | ~uint32](n N) *int {
	v := int(n)
	return &v
}

type arpLayer struct {
	Layer     string `json:"layer"`
	Operation int    `json:"operation"`     // 1 request, 2 reply
	Hardware  int    `json:"hardware_type"` // 1 is Ethernet
	Protocol  int    `json:"protocol_type"` // an ethertype
	SenderMAC string `json:"sender_mac"`
	SenderIP  string `json:"sender_ip"`
	TargetMAC string `json:"target_mac"`
	TargetIP  string `json:"target_ip"`
}

func (l *layering) arp(data []byte) {
	l.begin("arp", data)
	a := readARP(data)
	layer := arpLayer{
		Layer: "arp", Operation: a.operation, Hardware: int(a.hardware), Protocol: int(a.protocol),
		SenderMAC: net.HardwareAddr(a.sender).String(), TargetMAC: net.HardwareAddr(a.target).String(),
		SenderIP: hexOf(a.senderProto), TargetIP: hexOf(a.targetProto),
	}
	if a.ofIPv4() && a.protocolLen == 4 {
		layer.SenderIP, layer.TargetIP = addr(a.senderProto), addr(a.targetProto)
		l.ends(layer.SenderIP, layer.TargetIP)
	}
	l.add(layer)
}

type ipxLayer struct {
	Layer    string `json:"layer"`
	Src      string `json:"src"` // network.node.socket
	Dst      string `json:"dst"`
	Length   int    `json:"length"`
	Hops     int    `json:"hops"`
	Type     int    `json:"packet_type"`
	Checksum int    `json:"checksum"`
}

func (l *layering) ipx(data []byte) {
	l.begin("ipx", data)
	x := ipxLayer{
		Layer: "ipx", Src: ipxAddress(data, 18), Dst: ipxAddress(data, 6),
		Length: int(u16(data, 2)), Hops: int(u8(data, 4)), Type: int(u8(data, 5)), Checksum: int(u16(data, 0)),
	}
	l.ends(x.Src, x.Dst)
	l.add(x)
	length := x.Length - ipxHeader
	body := first(data[ipxHeader:], length)
	switch int(u16(data, 16)) {
	case ipxRIP:
		l.ipxRoutes(body)
	case ipxSAP:
		l.ipxServices(body)
	default:
		l.payload(length)
	}
}

type ipxRoute struct {
	Network string `json:"network"`
	Hops    int    `json:"hops"`
	Ticks   int    `json:"ticks"`
}

type ipxRoutesLayer struct {
	Layer     string     `json:"layer"`
	Operation int        `json:"operation"` // 1 request, 2 response
	Routes    []ipxRoute `json:"routes"`
}

func (l *layering) ipxRoutes(data []byte) {
	l.begin("ipx_rip", data)
	r := ipxRoutesLayer{Layer: "ipx_rip", Operation: int(u16(data, 0)), Routes: []ipxRoute{}}
	for d := data[2:]; len(d) > 0; d = d[ipxRouteSize:] {
		r.Routes = append(r.Routes, ipxRoute{hexOf(part(d, 0, 4)), int(u16(d, 4)), int(u16(d, 6))})
	}
	l.add(r)
}

type ipxService struct {
	Type    int    `json:"type"`
	Name    string `json:"name"`
	Address string `json:"address"` // network.node.socket
	Hops    int    `json:"hops"`
}

type ipxServicesLayer struct {
	Layer     string       `json:"layer"`
	Operation int          `json:"operation"`      // 1 request, 2 response, 3 and 4 of the nearest
	Type      *int         `json:"type,omitempty"` // of a request
	Services  []ipxService `json:"services"`
}

func (l *layering) ipxServices(data []byte) {
	l.begin("ipx_sap", data)
	s := ipxServicesLayer{Layer: "ipx_sap", Operation: int(u16(data, 0)), Services: []ipxService{}}
	switch s.Operation {
	case 1, 3:
		s.Type = number(u16(data, 2))
	case 2, 4:
		const size = 2 + ipxNameSize + 14
		for d := data[2:]; len(d) > 0; d = d[size:] {
			s.Services = append(s.Services, ipxService{int(u16(d, 0)), paddedText(part(d, 2, ipxNameSize)), ipxAddress(d, 2+ipxNameSize), int(u16(d, size-2))})
		}
	}
	l.add(s)
}

// paddedText is a text up to its first NUL.
func paddedText(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return plainText(b[:i])
		}
	}
	return plainText(b)
}
