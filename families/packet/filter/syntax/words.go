package syntax

// signs are the operators and brackets.
var signs = map[string]token{
	"(": {class: openTok}, ")": {class: closeTok},
	"[": {class: openIndexTok}, "]": {class: closeIndexTok}, ":": {class: colonTok},
	"!": {class: notTok}, "&&": {class: andTok}, "||": {class: orTok},

	"+": op(Add), "-": op(Sub), "*": op(Mul), "/": op(Div), "%": op(Mod),
	"&": op(BitAnd), "|": op(BitOr), "^": op(BitXor), "<<": op(ShiftLeft), ">>": op(ShiftRight),

	"=": rel(Equal), "==": rel(Equal), "!=": rel(NotEqual), ">": rel(Greater), ">=": rel(GreaterEqual),
	"<": rel(Less), "<=": rel(LessEqual),
}

func op(o ArithOp) token { return token{class: opTok, val: uint8(o)} }
func rel(o RelOp) token  { return token{class: relTok, val: uint8(o)} }

// keywords are the names that are none, for the grammar has them. A backslash makes names of
// them.
var keywords = makeKeywords()

func makeKeywords() map[string]token {
	words := map[string]token{
		"src": {class: dirTok, val: uint8(Src)}, "dst": {class: dirTok, val: uint8(Dst)},
		"host": {class: kindTok, val: uint8(Host)}, "net": {class: kindTok, val: uint8(Net)},
		"port": {class: kindTok, val: uint8(Port)}, "portrange": {class: kindTok, val: uint8(PortRange)},
		"proto": {class: aloneKindTok, val: uint8(ProtoNumber)}, "protochain": {class: aloneKindTok, val: uint8(ProtoChain)},
		"gateway": {class: aloneKindTok, val: uint8(Gateway)}, "mask": {class: maskTok},
		"less": {class: lengthTok}, "greater": {class: lengthTok, val: 1},
		"broadcast": {class: castTok}, "multicast": {class: castTok, val: 1},
		"inbound": {class: directionTok}, "outbound": {class: directionTok, val: 1},
		"byte": {class: byteTok}, "ifindex": {class: ifindexTok}, "llc": {class: llcTok},
		"and": {class: andTok}, "or": {class: orTok}, "not": {class: notTok},
		"len": {class: lenTok}, "length": {class: lenTok}, "fragments": {class: fragmentsTok},
		"rnr": {class: foreignRNRTok}, "rulenum": {class: foreignRNRTok},
	}
	add := func(c class, names []string) {
		for val, name := range names {
			if name != "" {
				words[name] = token{class: c, val: uint8(val)}
			}
		}
	}
	add(foreignTok, foreignNames)
	add(encapTok, encapNames)
	add(ownerTok, ownerNames)
	add(protoTok, protoNames)
	for name, p := range protoSynonyms {
		words[name] = token{class: protoTok, val: uint8(p)}
	}
	return words
}

// protoNames are the protocols as they print.
var protoNames = []string{
	Link: "ether", IP: "ip", ARP: "arp", RARP: "rarp", SCTP: "sctp", TCP: "tcp", UDP: "udp",
	ICMP: "icmp", IGMP: "igmp", IGRP: "igrp", PIM: "pim", VRRP: "vrrp", CARP: "carp",
	ATalk: "atalk", AARP: "aarp", DECnet: "decnet", LAT: "lat", SCA: "sca", MOPDL: "mopdl", MOPRC: "moprc",
	IP6: "ip6", ICMP6: "icmp6", AH: "ah", ESP: "esp",
	ISO: "iso", ESIS: "esis", ISIS: "isis", CLNP: "clnp", ISISL1: "l1", ISISL2: "l2", ISISIIH: "iih",
	ISISLSP: "lsp", ISISSNP: "snp", ISISPSNP: "psnp", ISISCSNP: "csnp",
	STP: "stp", IPX: "ipx", NetBEUI: "netbeui", Radio: "radio",
}

var protoSynonyms = map[string]Proto{
	"link": Link, "fddi": Link, "tr": Link, "wlan": Link, "ppp": Link, "slip": Link,
	"es-is": ESIS, "is-is": ISIS,
}

var encapNames = []string{VLAN: "vlan", MPLS: "mpls", PPPoED: "pppoed", PPPoES: "pppoes", Geneve: "geneve", VXLAN: "vxlan"}

var ownerNames = []string{UID: "uid", PID: "pid", Comm: "comm", Unit: "unit"}

// foreignNames are the words of pcap-filter(7) for link types that sockd cannot capture: 802.11,
// ATM, pflog of BSD, and SS7's MTP. They are no names, so that a filter means the
// same everywhere, or is refused.
var foreignNames = []string{
	"type", "subtype", "direction", "dir",
	"address1", "addr1", "address2", "addr2", "address3", "addr3", "address4", "addr4", "ra", "ta",
	"lane", "metac", "bcc", "oam", "oamf4", "oamf4ec", "oamf4sc", "sc", "ilmic", "vpi", "vci",
	"connectmsg", "metaconnect",
	"on", "ifname", "rset", "ruleset", "srnr", "subrulenum", "reason", "action",
	"fisu", "lssu", "lsu", "msu", "hfisu", "hlssu", "hmsu",
	"sio", "opc", "dpc", "sls", "hsio", "hopc", "hdpc", "hsls",
}

// namedNumbers are numbers by name: offsets in ICMP and TCP headers, and what stands there.
var namedNumbers = map[string]uint32{
	"icmptype": 0, "icmpcode": 1, "icmp6type": 0, "icmp6code": 1, "tcpflags": 13,

	"icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4, "icmp-redirect": 5,
	"icmp-echo": 8, "icmp-routeradvert": 9, "icmp-routersolicit": 10, "icmp-timxceed": 11,
	"icmp-paramprob": 12, "icmp-tstamp": 13, "icmp-tstampreply": 14, "icmp-ireq": 15,
	"icmp-ireqreply": 16, "icmp-maskreq": 17, "icmp-maskreply": 18,

	"icmp6-destinationunreach": 1, "icmp6-packettoobig": 2, "icmp6-timeexceeded": 3,
	"icmp6-parameterproblem": 4, "icmp6-echo": 128, "icmp6-echoreply": 129,
	"icmp6-multicastlistenerquery": 130, "icmp6-multicastlistenerreportv1": 131,
	"icmp6-multicastlistenerdone": 132, "icmp6-routersolicit": 133, "icmp6-routeradvert": 134,
	"icmp6-neighborsolicit": 135, "icmp6-neighboradvert": 136, "icmp6-redirect": 137,
	"icmp6-routerrenum": 138, "icmp6-nodeinformationquery": 139,
	"icmp6-nodeinformationresponse": 140, "icmp6-ineighbordiscoverysolicit": 141,
	"icmp6-ineighbordiscoveryadvert": 142, "icmp6-multicastlistenerreportv2": 143,
	"icmp6-homeagentdiscoveryrequest": 144, "icmp6-homeagentdiscoveryreply": 145,
	"icmp6-mobileprefixsolicit": 146, "icmp6-mobileprefixadvert": 147,
	"icmp6-certpathsolicit": 148, "icmp6-certpathadvert": 149,
	"icmp6-multicastrouteradvert": 151, "icmp6-multicastroutersolicit": 152,
	"icmp6-multicastrouterterm": 153,

	"tcp-fin": 0x01, "tcp-syn": 0x02, "tcp-rst": 0x04, "tcp-push": 0x08, "tcp-ack": 0x10,
	"tcp-urg": 0x20, "tcp-ece": 0x40, "tcp-cwr": 0x80,
}

// llcTypes are what may stand behind llc.
var llcTypes = map[string]bool{
	"i": true, "s": true, "u": true, "rr": true, "rnr": true, "rej": true, "ui": true, "ua": true,
	"disc": true, "dm": true, "sabme": true, "test": true, "xid": true, "frmr": true,
}
