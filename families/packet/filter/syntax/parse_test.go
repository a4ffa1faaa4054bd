package syntax

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var own = Options{Fragments: true, Owners: true}

func mustParse(tb testing.TB, text string, o Options) Expr {
	tb.Helper()
	tree, err := Parse(text, o)
	require.NoError(tb, err, text)
	require.NotNil(tb, tree, text)
	return tree
}

func TestATreePrintsWhatTheFilterMeant(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"a value takes the words before the last", "tcp src port 80 or 443", "tcp src port 80 or tcp src port 443"},
		{"so does one after a long chain", "host a and port 1 or 2 and 3", "host a and port 1 or port 2 and port 3"},
		{"and those in parentheses", "port (80 or http or (443))", "port 80 or port http or port 443"},
		{"and those behind not", "port 80 and not 443", "port 80 and not port 443"},
		{"a head may stand before not", "port not 80", "not port 80"},
		{"a list in parentheses may follow a term", "port 80 and not (443 or 8080)", "port 80 and not (port 443 or port 8080)"},
		{"a term in parentheses leaves the words as they were", "udp port 1 and (tcp port 2) or 3", "udp port 1 and tcp port 2 or udp port 3"},
		{"a term in parentheses may have its own list", "port 1 and (host a or b) or 3", "port 1 and (host a or host b) or port 3"},
		{"and and or bind alike", "tcp or udp and ip", "tcp or udp and ip"},
		{"parentheses that change nothing go", "((tcp) or (udp)) and (ip)", "tcp or udp and ip"},
		{"those that change something stay", "tcp or (udp and ip)", "tcp or (udp and ip)"},
		{"not binds to what follows", "not tcp and not (udp or ip)", "not tcp and not (udp or ip)"},
		{"signs are words", "!tcp&&udp||ip", "not tcp and udp or ip"},
		{"both directions in any order", "dst or src host a and dst && src net b", "src or dst host a and src and dst net b"},
		{"a direction needs no kind", "src 10.0.0.1", "src 10.0.0.1"},
		{"synonyms have one name", "wlan host 1:2:3:4:5:6 and is-is and length=1", "ether host 01:02:03:04:05:06 and isis and len = 1"},
		{"nets", "net 10 or 10.1 or 10.0.0.0/8 or 10.1 mask 255.255 or ::/0", "net 10 or net 10.1 or net 10.0.0.0/8 or net 10.1 mask 255.255 or net ::/0"},
		{"escaped names stay so where they are words", `ip proto \tcp or host \foo or \uid`, `ip proto \tcp or host foo or host \uid`},
		{"numbers become decimal", "port 0x50 and ip[017]=0xff", "port 80 and ip[15] = 255"},
		{"DECnet addresses are numbers", "decnet src 1.300", "decnet src 1324"},
		{"primitives", "less 0x40 or greater 9 or byte 3&4 or inbound or outbound or ifindex 2", "less 64 or greater 9 or byte 3 & 4 or inbound or outbound or ifindex 2"},
		{"casts", "broadcast or ether multicast or ip6 multicast", "broadcast or ether multicast or ip6 multicast"},
		{"headers", "vlan (0x64) and mpls or pppoed or pppoes 7 or geneve 8 or vxlan ((9))", "vlan 100 and mpls or pppoed or pppoes 7 or geneve 8 or vxlan 9"},
		{"a header does not take what follows and", "vlan and 5 = 5", "vlan and 5 = 5"},
		{"LLC", `llc or llc I or llc \UI or llc rnr or llc rulenum`, "llc or llc i or llc ui or llc rnr or llc rnr"},
		{"relations", "1>2 or 3>=4 or 5=6 or 7==8 or 9!=1 or 2<3 or 4<=5", "1 > 2 or 3 >= 4 or 5 = 6 or 7 = 8 or 9 != 1 or 2 < 3 or 4 <= 5"},
		{"a number behind and may be arithmetic", "port 1 and 2 = 3 and not (4) + 5 > len", "port 1 and 2 = 3 and not 4 + 5 > len"},
		{"products bind before sums, these before shifts, & and |", "1|2&3<<4+5*6 = (((((1|2)&3)<<4)+5)*6)", "1 | 2 & 3 << 4 + 5 * 6 = ((((1 | 2) & 3) << 4) + 5) * 6"},
		{"operations go from the left", "1 - 2 - 3 = 1 -(2 - 3)", "1 - 2 - 3 = 1 - (2 - 3)"},
		{"minus binds first", "-1*2 = -(1*2) or --3 = 4", "-1 * 2 = -(1 * 2) or --3 = 4"},
		{"% and ^ take all to their right, as in libpcap", "1+2%3+4 = (1+2)%3^(5|6)", "1 + (2 % 3 + 4) = (1 + 2) % 3 ^ 5 | 6"},
		{"and do not when they are told", "1+(2%3)+4 = (-1)%2", "1 + (2 % 3) + 4 = (-1) % 2"},
		{"a minus before % takes all, too", "-1%2+3 = (-(1%2))+3", "-(1 % 2 + 3) = -(1 % 2) + 3"},
		{"loads", "tcp[tcpflags]&(tcp-syn|tcp-fin)!=0 and ip[6:2]&0x1fff=0", "tcp[13] & (2 | 1) != 0 and ip[6:2] & 8191 = 0"},
		{"a load's offset is computed", "ip[(ip[0]&0xf)<<2:4]=1", "ip[(ip[0] & 15) << 2:4] = 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.Equal(t, tc.want, mustParse(t, tc.text, Options{}).String())
			requireStable(t, mustParse(t, tc.text, Options{}), Options{})
		})
	}
}

func TestOurOwnWordsAreThereWhenTheyAreAllowed(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"uid 1000 or uid ann", "uid 1000 or uid ann"},
		{`uid \1000 and pid 0x7`, `uid \1000 and pid 7`},
		{"comm nginx and not comm 7z", "comm nginx and not comm 7z"},
		{`comm 0x10 or comm 1.2 or comm \host or comm \a&b`, `comm 0x10 or comm 1.2 or comm "host" or comm "a&b"`},
		{`unit ssh.service or unit \getty@tty1.service`, `unit ssh.service or unit "getty@tty1.service"`},
		{`comm "tmux: server" or comm "(sd-pam)" and unit "user@1000.service"`, `comm "tmux: server" or comm "(sd-pam)" and unit "user@1000.service"`},
		{`comm "nginx" or comm "80" or comm "a\"b" or unit "a\x2d\\b"`, `comm nginx or comm 80 or comm "a\"b" or unit "a\\x2d\\b"`},
		{"uid 0 or 1000 and not ann", "uid 0 or uid 1000 and not uid ann"},
		{`comm sh or "tmux: server" or (bash or 7z) or 0x7`, `comm sh or comm "tmux: server" or (comm bash or comm 7z) or comm 0x7`},
		{"pid 7 or 8 and (10) or 9 = len", "pid 7 or pid 8 and pid 10 or 9 = len"},
		{"unit not (a.slice or b.slice) and (uid 5 or 6) and c.slice", "not (unit a.slice or unit b.slice) and (uid 5 or uid 6) and unit c.slice"},
		{"port 80 and comm nginx or 81", "port 80 and comm nginx or comm 81"},
		{"udp port 40000 and fragments", "udp port 40000 and fragments"},
		{`host \unit or \fragments`, `host \unit or host \fragments`},
	} {
		tree := mustParse(t, tc.text, own)
		require.Equal(t, tc.want, tree.String())
		requireStable(t, tree, own)
	}
	require.Equal(t, `host \uid or host \fragments`, mustParse(t, "host uid or fragments", Options{}).String())
	for _, text := range []string{"uid 1000", "fragments"} {
		_, err := Parse(text, Options{})
		require.Error(t, err, text)
	}
}

// What has no value is nothing that others could take the words of.
func TestNoWordsGoOnFromFragments(t *testing.T) {
	_, err := Parse("fragments and 80", own)
	require.ErrorContains(t, err, "wants a word before it")
}

func TestAFilterOfNothingTakesAll(t *testing.T) {
	for _, text := range []string{"", " \t\r\n "} {
		tree, err := Parse(text, Options{})
		require.NoError(t, err)
		require.True(t, tree == nil)
	}
}

func TestTreesHaveTheirParts(t *testing.T) {
	ip := netip.MustParseAddr("2001:db8::")
	for text, want := range map[string]Expr{
		"tcp":                          &Protocol{1, TCP},
		" tcp dst portrange 6000-6008": &Match{2, TCP, Dst, PortRange, Name("6000-6008"), 20},
		"src or dst 10.0.0.1":          &Match{1, Any, SrcOrDst, AnyKind, IPv4{Addr: [4]byte{10, 0, 0, 1}, Parts: 4, Bits: -1}, 12},
		"ip6 net 2001:db8::/32":        &Match{1, IP6, AnyDir, Net, IPv6{ip, 32}, 9},
		"ip protochain 6":              &Match{1, IP, AnyDir, ProtoChain, Number(6), 15},
		"gateway r":                    &Match{1, Any, AnyDir, Gateway, Name("r"), 9},
		"link src $1f":                 &Match{1, Link, Src, AnyKind, ARCnet(0x1f), 10},
		"port 1 or 2":                  &Binary{1, Or, &Match{1, Any, AnyDir, Port, Number(1), 6}, &Match{11, Any, AnyDir, Port, Number(2), 11}},
		"tcp and not udp":              &Binary{1, And, &Protocol{1, TCP}, &Not{9, &Protocol{13, UDP}}},
		"ip[9] != -len":                &Relation{1, NotEqual, &Load{1, IP, &Constant{4, 9}, 1}, &Negate{10, &FrameLen{11}}},
		"uid ann":                      &Owner{1, UID, 0, "ann", 5},
		"uid 7 or (8)":                 &Binary{1, Or, &Owner{1, UID, 7, "", 5}, &Owner{11, UID, 8, "", 11}},
		`not comm "a \"\\ b\x"`:        &Not{1, &Owner{5, Comm, 0, `a "\ b\x`, 10}},
		"net 10.1 mask 255.255":        &Match{1, Any, AnyDir, Net, IPv4{[4]byte{10, 1}, 2, -1, &IPv4{[4]byte{255, 255}, 2, -1, nil}}, 5},
		"(  len + 1 > 2 )":             &Relation{4, Greater, &Operation{4, Add, &FrameLen{4}, &Constant{10, 1}}, &Constant{14, 2}},
		"(len)+1 > 2":                  &Relation{1, Greater, &Operation{2, Add, &FrameLen{2}, &Constant{7, 1}}, &Constant{11, 2}},
		"(tcp or udp) and (not ip)":    &Binary{1, And, &Binary{2, Or, &Protocol{2, TCP}, &Protocol{9, UDP}}, &Not{19, &Protocol{23, IP}}},
		"vlan 0":                       &Encap{1, VLAN, true, 0, 6},
		"geneve":                       &Encap{1, Geneve, false, 0, 0},
		"byte 1 | 2":                   &Byte{1, 1, ByteOr, 2},
		"ether host 00:1b:2:cc:d:ee":   &Match{1, Link, AnyDir, Host, MAC{0, 0x1b, 2, 0xcc, 0xd, 0xee}, 12},
		"greater 5":                    &Length{1, true, 5},
		"outbound":                     &Direction{1, true},
		"ether broadcast":              &Cast{1, Link, false},
		"ifindex 3":                    &Interface{1, 3},
		"llc xid":                      &LLC{1, "xid"},
		"fragments":                    &Fragments{1},
	} {
		require.Equal(t, want, mustParse(t, text, own), text)
	}
}

func TestAnErrorSaysWhereAndWhatShouldBeThere(t *testing.T) {
	for _, tc := range []struct {
		text     string
		column   int
		why      string
		expected string
	}{
		{"tcp port", 9, "the filter ends, and wants a port or a service name", "a port or a service name"},
		{"tcp port and udp", 10, `want a port or a service name, not the keyword "and"`, `a port or a service name or \and`},
		{"tcp port )", 10, `want a port or a service name, not ")"`, "a port or a service name"},
		{"ip proto tcp", 10, `want a protocol's number or name, not the keyword "tcp"`, `a protocol's number or name or \tcp`},
		{"host type", 6, `"type" is a word for link types that sockd cannot capture`, `\type where it is a name`},
		{"vpi 3", 1, `"vpi" is a word for link types that sockd cannot capture`, `\vpi where it is a name`},
		{"wlan addr1 host 1:2:3:4:5:6", 6, `"addr1" is a word for link types that sockd cannot capture`, `\addr1 where it is a name`},
		{"foo", 1, `"foo" wants a word before it, such as host, net or port`, "host, net or port"},
		{"TCP", 1, "the words of a filter have small letters: want tcp, not TCP", "tcp"},
		{"tcp and 80", 9, `"80" wants a word before it, such as host, net or port`, "host, net or port"},
		{"tcp and 10.0.0.1/8", 9, `"10.0.0.1" wants a word before it, such as host, net or port`, "host, net or port"},
		{"not 80", 5, "the number 80 wants a word before it, such as port, or a comparison behind it", "port 80"},
		{"80 or udp", 1, "the number 80 wants a word before it, such as port, or a comparison behind it", "port 80"},
		{"tcp[13] & 2", 12, "the filter ends, and wants a comparison: =, !=, >, <, >= or <=", "a comparison: =, !=, >, <, >= or <="},
		{"tcp[13] & 2 and ip", 13, `want a comparison: =, !=, >, <, >= or <=, not "and"`, "a comparison: =, !=, >, <, >= or <="},
		{"tcp[13", 7, `the filter ends, and wants an operation, ":" or "]"`, `an operation, ":" or "]"`},
		{"ip[0:3] = 1", 6, "want 1, 2 or 4 bytes, not 3", "1, 2 or 4"},
		{"(tcp or udp", 12, "the parenthesis of column 1 is not closed", ")"},
		{"1 = (2 + 3", 11, "the parenthesis of column 5 is not closed", ")"},
		{"tcp)", 4, "there is no parenthesis that this one closes", ""},
		{"tcp udp", 5, `want "and" or "or", not "udp"`, `"and" or "or"`},
		{"tcp and", 8, "the filter ends, and wants a word of a filter, such as host, port or tcp", "a word of a filter, such as host, port or tcp"},
		{"src or port 80", 8, `want "dst", not "port"`, `"dst"`},
		{`host "a"`, 6, "only names behind comm and unit stand in quotes", ""},
		{`comm sh and uid "a"`, 17, "only names behind comm and unit stand in quotes", ""},
		{`"a"`, 1, "only names behind comm and unit stand in quotes", ""},
		{`tcp "a"`, 5, "only names behind comm and unit stand in quotes", ""},
		{`comm "a`, 6, "the quotes are not closed", `"`},
		{`comm "a\"`, 6, "the quotes are not closed", `"`},
		{"comm \"a\nb\"", 6, "the quotes are not closed on their line", `"`},
		{`comm ""`, 6, "there is nothing in the quotes", `"NAME"`},
		{`comm 'a'`, 6, "a filter has no quotes, and here is '", ""},
		{`unit user@1000.service`, 10, `the name "user" would end here: one with other signs in it stands in quotes`, `unit "user@1000.service"`},
		{`(unit user\@1000.service)`, 11, `the name "user" would end here: one with other signs in it stands in quotes`, `unit "user@1000.service"`},
		{`unit a\x2db.mount`, 7, `the name "a" would end here: one with other signs in it stands in quotes`, `unit "a\\x2db.mount"`},
		{`comm 7@8`, 7, `the name "7" would end here: one with other signs in it stands in quotes`, `comm "7@8"`},
		{`comm tmux: server`, 10, `the name "tmux" would end here: one with other signs in it stands in quotes`, `comm "tmux:"`},
		{"comm sh or (sd-pam)", 12, "one name in parentheses: quotes make these a part of it", `comm "(sd-pam)"`},
		{"host a ; tcp", 8, "a filter has no ';'", ""},
		{"host é", 6, "a filter has no 'é'", ""},
		{"host \xff", 6, "a filter has no byte 0xff", ""},
		{"host a@b", 7, "a filter has no '@'", "a backslash before a name that has it or quotes around one of comm and unit"},
		{`host \`, 6, "there is no name behind the backslash", `\tcp`},
		{"host $g", 6, "want two hexadecimal digits behind $", "$1f"},
		{"port 4294967296", 6, "4294967296 does not fit into 32 bits", "4294967295 at most"},
		{"port 08", 6, "08 is octal for its leading 0, and has the digit 8", ""},
		{"port 65536", 6, "65536 is no port: 65535 is the last", "a number from 0 to 65535"},
		{"port 10.0.0.1", 6, `want a port or a service name, not "10.0.0.1"`, "a port or a service name"},
		{"net 10/8", 7, "a prefix length stands behind an address of two parts at least, such as 10.0.0.0/8", ""},
		{"net 10.0.0.0/33", 14, "a prefix has at most 32 bits", ""},
		{"net 10.0.0.1/8", 5, "10.0.0.1/8 has bits set that are not of its network", ""},
		{"net ::1/64", 5, "::1/64 has bits set that are not of its network", ""},
		{"host 10.0.0.0/8", 6, "only a net has a mask", "net 10.0.0.0/8"},
		{"host ::/8", 6, "only a net has a prefix length", "net ::/8"},
		{"net 10.0.0.0 mask 8", 19, `want a mask such as 255.255.255.0, not "8"`, "a mask such as 255.255.255.0"},
		{"host 1.2.3.256", 6, "1.2.3.256 is no IPv4 address: want parts from 0 to 255", ""},
		{"host ::1.2.3.256", 6, "::1.2.3.256 is no IPv6 address", ""},
		{"decnet host 64.1", 13, "64.1 is no DECnet address: want AREA.NODE, 63.1023 at most", ""},
		{"ether host 1:2:3", 12, "1:2:3 is no hardware address", "six pairs of hexadecimal digits"},
		{"ether host 1:2:3:4:", 12, "1:2:3:4: is no hardware address", "six pairs of hexadecimal digits"},
		{"host 1:2:3:4:5:6", 6, "a hardware address wants the word ether before it, not only host", "ether host 1:2:3:4:5:6"},
		{"gateway 5", 9, "want a host name, not 5", "a host name"},
		{"llc foo", 5, `want a type of LLC frame: i, s, u, rr, rnr, rej, ui, ua, disc, dm, sabme, test, xid or frmr, not "foo"`, "a type of LLC frame: i, s, u, rr, rnr, rej, ui, ua, disc, dm, sabme, test, xid or frmr"},
		{"less (5)", 6, `want a length in bytes, not "("`, "a length in bytes"},
		{"byte 1 ! 2", 8, `want =, <, >, & or |, not "!"`, "=, <, >, & or |"},
		{"vlan (tcp)", 7, `want vlan's number, not "tcp"`, "vlan's number"},
		{"pid nginx", 5, `want the number of a process, not "nginx"`, "the number of a process"},
		{"pid host", 5, `want the number of a process, not "host"`, "the number of a process"},
		{"comm host", 6, `want the name of a process, not the keyword "host"`, `the name of a process or \host`},
		{"port ((80 or 443) or 22)", 7, "values in parentheses cannot be the first of others in parentheses", "another value before it, or no parenthesis"},
		{"port 1 and (2 or tcp)", 18, `want a port or a service name, not the keyword "tcp"`, `a port or a service name or \tcp`},
	} {
		t.Run(tc.text, func(t *testing.T) {
			tree, err := Parse(tc.text, own)
			require.True(t, tree == nil)
			require.Equal(t, &Error{tc.text, tc.column, tc.why, tc.expected}, err)
		})
	}
}

func TestBoundsAreErrors(t *testing.T) {
	repeat := strings.Repeat
	for name, tc := range map[string]struct {
		text string
		why  string
	}{
		"a long text":                     {"tcp" + repeat(" ", maxText), "longer than 65536 bytes"},
		"a text that its words make long": {"isis src and dst portrange 1" + repeat("||1", 20000), "its implied words written out"},
		"parentheses":                     {repeat("(", 1000) + "tcp" + repeat(")", 1000), "more than 200 levels deep"},
		"parentheses that never close":    {repeat("(", maxText), "more than 200 levels deep"},
		"parentheses of a list":           {"port " + repeat("(", 1000) + "80", "more than 200 levels deep"},
		"parentheses of a number":         {"vlan " + repeat("(", 1000) + "80", "more than 200 levels deep"},
		"nots":                            {repeat("!", maxText-3) + "tcp", "more than 200 levels deep"},
		"minuses":                         {"1 = " + repeat("-", 1000) + "1", "more than 200 levels deep"},
		"indices":                         {repeat("ip[", 1000), "more than 200 levels deep"},
		"remainders":                      {"1" + repeat("%1", 1000), "more than 200 levels deep"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.text, Options{})
			require.ErrorContains(t, err, tc.why)
		})
	}
	for _, text := range []string{
		repeat("(", 200) + "tcp" + repeat(")", 200),
		repeat("!", 200) + "tcp",
		"port 1" + repeat(" or 1", 4000),
		"0" + repeat("+1", 15000) + "=1",
		"0" + repeat("+(1%2)", 5000) + "=1",
		"0" + repeat("%1+2", 60) + "=1",
	} {
		requireStable(t, mustParse(t, text, Options{}), Options{})
	}
}

// A filter at the bound prints as one that is within it: printing adds no level.
func TestTheDeepestFiltersPrintToo(t *testing.T) {
	for _, unit := range [][3]string{
		{"(", "tcp", ")"}, {"!", "tcp", ""}, {"(not(", "tcp or udp", ")or ip)"}, {"tcp or (", "udp", ")"},
		{"-", "1", "=1"}, {"1%", "1", "=1"}, {"1+2%", "1", "=1"}, {"-1^2*", "1", "=1"}, {"1-(2*", "1", ")=1"}, {"1-(-", "1", ")=1"}, {"ip[1+", "1", "]=1"}, {"(1%2)+(3*", "4", ")=1"},
	} {
		deepest := Expr(nil)
		for n := 1; ; n++ {
			end := unit[2]
			if i := strings.Index(end, "="); i >= 0 {
				end = strings.Repeat(end[:i], n) + end[i:]
			} else {
				end = strings.Repeat(end, n)
			}
			tree, err := Parse(strings.Repeat(unit[0], n)+unit[1]+end, Options{})
			if err != nil {
				require.ErrorContains(t, err, "levels deep", unit)
				break
			}
			deepest = tree
		}
		require.NotNil(t, deepest, unit)
		requireStable(t, deepest, Options{})
	}
}

// requireStable: what a tree prints as parses to an equal tree.
func requireStable(tb testing.TB, tree Expr, o Options) {
	tb.Helper()
	text := tree.String()
	again, err := Parse(text, o)
	require.NoError(tb, err, text)
	require.Equal(tb, text, again.String())
	require.True(tb, equal(reflect.ValueOf(tree), reflect.ValueOf(again)), text)
}

// equal compares trees, but not their columns.
func equal(a, b reflect.Value) bool {
	if a.Kind() == reflect.Interface || a.Kind() == reflect.Pointer {
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return a.Elem().Type() == b.Elem().Type() && equal(a.Elem(), b.Elem())
	}
	switch a.Interface().(type) {
	case At, ArithAt:
		return true
	case netip.Addr:
		return a.Interface() == b.Interface()
	}
	if a.Kind() != reflect.Struct {
		return a.Interface() == b.Interface()
	}
	for i := range a.NumField() {
		if !equal(a.Field(i), b.Field(i)) {
			return false
		}
	}
	return true
}

// What parses prints back and parses to an equal tree; all else is an error with its
// column. Words that end a name or a group are where parsers go wrong.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "tcp port 80 or 443", "port (80 or not 443) and not (udp or 53)", "1+2%3^4|-5<<len = ip[ip[0]&15:2]",
		"net 10.0.0.0/8 or 10.1 mask 255.255 or ::1/128", `proto \tcp or \a]b or \`, "decnet src 1.2 and not net 1.2/16",
		"vlan(1)and mpls or pppoes 3&&geneve||vxlan 4", "llc rnr or llc I", "ether host 1:2:3:4:5:6 or 1.2.3.4.5.6 or aabbccddeeff",
		`comm "a b" or "c\"\\" or d or 5 and (6 or "7") or unit "\x2d" and uid 1 or (2) or a`, `comm a@b or "`, "comm \\a\rb",
		"uid 1 or uid a or pid 2 or comm \\a@b or unit x.y and fragments", "byte 1&2 and less 3 and greater 4 and ifindex 5",
		"src or dst host a and dst && src net b", "port 1 and ((2)) and ((2)+3=4) or ((host b))", "((((((", "!!!!tcp", "type mgt", "$1 $f", "8=08",
		"-1%2 = (-(1%2))", "(1%2)+3 = 1*(2%3)-(4%5|6)", "0x7f.1 1.2.3.4.5 ::1.2.3.4 1:2:",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tree, err := Parse(text, own)
		if err == nil {
			if tree != nil {
				requireStable(t, tree, own)
			}
			return
		}
		e, ok := err.(*Error)
		require.True(t, ok)
		require.True(t, tree == nil)
		require.NotEmpty(t, e.Why)
		require.Equal(t, text, e.Text)
		require.True(t, e.Column >= 1 && e.Column <= len(text)+1, "column %d of %q", e.Column, text)
	})
}

// A compiler that a daemon runs for others must not be slow on purpose of theirs.
func TestAParseAllocatesInProportion(t *testing.T) {
	for name, unit := range map[string]string{
		"values": " or 1", "colons": "1::::::", "digits": "1", "pairs": "1:1", "dots": "1.", "hyphens": "a-", "letters": "a", "groups": ":1", "double colons": "::", "escapes": `\\`,
	} {
		text := "port 1" + strings.Repeat(unit, (maxText-6)/len(unit))
		allocs := testing.AllocsPerRun(1, func() { _, _ = Parse(text, Options{}) })
		require.Less(t, allocs, 10.0*float64(maxText), name)
	}
}

func BenchmarkParse(b *testing.B) {
	for _, text := range []string{"tcp port 80", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src and dst net 10.0.0.0/8"} {
		b.Run(strings.Fields(text)[0], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = Parse(text, Options{})
			}
		})
	}
}
