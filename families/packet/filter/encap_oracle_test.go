package filter_test

import (
	"fmt"
	"strings"
	"testing"
)

// tagInGeneve tells whether a frame has a UDP header to Geneve's port, and behind it a Geneve
// header with the type of a VLAN tag.
func tagInGeneve(frame []byte) bool {
	for i := 0; i+10 <= len(frame); i++ {
		if wire.Uint16(frame[i:]) != 6081 {
			continue
		}
		switch wire.Uint16(frame[i+8:]) {
		case kind8021Q, kind8021AD, kindQinQ:
			return true
		}
	}
	return false
}

// handMade are the frames of TestWhatHoldsOthersReachesWhatIsAndedToIt.
func handMade() (out []oracleFrame) {
	for _, f := range frameByNames {
		out = append(out, oracleFrame{data: f.frame, length: len(f.frame), iface: 1, name: f.name})
	}
	return out
}

// What follows headers that hold others, numbers, and tests of casts, chains and LLC,
// put together in more ways than the generator meets.

var oracleHeads = []string{
	"", "vlan and ", "vlan 5 and ", "vlan and vlan and ", "mpls and ", "mpls 16 and ", "mpls and mpls and ", "vlan and mpls and ", "pppoes and ",
	"pppoes 5 and ", "vlan and pppoes and ", "pppoes and mpls and ", "geneve and ", "geneve 7 and ", "vlan and geneve and ", "geneve and vlan and ",
	"geneve and pppoes and ", "geneve and geneve and ", "geneve and mpls and ",
}

var oracleTails = []string{
	"ip", "ip6", "arp", "tcp", "port 80", "udp dst port 53", "host 10.0.0.1", "src host fe80::1", "ether src 02:00:00:00:00:01", "broadcast", "ether multicast",
	"multicast", "ip multicast", "ip6 multicast", "not broadcast", "llc", "llc i", "llc s", "llc u", "llc rr", "llc rnr", "llc ui", "llc xid", "not llc",
	"stp", "iso", "ipx", "atalk", "protochain 6", "ip protochain 17", "ip6 protochain 58", "ip6 protochain 6", "not ip protochain 51",
	"ether[0] & 1 = 0", "ether[12:2] = 0x800", "ip[0] = 0x45", "ip[9] != 6", "not ip[9] = 6", "ip6[6] = 17", "tcp[13] & 2 != 0", "tcp[0:2] > tcp[2:2]",
	"udp[4:2] < 100", "icmp[0] = 8", "icmp6[0] = 135", "arp[6:2] = 1", "decnet[0] = 1", "atalk[0] >= 1", "igmp[0] = 17", "sctp[0:2] = 80",
	"ip[ip[0] & 0xf] > 3", "ip[(ip[0] & 0xf) << 2] = 0", "tcp[tcp[12] >> 2] = 0x47", "ether[len - 1] = 0", "len > 60", "ip[2:2] = len - 14",
	"ip[8] * 2 + 1 > 100", "ip[8] - 65 > 5", "ether[20] / ether[21] = 1", "ether[20] % ether[21] = 1", "1 << (ether[20] & 7) = 8", "ether[20] ^ 0xff = 0xee",
	"ether[20:4] >> 16 <= 0x4000", "ether[20] | 1 >= 0x41", "-ether[20] = 0", "ip[-1] = 0", "tcp[-20] = 0x45", "ip[len] = 1", "ip[0] + tcp[0] = 69",
	"tcp[0] + ip6[0] > 5", "ether[ip[9]] = tcp[13]", "ether[0] = ether[0]", "5 > 3", "less 60", "greater 60", "byte 12 = 8", "byte 12 < 8", "byte 12 > 8",
	"byte 5 = 300", "vlan", "vlan 100", "mpls", "mpls 1000", "pppoed", "pppoes", "geneve", "geneve 100", "iso[0] = 1", "aarp[0] = 1", "ah[0] = 1", "radio[0] = 1",
	"ether[0:3] = 1", "ether[0] << 32 = 1", "ether[0] / 0 = 1", "tcp broadcast", "ip6 broadcast", "arp multicast", "llc foo",
}

func TestOracleOfHeadsAndTails(t *testing.T) {
	frames := allFrames()
	var subjects []subject
	for link, of := range frames {
		of = of[:min(len(of), 700)]
		for i, head := range oracleHeads {
			for k, tail := range oracleTails {
				// Elsewhere than on Ethernet most heads are refused, whatever is behind them.
				if testing.Short() && (i+k)%10 != 0 || link != "EN10MB" && (i+k)%7 != 0 {
					continue
				}
				subjects = append(subjects, subject{link, head + tail, of})
			}
		}
	}
	report(t, judgeAll(subjects), false)
}

// Behind Geneve libpcap's verdict on what stands behind "or" depends on registers that are
// set only if it matches; so these are without.
func TestOracleOfHeadsBehindOrAndNot(t *testing.T) {
	frames := allFrames()["EN10MB"]
	frames = frames[:min(len(frames), 700)]
	var subjects []subject
	for _, join := range []string{"%sip or arp", "arp or %stcp", "not (%sip) and tcp", "(%sip or ip6) and port 80", "%snot ip and not arp", "tcp port 80 or (%sudp)"} {
		for _, head := range oracleHeads {
			if !strings.Contains(head, "geneve") {
				subjects = append(subjects, subject{"EN10MB", fmt.Sprintf(join, head), frames})
			}
		}
	}
	report(t, judgeAll(subjects), false)
}
