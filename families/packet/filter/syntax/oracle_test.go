package syntax

import (
	"errors"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// oracle is what libpcap says of a text: that its grammar refuses it, that it is refused for
// what it means, or the program.
type oracle struct {
	program string
	refused string
	grammar bool // refused is about the grammar
}

// mustAskTcpdump compiles a text with libpcap, for Ethernet.
func mustAskTcpdump(tb testing.TB, text string) oracle {
	tb.Helper()
	out, err := exec.Command("tcpdump", "-y", "EN10MB", "-ddd", "--", text).Output()
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		require.NoError(tb, err, text)
		return oracle{program: string(out)}
	}
	require.Equal(tb, 1, failed.ExitCode(), "%q: %s", text, failed.Stderr)
	why := string(failed.Stderr)
	return oracle{refused: why, grammar: strings.Contains(why, "syntax error") || strings.Contains(why, "can't parse")}
}

// requireAsLibpcap: what libpcap compiles parses, and means the same as it prints; what
// libpcap's grammar refuses does not parse.
func requireAsLibpcap(tb testing.TB, text string) {
	tb.Helper()
	want := mustAskTcpdump(tb, text)
	tree, err := Parse(text, Options{})
	switch {
	case want.grammar:
		require.Error(tb, err, "%q: %s", text, want.refused)
	case want.program != "":
		require.NoError(tb, err, text)
		if tree != nil {
			printed := tree.String()
			require.Equal(tb, want, mustAskTcpdump(tb, printed), "%q prints %q", text, printed)
		}
	case strings.Contains(want.refused, "rejects all packets"):
		require.NoError(tb, err, text)
	}
}

func TestLibpcapsGrammarIsOurs(t *testing.T) {
	for _, text := range []string{
		// What follows a head, and takes its words.
		"tcp", "ip host 10.0.0.1", "src 10.0.0.1", "src host 10.0.0.1 or 10.0.0.2", "ip 10.0.0.1", "tcp 80", "10.0.0.1",
		"port 80 or 443 and 22", "port (80 or 443)", "port (80)", "port ((80))", "port ((80) or (not 443))", "port ((80 or 443))", "port ((80 or 443) or 22)", "port (22 or (80 or 443))", "port (not (80 or 443) or 22)", "port ((http))", "port ((http) or 80)", "port 1 and ((80 or 443))", "port 1 and ((http))", "port 1 and ((80) or 443)", "port not 80", "port not (80 or 443)",
		"port 80 and not 443", "port 80 and not not 443", "port 80 or (443)", "port 80 or (443 or 22)", "port 80 or (443 and tcp)", "port 80 or (tcp and 443)",
		"port 80 or (tcp port 443 or 22)", "port 80 or (not 443 or tcp)", "port 80 or (not tcp or udp)", "port 80 or not (not 443)", "port (80 or tcp)", "port (80 or port 443)",
		"(port 80) or 443", "tcp port 80 and (udp port 53) or 90", "(tcp) and 80", "tcp and 80", "tcp or (80)", "host 10.0.0.1 and tcp and 10.0.0.2", "not port 80 or 443",
		"net 10 or 11", "net 10.0.0.0/8 or 11.0.0.0/8", "net 10.0.0.0 mask 255.0.0.0", "net 10 mask 255.0.0.0", "net 10/8", "host 10.1", "net ::/0 or fe80::/10",
		"ip proto 6 or 17", `ip proto \tcp`, "ip proto tcp", `proto \udp or 6`, "src proto 6", "proto src 6", "ip protochain 6", "host 1.2.3.4.5", "host 1:2", "port http-", "portrange 80-90 or 100", "portrange 80",
		// Directions.
		"src or dst port 80", "dst or src port 80", "src and dst port 80", "src && dst port 80", "src || dst 10.0.0.1", "src or port 80", "src or src port 80", "src", "src or dst", "tcp src or dst port 80", "tcp dst port 80 or 81",
		// Words without values.
		"not tcp", "!tcp", "!!tcp", "not not tcp", "tcp not udp", "tcp udp", "tcp and and udp", "tcp and", "and tcp", "(tcp", "tcp)", "()", "(tcp) (udp)", "(tcp or (udp and (ip)))", "tcp&&udp||ip", "tcp & udp", "tcp and udp or arp",
		"broadcast", "ether multicast", "ip6 multicast", "tcp broadcast", "less 60", "less (60)", "greater 60 or less 20", "byte 0 = 1", "byte 0 == 1", "byte 0 & 1", "byte 0 | 1", "byte 0 < 1", "byte 0 > 1", "byte 0 != 1", "byte 0 >= 1",
		"inbound", "outbound and tcp", "ifindex 1", "ifindex eth0", "vlan", "vlan 5", "vlan (5)", "vlan 5 and ip", "vlan and vlan 7", "vlan 5 6", "vlan port 80", "mpls 3 and mpls", "pppoed", "pppoed 5", "pppoes 5 and ip", "geneve (0x10)", "geneve and tcp",
		"llc", "llc i", "llc u and llc", `llc \ui`, "llc RNR", "llc rnr", "llc rulenum", "llc 5", "llc tcp", "stp", "iso", "is-is", "es-is or clnp", "l1 or l2 or iih or lsp or snp or csnp or psnp", "netbeui", "ipx", "atalk or aarp", "decnet host 1.300", "decnet src 5", "lat or sca or moprc or mopdl",
		// Words of other link types.
		"type mgt", "subtype beacon", "dir tods", "wlan type 0", "host type", `host \type`, "on eth0", "reason match", "vpi 3", "lane", "fisu", "sio 3", "host ra", "port sc", "net on",
		// Arithmetic.
		"ip[0] = 1", "ip[0] == 1", "ip[0]=1 and ip[1]=2", "ip[0:2] > 5", "ip[0:3] = 1", "ip[0:(2)] = 1", "ip[0 = 1", "ip[] = 1", "ip[0]", "ip[0] & 1", "len > 5", "length >= 5", "len", "5 = 5", "5", "(5)", "(5) = ip[0]", "((5)) = (ip[0])", "(5 = ip[0])", "(ip[0]) = 5", "((ip[0])) & 1 = 5", "(ip[0] & 1", "not ip[0] = 5", "not (ip[0]) = 5", "not (ip[0] = 5)", "not 5 = ip[0]",
		"port 80 and 5 = ip[0]", "port 80 and (5) = ip[0]", "port 80 and (5 = ip[0])", "port 80 and ((5) + 1 = ip[0])", "port 80 and (5 + 1) = ip[0]", "port 80 and not 5 = ip[0]", "port 80 and (80 or 5 = ip[0])", "port 80 + 5 = ip[0]", "port (80 + 5)",
		"1 + 2 * 3 = ip[0]", "1 % 2 + 3 = ip[0]", "ip[0] % 2 + 3 = ip[1]", "ip[0] + 3 % ip[1] * 5 = 1", "ip[0] ^ 3 & ip[1] | 7 = 1", "ip[0] * 2 ^ 3 + 1 = 2", "-ip[0] % 7 + 1 = 1", "-ip[0] * 7 = 1", "- - ip[0] = 1", "ip[0] - -1 = 1", "ip[0] << 2 + 1 = 8", "ip[0] | 1 & 2 << 3 = 1", "ip[0] - 3 - 2 = 1", "ip[0] / 4 / 2 = 1", "1-2 = 3", "1 - 2 = ip[0]", "ip[ip[0] & 15] = 1", "ip[-1] = 1", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[tcpflags] == tcp-syn", "icmp[icmptype] != icmp-echo and icmp6[icmp6type] = icmp6-echoreply", "1 < 2 < 3", "tcp-syn", "port tcp-syn", "ip[0] != 5 or 6",
		// Tokens.
		"", " ", "TCP", "tcP", "host A", "port 0x50", "port 0120", "port 08", "port 4294967296", "port 0x100000000", "port 65536", "ether host 1:2:3:4:5:6", "ether host 1-2-3-4-5-6", "ether host 1.2.3.4.5.6", "ether host 1234.5678.9abc", "ether host 123456789abc", "ether host 1:2:3:4:5:6:7", "ether host 1:2:", "host 1:2:3:4:5:6", "host ::", "host 1::2 or ::1.2.3.4", "host 1::2::3", "host 12345::", "host 0x7f.1", "host 256.1", `port \80`, `port \http`, `host \`, `host "a"`, "host a@b", "host a_b", "port ht_tp", "tcp;udp", "tcp # udp", "tcp\tand\nudp\r", "tcp\vudp", "host $1f", "host $", "a.b", ".a", "tcp{", "port 80-",
	} {
		t.Run(text, func(t *testing.T) { requireAsLibpcap(t, text) })
	}
}

// words are what random texts are made of: of each kind of token some.
var words = strings.Fields(`
	tcp udp ip ip6 arp ether ether[0] ip[0] tcp[13] ip6[6:2] ip[ len
	src dst host net port portrange proto protochain gateway and and and or or or && || not not ! ( ( ( ) ) )
	10.0.0.1 10.0.0.0/8 1.2.3.4 ::1 fe80::/10 1:2:3:4:5:6 localhost http https domain \tcp \udp 80 443 53 6 17 0 1 5 0x1f 080
	80-90 mask 255.0.0.0 = != > < >= <= == & | ^ + - * / % << >> [ ] : 2 4 broadcast multicast less greater byte inbound
	vlan mpls pppoes geneve llc rnr ifindex type ra $1 - 1 2 3
`)

// terms that libpcap takes, and what it takes behind some of them.
var (
	wholeTerms = []string{
		"port 80", "tcp port 80", "host 10.0.0.1", "src or dst port 53", "net 10.0.0.0/8", "ip[0] = 5", "tcp[13] & 2 != 0", "len > 60", "( port 80 or 443 )", "port ( 80 or 443 )",
		"ip proto 6", "ip[0] + 1 % 2 * 3 = 4", "( 5 ) = len", "tcp", "not udp", "not ( ip or arp )", "vlan 5", "( udp and port 5 )", "- ip[1] % 3 + 4 > 1", "ether host 1:2:3:4:5:6", "portrange 6-9",
	}
	tails = []string{"80", "443", "( 80 )", "( 80 or 443 )", "not 80", "not ( 80 )", "1 = len", "( 1 + 2 = len )", "( 80 and ( 5 or not 6 ) )", "10.0.0.1", "( len ) > 5", "not 5 < len", "( not 5 )", "( not 5 or 6 )"}
)

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

// randomText puts terms and tails together, and sometimes any word.
func randomText(r *rand.Rand) string {
	text := pick(r, wholeTerms)
	for range r.IntN(4) {
		next := pick(r, wholeTerms)
		switch r.IntN(7) {
		case 0, 1, 2:
			next = pick(r, tails)
		case 3:
			next = "( " + randomText(r) + " )"
		case 4:
			if r.IntN(4) == 0 {
				next = pick(r, words)
			}
		}
		text += pick(r, []string{" and ", " or "}) + next
	}
	return text
}

// spoiled is a text with a word missing, doubled or changed.
func spoiled(r *rand.Rand, text string) string {
	all := strings.Fields(text)
	i := r.IntN(len(all))
	switch r.IntN(3) {
	case 0:
		all[i] = ""
	case 1:
		all[i] += " " + all[i]
	case 2:
		all[i] = pick(r, words)
	}
	return strings.Join(all, " ")
}

func TestRandomTextsAreReadAsLibpcapReadsThem(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	const texts = 600
	parsed := 0
	for i := range texts {
		text := randomText(r)
		if i%3 == 0 {
			text = spoiled(r, text)
		}
		requireAsLibpcap(t, text)
		if _, err := Parse(text, Options{}); err == nil {
			parsed++
		}
	}
	require.Greater(t, parsed, texts/4, "of too many texts there was nothing to compare")
	require.Less(t, parsed, texts-texts/4, "too few texts were wrong")
}
