package syntax

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheScannerCutsTheLongestToken(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"numbers end where no digit is", "10>=0x1f", "10|>=|0x1f"},
		{"a name may begin with a digit", "6to4 3com", "6to4|3com"},
		{"a name does not end with a hyphen", "port http-", "port|http|-"},
		{"a range of ports is a name", "6000-6008", "6000-6008"},
		{"two parts are an address", "10.1/16", "10.1|/|16"},
		{"five parts are a name", "1.2.3.4.5", "1.2.3.4.5"},
		{"a slice of a packet has no address in it", "ip[2:2]", "ip|[|2|:|2|]"},
		{"two colons in a slice are an address", "ip[0::2]", "ip|[|0::2|]"},
		{"12 digits are a hardware address", "001122334455", "001122334455"},
		{"13 digits are a number", "0011223344556", "0011223344556"},
		{"a hardware address ends after six pairs", "1:2:3:4:5:fff", "1:2:3:4:5:ff|f"},
		{"an IPv6 address ends after eight groups", "::1:2:3:4:5:6:7:8", "::1:2:3:4:5:6:7|:|8"},
		{"an IPv4 address may end an IPv6 address", "::ffff:10.0.0.1", "::ffff:10.0.0.1"},
		{"three parts may not", "::ffff:10.0.1", "::ffff:10|.0.1"},
		{"operators of two signs", "1<<2>>3<=4==5!=6&&7||8", "1|<<|2|>>|3|<=|4|==|5|!=|6|&&|7||||8"},
		{"an escaped name ends at a parenthesis", `\tcp)\a]b`, `tcp|)|a]b`},
		{"a word with a hyphen is one", "is-is tcp-syn tcp-sync", "is-is|tcp-syn|tcp-sync"},
		{"ARCnet addresses have two digits", "$123", "$12|3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := scanner{text: tc.text}
			var got []string
			for tok := s.next(); tok.class != endTok; tok = s.next() {
				if tok.class == badTok {
					tok.text = tc.text[tok.column-1 : s.at]
				}
				got = append(got, tok.text)
				if tok.class == badTok {
					got[len(got)-1] += s.text[s.at:]
					break
				}
			}
			require.Equal(t, tc.want, strings.Join(got, "|"))
		})
	}
}

func TestTheScannerReadsValues(t *testing.T) {
	for text, want := range map[string]token{
		"0":                    {class: numberTok},
		"017":                  {class: numberTok, n: 15},
		"0XfF":                 {class: numberTok, n: 255},
		"4294967295":           {class: numberTok, n: 1<<32 - 1},
		"00000000037777777777": {class: numberTok, n: 1<<32 - 1},
		"tcp-syn":              {class: numberTok, n: 2},
		"icmp6-echo":           {class: numberTok, n: 128},
		"$a":                   {class: arcTok, n: 10},
		"::":                   {class: ip6Tok, addr: netip.IPv6Unspecified()},
		"1:2:3:4:5:6:7::":      {class: ip6Tok, addr: netip.MustParseAddr("1:2:3:4:5:6:7:0")},
		"fe80::1.2.3.4":        {class: ip6Tok, addr: netip.MustParseAddr("fe80::102:304")},
		"1111.2222.aaaa":       {class: macTok},
		"1111.2222.3333":       {class: macTok},
		"1111.2222.33":         {class: ip4Tok},
		"wlan":                 {class: protoTok, val: uint8(Link)},
		"uid":                  {class: nameTok},
		"Host":                 {class: nameTok},
	} {
		s := scanner{text: text}
		got := s.next()
		want.text, want.column = text, 1
		require.Equal(t, want, got, text)
		require.Equal(t, endTok, s.next().class, text)
	}
}

func TestHardwareAddressesHaveManyForms(t *testing.T) {
	want := MAC{0x00, 0x1b, 0x02, 0xcc, 0x0d, 0xee}
	for _, text := range []string{"00:1b:02:cc:0d:ee", "0:1b:2:cc:d:ee", "00-1B-02-CC-0D-EE", "0.1b.2.cc.d.ee", "001b.02cc.0dee", "001b02cc0dee"} {
		require.Equal(t, len(text), macSize(text), text)
		require.Equal(t, want, mac(text), text)
	}
}

// rules are those of libpcap's scanner for what is neither a word nor a sign, in its order, as regular
// expressions. Of the longest matches the first wins.
var rules = makeRules()

type rule struct {
	class class
	form  *regexp.Regexp
}

func makeRules() []rule {
	const b, b2, n = `[0-9A-Fa-f]{1,2}`, `[0-9A-Fa-f]{4}`, `(?:[0-9]+|0[xX][0-9A-Fa-f]+)`
	pairs := func(between string) string { return b + strings.Repeat(between+b, 5) }
	sources := []struct {
		class class
		form  string
	}{
		{arcTok, `\$` + b},
		{macTok, pairs(":") + "|" + pairs("-") + "|" + pairs(`\.`) + "|" + b2 + `\.` + b2 + `\.` + b2 + "|" + strings.Repeat(b2, 3)},
		{numberTok, n},
		{ip4Tok, n + `(?:\.` + n + `){1,3}`},
		{ip6Tok, ip6Forms(n)},
		{badTok, b + `:+(?:` + b + `:+)+`},
		{nameTok, `[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?`},
		{nameTok, `\\[^ !()\n\t\x00]+`},
	}
	var out []rule
	for _, s := range sources {
		form := regexp.MustCompile(`^(?:` + s.form + `)`)
		form.Longest()
		out = append(out, rule{s.class, form})
	}
	return out
}

// ip6Forms are all places of :: among up to eight groups, and an IPv4 address for the
// last two of them.
func ip6Forms(n string) string {
	const w = `[0-9A-Fa-f]{1,4}`
	groups := func(count int) []string { return strings.Split(strings.Repeat(w+" ", count), " ")[:count] }
	quad := n + `\.` + n + `\.` + n + `\.` + n
	forms := []string{strings.Join(groups(8), ":"), strings.Join(append(groups(6), quad), ":")}
	for count := range 8 {
		for left := range count + 1 {
			begin := strings.Join(groups(left), ":") + "::"
			forms = append(forms, begin+strings.Join(groups(count-left), ":"))
			if count <= 5 {
				forms = append(forms, begin+strings.Join(append(groups(count-left), quad), ":"))
			}
		}
	}
	return strings.Join(forms, "|")
}

// The first token is what libpcap's rules say: its size and, where it is no keyword and no
// error, its class.
func FuzzScan(f *testing.F) {
	for _, text := range []string{"1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9", "::", "::1.2.3.4", "a:b::c:1.2.3.4.5", "0x1.2", "1.0x", "a-b-1-2-3-4", "12-", "a..b-_", `\a!b`, "$f", "aa:bb:", "1:2:3:4:5:6:1.2.3.4"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, want := 0, badTok
		for _, r := range rules {
			if n := len(r.form.FindString(text)); n > size {
				size, want = n, r.class
			}
		}
		if size == 0 {
			return
		}
		s := scanner{text: text}
		got := s.next()
		require.Equal(t, size, s.at, "%q", text)
		if got.class == badTok || want == nameTok && got.class != nameTok {
			return
		}
		require.Equal(t, want, got.class, "%q", text)
	})
}
