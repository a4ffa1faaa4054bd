package filter_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// The small pools that both expressions and frames are drawn from, so that the one
// often speak of the other.
var (
	poolIPv4 = []string{
		"10.0.0.1", "10.0.0.2", "10.1.2.3", "192.168.7.9", "172.16.5.4", "127.0.0.1", "224.0.0.251",
		"255.255.255.255", "0.0.0.0", "192.168.255.1", "10.0.0.255",
	}
	poolIPv6 = []string{
		"fe80::1", "fe80::2", "2001:db8::1", "2001:db8:5::2", "ff02::fb", "ff02::1", "::1", "::",
		"::ffff:10.0.0.1", "2001:db8:0:1:2:3:4:5",
	}
	poolMAC = []string{
		"02:00:00:00:00:01", "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb",
		"33:33:00:00:00:01", "01:80:c2:00:00:00", "08:00:27:aa:bb:cc",
	}
	poolPort      = []int{0, 1, 7, 22, 53, 80, 443, 5353, 6081, 4789, 8080, 40000, 65534, 65535}
	poolIPProto   = []int{0, 1, 2, 4, 6, 9, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 88, 89, 103, 112, 132, 135, 255}
	poolEtherType = []int{
		0x0800, 0x0806, 0x8035, 0x86dd, 0x8100, 0x88a8, 0x9100, 0x8847, 0x8848, 0x8863, 0x8864, 0x809b, 0x80f3,
		0x6000, 0x6001, 0x6002, 0x6003, 0x6004, 0x6007, 0x8137, 0x88cc, 0x9000, 0x6558, 0x88b5, 0x05dc, 0x05dd, 0x0600, 4, 1,
	}
	poolSAP    = []int{0x42, 0xfe, 0xf0, 0xe0, 0xaa, 0xff, 0x06, 0x04, 0x00, 0x01}
	poolVLAN   = []int{0, 1, 5, 100, 4095}
	poolLabel  = []int{0, 3, 16, 1000, 0xfffff}
	poolVNI    = []int{0, 7, 100, 0xffffff}
	poolIndex  = []int{0, 1, 2, 3, 7}
	poolISIS   = []int{15, 16, 17, 18, 20, 24, 25, 26, 27}
	poolOSI    = []int{0x81, 0x82, 0x83, 0}
	poolDECnet = []string{"1.2", "10.5", "63.1023"}
	poolLength = []int{0, 14, 20, 42, 60, 64, 100, 128, 1500, 1514}
)

// The words of pcap-filter(7), by what they are for.
var (
	wordsProto = []string{
		"ether", "link", "ppp", "slip", "fddi", "tr", "wlan", "arp", "rarp", "ip", "sctp", "tcp", "udp", "icmp", "igmp",
		"igrp", "pim", "vrrp", "carp", "radio", "ip6", "icmp6", "ah", "esp", "atalk", "aarp", "decnet", "lat", "sca",
		"moprc", "mopdl", "iso", "esis", "es-is", "isis", "is-is", "l1", "l2", "iih", "lsp", "snp", "csnp", "psnp", "clnp",
		"stp", "ipx", "netbeui",
	}
	wordsDir = []string{
		"src", "dst", "src or dst", "dst or src", "src and dst", "dst and src", "src || dst", "dst && src",
		"addr1", "address2", "addr3", "addr4", "ra", "ta",
	}
	wordsKind = []string{"host", "net", "port", "portrange", "proto", "protochain", "gateway"}
	wordsLLC  = []string{
		"", "i", "s", "u", "rr", "rnr", "rej", "ui", "ua", "disc", "dm", "sabme", "test", "xid", "frmr", "I", "UI", "nonsense",
	}
	wordsNumber = []string{
		"icmptype", "icmpcode", "icmp-echoreply", "icmp-unreach", "icmp-sourcequench", "icmp-redirect", "icmp-echo",
		"icmp-routeradvert", "icmp-routersolicit", "icmp-timxceed", "icmp-paramprob", "icmp-tstamp", "icmp-tstampreply",
		"icmp-ireq", "icmp-ireqreply", "icmp-maskreq", "icmp-maskreply", "icmp6type", "icmp6code",
		"icmp6-destinationunreach", "icmp6-packettoobig", "icmp6-timeexceeded", "icmp6-parameterproblem", "icmp6-echo",
		"icmp6-echoreply", "icmp6-multicastlistenerquery", "icmp6-multicastlistenerreportv1",
		"icmp6-multicastlistenerdone", "icmp6-routersolicit", "icmp6-routeradvert", "icmp6-neighborsolicit",
		"icmp6-neighboradvert", "icmp6-redirect", "icmp6-routerrenum", "icmp6-nodeinformationquery",
		"icmp6-nodeinformationresponse", "icmp6-ineighbordiscoverysolicit", "icmp6-ineighbordiscoveryadvert",
		"icmp6-multicastlistenerreportv2", "icmp6-homeagentdiscoveryrequest", "icmp6-homeagentdiscoveryreply",
		"icmp6-mobileprefixsolicit", "icmp6-mobileprefixadvert", "icmp6-certpathsolicit", "icmp6-certpathadvert",
		"icmp6-multicastrouteradvert", "icmp6-multicastroutersolicit", "icmp6-multicastrouterterm",
		"tcpflags", "tcp-fin", "tcp-syn", "tcp-rst", "tcp-push", "tcp-ack", "tcp-urg", "tcp-ece", "tcp-cwr",
	}
	wordsService = []string{"http", "domain", "ssh", "https", "mdns", "echo", "ntp", "telnet", "snmp", "bootps", "discard", "nonsense"}
	wordsIPProto = []string{
		`\tcp`, `\udp`, `\icmp`, `\sctp`, `\igmp`, `\ah`, `\esp`, `\pim`, `\vrrp`, "ospf", "gre", "ipv6-icmp", `\icmp6`,
		"ipv6", "ipv6-frag", "ipv6-route", "udplite", "17", "6", "nonsense", "tcp", `\ip`, "egp",
	}
	wordsEtherProto = []string{
		`\ip`, `\ip6`, `\arp`, `\rarp`, `\atalk`, `\aarp`, `\decnet`, `\lat`, `\sca`, `\moprc`, `\mopdl`, `\iso`, `\stp`,
		`\ipx`, `\netbeui`, "pup", "xns", "ns", "sprite", "trail", "loopback", "nonsense", "ip", "vlan", "vlan8021q", `\802.1q`,
	}
	// wordsForeign are of link types that are not ours.
	wordsForeign = []string{
		"lane", "metac", "bcc", "oam", "oamf4", "oamf4ec", "oamf4sc", "sc", "ilmic", "vpi 3", "vci > 5", "connectmsg",
		"metaconnect", "on eth0", "ifname lo", "rset foo", "ruleset bar", "rnr 5", "rulenum 5", "srnr 7", "subrulenum 1",
		"reason match", "reason 3", "action pass", "action block", "fisu", "lssu", "lsu", "msu", "hfisu", "hlssu", "hmsu",
		"sio 3", "opc 4", "dpc > 5", "sls (1 or 2)", "hsio 5", "hopc 6", "hdpc 7", "hsls 8", "type mgt", "type mgt subtype beacon",
		"subtype rts", "dir tods", "direction 3", "wlan type data", "vpi (1 or 2)", "type 0 subtype 0", "ra 02:00:00:00:00:01",
		"wlan host 02:00:00:00:00:01", "wlan addr4 02:00:00:00:00:01", "radio[0] = 3", "radio", "action nonsense",
	}
	wordsPunct = []string{"(", ")", "[", "]", ":", "!", "=", "==", "!=", "<", ">", "<=", ">=", "&", "|", "&&", "||", "+", "-", "*", "/", "%", "^", "<<", ">>", "#", "$", `\`, "@"}
	wordsOther = []string{
		"and", "or", "not", "mask", "less", "greater", "byte", "broadcast", "multicast", "inbound", "outbound", "ifindex", "len",
		"length", "vlan", "mpls", "pppoed", "pppoes", "geneve", "llc", "localhost", "type", "subtype", "dir",
	}
)

// speaker makes expressions. Equal seeds make equal ones.
type speaker struct {
	r    *rand.Rand
	link string // the link type that sane expressions are for
	sane bool   // no words that go together badly
}

func newSpeaker(seed uint64) *speaker { return &speaker{r: rand.New(rand.NewPCG(seed, 7))} }

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

func (s *speaker) word(of ...string) string { return pick(s.r, of) }

// chance is true n times of a hundred.
func (s *speaker) chance(n int) bool { return s.r.IntN(100) < n }

// maybe is a word, or nothing.
func (s *speaker) maybe(percent int, of []string) string {
	if s.chance(percent) {
		return pick(s.r, of)
	}
	return ""
}

// choice is a way to go on, and how often it is taken beside the others.
type choice struct {
	weight int
	make   func() string
}

func (s *speaker) choose(of ...choice) string {
	sum := 0
	for _, c := range of {
		sum += c.weight
	}
	n := s.r.IntN(sum)
	for _, c := range of {
		if n -= c.weight; n < 0 {
			return c.make()
		}
	}
	panic("unreachable: a weight is taken")
}

// say joins what is not empty.
func say(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		if p == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p)
	}
	return b.String()
}

// Text is one filter for a link type: mostly a sane expression, else one that says anything;
// now and then spoilt, its blanks now and then unusual.
func (s *speaker) Text(link string) string {
	s.link, s.sane = link, s.chance(70)
	text := s.expr(1 + s.r.IntN(3))
	if !s.sane && s.chance(35) {
		text = s.spoil(text)
	}
	return s.respace(text)
}

func (s *speaker) expr(depth int) string {
	terms := 1
	for terms < 4 && s.chance(45) {
		terms++
	}
	text := s.term(depth)
	for range terms - 1 {
		text = say(text, s.boolean(), s.term(depth))
	}
	return text
}

func (s *speaker) boolean() string { return s.word("and", "and", "and", "or", "or", "&&", "||") }

func (s *speaker) term(depth int) string {
	if depth > 0 && s.chance(15) {
		return "( " + s.expr(depth-1) + " )"
	}
	if s.chance(14) {
		return say(s.word("not", "!", "not", "! !", "not not"), s.term(depth))
	}
	return s.primitive()
}

func (s *speaker) primitive() string {
	if s.sane {
		return s.sanePrimitive()
	}
	return s.choose(
		choice{20, s.proto},
		choice{42, s.match},
		choice{8, s.list},
		choice{5, s.wild},
		choice{20, s.relation},
		choice{4, s.cast},
		choice{5, s.length},
		choice{3, s.host},
		choice{16, s.encap},
		choice{4, func() string { return say("llc", pick(s.r, wordsLLC)) }},
		choice{3, func() string { return s.word("inbound", "outbound", "ifindex "+s.number(poolIndex)) }},
		choice{2, func() string { return pick(s.r, wordsForeign) }},
	)
}

// sanePrimitive is one that the link type has something for, mostly.
func (s *speaker) sanePrimitive() string {
	encap := 14
	if s.link != "EN10MB" {
		encap = 1
	}
	return s.choose(
		choice{20, s.proto}, choice{42, s.match}, choice{7, s.list}, choice{20, s.relation}, choice{encap / 3, s.cast}, choice{4, s.length},
		choice{encap, s.encap}, choice{encap / 4, func() string { return say("llc", pick(s.r, wordsLLC[:16])) }},
		choice{2, func() string { return s.word("inbound", "outbound", "ifindex "+s.number(poolIndex)) }},
	)
}

func (s *speaker) proto() string {
	if s.sane {
		return s.word(saneProtos...)
	}
	return pick(s.r, wordsProto)
}

// saneProtos are the protocols that can stand alone; the first ones are what people say.
var saneProtos = slices.Concat(wordsProto[7:19], wordsProto[20:], []string{"ip", "ip6", "tcp", "udp", "arp", "ip", "tcp", "udp"})

// match is a comparison whose words fit together.
func (s *speaker) match() string {
	dir := s.maybe(60, wordsDir[:8])
	return s.choose(
		choice{10, func() string {
			return say(s.maybe(40, []string{"ip", "arp", "rarp", "ip", "ip"}), dir, s.hostWord(dir), pick(s.r, poolIPv4))
		}},
		choice{8, func() string { return say(s.maybe(40, []string{"ip6"}), dir, s.hostWord(dir), s.ip6()) }},
		choice{7, func() string { return say(s.maybe(40, []string{"ip", "arp", "rarp"}), dir, "net", s.net4()) }},
		choice{5, func() string { return say(s.maybe(40, []string{"ip6"}), dir, "net", s.net6()) }},
		choice{7, s.etherHost},
		choice{14, func() string {
			return say(s.maybe(60, []string{"tcp", "udp", "sctp", s.word("tcp", "ip", "ip6")}[:3+s.odd()]), dir, "port", s.port())
		}},
		choice{7, func() string {
			return say(s.maybe(60, []string{"tcp", "udp", "sctp"}), dir, "portrange", s.portRange())
		}},
		choice{10, func() string { return say(s.maybe(80, []string{"ip", "ip6"}), "proto", s.ipProto()) }},
		choice{6, func() string { return say("ether", "proto", s.etherProto()) }},
		choice{5, func() string { return say(s.maybe(80, []string{"ip", "ip6"}), "protochain", s.ipProto()) }},
		choice{3, func() string {
			return say("iso proto", s.word(`\clnp`, `\esis`, `\isis`, "clnp", s.number(poolOSI)))
		}},
		choice{3, func() string { return say("isis proto", s.number(poolISIS)) }},
		choice{3, func() string { return say("decnet", dir, s.hostWord(dir), pick(s.r, poolDECnet)) }},
	)
}

func (s *speaker) etherHost() string {
	if s.sane && s.link[0] != 'E' {
		return say("host", pick(s.r, poolIPv4))
	}
	dir := s.maybe(60, wordsDir[:8])
	return say("ether", dir, s.hostWord(dir), s.mac())
}

// hostWord is the word before an address, which a direction makes needless.
func (s *speaker) hostWord(dir string) string {
	if s.sane && dir == "" {
		return "host"
	}
	return s.word("host", "")
}

// list is a comparison and values behind it that share its words.
func (s *speaker) list() string {
	head, value := "host", func() string { return pick(s.r, poolIPv4) }
	switch s.r.IntN(5) {
	case 0:
		head, value = say(s.maybe(50, []string{"tcp", "udp"}), s.maybe(50, wordsDir[:6]), "port"), s.port
	case 1:
		head, value = say("ip", "proto"), s.ipProto
	case 2:
		head, value = say(s.maybe(50, wordsDir[:6]), "net"), s.net4
	case 3:
		if s.link == "EN10MB" {
			head, value = "ether host", s.mac
		}
	}
	text := value()
	for range 1 + s.r.IntN(3) {
		text = say(text, s.word("or", "or", "and", "or not", "or !", "and not", "and !"), value())
	}
	if s.chance(40) {
		return say(head, "(", text, ")")
	}
	return say(head, text)
}

// wild is any qualifiers before any value: mostly nonsense, which is to be refused.
func (s *speaker) wild() string {
	return say(s.maybe(70, wordsProto), s.maybe(40, wordsDir), s.maybe(70, wordsKind), s.value())
}

// host is a value with nothing before it, or a name.
func (s *speaker) host() string {
	return s.choose(
		choice{3, s.value},
		choice{4, func() string {
			return say(s.maybe(50, wordsProto[:16]), s.maybe(30, wordsDir[:6]), s.word("host", "", "net", "gateway"), s.word("localhost", "loopback", "link-local"))
		}},
	)
}

func (s *speaker) value() string {
	return s.choose(
		choice{3, func() string { return pick(s.r, poolIPv4) }},
		choice{2, s.net4}, choice{2, s.ip6}, choice{1, s.net6}, choice{2, s.mac},
		choice{3, s.port}, choice{2, s.portRange}, choice{2, s.ipProto}, choice{1, s.etherProto},
		choice{1, func() string { return pick(s.r, poolDECnet) }},
		choice{1, func() string { return s.word("$1", "$ab", "$0", "$abc", "localhost", "loopback") }},
		choice{1, func() string { return pick(s.r, wordsNumber) }},
		choice{1, func() string { return "( " + s.port() + " )" }},
	)
}

func (s *speaker) number(pool []int) string { return s.base(uint32(pick(s.r, pool))) }

// base writes a number in one of the bases that libpcap reads.
func (s *speaker) base(n uint32) string {
	switch s.r.IntN(8) {
	case 0:
		return fmt.Sprintf("0x%x", n)
	case 1:
		return fmt.Sprintf("0%o", n)
	case 2:
		return fmt.Sprintf("0X%04X", n)
	}
	return fmt.Sprint(n)
}

func (s *speaker) port() string {
	return s.choose(
		choice{12, func() string { return s.number(poolPort) }},
		choice{3, func() string { return pick(s.r, wordsService) }},
		choice{s.odd(), func() string { return s.word("65536", "99999", "00", "-1", "080", "4294967296") }},
	)
}

func (s *speaker) portRange() string {
	a, b := pick(s.r, poolPort), pick(s.r, poolPort)
	return s.choose(
		choice{8, func() string { return fmt.Sprintf("%d-%d", a, b) }},
		choice{1, func() string {
			return s.word("http-https", "ssh-80", "80-http", "80-", "-80", "1-70000", "a-b", "1-2-3", "0x10-0x20", "010-020")
		}},
		choice{1, s.port},
	)
}

func (s *speaker) ipProto() string {
	return s.choose(choice{3, func() string { return s.number(poolIPProto) }}, choice{2, func() string { return pick(s.r, wordsIPProto) }},
		choice{s.odd(), func() string { return s.word("256", "300", "0x100") }})
}

func (s *speaker) etherProto() string {
	return s.choose(choice{4, func() string { return s.number(poolEtherType) }}, choice{3, func() string { return pick(s.r, wordsEtherProto) }},
		choice{2, func() string { return s.number(poolSAP) }}, choice{1, func() string { return s.word("65536", "0x10000", "1500", "1501") }})
}

func (s *speaker) net4() string {
	whole := strings.Split(pick(s.r, poolIPv4), ".")
	parts := strings.Join(whole[:1+s.r.IntN(4)], ".")
	return s.choose(
		choice{4, func() string { return parts }},
		choice{5, func() string {
			return pick(s.r, []string{"10.0.0.0", "192.168.0.0", "172.16.0.0", "0.0.0.0", parts}) + "/" + s.word("8", "16", "12", "24", "32", "0", "31", "33", "7")
		}},
		choice{3, func() string {
			return s.word("10.0.0.0", "192.168.0.0", "10.0", "192.168.7", parts) + " mask " +
				s.word("255.0.0.0", "255.255.0.0", "255.0.255.0", "255.255.255.255", "255.255", "0.0.0.0", "0.0.0.3", "255")
		}},
		choice{1, func() string {
			return s.word("10.0.0.256", "300.1.1.1", "1.2.3.4.5", "10.", "010.0.0.1", "0x0a.0.0.1", "10.0.0.0/", "10/8", "10.1/16", "256")
		}},
	)
}

func (s *speaker) ip6() string {
	if s.odd() > 0 && s.chance(6) {
		return s.word(":::", "1::2::3", "12345::", "fe80::g", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "::10.0.0.256", "FE80::1", "fe80::1%lo", "0:0:0:0:0:0:0:1", "1:2:3:4:5:6:1.2.3.4", "::ffff:0a.0.0.1")
	}
	return pick(s.r, poolIPv6)
}

func (s *speaker) net6() string {
	return s.word("fe80::", "2001:db8::", "ff00::", "::", "2001:db8:5::", "fe80::1") + "/" + s.word("8", "10", "16", "32", "48", "64", "128", "0", "129", "33", "127")
}

// mac is a hardware address in one of the forms of pcap-filter(7).
func (s *speaker) mac() string {
	a := pick(s.r, poolMAC)
	switch s.r.IntN(9) {
	case 0:
		return strings.ReplaceAll(a, ":", "-")
	case 1:
		return strings.ReplaceAll(a, ":", ".")
	case 2:
		b := strings.ReplaceAll(a, ":", "")
		return b[:4] + "." + b[4:8] + "." + b[8:]
	case 3:
		return strings.ReplaceAll(a, ":", "")
	case 4:
		return strings.ReplaceAll(strings.ToUpper(a), ":0", ":")
	case 5:
		if s.sane {
			break
		}
		return s.word("2:0:0:0:0:1", "02:00:00:00:00", "02:00:00:00:00:01:02", "02::00:00:00:01", "02:00:00:00:00:0g", "020000.000001", a)
	}
	return a
}

func (s *speaker) cast() string {
	if s.sane {
		return s.word("ether broadcast", "ether multicast", "ip multicast", "ip6 multicast", "broadcast", "multicast")
	}
	return say(s.maybe(70, []string{"ether", "ip", "ip6", "link", "wlan", "arp", "tcp", "ip6", "ether"}), s.word("broadcast", "multicast", "multicast"))
}

func (s *speaker) length() string {
	return s.choose(
		choice{3, func() string { return say(s.word("less", "greater"), s.number(poolLength)) }},
		choice{2, func() string {
			return say("byte", s.number(poolLength[:4]), s.word("=", "<", ">", "&", "|", "=="), s.number([]int{0, 1, 2, 8, 0x45, 255, 256}))
		}},
		choice{1, func() string {
			return say(s.word("less", "greater"), s.word("", "foo", "4294967295", "4294967296", "( 5 )"))
		}},
	)
}

func (s *speaker) encap() string {
	kind, pool := s.word("vlan", "vlan", "vlan", "mpls", "mpls", "pppoes", "pppoes", "pppoed", "geneve", "geneve"), poolVLAN
	if s.chance(2) {
		kind = "vxlan"
	}
	switch kind {
	case "mpls":
		pool = poolLabel
	case "geneve":
		pool = poolVNI
	}
	text := kind
	if s.chance(35) {
		text = say(kind, s.number(pool))
	}
	if s.odd() > 0 && s.chance(8) {
		text = say(kind, s.word("4096", "65535", "65536", "1048576", "16777216", "( 5 )", "foo", "100 or 5"))
	}
	// Alone it says little: what stands behind it is what it is for.
	for s.chance(55) {
		text = say(text, s.word("and", "and", "and", "&&"), s.choose(choice{4, s.match}, choice{2, s.encap}, choice{4, s.proto}, choice{3, s.relation}))
	}
	return text
}

func (s *speaker) relation() string {
	if s.chance(35) {
		return s.realRelation()
	}
	return say(s.arith(2), s.word("=", "==", "!=", "<", ">", "<=", ">="), s.arith(1))
}

// realRelation is one that people write.
func (s *speaker) realRelation() string {
	return s.word(
		"tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[13] & 2 != 0", "tcp[tcpflags] == tcp-syn", "tcp[tcpflags] & tcp-ack = tcp-ack",
		"ip[0] & 0xf != 5", "ip[6:2] & 0x1fff = 0", "ip[6] & 0x20 != 0", "ip[2:2] > 576", "ip[9] = 17", "ip[8] < 5",
		"icmp[icmptype] = icmp-echo", "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply",
		"icmp6[icmp6type] = icmp6-echo", "icmp6[icmp6type] == icmp6-neighborsolicit", "ip6[6] = 58", "ip6[40] = 128", "ip6[4:2] > 8",
		"ether[0] & 1 = 0", "ether[0] & 1 != 0", "ether[12:2] = 0x800", "ether[6:4] = 0x02000000", "link[0] = 2",
		"udp[4:2] > 20", "udp[0:2] = 53", "tcp[0:2] = tcp[2:2]", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
		"ip[((ip[0] & 0xf) << 2)] = 0", "len > 100", "len <= 64", "len - 14 = ip[2:2]", "ether[len - 1] = 0", "length != 60",
		"ip[12:4] = 0x0a000001", "arp[6:2] = 1", "rarp[6:2] = 1", "sctp[0:2] = 80", "igmp[0] = 0x11", "ip[16] >= 224", "ether[14] = 0x45", "esp[0:4] = 0",
	)
}

func (s *speaker) arith(depth int) string {
	if depth == 0 || s.chance(25) {
		return s.constant()
	}
	return s.choose(
		choice{12, func() string { return s.load(depth - 1) }},
		choice{2, func() string { return s.word("len", "length") }},
		choice{6, func() string {
			return say(s.arith(depth-1), s.word("+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"), s.arith(depth-1))
		}},
		choice{3, func() string { return "( " + s.arith(depth) + " )" }},
		choice{1, func() string { return "- " + s.arith(depth-1) }},
	)
}

func (s *speaker) constant() string {
	return s.choose(
		choice{6, func() string {
			return s.number([]int{0, 1, 2, 3, 4, 5, 6, 8, 12, 13, 17, 20, 31, 32, 255, 0xfff, 0x800})
		}},
		choice{2, func() string { return pick(s.r, wordsNumber) }},
		choice{1, func() string {
			return s.base(pick(s.r, []uint32{0xffffffff, 0x80000000, 0x7fffffff, 0x0a000001, 65535, 65536}))
		}},
	)
}

func (s *speaker) load(depth int) string {
	proto := s.word("ip", "ip", "tcp", "tcp", "udp", "icmp", "ether", "ether", "ip6", "icmp6", "arp", "sctp", "link", s.loadable())
	index := s.word("0", "1", "2", "4", "6", "8", "12", "13", s.constant(), s.arith(depth))
	return proto + "[ " + index + s.word("", "", " : 1", " : 2", " : 4", s.oddSize()) + " ]"
}

func (s *speaker) loadable() string {
	if s.sane {
		return s.word("igmp", "pim", "vrrp", "carp", "sctp", "rarp", "ip6", "igrp")
	}
	return pick(s.r, wordsProto)
}

func (s *speaker) oddSize() string {
	if s.sane {
		return " : 0x2"
	}
	return s.word("", " : 3", " : 0", " : 0x2", " : 04", " : 8")
}

// odd is the weight of what is no value at all.
func (s *speaker) odd() int { return 1 - one(s.sane) }

// respace joins what may stand together, or spreads what is joined.
func (s *speaker) respace(text string) string {
	switch s.r.IntN(6) {
	case 0:
		for _, p := range []string{"(", ")", "[", "]", ":", "!", "=", "<", ">", "&", "|", "+", "*", "/", "%", "^"} {
			if s.chance(70) {
				text = strings.ReplaceAll(strings.ReplaceAll(text, " "+p, p), p+" ", p)
			}
		}
	case 1:
		return strings.ReplaceAll(text, " ", s.word("  ", "\t", "\n", " \n ", "\r"))
	default:
		text = strings.NewReplacer("[ ", "[", " ]", "]", " : ", ":", "( ", "(", " )", ")").Replace(text)
	}
	return text
}

// spoil makes a text that is nearly one of the language, or another one.
func (s *speaker) spoil(text string) string {
	words := strings.Fields(text)
	i := s.r.IntN(len(words))
	switch s.r.IntN(8) {
	case 0:
		words = append(words[:i:i], words[i+1:]...)
	case 1:
		words[i] = say(words[i], words[i])
	case 2:
		j := s.r.IntN(len(words))
		words[i], words[j] = words[j], words[i]
	case 3:
		words[i] = s.anyWord()
	case 4:
		words[i] = say(s.anyWord(), words[i])
	case 5:
		words[i] = say(words[i], s.anyWord())
	case 6:
		words[i] = strings.ToUpper(words[i])
	case 7:
		return s.spoilByte(text)
	}
	return strings.Join(words, " ")
}

func (s *speaker) anyWord() string {
	return s.choose(
		choice{3, func() string { return pick(s.r, wordsOther) }}, choice{2, func() string { return pick(s.r, wordsProto) }},
		choice{2, func() string { return pick(s.r, wordsPunct) }}, choice{1, func() string { return pick(s.r, wordsKind) }},
		choice{1, func() string { return pick(s.r, wordsDir) }}, choice{1, s.value},
	)
}

func (s *speaker) spoilByte(text string) string {
	i := s.r.IntN(len(text))
	switch s.r.IntN(3) {
	case 0:
		return text[:i] + text[i+1:]
	case 1:
		return text[:i] + s.word("0", "x", ".", ":", "-", "_", "\\", "$", "(", ")", "é", "\x01", "/", "'", "\"") + text[i:]
	}
	return text[:i] + text[i:i+1] + text[i:]
}
