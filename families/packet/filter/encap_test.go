package filter_test

import (
	"testing"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/stretchr/testify/require"
)

// The frames of these tests, from the inside to the outside.

func ether(kind int, data []byte) []byte {
	return joined([]byte{2, 0, 0, 0, 0, 2}, []byte{2, 0, 0, 0, 0, 1}, u16(kind), data)
}

// tagged puts a VLAN tag before a type.
func tagged(id, kind int, data []byte) []byte { return joined(u16(id), u16(kind), data) }

func ip4Of(proto int, data []byte) []byte {
	head := joined([]byte{0x45, 0}, u16(20+len(data)), u16(7), u16(0), []byte{64, byte(proto)}, u16(0), []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2})
	return joined(head, data)
}

// ip4Options is ip4Of with 8 bytes of options.
func ip4Options(proto int, data []byte) []byte {
	packet := ip4Of(proto, joined(make([]byte, 8), data))
	packet[0] = 0x47
	return packet
}

func ip6Of(next int, data []byte) []byte {
	addr := func(last byte) []byte { return joined([]byte{0x20, 1, 0xd, 0xb8}, make([]byte, 11), []byte{last}) }
	return joined([]byte{0x60, 0, 0, 0}, u16(len(data)), []byte{byte(next), 64}, addr(1), addr(2), data)
}

func tcpTo(port int) []byte {
	return joined(u16(40000), u16(port), make([]byte, 8), []byte{0x50, 2}, make([]byte, 6))
}

func udpTo(port int, data []byte) []byte {
	return joined(u16(40000), u16(port), u16(8+len(data)), u16(0), data)
}

func label(id int, last byte) []byte { return u32(uint32(id)<<12 | uint32(last)<<8 | 64) }

func pppoe(session, ppp int, data []byte) []byte {
	return joined([]byte{0x11, 0}, u16(session), u16(2+len(data)), u16(ppp), data)
}

func geneveOf(vni, kind int, options, data []byte) []byte {
	return joined([]byte{byte(len(options) / 4), 0}, u16(kind), u32(uint32(vni)<<8), options, data)
}

func vxlanOf(vni int, data []byte) []byte {
	return joined([]byte{8, 0, 0, 0}, u32(uint32(vni)<<8), data)
}

var (
	web  = ether(kindIPv4, ip4Of(6, tcpTo(80)))
	web6 = ether(kindIPv6, ip6Of(6, tcpTo(80)))
	dns  = ether(kindIPv4, ip4Of(17, udpTo(53, nil)))
	ssh  = ether(kindIPv4, ip4Of(6, tcpTo(22)))
	arp  = ether(kindARP, make([]byte, 28))

	web100    = ether(kind8021Q, tagged(100, kindIPv4, ip4Of(6, tcpTo(80))))
	web200    = ether(kind8021Q, tagged(0xe000|200, kindIPv4, ip4Of(6, tcpTo(80)))) // with a priority
	web300    = ether(kindQinQ, tagged(300, kindIPv4, ip4Of(6, tcpTo(80))))
	dns100    = ether(kind8021Q, tagged(100, kindIPv4, ip4Of(17, udpTo(53, nil))))
	arp100    = ether(kind8021Q, tagged(100, kindARP, make([]byte, 28)))
	webDouble = ether(kind8021AD, tagged(100, kind8021Q, tagged(200, kindIPv4, ip4Of(6, tcpTo(80)))))

	webLabel  = ether(kindMPLS, joined(label(16, 1), ip4Of(6, tcpTo(80))))
	webLabels = ether(kindMPLS, joined(label(16, 0), label(17, 1), ip6Of(6, tcpTo(80))))

	webPPP  = ether(kindPPPoES, pppoe(5, 0x21, ip4Of(6, tcpTo(80))))
	web6PPP = ether(kindPPPoES, pppoe(6, 0x57, ip6Of(6, tcpTo(80))))

	webGeneve        = ether(kindIPv4, ip4Of(17, udpTo(6081, geneveOf(7, kindTEB, nil, web))))
	webGeneveOptions = ether(kindIPv4, ip4Options(17, udpTo(6081, geneveOf(7, kindTEB, make([]byte, 12), web))))
	webGeneveBare    = ether(kindIPv4, ip4Of(17, udpTo(6081, geneveOf(8, kindIPv4, make([]byte, 4), ip4Of(6, tcpTo(80))))))
	webGeneve6       = ether(kindIPv6, ip6Of(17, udpTo(6081, geneveOf(7, kindTEB, make([]byte, 4), web))))
	webGeneveBare6   = ether(kindIPv6, ip6Of(17, udpTo(6081, geneveOf(8, kindIPv6, nil, ip6Of(6, tcpTo(80))))))
	dnsGeneve        = ether(kindIPv4, ip4Of(17, udpTo(6081, geneveOf(7, kindTEB, nil, dns))))
	webGeneveTagged  = ether(kindIPv4, ip4Of(17, udpTo(6081, geneveOf(7, kindTEB, nil, web100))))
	webGeneveBareTag = ether(kindIPv4, ip4Of(17, udpTo(6081, geneveOf(7, kind8021Q, nil, tagged(100, kindIPv4, ip4Of(6, tcpTo(80)))))))
	webGeneve2       = ether(kindIPv4, ip4Of(17, udpTo(6081, geneveOf(9, kindTEB, make([]byte, 8), webGeneve))))
	geneveNext       = ether(kindIPv4, ip4Of(17, udpTo(6081, joined([]byte{0x40}, geneveOf(7, kindTEB, nil, web)[1:]))))

	webVXLAN     = ether(kindIPv4, ip4Options(17, udpTo(4789, vxlanOf(100, web))))
	webVXLAN6    = ether(kindIPv6, ip6Of(17, udpTo(4789, vxlanOf(101, web))))
	dnsVXLAN     = ether(kindIPv4, ip4Of(17, udpTo(4789, vxlanOf(100, dns))))
	vxlanNoVNI   = ether(kindIPv4, ip4Of(17, udpTo(4789, joined(make([]byte, 8), web))))
	webVXLAN100  = ether(kind8021Q, tagged(100, kindIPv4, ip4Of(17, udpTo(4789, vxlanOf(100, web)))))
	webVXLANTag  = ether(kindIPv4, ip4Of(17, udpTo(4789, vxlanOf(100, web200))))
	frameByNames = []struct {
		name  string
		frame []byte
	}{
		{"web", web}, {"web6", web6}, {"dns", dns}, {"ssh", ssh}, {"arp", arp},
		{"web100", web100}, {"web200", web200}, {"web300", web300}, {"dns100", dns100}, {"arp100", arp100}, {"webDouble", webDouble},
		{"webLabel", webLabel}, {"webLabels", webLabels}, {"webPPP", webPPP}, {"web6PPP", web6PPP},
		{"webGeneve", webGeneve}, {"webGeneveOptions", webGeneveOptions}, {"webGeneveBare", webGeneveBare}, {"webGeneve6", webGeneve6},
		{"webGeneveBare6", webGeneveBare6}, {"dnsGeneve", dnsGeneve}, {"webGeneveTagged", webGeneveTagged},
		{"webGeneveBareTag", webGeneveBareTag}, {"webGeneve2", webGeneve2}, {"geneveNext", geneveNext},
		{"webVXLAN", webVXLAN}, {"webVXLAN6", webVXLAN6}, {"dnsVXLAN", dnsVXLAN}, {"vxlanNoVNI", vxlanNoVNI},
		{"webVXLAN100", webVXLAN100}, {"webVXLANTag", webVXLANTag},
	}
)

func mustCompile(tb testing.TB, o filter.Options, text string) *filter.Program {
	tb.Helper()
	p, err := o.Compile(text, filter.Ethernet)
	require.NoError(tb, err, "%s", text)
	return p
}

// matching are the names of the frames that a filter takes.
func matching(tb testing.TB, o filter.Options, text string) []string {
	tb.Helper()
	p := mustCompile(tb, o, text)
	out := []string{}
	for _, f := range frameByNames {
		if p.Match(f.frame, len(f.frame)) {
			out = append(out, f.name)
		}
	}
	return out
}

func TestWhatHoldsOthersReachesWhatIsAndedToIt(t *testing.T) {
	vlans := []string{"web100", "web200", "web300", "dns100", "arp100", "webDouble", "webVXLAN100"}
	geneves := []string{
		"webGeneve", "webGeneveOptions", "webGeneveBare", "webGeneve6", "webGeneveBare6", "dnsGeneve", "webGeneveTagged", "webGeneveBareTag", "webGeneve2",
	}
	for text, want := range map[string][]string{
		"vlan":                                      vlans,
		"vlan 100":                                  {"web100", "dns100", "arp100", "webDouble", "webVXLAN100"},
		"vlan 4000":                                 {},
		"(vlan 100 or vlan 200) and tcp port 80":    {"web100", "web200"},
		"vlan and tcp port 80":                      {"web100", "web200", "web300"},
		"tcp port 80 and not vlan":                  {"web", "web6"},
		"not vlan and arp":                          {"arp"},
		"arp or (vlan 100 and arp)":                 {"arp", "arp100"},
		"vlan 100 and (tcp port 80 or udp)":         {"web100", "dns100", "webVXLAN100"},
		"vlan and vlan":                             {"webDouble"},
		"vlan 100 and vlan 200 and tcp":             {"webDouble"},
		"vlan 200 and vlan 100":                     {},
		"vlan and not vlan and tcp":                 {"web100", "web200", "web300"},
		"vlan and not (tcp or udp or vlan)":         {"arp100"},
		"(vlan or arp) and arp":                     {"arp", "arp100"},
		"vlan and ether src 02:00:00:00:00:01":      vlans,
		"vlan 100 and ip[9] = 17":                   {"dns100", "webVXLAN100"},
		"vlan 100 and ether[14:2] & 0xfff = 100":    {"web100", "dns100", "arp100", "webDouble", "webVXLAN100"},
		"mpls":                                      {"webLabel", "webLabels"},
		"mpls 16 and tcp port 80":                   {"webLabel"},
		"mpls 16 and mpls 17 and ip6 and port 80":   {"webLabels"},
		"mpls and mpls and ether dst 2:0:0:0:0:2":   {"webLabels"},
		"mpls and tcp[2:2] = 80":                    {"webLabel"},
		"mpls and not mpls and ip":                  {"webLabel"},
		"pppoes":                                    {"webPPP", "web6PPP"},
		"pppoes 5 and tcp port 80":                  {"webPPP"},
		"pppoes and ip6 and tcp port 80":            {"web6PPP"},
		"pppoes and ip[0] = 0x45":                   {"webPPP"},
		"geneve":                                    geneves,
		"geneve 8":                                  {"webGeneveBare", "webGeneveBare6"},
		"geneve and tcp port 80":                    {"webGeneve", "webGeneveOptions", "webGeneveBare", "webGeneve6", "webGeneveBare6"},
		"geneve and tcp[2:2] = 80":                  {"webGeneve", "webGeneveOptions", "webGeneveBare", "webGeneve6"},
		"geneve and ip6":                            {"webGeneveBare6"},
		"geneve and udp port 53":                    {"dnsGeneve"},
		"geneve and ether src 2:0:0:0:0:1":          {"webGeneve", "webGeneveOptions", "webGeneve6", "dnsGeneve", "webGeneveTagged", "webGeneve2"},
		"geneve and host 10.0.0.2 and tcp":          {"webGeneve", "webGeneveOptions", "webGeneveBare", "webGeneve6"},
		"geneve and vlan 100 and tcp port 80":       {"webGeneveTagged", "webGeneveBareTag"},
		"geneve 9 and geneve 7 and tcp port 80":     {"webGeneve2"},
		"geneve and multicast":                      {},
		"geneve and not multicast and tcp":          {"webGeneve", "webGeneveOptions", "webGeneveBare", "webGeneve6", "webGeneveBare6"},
		"udp and not geneve":                        {"dns", "geneveNext", "webVXLAN", "webVXLAN6", "dnsVXLAN", "vxlanNoVNI", "webVXLANTag"},
		"vxlan":                                     {"webVXLAN", "webVXLAN6", "dnsVXLAN", "webVXLANTag"},
		"vxlan 100 and tcp port 80":                 {"webVXLAN"},
		"vxlan and tcp port 80":                     {"webVXLAN", "webVXLAN6"},
		"vxlan and ether[12:2] = 0x800 and ip[9]=6": {"webVXLAN", "webVXLAN6"},
		"vlan 100 and vxlan 100 and tcp":            {"webVXLAN100"},
		"vxlan and vlan 200 and tcp":                {"webVXLANTag"},
		"(vxlan or geneve 9) and ip and tcp":        {"webVXLAN", "webVXLAN6"},
	} {
		t.Run(text, func(t *testing.T) {
			for name, o := range map[string]filter.Options{"optimised": {}, "plain": {Plain: true}} {
				if len(want) == 0 && name == "optimised" {
					continue // it may be refused for that
				}
				require.Equal(t, want, matching(t, o, text), name)
			}
		})
	}
}

func TestWhatHoldsOthersIsAloneBehindOrAndNot(t *testing.T) {
	untagged := []string{"web", "web6"}
	require.Subset(t, matching(t, filter.Options{}, "tcp port 80 or vlan"), append(untagged, "web100", "arp100", "webDouble"))
	require.Subset(t, matching(t, filter.Options{}, "vlan or tcp port 80"), append(untagged, "web100", "arp100", "webDouble"))
	require.NotContains(t, matching(t, filter.Options{}, "tcp port 80 or vlan"), "arp")
	require.Subset(t, matching(t, filter.Options{}, "not vlan"), []string{"web", "arp", "webLabel"})
	require.Equal(t, []string{"web100", "web200", "web300", "webDouble"}, matching(t, filter.Options{}, "vlan and not arp and not udp"))
	require.Equal(t, matching(t, filter.Options{}, "ip or vlan"), matching(t, filter.Options{}, "vlan or ip"))
}

func TestTextualHeadersReachAllToTheirRight(t *testing.T) {
	o := filter.Options{Textual: true}
	require.NotContains(t, matching(t, o, "vlan or tcp port 80"), "web")
	require.Contains(t, matching(t, o, "tcp port 80 or vlan"), "web")
	require.Equal(t, []string{"arp100"}, matching(t, o, "(not vlan or not ip) and arp"))
}

func TestWhatCannotHoldOthersIsRefused(t *testing.T) {
	for _, tc := range []struct {
		text   string
		link   filter.LinkType
		column int
		why    string
	}{
		{"ip and vlan 4096", filter.Ethernet, 13, "VLAN 4096 is greater than the maximum, 4095"},
		{"mpls and vlan", filter.Ethernet, 10, "no VLAN tag can be behind MPLS labels"},
		{"vlan", filter.Raw, 1, "no VLAN tags in raw IP"},
		{"vlan", filter.LinuxSLL2, 1, "no VLAN tags in Linux cooked headers"},
		{"pppoes and vlan", filter.Ethernet, 12, "no VLAN tags in PPP"},
		{"mpls 1048576", filter.Ethernet, 6, "MPLS label 1048576 is greater than the maximum, 1048575"},
		{"mpls", filter.Null, 1, "no MPLS labels in BSD loopback headers"},
		{"pppoes 65536", filter.Ethernet, 8, "PPPoE session 65536 is greater than the maximum, 65535"},
		{"geneve 16777216", filter.Ethernet, 8, "Geneve VNI 16777216 is greater than the maximum, 16777215"},
		{"vxlan 16777216", filter.Ethernet, 7, "VXLAN VNI 16777216 is greater than the maximum, 16777215"},
		{"mpls and arp", filter.Ethernet, 10, ""},
		{"geneve and protochain 6", filter.Ethernet, 12, "protochain cannot follow a header whose length varies"},
		{"pppoes and ether broadcast", filter.Ethernet, 12, "there are no Ethernet addresses in PPP"},
		{"pppoes and llc", filter.Ethernet, 12, "no LLC headers can be looked for in PPP"},
		{"llc", filter.LinuxSLL, 1, "no LLC headers can be looked for in Linux cooked headers"},
		{"tcp broadcast", filter.Ethernet, 1, "there are no broadcasts of such a protocol"},
		{"arp multicast", filter.Ethernet, 1, "there are no multicasts of such a protocol"},
		{"broadcast", filter.LinuxSLL, 1, "there are no Ethernet addresses in Linux cooked headers"},
		{"ip broadcast", filter.Ethernet, 1, `the netmask is not known, so there is no "ip broadcast"`},
		{"tcp protochain 6", filter.Ethernet, 1, "protochain: such a protocol has no chain of headers"},
		{"ip and radio[0] = 1", filter.Ethernet, 8, "there is no radio header in Ethernet"},
		{"iso[0] = 1", filter.Ethernet, 1, "the header of iso cannot be read by its bytes"},
		{"1 = ether[0] / 0", filter.Ethernet, 16, "division by zero"},
		{"1 = ether[0] % 0", filter.Ethernet, 16, "modulus by zero"},
		{"ether[0] << 32 = 1", filter.Ethernet, 13, "shift by more than 31 bits"},
		{"ip[ether[1] >> (16 + 16)] = 1", filter.Ethernet, 17, "shift by more than 31 bits"},
	} {
		t.Run(tc.text, func(t *testing.T) {
			_, err := filter.Compile(tc.text, tc.link)
			var e *filter.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, tc.column, e.Column, "%v", e)
			if tc.why != "" {
				require.Equal(t, tc.why, e.Why)
			}
		})
	}
}

// The differences of these from libpcap are in docs/filter.md.
func TestNumbersThatLibpcapRefusesOrMisreads(t *testing.T) {
	for text, want := range map[string]bool{
		"5 / ether[0] = 2":            true, // libpcap sees the 0 of ether[0], and calls that the divisor
		"ether[0] << ether[12] = 512": true, // shifts by 8
		"4 << ether[39] = 4":          true,
		"byte 12 & 8":                 true, // libpcap forgets to load the byte
		"byte 12 & 4":                 false,
		"byte 13 | 0":                 false,
		"byte 13 | 1":                 true,
	} {
		require.Equal(t, want, mustCompile(t, filter.Options{}, text).Match(web, len(web)), text)
	}
}

// The optimiser may find that such a filter takes nothing.
func TestIPBroadcastIsByTheNetmask(t *testing.T) {
	to := func(last byte) []byte {
		f := joined(web)
		f[33] = last
		return f
	}
	p := mustCompile(t, filter.Options{Netmask: 0xffffff00}, "ip broadcast")
	for last, want := range map[byte]bool{0: true, 255: true, 1: false, 254: false} {
		require.Equal(t, want, p.Match(to(last), len(web)), "10.0.0.%d", last)
	}
}

func TestDirectionAndInterfaceAreOfThePacket(t *testing.T) {
	for _, tc := range []struct {
		text   string
		packet filter.Packet
		want   bool
	}{
		{"inbound", filter.Packet{Direction: filter.In}, true},
		{"inbound", filter.Packet{Direction: filter.Out}, false},
		{"inbound", filter.Packet{}, false},
		{"outbound", filter.Packet{Direction: filter.Out}, true},
		{"outbound", filter.Packet{}, false},
		{"not outbound", filter.Packet{}, true},
		{"ifindex 3", filter.Packet{Interface: 3}, true},
		{"ifindex 3", filter.Packet{Interface: 4}, false},
		{"ifindex 3", filter.Packet{}, false},
	} {
		tc.packet.Data, tc.packet.Length = web, len(web)
		require.Equal(t, tc.want, mustCompile(t, filter.Options{}, tc.text).MatchPacket(&tc.packet), "%s of %+v", tc.text, tc.packet)
	}
	_, err := filter.Compile("ifindex 0", filter.Ethernet)
	require.ErrorContains(t, err, "column 1")
}

func TestOwnersAreOfThePacket(t *testing.T) {
	owner := &filter.Owner{UID: 0, KnownUID: true, PID: 7, KnownPID: true, Comm: "nginx", Unit: "nginx.service"}
	for text, want := range map[string]bool{
		"uid 0": true, "uid 1": false, "pid 7": true, "pid 8": false, "comm nginx": true, "comm sshd": false,
		"unit nginx.service": true, "unit ssh.service": false, "uid root": true, "tcp port 80 and not uid 0": false,
	} {
		p := mustCompile(t, filter.Options{Owners: true}, text)
		require.Equal(t, want, p.MatchPacket(&filter.Packet{Data: web, Length: len(web), Owner: owner}), text)
		require.Equal(t, text == "tcp port 80", p.MatchPacket(&filter.Packet{Data: web, Length: len(web)}) && want, text)
	}
}
