package filter_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/stretchr/testify/require"
)

func TestErrorsNameTheWordAndWhatWouldBeRight(t *testing.T) {
	rows := []struct {
		text   string
		link   filter.LinkType
		column int
		why    string // a part of it
	}{
		{"tcp host 10.0.0.1", filter.Ethernet, 1, "no IPv4 address"},
		{"ip and (udp or tcp net 10.0.0.0/8)", filter.Ethernet, 16, "no IPv4 address"},
		{"ip and ip6 host 10.0.0.1", filter.Ethernet, 8, "no IPv4 address"},
		{"ip host ::1", filter.Ethernet, 1, "no IPv6 address"},
		{"tcp and icmp port 80", filter.Ethernet, 9, "no ports"},
		{"ip port 80", filter.Ethernet, 1, "no ports"},
		{"port 65536", filter.Ethernet, 6, "65536"},
		{"portrange 1-65536", filter.Ethernet, 11, "65536 is no port"},
		{"tcp or port no-such-service", filter.Ethernet, 13, "no-such-service"},
		{"port 1 or no-such-service", filter.Ethernet, 11, "no-such-service"},
		{"portrange 1-foo", filter.Ethernet, 11, `port "foo"`},
		{"tcp port 80 or 81-90", filter.Ethernet, 16, `port "81-90"`},
		{"ip and portrange foo", filter.Ethernet, 18, "no range"},
		{"ether host foo", filter.Ethernet, 12, "unknown ether host"},
		{"ip host no-such-host", filter.Ethernet, 9, "no-such-host"},
		{"proto foo", filter.Ethernet, 7, "unknown protocol"},
		{"ip and vlan (5000)", filter.Ethernet, 14, "VLAN 5000"},
		{"icmp proto 4", filter.Ethernet, 1, "no field that names another"},
		{`ip proto \no-such-protocol`, filter.Ethernet, 10, "unknown protocol"},
		{`ether proto \tcp`, filter.Ethernet, 13, "unknown protocol"},
		{`iso proto \ip`, filter.Ethernet, 11, "unknown protocol"},
		{`tcp proto \udp`, filter.Ethernet, 11, "unknown protocol"},
		{"radio", filter.Ethernet, 1, "stands alone"},
		{"ip or ether", filter.Ethernet, 0, ""}, // the parser's
		{"arp or gateway router", filter.Ethernet, 8, "gateway"},
		{"ether host $1f", filter.Ethernet, 12, "ARCnet"},
		{"ip and ether host 02:00:00:00:00:01", filter.Raw, 8, "no Ethernet addresses"},
		{"pppoes and ether host 02:00:00:00:00:01", filter.Ethernet, 12, "no Ethernet addresses"},
		{"mpls and arp", filter.Ethernet, 10, "MPLS labels do not tell"},
		{"decnet host router", filter.Ethernet, 13, "cannot be looked up"},
		{"net no-such-net", filter.Ethernet, 5, "unknown net"},
		{"ip", filter.LinkType(147), 1, "link type 147"},
		{"", filter.LinkType(147), 1, "link type 147"},
	}
	for _, r := range rows {
		p, err := filter.Compile(r.text, r.link)
		require.Nil(t, p, r.text)
		var wrong *filter.Error
		require.ErrorAs(t, err, &wrong, r.text)
		require.Equal(t, r.text, wrong.Text)
		if r.column == 0 {
			require.Positive(t, wrong.Column, r.text)
			continue
		}
		require.Equal(t, r.column, wrong.Column, "%s: %v", r.text, err)
		require.Contains(t, wrong.Why, r.why, r.text)
	}
}

func TestAFilterThatNothingPassesIsAnErrorAtTheWordThatMakesItSo(t *testing.T) {
	rows := []struct {
		text   string
		link   filter.LinkType
		column int
	}{
		{"ip and arp", filter.Ethernet, 8},
		{"ip and tcp and ip6", filter.Ethernet, 16},
		{"ip and arp and ip6 and tcp", filter.Ethernet, 8},
		{"tcp and (arp or rarp)", filter.Ethernet, 10},
		{"tcp and (port 80 and arp)", filter.Ethernet, 22},
		{"(ip and arp) or (ip6 and arp)", filter.Ethernet, 9},
		{"(ip or ip6) and arp", filter.Ethernet, 17},
		{"ip and not ip", filter.Ethernet, 8},
		{"not (ip or not ip)", filter.Ethernet, 1},
		{"arp", filter.Raw, 1},
		{"ip6 and tcp", filter.IPv4, 1},
		{"tcp and stp", filter.Null, 9},
		{"tcp and ip6 proto 17", filter.Null, 9},
		{"(less 60 and host ff02::1 or tcp) && moprc", filter.Ethernet, 38},
		{"0 = len || port 80 and 443 && mopdl", filter.Ethernet, 31},
		{`not !ip6[2] & 0xf = 5 || udp and port 80 or 443 && ip6 proto \ah`, filter.Ethernet, 52},
	}
	for _, r := range rows {
		_, err := filter.Compile(r.text, r.link)
		var wrong *filter.Error
		require.ErrorAs(t, err, &wrong, r.text)
		require.Equal(t, r.column, wrong.Column, "%s: %v", r.text, err)
		require.Contains(t, wrong.Why, "rejects all packets", r.text)

		_, err = filter.Options{Plain: true}.Compile(r.text, r.link)
		require.NoError(t, err, "without the optimiser nobody knows: %s", r.text)
	}
}

// frameOf is a frame of Ethernet from 02:00:00:00:00:02 to 02:00:00:00:00:01.
func frameOf(kind int, payload ...byte) []byte {
	return joined([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, u16(kind), payload)
}

// over4 is a packet of IPv4 without options.
func over4(src, dst string, proto byte, payload ...byte) []byte {
	header := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 1, 0, 0, 64, proto, 0, 0}
	return joined(header, netip.MustParseAddr(src).AsSlice(), netip.MustParseAddr(dst).AsSlice(), payload)
}

// over6 is a packet of IPv6 without extensions.
func over6(src, dst string, next byte, payload ...byte) []byte {
	header := []byte{0x60, 0, 0, 0, 0, byte(len(payload)), next, 64}
	return joined(header, netip.MustParseAddr(src).AsSlice(), netip.MustParseAddr(dst).AsSlice(), payload)
}

// segment is a TCP or UDP header's ports, and some more.
func segment(src, dst int) []byte { return joined(u16(src), u16(dst), make([]byte, 16)) }

func takes(t *testing.T, o filter.Options, text string, frame []byte) bool {
	t.Helper()
	p, err := o.Compile(text, filter.Ethernet)
	require.NoError(t, err, text)
	return p.Match(frame, len(frame))
}

// phoneBook is names for tests.
var phoneBook = filter.Names{
	Host: func(name string) ([]netip.Addr, error) {
		book := map[string][]netip.Addr{
			"both":  {netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("10.0.0.8")},
			"only6": {netip.MustParseAddr("2001:db8::6")},
		}
		if addrs, ok := book[name]; ok {
			return addrs, nil
		}
		return nil, errors.New("no such host")
	},
	Net: func(name string) (uint32, bool) { return 10<<8 | 9, name == "lab" },
	Port: func(name string) (uint16, string, error) {
		switch name {
		case "web":
			return 80, "", nil
		case "news":
			return 119, "udp", nil
		}
		return 0, "", errors.New("no such service")
	},
	Protocol: func(name string) (uint8, bool) { return 17, name == "datagrams" },
	Ether:    func(name string) ([6]byte, bool) { return [6]byte{2, 0, 0, 0, 0, 2}, name == "laptop" },
}

func TestNamesAreLookedUp(t *testing.T) {
	from7 := frameOf(0x800, over4("10.0.0.7", "10.9.0.1", 6, segment(5000, 80)...)...)
	from8 := frameOf(0x800, over4("10.0.0.8", "10.8.0.1", 17, segment(5000, 119)...)...)
	from9 := frameOf(0x800, over4("10.0.0.9", "10.8.0.1", 6, segment(5000, 100)...)...)
	six := frameOf(0x86dd, over6("2001:db8::7", "2001:db8::6", 17, segment(5000, 80)...)...)
	rows := []struct {
		text                     string
		seven, eight, nine, six6 bool
	}{
		{"host both", true, true, false, true},
		{"src both", true, true, false, true},
		{"dst host both", false, false, false, false},
		{"ip host both", true, true, false, false},
		{"ip6 host both", false, false, false, true},
		{"not host both", false, false, true, false},
		{"dst host only6", false, false, false, true},
		{"net lab", true, false, false, false},
		{"port web", true, false, false, true},
		{"tcp port web", true, false, false, false},
		{"port news", false, true, false, false},
		{"udp dst port news", false, true, false, false},
		{"portrange web-news", true, true, true, true},
		{"portrange news-81", false, true, true, false},
		{`ip proto \datagrams`, false, true, false, false},
		{`proto \datagrams`, false, true, false, true},
		{"ether host laptop", true, true, true, true},
		{"ether dst laptop", false, false, false, false},
	}
	for _, r := range rows {
		o := filter.Options{Names: phoneBook}
		got := []bool{takes(t, o, r.text, from7), takes(t, o, r.text, from8), takes(t, o, r.text, from9), takes(t, o, r.text, six)}
		require.Equal(t, []bool{r.seven, r.eight, r.nine, r.six6}, got, r.text)
	}
}

func TestNamesThatDoNotFitAreRefused(t *testing.T) {
	rows := map[string]string{
		"ip host only6":       "no address of that protocol",
		"arp host only6":      "no address of that protocol",
		"host nobody":         "no such host",
		"tcp host both":       "no IPv4 address",
		"tcp port news":       "is of udp",
		"sctp port news":      "is of udp",
		"tcp portrange web-x": "no such service",
		"net web":             "unknown net",
		"ether host desktop":  "unknown ether host",
	}
	for text, why := range rows {
		_, err := filter.Options{Names: phoneBook}.Compile(text, filter.Ethernet)
		require.ErrorContains(t, err, why, text)
	}
}

func TestATagReachesWhatIsAndedToIt(t *testing.T) {
	web := over4("10.0.0.1", "10.0.0.2", 6, segment(5000, 80)...)
	plain := frameOf(0x800, web...)
	tagged := frameOf(0x8100, joined([]byte{0, 100, 8, 0}, web)...)
	rows := []struct {
		text                   string
		plain, tagged          bool
		plainTextual, tTextual bool
	}{
		{"vlan and tcp port 80", false, true, false, true},
		{"tcp port 80 or vlan", true, true, true, true},
		{"vlan or tcp port 80", true, true, false, true},
		{"not vlan and ip", true, false, false, false},
		{"(vlan 100 or ip) and tcp port 80", true, true, false, true},
		{"not (vlan and tcp) and tcp", true, false, false, false},
	}
	for _, r := range rows {
		require.Equal(t, []bool{r.plain, r.tagged}, []bool{takes(t, filter.Options{}, r.text, plain), takes(t, filter.Options{}, r.text, tagged)}, r.text)
		o := filter.Options{Textual: true}
		require.Equal(t, []bool{r.plainTextual, r.tTextual}, []bool{takes(t, o, r.text, plain), takes(t, o, r.text, tagged)}, "libpcap's %s", r.text)
	}
}

// A file of BSD loopback does not say on which system it was written, and each has
// another number for IPv6.
func TestLoopbacksOfAllSystemsHaveIPv6(t *testing.T) {
	p, err := filter.Compile("ip6 and udp", filter.Loop)
	require.NoError(t, err)
	packet := over6("::1", "::1", 17, segment(1, 2)...)
	for family, want := range map[uint32]bool{10: true, 24: true, 28: true, 30: true, 2: false, 23: false} {
		frame := joined(u32(family), packet)
		require.Equal(t, want, p.Match(frame, len(frame)), "family %d", family)
	}
}

func TestNilProgramTakesAll(t *testing.T) {
	var p *filter.Program
	require.True(t, p.Match(nil, 0))
	require.True(t, p.MatchPacket(&filter.Packet{}))
	require.Empty(t, p.String())
	require.Nil(t, p.Tree())
	require.False(t, p.Fragments())
	require.Nil(t, p.Kernel())
	var out strings.Builder
	require.NoError(t, p.List(&out, filter.ListDecimal))
	require.Equal(t, "1\n6 0 0 262144\n", out.String())
	require.Equal(t, 1, p.Len())
}

func TestBlankTextTakesAll(t *testing.T) {
	p, err := filter.Compile(" \n", filter.LinuxSLL)
	require.NoError(t, err)
	require.Empty(t, p.String())
	require.Nil(t, p.Tree())
	require.True(t, p.Match(nil, 0))
}

func TestProgramPrintsItsText(t *testing.T) {
	p, err := filter.Compile("  tcp port 80 or 443 ", filter.Ethernet)
	require.NoError(t, err)
	require.Equal(t, "tcp port 80 or 443", p.String())
	require.Equal(t, "tcp port 80 or tcp port 443", p.Tree().String())
}

func TestTheKernelJudgesOnlyHeadersThatItHas(t *testing.T) {
	rows := []struct {
		link   filter.LinkType
		mixed  bool
		judges bool
	}{
		{filter.Ethernet, false, true},
		{filter.Ethernet, true, true},
		{filter.Raw, false, true},
		{filter.Raw, true, false},
		{filter.LinuxSLL, false, false},
		{filter.LinuxSLL2, false, false},
		{filter.Null, false, false},
	}
	for _, r := range rows {
		p, err := filter.Compile("udp port 53", r.link)
		require.NoError(t, err)
		require.Equal(t, r.judges, filter.Union([]*filter.Program{p}, filter.Scope{Mixed: r.mixed}) != nil, "link type %d, mixed %v", r.link, r.mixed)
	}
}

func TestOneThatTakesAllOrOfAnotherLinkTypeMakesAUnionTakeAll(t *testing.T) {
	dns, err := filter.Compile("udp port 53", filter.Ethernet)
	require.NoError(t, err)
	raw, err := filter.Compile("udp port 53", filter.Raw)
	require.NoError(t, err)
	require.NotNil(t, filter.Union([]*filter.Program{dns}, filter.Scope{}))
	require.Nil(t, filter.Union([]*filter.Program{dns, nil}, filter.Scope{}))
	require.Nil(t, filter.Union([]*filter.Program{nil, dns}, filter.Scope{}))
	require.Nil(t, filter.Union([]*filter.Program{dns, raw}, filter.Scope{}))
	require.Len(t, filter.Union(nil, filter.Scope{}), 1)
}

func TestWhatGrowsIsRefused(t *testing.T) {
	hosts := make([]string, 4000)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("10.1.%d.%d", i/256, i%256)
	}
	rows := map[string]string{
		"tunnels in tunnels": strings.Repeat("geneve and ", 2000) + "ip",
		"thousands of hosts": "host " + strings.Join(hosts, " or "),
	}
	for name, text := range rows {
		_, err := filter.Compile(text, filter.Ethernet)
		var wrong *filter.Error
		require.ErrorAs(t, err, &wrong, name)
		require.Positive(t, wrong.Column, name)
	}
}

func TestWordsAboutOwnersTakeAnyNameInQuotes(t *testing.T) {
	rows := []struct {
		text  string
		owner filter.Owner
	}{
		{`comm "tmux: server"`, filter.Owner{Comm: "tmux: server"}},
		{`comm sh or "(sd-pam)" or bash`, filter.Owner{Comm: "(sd-pam)"}},
		{`unit ssh.service or "user@1000.service"`, filter.Owner{Unit: "user@1000.service"}},
		{`unit "snap-core\x2d18.mount"`, filter.Owner{Unit: `snap-core\x2d18.mount`}},
		{"uid 0 or 1000", filter.Owner{UID: 1000, KnownUID: true}},
		{"pid (7 or 8) and arp", filter.Owner{PID: 8, KnownPID: true}},
	}
	arp := frameOf(0x806)
	for _, r := range rows {
		p, err := filter.Options{Owners: true}.Compile(r.text, filter.Ethernet)
		require.NoError(t, err, r.text)
		require.True(t, p.MatchPacket(&filter.Packet{Data: arp, Length: len(arp), Owner: &r.owner}), r.text)
		other := filter.Owner{Comm: "other", Unit: "other", UID: 5, PID: 5, KnownUID: true, KnownPID: true}
		require.False(t, p.MatchPacket(&filter.Packet{Data: arp, Length: len(arp), Owner: &other}), r.text)
	}
	_, err := filter.Options{Owners: true}.Compile("udp and uid no-such-user", filter.Ethernet)
	require.EqualError(t, err, `column 13: unknown user "no-such-user"`)
}

// docs/filter.md says how much there is room for, and TestWhatGrowsIsRefused that there is an end.
func TestThereIsRoomForWhatTheDocumentsPromise(t *testing.T) {
	for _, r := range []struct {
		count int
		first string
		next  func(i int) string
	}{
		{700, "port", func(i int) string { return fmt.Sprint(2*i + 1) }}, // neighbours would be a range
		{800, "host", func(i int) string { return fmt.Sprintf("10.0.%d.%d", 2*i/256, 2*i%256) }},
		{1000, "host", func(i int) string { return fmt.Sprintf("2001:db8::%x", 2*i+1) }},
		{2300, "", func(i int) string { return fmt.Sprintf("vlan %d", i) }},
	} {
		all := make([]string, r.count)
		for i := range all {
			all[i] = r.next(i)
		}
		_, err := filter.Compile(r.first+" "+strings.Join(all, " or "), filter.Ethernet)
		require.NoError(t, err, "%d times %s %s", r.count, r.first, all[0])
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	frame := frameOf(0x800, over4("10.0.0.1", "10.0.0.2", 6, segment(5000, 80)...)...)
	p, err := filter.Options{Owners: true}.Compile("tcp port 80 and inbound and uid 1000", filter.Ethernet)
	require.NoError(t, err)
	packet := filter.Packet{Data: frame, Length: len(frame), Direction: filter.In, Owner: &filter.Owner{UID: 1000, KnownUID: true}}
	require.True(t, p.MatchPacket(&packet))
	require.False(t, p.Match(frame, len(frame)), "Match knows no owner")
	require.Zero(t, testing.AllocsPerRun(100, func() { p.MatchPacket(&packet) }))
	require.Zero(t, testing.AllocsPerRun(100, func() { p.Match(frame, len(frame)) }))
}

// No text makes the compiler panic or go on without end. What it takes prints back as a text
// that compiles to the same program.
func FuzzCompile(f *testing.F) {
	for _, text := range []string{
		"", "tcp port 80 or 443", "vlan and not (mpls or pppoes) and host 10.0.0.1", "geneve and ip6 net 2001:db8::/32",
		"ip[2:2] - ip[0] & 0xf << 2 > 40 and not arp", "ether proto 0xe0 or isis or decnet host 1.5", "vxlan 7 and ip protochain 6", "llc ui and stp",
	} {
		f.Add(text, uint16(filter.Ethernet))
		f.Add(text, uint16(filter.LinuxSLL))
		f.Add(text, uint16(filter.Raw))
	}
	f.Fuzz(func(t *testing.T, text string, link uint16) {
		o := filter.Options{Names: phoneBook, Netmask: 0xffffff00}
		p, err := o.Compile(text, filter.LinkType(link))
		if err != nil {
			var wrong *filter.Error
			require.ErrorAs(t, err, &wrong)
			require.Positive(t, wrong.Column)
			require.Nil(t, p)
			return
		}
		if p.Tree() == nil {
			return
		}
		again, err := o.Compile(p.Tree().String(), filter.LinkType(link))
		require.NoError(t, err, "%q printed as %q", text, p.Tree())
		require.Equal(t, listing(t, p), listing(t, again), "%q printed as %q", text, p.Tree())
	})
}

func listing(t *testing.T, p *filter.Program) string {
	t.Helper()
	var out strings.Builder
	require.NoError(t, p.List(&out, filter.ListText))
	return out.String()
}
