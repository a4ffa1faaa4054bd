package main

import (
	"reflect"
	"strings"
)

// manualLayers are the layers of --jsonl in the order of the manual, which takes the
// names of their members from here: it cannot tell another story than the program.
var manualLayers = []struct {
	name  string
	shape any
}{
	{"ethernet", ethernetLayer{}}, {"vlan", vlanLayer{}}, {"sll2, sll", sllLayer{}}, {"llc", llcLayer{}}, {"snap", snapLayer{}}, {"stp", stpLayer{}},
	{"arp", arpLayer{}}, {"ipv4", ipv4Layer{}}, {"ipv6", ipv6Layer{}},
	{"ipv6_hop_by_hop, ipv6_destination, ipv6_routing, ipv6_fragment", extensionLayer{}}, {"ah, esp", securityLayer{}},
	{"icmp, icmpv6", icmpLayer{}}, {"igmp", igmpLayer{}}, {"tcp", tcpLayer{}}, {"udp", udpLayer{}}, {"dns", dnsLayer{}}, {"gre", greLayer{}}, {"vxlan", vxlanLayer{}},
	{"ipx", ipxLayer{}}, {"ipx_rip", ipxRoutesLayer{}}, {"ipx_sap", ipxServicesLayer{}}, {"payload", payloadLayer{}}, {"malformed", malformedLayer{}},
}

func manLayers(m *roff) {
	m.section("PACKETS AS OBJECTS")
	m.text("With --jsonl capture prints an object for each packet: time, interface, direction (in or out, where it is known), length (on the wire), captured (bytes that were kept), src and dst (with ports where there are any), data (base64), and layers: the headers, outermost first. Each layer is an object whose member layer is its name; names and members are only ever added. Members that do not apply are left out, as are those of a layer that a packet has not. payload is what does not decode any further, length its bytes on the wire; malformed ends a packet that was cut or contradicts itself within the layer of. Numbers are as in the packet, addresses are text, bytes that nobody reads are hexadecimal.")
	for _, l := range manualLayers {
		m.tagged(l.name, memberNames(reflect.TypeOf(l.shape)))
	}
}

func manWireshark(m *roff) {
	m.section("WIRESHARK")
	m.text("Called by the name sockd-extcap, the program is an extcap program of Wireshark's (extcap(4)). With a link of that name in Wireshark's folder for such programs, which tshark -G folders tells, or in the one that WIRESHARK_EXTCAP_DIR names, Wireshark and tshark list the interfaces of the daemon as sockd-eth0, and all of them together as sockd-any, and capture there as a user without rights. The capture filter is that of pcap-filter(7). The dialogue of an interface has options for the control socket, the snapshot length, the direction, and packets for other hosts.")
	m.literal([]string{"tshark -i sockd-eth0 -f 'udp port 53'"})
}

// memberNames are the names of the members of a layer; those of its objects stand in
// braces behind a list's name.
func memberNames(t reflect.Type) string {
	var words []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			words = append(words, memberNames(f.Type))
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "layer" {
			continue
		}
		if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct {
			name += " {" + memberNames(f.Type.Elem()) + "}"
		}
		words = append(words, name)
	}
	return strings.Join(words, " ")
}
