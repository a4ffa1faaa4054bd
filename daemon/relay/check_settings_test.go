package relay

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

func mustAllow(tb testing.TB, words string) []model.Allow {
	tb.Helper()
	var rules []model.Allow
	for _, w := range strings.Fields(words) {
		a, err := model.ParseAllow(w)
		require.NoError(tb, err)
		rules = append(rules, a)
	}
	return rules
}

func TestOptionsOfWhatFlowsStandWhereTheyMeanSomething(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, from, to string
		balance        string
		want           string // "" is fine
	}{
		{name: "datagrams into a stream", from: "udp:127.0.0.1:53", to: "tcp:127.0.0.1:53,framing=u16be"},
		{name: "a stream into datagrams", from: "tcp:127.0.0.1:53,framing=u16be", to: "udp:127.0.0.1:54"},
		{name: "frames of an interface through a stream", from: "packet:lo", to: "tcp:127.0.0.1:1,framing=u16be"},
		{name: "another framing", from: "unix:/run/a,framing=lf", to: "tcp:127.0.0.1:1,framing=u32be"},
		{name: "seqpacket into a unix stream", from: "unixpacket:/run/a", to: "unix:/run/b,framing=u32be"},
		{
			name: "framing on FROM alone", from: "tcp::80,framing=lf", to: "unix:/x",
			want: "tcp to unix: tcp has framing= and unix is a stream without message borders; give framing= to both or to neither",
		},
		{
			name: "framing on TO alone", from: "tcp::80", to: "unix:/x,framing=lf",
			want: "tcp to unix: unix has framing= and tcp is a stream without message borders; give framing= to both or to neither",
		},
		{
			name: "no framing where it is wanted", from: "udp::53", to: "tcp:127.0.0.1:53",
			want: "udp to tcp: tcp is a stream without the message borders that udp has; give it some with framing=u16be, a length in front of each message",
		},
		{name: "framing of datagrams", from: "udp::53,framing=lf", to: "udp:127.0.0.1:53", want: `endpoint "udp::53,framing=lf": column 9: "framing" is for streams: tcp, unix`},
		{name: "framing that is none", from: "tcp::53,framing=u8", to: "udp:127.0.0.1:53", want: `endpoint "tcp::53,framing=u8": column 9: framing wants u16be, u32be or lf`},
		{name: "framing without a value", from: "tcp::53", to: "tcp:127.0.0.1:54,framing", want: `endpoint "tcp:127.0.0.1:54,framing": column 18: framing wants u16be, u32be or lf`},

		{name: "a header is accepted", from: "tcp::80,proxy=accept", to: "tcp:127.0.0.1:81,proxy=v2"},
		{name: "version 1", from: "unix:/run/a", to: "tcp:127.0.0.1:81,proxy=v1"},
		{name: "version 2 on udp", from: "udp::80,proxy=accept", to: "udp:127.0.0.1:81,proxy=v2"},
		{name: "version 1 on udp", from: "udp::80", to: "udp:127.0.0.1:81,proxy=v1", want: `endpoint "udp:127.0.0.1:81,proxy=v1": column 18: version 1 of the PROXY protocol is for streams: want proxy=v2`},
		{name: "FROM sends none", from: "tcp::80,proxy=v2", to: "unix:/x", want: `endpoint "tcp::80,proxy=v2": column 9: "proxy=v2" belongs to TO`},
		{name: "TO accepts none", from: "tcp::80", to: "unix:/x,proxy=accept", want: `endpoint "unix:/x,proxy=accept": column 9: "proxy=accept" belongs to FROM`},
		{name: "proxy on seqpacket", from: "unixpacket:/a,proxy=accept", to: "unixpacket:/x", want: `endpoint "unixpacket:/a,proxy=accept": column 15: "proxy" is for streams and udp`},
		{name: "proxy on unixgram", from: "unixgram:/a", to: "unixgram:/x,proxy=v2", want: `endpoint "unixgram:/x,proxy=v2": column 13: "proxy" is for streams and udp`},
		{name: "a header before a unix datagram's", from: "unixgram:/a", to: "udp:127.0.0.1:81,proxy=v2", want: "unixgram to udp: proxy= on datagrams goes from udp to udp; leave it out"},
		{name: "a header of a datagram for a stream", from: "udp::80,proxy=accept", to: "tcp:127.0.0.1:81,framing=lf", want: "udp to tcp: proxy= on datagrams goes from udp to udp; leave it out"},
		{name: "a version that is none", from: "tcp::80", to: "unix:/x,proxy=v3", want: `endpoint "unix:/x,proxy=v3": column 9: proxy wants accept, v1 or v2`},

		{name: "fanout", from: "udp::80", to: "udp:127.0.0.1:81,loss=block,queue=16", balance: "fanout"},
		{name: "fanout into a framed stream", from: "tcp::80,framing=lf", to: "tcp:127.0.0.1:81,framing=lf,loss=disconnect", balance: "fanout"},
		{
			name: "fanout of a stream", from: "tcp::80", to: "unix:/x", balance: "fanout",
			want: "balance fanout: unix is a stream without message borders; give it some with framing=u16be, a length in front of each message",
		},
		{name: "a backup in a fanout", from: "udp::80", to: "udp:127.0.0.1:81,backup", balance: "fanout", want: `endpoint "udp:127.0.0.1:81,backup": column 18: with balance fanout every TO gets every message, and none is a backup`},
		{name: "loss without a fanout", from: "udp::80", to: "udp:127.0.0.1:81,loss=block", want: `endpoint "udp:127.0.0.1:81,loss=block": column 18: "loss" is for balance fanout`},
		{name: "a queue without a fanout", from: "udp::80", to: "udp:127.0.0.1:81,retry=1s,queue=9", balance: "least", want: `endpoint "udp:127.0.0.1:81,retry=1s,queue=9": column 27: "queue" is for balance fanout`},
		{name: "loss on FROM", from: "udp::80,loss=block", to: "udp:127.0.0.1:81", balance: "fanout", want: `endpoint "udp::80,loss=block": column 9: "loss" belongs to TO`},
		{name: "loss that is none", from: "udp::80", to: "udp:127.0.0.1:81,loss=all", balance: "fanout", want: `endpoint "udp:127.0.0.1:81,loss=all": column 18: loss wants block, drop-oldest or disconnect`},
		{name: "no queue", from: "udp::80", to: "udp:127.0.0.1:81,queue=0", balance: "fanout", want: `endpoint "udp:127.0.0.1:81,queue=0": column 18: queue wants a number of messages from 1 to 65536`},

		{name: "retry", from: "tcp::80", to: "unix:/x,retry=30s"},
		{name: "retry for ever", from: "tcp::80", to: "tcp:127.0.0.1:81,retry=none"},
		{name: "retry that is none", from: "tcp::80", to: "unix:/x,retry=soon", want: `endpoint "unix:/x,retry=soon": column 9: retry wants a duration such as 30s, or none`},
		{name: "retry on FROM", from: "tcp::80,retry=1s", to: "unix:/x", want: `endpoint "tcp::80,retry=1s": column 9: "retry" belongs to TO`},
		{name: "retry of an open socket", from: "tcp::80", to: "id:7,retry=1s", want: `endpoint "id:7,retry=1s": column 6: "retry" is for what is dialled; an open socket is there already`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := spec(t, tc.from, tc.to)
			s.Balance = tc.balance
			err := w.eng.Check(s)
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tc.want)
		})
	}
}

func TestSettingsStandWhereTheyMeanSomething(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, from, to    string
		allow, pass, want string
		rate              int64
		key               string // of the mistake, where it has a key of its own
	}{
		{name: "networks on tcp", from: "tcp::80", to: "unix:/x", allow: "10.0.0.0/8 ::1"},
		{name: "users on tcp", from: "tcp::80", to: "unix:/x", allow: "uid:0 gid:5 127.0.0.1"},
		{name: "networks on udp", from: "udp::80", to: "udp:127.0.0.1:81", allow: "10.0.0.0/8"},
		{name: "users on unix", from: "unixpacket:/a", to: "unixpacket:/x", allow: "uid:0"},
		{name: "users on unixgram", from: "unixgram:/a", to: "unixgram:/x", allow: "gid:0"},
		{name: "anything on what is not known yet", from: "id:7", to: "tcp:127.0.0.1:1", allow: "uid:0 10.0.0.0/8"},
		{name: "networks on unix", from: "unix:/a", to: "unix:/x", allow: "uid:0 ::/0", key: "Allow", want: "allow ::/0: who comes to unix has no address; want uid:U or gid:G"},
		{name: "users on udp", from: "udp::80", to: "udp:127.0.0.1:81", allow: "10.0.0.0/8 uid:7", key: "Allow", want: "allow uid:7: nobody tells which user sent a datagram to udp; want networks or addresses"},
		{name: "frames", from: "packet:lo", to: "udp:127.0.0.1:81", allow: "10.0.0.0/8", key: "Allow", want: "packet: frames come from nobody whom allow could name; leave it out"},

		{name: "rights", from: "unix:/a", to: "unix:/x", pass: "rights"},
		{name: "rights of messages", from: "unixgram:/a", to: "unixpacket:/x", pass: "rights"},
		{name: "rights over tcp", from: "unix:/a", to: "tcp:127.0.0.1:1", pass: "rights", key: "Pass", want: "pass rights: tcp cannot carry descriptors; they go from unix to unix: unix, unixgram, unixpacket"},
		{name: "rights from tcp", from: "tcp::80", to: "unix:/x", pass: "rights", key: "Pass", want: "pass rights: tcp cannot carry descriptors; they go from unix to unix: unix, unixgram, unixpacket"},
		{name: "rights in frames", from: "unix:/a,framing=lf", to: "unixgram:/x", pass: "rights", key: "Pass", want: "pass rights: unix:/a,framing=lf has framing=, and a frame cannot carry descriptors; leave out one or the other"},
		{name: "something else to pass", from: "unix:/a", to: "unix:/x", pass: "creds", key: "Pass", want: `pass "creds": want rights`},

		{name: "a rate", from: "tcp::80", to: "unix:/x", rate: 1},
		{name: "a rate below none", from: "tcp::80", to: "unix:/x", rate: -1, key: "Rate", want: `rate "-1": want bytes a second, or 0 for no limit`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := spec(t, tc.from, tc.to)
			s.Allow, s.Pass, s.Rate = mustAllow(t, tc.allow), tc.pass, tc.rate
			err := w.eng.Check(s)
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tc.want)
			require.Equal(t, tc.key, w.eng.Mistakes(s)[0].Key, "the line of the file that it stands in")
		})
	}
}

func TestRulesAreBounded(t *testing.T) {
	w := newWorld(t)
	s := spec(t, "tcp::80", "unix:/x")
	s.Allow = make([]model.Allow, model.MaxAllow+1)
	require.ErrorIs(t, w.eng.Check(s), families.ErrSyntax)
}

// What is not known of an open socket is asked when it is taken; it goes back.
func TestSettingsAreCheckedAgainWhenASocketIsThere(t *testing.T) {
	w := newWorld(t)
	tcp := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	for _, tc := range []struct {
		name  string
		open  string // what id:7 is bound to
		from  string
		allow string
		pass  string
		want  string
	}{
		{"networks for unix peers", "unix:" + w.path("l"), "id:7", "10.0.0.0/8", "", "allow 10.0.0.0/8: who comes to id:7 has no address; want uid:U or gid:G"},
		{"users for datagrams", "udp:127.0.0.1:0", "id:7", "uid:5", "", "allow uid:5: nobody tells which user sent a datagram to id:7; want networks or addresses"},
		{"rights from tcp", "tcp:127.0.0.1:0", "id:7", "", "rights", "pass rights: id:7 cannot carry descriptors; they go from unix to unix: unix, unixgram, unixpacket"},
		{"framing of datagrams", "udp:127.0.0.1:0", "id:7,framing=lf", "", "", "id:7: framing= is for streams, and this has messages; leave it out"},
		{"a header before messages", "unixgram:" + w.path("g"), "id:7,proxy=accept", "", "", "id:7: proxy=accept is for streams and udp; leave it out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &meeting{world: w}
			sock, target := m.target(mustEndpoint(t, tc.open))
			require.NoError(t, sock.Bind(target.Addr))
			if l, err := families.As[families.Listener](sock); err == nil {
				require.NoError(t, l.Listen(0))
			}
			w.host.open[7] = sock
			to := "tcp:" + tcp.Addr().String()
			if tc.pass != "" {
				to = "unix:/run/nobody"
			}
			s := spec(t, tc.from, to)
			s.Allow, s.Pass = mustAllow(t, tc.allow), tc.pass
			_, err := w.eng.Add(context.Background(), s)
			require.ErrorIs(t, err, families.ErrNotSupported)
			require.EqualError(t, err, tc.want)
			require.Contains(t, w.host.open, model.ID(7))
		})
	}
}

func TestOptionsAreReadAsTheyWereWritten(t *testing.T) {
	for text, want := range map[string]ownOptions{
		"tcp:a:1": {},
		"tcp:a:1,framing=u32be,proxy=v2,retry=90s": {framing: framingU32BE, proxy: proxyV2, retry: 90 * time.Second},
		"udp:a:1,loss=drop-oldest,queue=7":         {loss: lossDropOldest, queue: 7},
		"tcp:a:1,retry=none,backup":                {retry: model.NoLimit, backup: true},
		"tcp:a:1,retry=0":                          {},
		"tcp:a:1,proxy=accept,framing=lf":          {proxy: proxyAccept, framing: framingLF},
	} {
		ep := mustEndpoint(t, text)
		got, err := readOptions(ep)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		require.Equal(t, strings.SplitN(text, ",", 2)[0], familyPart(ep).String(), "the family sees none of them")
	}
}

// A replace that changes what FROM's options say keeps the listener and has the new
// ones for whoever comes from then on.
func TestReplaceChangesOptionsOfFromWithoutClosingIt(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	s.Name = "web"
	first := w.mustAdd(s)
	s.From = mustEndpoint(t, "tcp:127.0.0.1:0,proxy=accept")
	s.Allow, s.Rate = mustAllow(t, "127.0.0.0/8"), 1<<20
	second, err := w.eng.Replace(context.Background(), s)
	require.NoError(t, err)
	require.Equal(t, first.ID, second.ID)
	require.Equal(t, first.Local, second.Local)
	require.Equal(t, map[string]string{"allow": "127.0.0.0/8", "rate": "1M"}, second.Settings)
	r, err := w.eng.relay(first.ID)
	require.NoError(t, err)
	p := r.holdPlan()
	defer p.release()
	require.Equal(t, proxyAccept, p.own.proxy)
	require.Equal(t, allowList(s.Allow), p.allow)
	require.Equal(t, int64(1<<20), r.pace[0].rate.Load())

	s.From = mustEndpoint(t, "tcp:127.0.0.1:0,framing=lf")
	_, err = w.eng.Replace(context.Background(), s)
	require.EqualError(t, err, "tcp to tcp: tcp has framing= and tcp is a stream without message borders; give framing= to both or to neither")
	none, rate := []model.Allow(nil), int64(0)
	third, err := w.eng.Set(context.Background(), first.ID, model.RelayChange{Allow: &none, Rate: &rate})
	require.NoError(t, err)
	require.Empty(t, third.Settings)
	require.Zero(t, r.pace[1].rate.Load())
}
