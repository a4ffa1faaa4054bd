package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// vxlanFlags is the first byte of a VXLAN header with a VNI. Others than that flag are
// reserved (RFC 7348 §5); libpcap takes none with them for VXLAN.
const vxlanFlags = 0x08

// vxlan lowers "vxlan" and "vxlan VNI", Ethernet in UDP (RFC 7348):
//
//	| flags | 0, 3 bytes | VNI, 3 | 0 | Ethernet ...
func (l *lowerer) vxlan(e *syntax.Encap, at place) []way {
	var ways []way
	for _, v6 := range []bool{false, true} {
		udp, header := l.udpTo(at, v6, portVXLAN)
		flags := l.compare(code.Equal, l.load(header, 0, 1), vxlanFlags)
		vni := l.identified(e, "VXLAN VNI", header.plus(4), 4, 8, 0xffffff)
		ways = append(ways, way{all(udp, flags, vni), ethernetAt(header.plus(8))})
	}
	return ways
}
