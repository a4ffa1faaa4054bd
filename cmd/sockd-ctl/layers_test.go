package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// decoded are the layers of a frame as a program reads them.
func decoded(t *testing.T, link pcapng.LinkType, frame []byte) []map[string]any {
	t.Helper()
	d := newPacketPrinter(nil, &ctl.PacketOptions{}).Decode(&pcapng.Interface{Link: link}, &pcapng.Packet{Data: frame, Len: len(frame)})
	text, err := json.Marshal(d.Layers)
	require.NoError(t, err)
	var list []map[string]any
	require.NoError(t, json.Unmarshal(text, &list))
	return list
}

// layerNames are the names of the layers, outermost first.
func layerNames(list []map[string]any) string {
	var words []string
	for _, l := range list {
		words = append(words, l["layer"].(string))
	}
	return strings.Join(words, " ")
}

func TestLayersAreThoseOfThePacket(t *testing.T) {
	vxlan := lanWire()[20]
	for name, tt := range map[string]struct {
		frame []byte
		want  string // the names, outermost first
		last  string // members of the last but a payload
	}{
		"UDP":              {udpFrame(1000, 2000, "xyz"), "ethernet ipv4 udp payload", `{"layer":"udp","src_port":1000,"dst_port":2000,"length":11}`},
		"tagged twice":     {tagged(5, 6), "ethernet vlan vlan ipv4 udp payload", ``},
		"TCP":              {handshake(7000)[0], "ethernet ipv4 tcp", `{"layer":"tcp","src_port":40000,"dst_port":7000,"seq":1000,"ack":0,"flags":["syn"],"window":502,"urgent":0,"header_length":40,"length":0,"options":[{"kind":2,"name":"mss","value":1460},{"kind":4,"name":"sackOK"},{"kind":8,"name":"TS","val":256,"ecr":7},{"kind":1,"name":"nop"},{"kind":3,"name":"wscale","value":7}]}`},
		"ping":             {icmp4(8, 0, 77, 1, false, data("abcdefgh")), "ethernet ipv4 icmp payload", `{"layer":"icmp","type":8,"code":0,"id":77,"seq":1}`},
		"port unreachable": {icmp4(3, 3, 0, 0, false, quotedFrame(layers.IPProtocolUDP)), "ethernet ipv4 icmp payload", `{"layer":"icmp","type":3,"code":3,"quoted_src":"10.0.0.2","quoted_dst":"10.0.0.1","quoted_protocol":17,"quoted_src_port":1234,"quoted_dst_port":9}`},
		"ARP":              {arpFrame(1, make([]byte, 6)), "ethernet arp", `{"layer":"arp","operation":1,"hardware_type":1,"protocol_type":2048,"sender_mac":"02:00:00:00:00:01","sender_ip":"10.0.0.1","target_mac":"00:00:00:00:00:00","target_ip":"10.0.0.2"}`},
		"DNS":              {dnsFrames()[2], "ethernet ipv4 udp dns", `{"layer":"dns","id":4660,"response":true,"opcode":0,"authoritative":false,"truncated":false,"recursion_desired":true,"recursion_available":true,"rcode":0,"questions":[{"name":"example.com","type":"A","class":"IN"}],"answers":[{"name":"example.com","type":"CNAME","class":"IN","ttl":93784,"data":"www.example.com."},{"name":"www.example.com","type":"A","class":"IN","ttl":93784,"data":"93.184.216.34"}],"authorities":[],"additionals":[]}`},
		"DNS over TCP":     {tcpFrame(53, true, layers.TCP{ACK: true, Seq: 1, Ack: 1}, string(raw(uint16(29), answer(0x8180, [3]uint16{})))), "ethernet ipv4 tcp dns", ``},
		"neighbour":        {neighbour(136, append([]byte{0x60, 0, 0, 0}, append(slices.Clone([]byte(ip6B)), 2, 1, 2, 0, 0, 0, 0, 1)...)), "ethernet ipv6 icmpv6", `{"layer":"icmpv6","type":136,"code":0,"target":"fe80::2","flags":["solicited","override"],"options":[{"type":2,"name":"destination link-address","address":"02:00:00:00:00:01"}]}`},
		"fragment":         {fragment6(1448, 100, true), "ethernet ipv6 ipv6_fragment payload", `{"layer":"ipv6_fragment","next_header":17,"length":8,"offset":1448,"more":true,"id":4711}`},
		"IPX":              {ipxWire()[0], "ethernet ipx payload", `{"layer":"ipx","src":"00000010.02:00:00:00:00:01.4001","dst":"00000011.02:00:00:00:00:02.4002","length":35,"hops":1,"packet_type":4,"checksum":65535}`},
		"IPX RIP, 802.2":   {ipxWire()[4*5+2], "ethernet llc ipx ipx_rip", `{"layer":"ipx_rip","operation":2,"routes":[{"network":"00000011","hops":1,"ticks":2},{"network":"00000012","hops":2,"ticks":3}]}`},
		"IPX SAP, SNAP":    {ipxWire()[4*12+3], "ethernet llc snap ipx ipx_sap", `{"layer":"ipx_sap","operation":4,"services":[{"type":4,"name":"SERVER^G","address":"00000011.02:00:00:00:00:02.0451","hops":2}]}`},
		"IPX, 802.3":       {ipxWire()[1], "ethernet ipx payload", ``},
		"spanning tree":    {llcFrame(0x42, 0x42, 0x03, 0, 0, 0, 0x80), "ethernet llc stp", `{"layer":"stp","version":0,"type":128}`},
		"VXLAN":            {vxlan, "ethernet ipv4 udp vxlan ethernet ipv4 udp payload", ``},
		"an unknown type":  {build(ether(macA, macB, 0x88b5), data("what?")), "ethernet payload", `{"layer":"ethernet","src":"02:00:00:00:00:01","dst":"02:00:00:00:00:02","type":34997}`},
		"cut within TCP":   {handshake(7000)[0][:40], "ethernet ipv4 malformed", `{"layer":"malformed","of":"tcp","length":6}`},
		"cut at once":      {[]byte{1, 2, 3}, "malformed", `{"layer":"malformed","of":"ethernet","length":3}`},
		"a DNS that lies":  {udpFrame(53, 5000, string(answer(0x8180, [3]uint16{9, 0, 0}))), "ethernet ipv4 udp dns malformed", `{"layer":"malformed","of":"dns","length":29}`},
	} {
		t.Run(name, func(t *testing.T) {
			list := decoded(t, pcapng.Ethernet, tt.frame)
			require.Equal(t, tt.want, layerNames(list))
			if tt.last == "" {
				return
			}
			last := list[len(list)-1]
			if last["layer"] == "payload" {
				last = list[len(list)-2]
			}
			if last["checksum"] != float64(0xffff) { // that of IPX, which is none
				delete(last, "checksum") // that they are right tcpdump says in other tests
			}
			got, err := json.Marshal(last)
			require.NoError(t, err)
			require.JSONEq(t, tt.last, string(got))
		})
	}
	require.Equal(t, "ipv4 udp payload", layerNames(decoded(t, pcapng.Raw, udpFrame(1, 2, "x")[14:])))
	require.Equal(t, "sll2 arp", layerNames(decoded(t, pcapng.LinuxSLL2, sll2Frame(arpFrame(1, macB), 1))))
	require.Equal(t, "payload", layerNames(decoded(t, 9999, []byte("something"))))
}

// tsharkMembers are members of layers, and what Wireshark calls them.
var tsharkMembers = []struct{ layer, member, field string }{
	{"ethernet", "src", "eth.src"}, {"vlan", "id", "vlan.id"}, {"arp", "sender_ip", "arp.src.proto_ipv4"}, {"ipv4", "src", "ip.src"}, {"ipv4", "dst", "ip.dst"}, {"ipv4", "ttl", "ip.ttl"},
	{"ipv4", "protocol", "ip.proto"}, {"ipv4", "total_length", "ip.len"}, {"ipv6", "src", "ipv6.src"}, {"ipv6", "hop_limit", "ipv6.hlim"}, {"ipv6", "next_header", "ipv6.nxt"}, {"tcp", "src_port", "tcp.srcport"},
	{"tcp", "seq", "tcp.seq_raw"}, {"tcp", "window", "tcp.window_size_value"}, {"tcp", "length", "tcp.len"}, {"udp", "dst_port", "udp.dstport"}, {"udp", "length", "udp.length"}, {"icmp", "type", "icmp.type"},
	{"icmp", "code", "icmp.code"}, {"icmpv6", "type", "icmpv6.type"}, {"icmpv6", "target", "icmpv6.nd.ns.target_address"},
}

// Wireshark's own dissectors are the judges of what a member is.
func TestMembersAreWhatTsharkFinds(t *testing.T) {
	var file bytes.Buffer
	w := pcapgo.NewWriter(&file)
	require.NoError(t, w.WriteFileHeader(65536, layers.LinkTypeEthernet))
	var frames [][]byte
	for _, s := range slices.Concat(scenes(), newScenes()) {
		frames = append(frames, s.frames...)
	}
	for _, f := range frames {
		require.NoError(t, w.WritePacket(gopacket.CaptureInfo{Timestamp: at0, CaptureLength: len(f), Length: len(f)}, f))
	}
	args := []string{"-n", "-r", "-", "-T", "fields", "-E", "occurrence=f", "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"}
	for _, m := range tsharkMembers {
		args = append(args, "-e", m.field)
	}
	cmd := exec.Command("tshark", args...)
	cmd.Stdin = &file
	out, err := cmd.Output()
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	require.Len(t, lines, len(frames))
	compared := 0
	for i, line := range lines {
		theirs := strings.Split(line, "\t")
		for _, l := range outermost(decoded(t, pcapng.Ethernet, frames[i])) {
			for n, m := range tsharkMembers {
				if ours, ok := l[m.member]; ok && l["layer"] == m.layer && theirs[n] != "" {
					require.Equal(t, theirs[n], fmt.Sprint(plain(ours)), "frame %d: %s.%s", i+1, m.layer, m.member)
					compared++
				}
			}
		}
	}
	require.Greater(t, compared, 600)
}

// outermost are the layers whose name has not been before: tshark prints the first.
func outermost(list []map[string]any) (out []map[string]any) {
	seen := map[any]bool{}
	for _, l := range list {
		if !seen[l["layer"]] {
			seen[l["layer"]] = true
			out = append(out, l)
		}
	}
	return out
}

// plain is a number without an exponent.
func plain(v any) any {
	if n, ok := v.(float64); ok {
		return int64(n)
	}
	return v
}

// A line that says its interface is that of tcpdump -i any.
func TestLinesOfNamedInterfacesAreThoseOfTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err)
	var file, got bytes.Buffer
	w := pcapgo.NewWriter(&file)
	require.NoError(t, w.WriteFileHeader(65536, layers.LinkType(pcapng.LinuxSLL2)))
	o := packetOptions("")
	o.Named = true
	p := newPacketPrinter(&got, o)
	for i, way := range []pcapng.Packet{
		{Direction: pcapng.Inbound, Reception: pcapng.Unicast}, {Direction: pcapng.Inbound, Reception: pcapng.Broadcast}, {Direction: pcapng.Inbound, Reception: pcapng.Multicast},
		{Direction: pcapng.Inbound, Reception: pcapng.Promiscuous}, {Direction: pcapng.Outbound},
	} {
		f := udpFrame(1, 2, "x")
		cooked := sll2Frame(f, byte(i))
		require.NoError(t, w.WritePacket(gopacket.CaptureInfo{Timestamp: at0, CaptureLength: len(cooked), Length: len(cooked)}, cooked))
		way.Time, way.Data, way.Len = at0.UnixNano(), f, len(f)
		require.NoError(t, p.Print(&pcapng.Interface{Link: pcapng.Ethernet, Name: "lo"}, &way))
	}
	cmd := exec.Command(tcpdump, "-n", "-r", "-")
	cmd.Stdin = &file
	want, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, string(want), got.String())
}
