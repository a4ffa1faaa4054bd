package filter_test

import (
	"testing"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/stretchr/testify/require"
)

// cutOff: libpcap's optimiser asks for both sources before it loads a destination, and takes a
// frame from the second that is cut off before that. Its plain program, and the text, reject it, and so do
// ours, in which one load more is left.
const cutOff = "a frame that is cut off gets its plain verdict"

// commonFilters are what people type, for Ethernet. longer: why ours has more instructions
// than libpcap's.
var commonFilters = []struct{ text, longer string }{
	{text: "ip"},
	{text: "arp"},
	{text: "not arp"},
	{text: "ip6"},
	{text: "icmp"},
	{text: "icmp6"},
	{text: "tcp"},
	{text: "udp"},
	{text: "host 10.0.0.1"},
	{text: "src host 10.0.0.1 and dst host 10.0.0.2"},
	{text: "host 10.0.0.1 or host 10.0.0.2", longer: cutOff},
	{text: "host 2001:db8::1"},
	{text: "net 10.0.0.0/8"},
	{text: "ip6 net 2001:db8::/32"},
	{text: "ether host 02:00:00:00:00:01"},
	{text: "ether multicast"},
	{text: "port 53"},
	{text: "tcp port 80"},
	{text: "tcp port 80 or tcp port 443", longer: cutOff},
	{text: "not port 22"},
	{text: "udp portrange 6000-6010"},
	{text: "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0"},
	{text: "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420"},
	{text: "tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)"},
	{text: "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply"},
	{text: "ip[6:2] & 0x1fff != 0"},
	{text: "host 10.0.0.1 and not port 22 and not arp"},
	{text: "vlan 100 and tcp port 80"},
	{text: "greater 1000 and udp"},
	{text: "(tcp or udp) and host 10.0.0.1 and port 53"},
	{text: "udp port 67 or udp port 68 or arp", longer: cutOff},
}

// TestSizes compares the lengths of programs: ours are no longer than libpcap's.
func TestSizes(t *testing.T) {
	for _, f := range commonFilters {
		theirs, refused, err := tcpdumpCompile("EN10MB", f.text, false)
		require.NoError(t, err)
		require.Empty(t, refused, f.text)
		ours, err := filter.Compile(f.text, filter.Ethernet)
		require.NoError(t, err, f.text)
		t.Logf("%3d ours %3d libpcap's  %s", ours.Len(), len(theirs), f.text)
		switch longer := ours.Len() > len(theirs); {
		case longer && f.longer == "":
			t.Errorf("%q has %d instructions, libpcap's %d", f.text, ours.Len(), len(theirs))
		case !longer && f.longer != "":
			t.Errorf("%q is no longer than libpcap's any more: take its reason away", f.text)
		}
	}
}

// thirty is a filter of about 30 instructions.
const thirty = "(tcp or udp) and (host 10.0.0.1 or host 10.0.0.2) and (port 53 or port 443) and not net 192.168.0.0/16"

func BenchmarkMatch(b *testing.B) {
	web := joined(make([]byte, 12), u16(kindIPv4), []byte{0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, u16(40000), u16(443), make([]byte, 30))
	for _, bm := range []struct {
		name, text string
		takes      bool
	}{
		{"tcp port 80", "tcp port 80", false},
		{"30 instructions", thirty, true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			p, err := filter.Compile(bm.text, filter.Ethernet)
			require.NoError(b, err)
			require.Equal(b, bm.takes, p.Match(web, len(web)))
			b.ReportAllocs()
			b.ReportMetric(float64(p.Len()), "instructions")
			for b.Loop() {
				p.Match(web, len(web))
			}
		})
		b.Run(bm.name+", of a packet", func(b *testing.B) {
			p, err := filter.Compile(bm.text, filter.Ethernet)
			require.NoError(b, err)
			packet := filter.Packet{Data: web, Length: len(web), Interface: 2, Direction: filter.In, Owner: &filter.Owner{}}
			require.Equal(b, bm.takes, p.MatchPacket(&packet))
			b.ReportAllocs()
			for b.Loop() {
				p.MatchPacket(&packet)
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, text := range []string{"tcp port 80", thirty} {
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := filter.Compile(text, filter.Ethernet); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
