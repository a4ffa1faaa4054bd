package families_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/inet6"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

// kernelSet is the families in the order of families/all, without packet, which
// needs rights.
var kernelSet = families.Set{inet6.Family, inet.Family, local.Family}

func TestEndpointsAreSplit(t *testing.T) {
	for text, want := range map[string]families.Endpoint{
		"tcp:127.0.0.1:80":                {Network: "tcp", Address: "127.0.0.1:80"},
		"tcp::80":                         {Network: "tcp", Address: ":80"},
		"ip4:icmp:":                       {Network: "ip4", Address: "icmp:"},
		"unix:":                           {Network: "unix"},
		"unix:/a=b":                       {Network: "unix", Address: "/a=b"},
		`unix:/a\,b\\c\x41`:               {Network: "unix", Address: `/a,b\cA`},
		"packet:eth0/ip,cooked,iface=a=b": {Network: "packet", Address: "eth0/ip", Options: []families.Option{{Name: "cooked"}, {Name: "iface", Value: "a=b"}}},
		`tcp:x,src=\,`:                    {Network: "tcp", Address: "x", Options: []families.Option{{Name: "src", Value: ","}}},
	} {
		got, err := families.ParseEndpoint(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
}

func TestEndpointsThatDoNotParseSayWhere(t *testing.T) {
	for text, column := range map[string]int{
		"":            1,
		"tcp":         1,
		":80":         1,
		"TCP:x":       1,
		"t p:x":       2,
		`unix:/a\b`:   8,
		`unix:/a\`:    8,
		`unix:/\x4`:   7,
		`unix:/\xg0`:  7,
		"tcp:x,":      7,
		"tcp:x,=1":    7,
		"tcp:x,a,,b":  9,
		"tcp:x,a=1,":  11,
		`tcp:x,a=\q`:  9,
		"/run/x.sock": 1,
	} {
		_, err := families.ParseEndpoint(text)
		var s *families.SyntaxError
		require.ErrorAs(t, err, &s, text)
		require.Equal(t, column, s.Column, "%s: %v", text, err)
		require.ErrorIs(t, err, families.ErrSyntax)
	}
}

// The law of endpoints: what parses prints what parses to the same; what does
// not parse is a SyntaxError with a column within the text, and nothing else.
func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"tcp:127.0.0.1:80", "unix:/run/x", `unix:@a\x00b`, "packet:eth0,cooked", "tcp:,a=b", `x:\,,a=\\`, "tcp", `a:\`, "a:,=", "a:,b=", "a:\xff", "a:b,c\n=d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := families.ParseEndpoint(text)
		if err != nil {
			var s *families.SyntaxError
			require.ErrorAs(t, err, &s)
			require.GreaterOrEqual(t, s.Column, 1)
			require.LessOrEqual(t, s.Column, len(text)+1)
			require.Empty(t, e)
			return
		}
		again, err := families.ParseEndpoint(e.String())
		require.NoError(t, err, "%q prints %q", text, e)
		require.Equal(t, e, again, "%q prints %q", text, e)
	})
}

// The law of escapes: what is escaped is one line of UTF-8 that prints, comes back
// as it was, also within an endpoint, and is not escaped again for somebody's eyes.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "a,b", `\`, "\x00", "ü", "\xff", "a=b", `\x41`, "\xff\xfe", "\ufffd", "\u202e", "\u0085\x1b[31m", "a\nb", "a b\u00a0c", "\xf0\x9f\x98"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		escaped := families.Escape(text)
		require.True(t, utf8.ValidString(escaped), "%q", escaped)
		for _, r := range escaped {
			require.True(t, unicode.IsPrint(r) && r != utf8.RuneError, "%q", escaped)
		}
		plain, err := families.Unescape(escaped)
		require.NoError(t, err)
		require.Equal(t, text, plain)
		require.Equal(t, escaped, families.Printable(escaped))
		e, err := families.ParseEndpoint("x:" + families.Escape(text) + ",o=" + families.Escape(text))
		require.NoError(t, err)
		require.Equal(t, text, e.Address)
		require.Equal(t, text, e.Options[0].Value)
	})
}

// The law of Unescape: what it reads is written to be read as the same, what it
// cannot read is a SyntaxError with its column.
func FuzzUnescape(f *testing.F) {
	for _, s := range []string{"", `a\,b`, `\\`, `\x00`, `\xff\XFF`, `\`, `\q`, `\x4`, `\xg0`, "a,b", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		plain, err := families.Unescape(text)
		if err != nil {
			var s *families.SyntaxError
			require.ErrorAs(t, err, &s)
			require.Equal(t, byte('\\'), text[s.Column-1])
			require.Empty(t, plain)
			return
		}
		again, err := families.Unescape(families.Escape(plain))
		require.NoError(t, err)
		require.Equal(t, plain, again)
	})
}

func TestEscapesThatCannotBeReadSayWhere(t *testing.T) {
	for text, column := range map[string]int{`\`: 1, `a\q`: 2, `/tmp/\x4`: 6, `\\\xg0`: 3} {
		_, err := families.Unescape(text)
		var s *families.SyntaxError
		require.ErrorAs(t, err, &s, text)
		require.Equal(t, column, s.Column, text)
	}
}

// An error line wrote the escapes of what the user had typed once more:
// endpoint "tcp:127.0.0.1:0,\\x1b[31m", which nobody can type again.
func TestErrorsShowAnAddressAsItIsTyped(t *testing.T) {
	require.EqualError(t, &families.OpError{Op: "bind", Family: "local", Addr: `/tmp/a\,b\x1b`, Err: syscall.EACCES}, `bind local "/tmp/a\,b\x1b": permission denied`)
	_, err := families.ParseEndpoint("tcp:127.0.0.1:0,\x1b[31m,=")
	require.EqualError(t, err, `endpoint "tcp:127.0.0.1:0,\x1b[31m,=": column 23: an option has no name`)
	e, err := families.ParseEndpoint(`tcp:a\,b:99999`)
	require.NoError(t, err)
	_, err = kernelSet.Resolve(t.Context(), e)
	require.ErrorContains(t, err, `endpoint "tcp:a\,b:99999": column 10: `)
}

func TestUnixAddressesThatDoNotFit(t *testing.T) {
	for addr, why := range map[string]string{
		"":                             "want a path or @NAME",
		"/a\x00b":                      "a path has no NUL byte",
		strings.Repeat("p", 109):       "a socket's path has at most 108 bytes, this one has 109",
		"@" + strings.Repeat("a", 108): "an abstract name has at most 107 bytes after the @, this one has 108",
	} {
		var s *families.SyntaxError
		require.ErrorAs(t, families.CheckUnixAddress(addr), &s, addr)
		require.Equal(t, why, s.Why)
	}
	for _, addr := range []string{"@", "@a\x00b", "x", strings.Repeat("p", 108), "@" + strings.Repeat("a", 107)} {
		require.NoError(t, families.CheckUnixAddress(addr))
	}
}

func TestTakeLeavesTheRest(t *testing.T) {
	e, err := families.ParseEndpoint("unix:/x,mode=600,so_rcvbuf=1,user=me")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"mode": "600", "user": "me"}, e.Take("mode", "user", "group"))
	require.Equal(t, []families.Option{{Name: "so_rcvbuf", Value: "1"}}, e.Options)
}

// words says where an endpoint leads, as FAMILY TYPE ADDRESS OPTION=VALUE...
func words(targets []families.Target) (out []string) {
	for _, t := range targets {
		w := []string{t.Family.Name(), t.Spec.Type.String()}
		if t.Spec.Protocol != 0 {
			w = append(w, strconv.Itoa(t.Spec.Protocol))
		}
		if t.Addr != nil {
			w = append(w, t.Addr.String())
		}
		for _, o := range t.Spec.Options {
			w = append(w, o.Name+"="+o.Value)
		}
		out = append(out, strings.Join(w, " "))
	}
	return out
}

func TestEndpointsAreResolved(t *testing.T) {
	for text, want := range map[string][]string{
		"tcp:127.0.0.1:80":         {"inet stream 127.0.0.1:80"},
		"tcp:0.0.0.0:80":           {"inet stream 0.0.0.0:80"},
		"tcp:[::1]:80":             {"inet6 stream [::1]:80 ipv6_v6only=0"},
		"tcp::80":                  {"inet6 stream [::]:80 ipv6_v6only=0", "inet stream 0.0.0.0:80"},
		"tcp4::80":                 {"inet stream 0.0.0.0:80"},
		"tcp6::80":                 {"inet6 stream [::]:80 ipv6_v6only=1"},
		"udp:10.0.0.1:53":          {"inet dgram 10.0.0.1:53"},
		"udp6:[fe80::1%lo]:53":     {"inet6 dgram [fe80::1%lo]:53 ipv6_v6only=1"},
		"ip4:icmp:10.0.0.1":        {"inet raw 1 10.0.0.1"},
		"ip4:icmp:":                {"inet raw 1"},
		"ip4:47:":                  {"inet raw 47"},
		"ip6:ipv6-icmp:::1":        {"inet6 raw 58 ::1"},
		"unix:/run/x":              {"local stream /run/x"},
		"unixgram:@x":              {"local dgram @x"},
		"unixpacket:x,so_rcvbuf=1": {"local seqpacket x so_rcvbuf=1"},
		"tcp:127.0.0.1:80,nodelay": {"inet stream 127.0.0.1:80 nodelay="},
		"tcp4:localhost:80":        {"inet stream 127.0.0.1:80"},
		"tcp4:localhost:http":      {"inet stream 127.0.0.1:80"},
	} {
		e, err := families.ParseEndpoint(text)
		require.NoError(t, err, text)
		targets, err := kernelSet.Resolve(t.Context(), e)
		require.NoError(t, err, text)
		require.Equal(t, want, words(targets), text)
		for _, target := range targets {
			require.Equal(t, e.Network, target.Network)
		}
	}
}

func TestEndpointsThatLeadNowhereSayWhy(t *testing.T) {
	for _, row := range []struct {
		text, why, hint string
		column          int
	}{
		{"tcp:80", "want HOST:PORT", "tcp::80 (all addresses) or tcp:127.0.0.1:80", 5},
		{"tcp:10.0.0.256:80", `"10.0.0.256" is no IPv6 address, and "10.0.0.256" is no IPv4 address`, "tcp:[::1]:80 or tcp:127.0.0.1:80", 5},
		{"tcp4:[::1]:80", `"[::1]" is no IPv4 address`, "tcp4:127.0.0.1:80", 6},
		{"tcp6:127.0.0.1:80", `"127.0.0.1" is no IPv6 address`, "tcp6:[::1]:80", 6},
		{"udp:127.0.0.1:99999", "want a port from 0 to 65535", "", 15},
		{"ip4:icmp", "want PROTO:ADDRESS", "ip4:icmp:10.0.0.1", 5},
		{"ip4:icmp:host", `"host" is no IPv4 address`, "ip4:icmp:127.0.0.1", 10},
		{"unix:", "want a path or @NAME", "unix:/run/x.sock or unix:@x", 6},
		// The list left out fd and id.
		{"ipx:x", `no network is called "ipx"`, "the networks are tcp tcp6 udp udp6 ip6 tcp4 udp4 ip4 unix unixgram unixpacket fd id", 1},
		{"fd:x", "what systemd handed over can only be the FROM of a relay", "", 1},
		{"id:7", "an open socket cannot stand here", "", 1},
	} {
		e, err := families.ParseEndpoint(row.text)
		require.NoError(t, err, row.text)
		targets, err := kernelSet.Resolve(t.Context(), e)
		require.Nil(t, targets)
		var s *families.SyntaxError
		require.ErrorAs(t, err, &s, row.text)
		require.Equal(t, families.SyntaxError{What: "endpoint", Text: row.text, Column: row.column, Why: row.why, Hint: row.hint}, *s)
	}
	_, err := kernelSet.Resolve(t.Context(), families.Endpoint{Network: "ip4", Address: "nonsense:10.0.0.1"})
	require.ErrorIs(t, err, families.ErrSyntax)
}

func TestAHostThatIsNotThereIsNoSyntaxError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that nothing is asked of the network
	_, err := kernelSet.Resolve(ctx, families.Endpoint{Network: "tcp", Address: "no-such-host.invalid:80"})
	var op *families.OpError
	require.ErrorAs(t, err, &op)
	require.Equal(t, "resolve", op.Op)
	require.NotErrorIs(t, err, families.ErrSyntax)
}

func TestASetFindsFamilies(t *testing.T) {
	for name, want := range map[string]families.Family{"inet": inet.Family, "inet6": inet6.Family, "local": local.Family, "unix": local.Family} {
		got, err := kernelSet.Family(name)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := kernelSet.Family("ipx")
	require.EqualError(t, err, `family "ipx": want inet6, inet or local: does not parse`)
	a, err := kernelSet.Domain(syscall.AF_UNIX)
	require.NoError(t, err)
	require.Equal(t, local.Family, a)
	_, err = kernelSet.Domain(syscall.AF_NETLINK)
	require.ErrorIs(t, err, families.ErrNotSupported)
}

func TestTypesPrintWhatTheyParse(t *testing.T) {
	for _, word := range []string{"stream", "dgram", "seqpacket", "raw"} {
		typ, err := families.ParseType(word)
		require.NoError(t, err)
		require.Equal(t, word, typ.String())
	}
	for _, word := range []string{"", "Stream", "type(0)", "packet"} {
		typ, err := families.ParseType(word)
		require.ErrorIs(t, err, families.ErrSyntax)
		require.Zero(t, typ)
	}
}

// One folder and one line suffice: a family that package families has never heard
// of is found, resolved, opened and used, and keeps the laws.
func TestAFamilyIsAddedByOneLine(t *testing.T) {
	toy := familytest.NewMem()
	set := append(families.Set{}, kernelSet...)
	set = append(set, toy) // the line

	f, err := set.Family("toy")
	require.NoError(t, err)
	require.Contains(t, set.Networks(), "toygram")
	e, err := families.ParseEndpoint("toy:meeting-point")
	require.NoError(t, err)
	targets, err := set.Resolve(t.Context(), e)
	require.NoError(t, err)
	require.Equal(t, []string{"toy stream meeting-point"}, words(targets))

	server := familytest.MustOpen(t, targets[0].Family, targets[0].Spec)
	require.NoError(t, server.Bind(targets[0].Addr))
	l, err := families.As[families.Listener](server)
	require.NoError(t, err)
	require.NoError(t, l.Listen(0))
	client := familytest.MustOpen(t, targets[0].Family, targets[0].Spec)
	require.NoError(t, client.Connect(t.Context(), targets[0].Addr))
	peer, err := families.AcceptWait(t.Context(), server)
	require.NoError(t, err)
	defer peer.Close()
	_, err = families.SendAll(t.Context(), client, &families.Msg{Data: []byte("hello")})
	require.NoError(t, err)
	m := families.Msg{Data: make([]byte, 10)}
	require.NoError(t, families.RecvWait(t.Context(), peer, &m))
	require.Equal(t, "hello", string(m.Data))

	var n atomic.Int64
	familytest.Run(t, f, familytest.Config{Cases: []familytest.Case{{
		Spec: families.Spec{Type: families.Stream}, Listener: true, HalfCloser: true,
		Addr: func(tb testing.TB) families.Addr {
			return familytest.MustAddr(tb, f, families.Stream, "n"+strconv.FormatInt(n.Add(1), 10))
		},
	}}})
}

// wrapped is a socket in another one, as a wrapper that only counts would be.
type wrapped struct{ families.Socket }

func (w wrapped) Unwrap() families.Socket { return w.Socket }

func TestACapabilityIsFoundThroughWrappers(t *testing.T) {
	toy := familytest.NewMem()
	stream := familytest.MustOpen(t, toy, families.Spec{Type: families.Stream})
	dgram := familytest.MustOpen(t, toy, families.Spec{Type: families.Dgram})
	_, err := families.As[families.Listener](wrapped{wrapped{stream}})
	require.NoError(t, err)
	_, err = families.As[families.Listener](wrapped{dgram})
	require.EqualError(t, err, "toy dgram: not supported")
	require.ErrorIs(t, err, families.ErrNotSupported)
	_, err = families.AcceptWait(t.Context(), dgram)
	require.ErrorIs(t, err, families.ErrNotSupported)
}

func TestSendAllReportsWhatWasTaken(t *testing.T) {
	toy := familytest.NewMem()
	server := familytest.MustOpen(t, toy, families.Spec{Type: families.Stream})
	a := familytest.MustAddr(t, toy, families.Stream, "slow")
	require.NoError(t, server.Bind(a))
	require.NoError(t, server.(families.Listener).Listen(0))
	client := familytest.MustOpen(t, toy, families.Spec{Type: families.Stream})
	require.NoError(t, client.Connect(t.Context(), a))
	peer, err := families.AcceptWait(t.Context(), server)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		n   int
		err error
	}
	sent := make(chan result, 1)
	go func() {
		n, err := families.SendAll(ctx, client, &families.Msg{Data: make([]byte, 1<<20)})
		sent <- result{n, err}
	}()
	// Nobody reads: it stops when the room is used up.
	require.NoError(t, peer.Wait(t.Context(), families.Readable))
	cancel()
	got := <-sent
	require.ErrorIs(t, got.err, context.Canceled)
	require.NoError(t, client.Close())
	read := 0
	for {
		m := families.Msg{Data: make([]byte, 1<<16)}
		err := families.RecvWait(t.Context(), peer, &m)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		read += len(m.Data)
	}
	require.Equal(t, read, got.n)
	require.NoError(t, peer.Close())
}

func TestErrorsSayWhatWasTriedOnWhatAndWhy(t *testing.T) {
	err := error(&families.OpError{Op: "bind", Family: "inet", Addr: "203.0.113.9:80", Err: syscall.EADDRNOTAVAIL})
	require.EqualError(t, err, `bind inet "203.0.113.9:80": cannot assign requested address`)
	require.ErrorIs(t, err, syscall.EADDRNOTAVAIL)
	require.EqualError(t, &families.OpError{Op: "accept", Family: "local", Err: syscall.EMFILE}, "accept local: too many open files")
	require.EqualError(t, &families.SyntaxError{What: "filter", Text: "x y", Column: 3, Why: "unknown word"}, `filter "x y": column 3: unknown word`)
}

func TestAnErrorAboutALongTextShowsWhatIsAroundTheColumn(t *testing.T) {
	long := strings.Repeat("a", 300) + "HERE" + strings.Repeat("é", 300)
	for name, tc := range map[string]struct {
		text   string
		column int
		want   string
	}{
		"all of 200 bytes":  {long[:200], 1, long[:200]},
		"the beginning":     {long, 1, long[:200] + "…"},
		"the middle":        {long, 301, "…" + strings.Repeat("a", 100) + "HERE" + strings.Repeat("é", 48) + "…"},
		"whole characters":  {long, 302, "…" + strings.Repeat("a", 99) + "HERE" + strings.Repeat("é", 48) + "…"},
		"the end":           {long, len(long) + 1, "…" + strings.Repeat("é", 100)},
		"none but the text": {long, 0, long[:200] + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			want := fmt.Sprintf(`filter "%s": column %d: no`, tc.want, tc.column)
			if tc.column == 0 {
				want = fmt.Sprintf(`filter "%s": no`, tc.want)
			}
			require.EqualError(t, &families.SyntaxError{What: "filter", Text: tc.text, Column: tc.column, Why: "no"}, want)
		})
	}
	for _, text := range []string{strings.Repeat("\x80", 500), strings.Repeat("é", 500)} {
		for column := range len(text) + 2 {
			require.Less(t, len((&families.SyntaxError{Text: text, Column: column}).Error()), 1000)
		}
	}
}

func TestNamesAreKeys(t *testing.T) {
	a, b := families.MakeName([]byte("one")), families.MakeName([]byte("one and more"))
	require.NotEqual(t, a, b)
	b.SetLen(3)
	require.Equal(t, a, b, "what is past the end does not count")
	require.Equal(t, "one", string(b.Bytes()))
	require.True(t, new(families.Name).Empty())
	b.SetLen(1000)
	require.Len(t, b.Bytes(), len(b.Buffer()))
	require.Panics(t, func() { families.MakeName(make([]byte, 1000)) })
}
