package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/inet6"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// v2 is a header of version 2: command, family and transport, then what follows.
func v2(command, kind byte, rest ...string) string {
	all := strings.Join(rest, "")
	return proxySignature2 + string(append([]byte{2<<4 | command, kind}, binary.BigEndian.AppendUint16(nil, uint16(len(all)))...)) + all
}

// sunPath is a name as sockaddr_un has it.
func sunPath(s string) string { return s + strings.Repeat("\x00", families.MaxUnixPath-len(s)) }

func tlv(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

const (
	inet4Bytes = "\xc0\x00\x02\x01" + "\xc6\x33\x64\x02" + "\xc3\x50" + "\x01\xbb"
	inet6Bytes = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc6\x33\x64\x02" + "\x00\x00" + "\xff\xff"
	credsBytes = "\x00\x00\x03\xe8" + "\x00\x00\x00\x64" + "\x00\x01\xe2\x40"
)

var (
	inet4Header = proxyHeader{version: 2, family: proxyInet4, transport: proxyStream, src: ap("192.0.2.1:50000"), dst: ap("198.51.100.2:443")}
	inet6Header = proxyHeader{version: 2, family: proxyInet6, transport: proxyStream, src: ap("[2001:db8::1]:0"), dst: ap("[::ffff:198.51.100.2]:65535")}
	unixHeader  = proxyHeader{version: 2, family: proxyUnix, transport: proxyStream, srcName: "@client", dstName: "/run/x.sock"}
	someCreds   = families.Creds{UID: 1000, GID: 100, PID: 123456}
)

// as is h as another version and transport say it.
func (h proxyHeader) as(version uint8, t proxyTransport) proxyHeader {
	h.version, h.transport = version, t
	return h
}

// What each header looks like on the wire, both ways.
var proxyWire = []struct {
	name string
	h    proxyHeader
	wire string
}{
	{"v1 TCP over IPv4", inet4Header.as(1, proxyStream), "PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\r\n"},
	{"v1 TCP over IPv6", inet6Header.as(1, proxyStream), "PROXY TCP6 2001:db8::1 ::ffff:198.51.100.2 0 65535\r\n"},
	{"v1 unknown", proxyHeader{version: 1}, "PROXY UNKNOWN\r\n"},
	{"v2 TCP over IPv4", inet4Header, v2(1, 0x11, inet4Bytes)},
	{"v2 UDP over IPv4", inet4Header.as(2, proxyDgram), v2(1, 0x12, inet4Bytes)},
	{"v2 TCP over IPv6", inet6Header, v2(1, 0x21, inet6Bytes)},
	{"v2 UDP over IPv6", inet6Header.as(2, proxyDgram), v2(1, 0x22, inet6Bytes)},
	{"v2 unix stream", unixHeader, v2(1, 0x31, sunPath("\x00client"), sunPath("/run/x.sock"))},
	{"v2 unix datagram", unixHeader.as(2, proxyDgram), v2(1, 0x32, sunPath("\x00client"), sunPath("/run/x.sock"))},
	{"v2 unix, the longest names", proxyHeader{version: 2, family: proxyUnix, transport: proxyStream, srcName: "@" + strings.Repeat("a", 107), dstName: strings.Repeat("/", 108)},
		v2(1, 0x31, "\x00"+strings.Repeat("a", 107), strings.Repeat("/", 108))},
	{"v2 unix client without a name", proxyHeader{version: 2}.withCreds(someCreds), v2(1, 0x31, sunPath(""), sunPath(""), tlv(0xE0, credsBytes))},
	{"v2 who the client is", inet4Header.withCreds(someCreds), v2(1, 0x11, inet4Bytes, tlv(0xE0, credsBytes))},
	{"v2 of the proxy itself", proxyHeader{version: 2, local: true}, v2(0, 0x00)},
	{"v2 of who knows whom", proxyHeader{version: 2}, v2(1, 0x00)},
}

func TestProxyHeadersOnTheWire(t *testing.T) {
	for _, row := range proxyWire {
		t.Run(row.name, func(t *testing.T) {
			require.Equal(t, row.wire, string(appendProxy(nil, row.h)))
			h, n, err := parseProxy([]byte(row.wire + "payload"))
			require.NoError(t, err)
			require.Equal(t, row.h, h)
			require.Equal(t, len(row.wire), n)
		})
	}
}

func TestProxyVersion1KnowsTCPOnly(t *testing.T) {
	for _, h := range []proxyHeader{inet4Header.as(1, proxyDgram), unixHeader.as(1, proxyStream), {version: 1, local: true}, {version: 1}} {
		require.Equal(t, "PROXY UNKNOWN\r\n", string(appendProxy(nil, h)))
	}
}

// withCRC is a header whose last value is its checksum.
func withCRC(rest string) string {
	b := []byte(v2(1, 0x11, rest, tlv(tlvCRC, "\x00\x00\x00\x00")))
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return string(binary.BigEndian.AppendUint32(b[:len(b)-4], sum))
}

func TestProxyHeadersSayMoreThanIsAsked(t *testing.T) {
	for _, row := range []struct {
		name string
		wire string
		want proxyHeader
	}{
		{"v1 UNKNOWN with addresses", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", proxyHeader{version: 1}},
		{"v1 the longest line", "PROXY UNKNOWN " + strings.Repeat("x", 91) + "\r\n", proxyHeader{version: 1}},
		{"LOCAL with addresses", v2(0, 0x11, inet4Bytes), proxyHeader{version: 2, local: true}},
		{"LOCAL of an unknown family", v2(0, 0xff, "anything"), proxyHeader{version: 2, local: true}},
		{"no family, with values", v2(1, 0x00, "anything"), proxyHeader{version: 2}},
		{"values of others", v2(1, 0x11, inet4Bytes, tlv(0x04, "\x00\x00"), tlv(0x05, "id"), tlv(0xEA, "vpce-1")), inet4Header},
		{"somebody else's 0xE0", v2(1, 0x11, inet4Bytes, tlv(0xE0, "thirteen bytes")), inet4Header},
		{"a checksum", withCRC(inet4Bytes + tlv(0x05, "id")), inet4Header},
		{"bytes behind a path's NUL", v2(1, 0x31, sunPath("\x00client"), sunPath("/run/x.sock\x00junk")), unixHeader},
		{"the longest", v2(1, 0x11, inet4Bytes, tlv(0x04, strings.Repeat("x", maxProxyRest-12-3))), inet4Header},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, n, err := parseProxy([]byte(row.wire))
			require.NoError(t, err)
			require.Equal(t, row.want, h)
			require.Equal(t, len(row.wire), n)
		})
	}
}

func TestWhatIsNoProxyHeader(t *testing.T) {
	badCRC := []byte(withCRC(inet4Bytes))
	badCRC[len(badCRC)-1] ^= 1
	for _, row := range []struct{ name, wire, why string }{
		{"another protocol", "GET / HTTP/1.1\r\n", "begins with"},
		{"a lower-case word", "proxy TCP4", "begins with"},
		{"a word that goes on", "PROXYS ", "begins with"},
		{"a line end alone", "\r\n\r\n\r\n", "begins with"},
		{"an unknown protocol", "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", `a connection of "UDP4"`},
		{"UNKNOWN that goes on", "PROXY UNKNOWNS\r\n", "a connection of"},
		{"no line end in 107 bytes", "PROXY UNKNOWN " + strings.Repeat("x", 93), "more than 107"},
		{"a line of 108 bytes", "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", "CR LF"},
		{"LF alone", "PROXY UNKNOWN\n", "CR LF"},
		{"CR alone", "PROXY UNKNOWN\rx", "CR LF"},
		{"a word too few", "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "4 words"},
		{"a word too many", "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", "6 words"},
		{"two spaces", "PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n", "6 words"},
		{"an octet of 256", "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", "address"},
		{"an octet with a zero", "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n", "address"},
		{"three octets", "PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", "address"},
		{"IPv6 in TCP4", "PROXY TCP4 ::1 ::1 1 2\r\n", "address"},
		{"IPv4 in TCP6", "PROXY TCP6 1.2.3.4 ::1 1 2\r\n", "address"},
		{"a zone", "PROXY TCP6 fe80::1%lo ::1 1 2\r\n", "address"},
		{"a bad destination", "PROXY TCP4 1.2.3.4 x 1 2\r\n", "address"},
		{"a port with a zero", "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "port"},
		{"a port of zeros", "PROXY TCP4 1.2.3.4 1.2.3.4 00 2\r\n", "port"},
		{"a port with a sign", "PROXY TCP4 1.2.3.4 1.2.3.4 1 +2\r\n", "port"},
		{"a port of 65536", "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "port"},
		{"no port", "PROXY TCP4 1.2.3.4 1.2.3.4  2\r\n", "port"},
		{"version 1 in binary", proxySignature2 + "\x11", "version and command 0x11"},
		{"version 3", proxySignature2 + "\x31", "version and command 0x31"},
		{"an unknown command", proxySignature2 + "\x22", "version and command 0x22"},
		{"an unknown family", proxySignature2 + "\x21\x41", "family and transport 0x41"},
		{"an unknown transport", proxySignature2 + "\x21\x13", "family and transport 0x13"},
		{"a transport without family", proxySignature2 + "\x21\x01", "family and transport 0x01"},
		{"more than is taken", proxySignature2 + "\x21\x11\x10\x01", "4097 bytes"},
		{"no room for addresses", proxySignature2 + "\x21\x11\x00\x0b", "no room"},
		{"no room for names", proxySignature2 + "\x21\x31\x00\xd7", "no room"},
		{"half a value's head", v2(1, 0x11, inet4Bytes, "\x04\x00"), "behind its last value"},
		{"a value that is longer", v2(1, 0x11, inet4Bytes, "\x04\x00\x02x"), "behind it"},
		{"a wrong checksum", string(badCRC), "checksum"},
		{"half a checksum", v2(1, 0x11, inet4Bytes, tlv(tlvCRC, "\x00\x00")), "checksum of 2 bytes"},
		{"two identities", v2(1, 0x11, inet4Bytes, tlv(0xE0, credsBytes), tlv(0xE0, credsBytes)), "two clients"},
		{"a path that looks abstract", v2(1, 0x31, sunPath("@client"), sunPath("")), "the path"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, n, err := parseProxy([]byte(row.wire))
			require.ErrorContains(t, err, row.why)
			var none *proxyError
			require.ErrorAs(t, err, &none)
			require.Zero(t, h)
			require.Zero(t, n)
		})
	}
}

func TestProxyHeadersCanComeInPieces(t *testing.T) {
	for _, row := range proxyWire {
		for i := range len(row.wire) {
			h, n, err := parseProxy([]byte(row.wire[:i]))
			require.NoError(t, err, "%s: %d bytes", row.name, i)
			require.Zero(t, n, "%s: %d bytes", row.name, i)
			require.Zero(t, h, "%s: %d bytes", row.name, i)
		}
	}
}

func FuzzParseProxy(f *testing.F) {
	for _, row := range proxyWire {
		f.Add([]byte(row.wire + "payload"))
	}
	f.Add([]byte(withCRC(inet4Bytes)))
	f.Add([]byte("PROXY UNKNOWN x\r\n"))
	f.Add([]byte(v2(0, 0x11, inet4Bytes)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := parseProxy(b)
		if err != nil || n == 0 {
			require.Zero(t, h)
			require.Zero(t, n)
			return
		}
		require.LessOrEqual(t, n, min(len(b), proxyRoom))
		alone, m, err := parseProxy(b[:n:n])
		require.NoError(t, err)
		require.Equal(t, n, m, "what follows the header has no influence")
		require.Equal(t, h, alone)
		for i := range n {
			part, m, err := parseProxy(b[:i])
			require.NoError(t, err)
			require.Zero(t, m, "%d bytes of %d are not all", i, n)
			require.Zero(t, part)
		}
		wire := appendProxy(nil, h)
		again, m, err := parseProxy(wire)
		require.NoError(t, err)
		require.Equal(t, len(wire), m)
		require.Equal(t, h, again)
	})
}

func TestAHeaderCostsNoAllocation(t *testing.T) {
	room := make([]byte, 0, 512)
	for _, row := range proxyWire {
		require.Zero(t, testing.AllocsPerRun(100, func() { room = appendProxy(room[:0], row.h) }), row.name)
	}
	wire := []byte(v2(1, 0x12, inet4Bytes) + "payload")
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, _, err := proxyDatagram(wire); err != nil {
			t.Error(err)
		}
	}), "a datagram's")
}

func TestProxyOfADatagram(t *testing.T) {
	h := inet4Header.as(2, proxyDgram)
	for _, payload := range []string{"", "x", "PROXY UNKNOWN\r\n"} {
		wire := appendProxyDatagram(nil, h, []byte(payload))
		got, rest, err := proxyDatagram(wire)
		require.NoError(t, err)
		require.Equal(t, h, got)
		require.Equal(t, payload, string(rest))
		require.Equal(t, wire, appendProxyDatagram(nil, h.as(1, proxyDgram), []byte(payload)), "there is no version 1 of it")
	}
	for name, wire := range map[string]string{
		"empty": "", "no header": "hello", "cut": v2(1, 0x12, inet4Bytes)[:20], "version 1": "PROXY UNKNOWN\r\nx",
	} {
		got, rest, err := proxyDatagram([]byte(wire))
		require.ErrorContains(t, err, "no PROXY header", name)
		require.Zero(t, got, name)
		require.Nil(t, rest, name)
	}
}

func TestTheHeaderBetweenTwoAddresses(t *testing.T) {
	addr := func(f families.Family, typ families.Type, text string) families.Addr {
		return familytest.MustAddr(t, f, typ, text)
	}
	const stream, dgram = families.Stream, families.Dgram
	for _, row := range []struct {
		name     string
		t        families.Type
		src, dst families.Addr
		v1       string
		text     string
	}{
		{"IPv4", stream, addr(inet.Family, stream, "192.0.2.1:1"), addr(inet.Family, stream, "192.0.2.2:2"), "TCP4 192.0.2.1 192.0.2.2 1 2", "tcp:192.0.2.1:1"},
		{"IPv6", stream, addr(inet6.Family, stream, "[2001:db8::1]:1"), addr(inet6.Family, stream, "[::1]:2"), "TCP6 2001:db8::1 ::1 1 2", "tcp:[2001:db8::1]:1"},
		{"IPv4 on an IPv6 socket", stream, addr(inet6.Family, stream, "[::ffff:192.0.2.1]:1"), addr(inet6.Family, stream, "[::ffff:192.0.2.2]:2"), "TCP4 192.0.2.1 192.0.2.2 1 2", "tcp:192.0.2.1:1"},
		{"one of each", stream, addr(inet.Family, stream, "192.0.2.1:1"), addr(inet6.Family, stream, "[::1]:2"), "TCP6 ::ffff:192.0.2.1 ::1 1 2", "tcp:192.0.2.1:1"},
		{"link-local", stream, addr(inet6.Family, stream, "[fe80::1%lo]:1"), addr(inet6.Family, stream, "[fe80::1%lo]:2"), "TCP6 fe80::1 fe80::1 1 2", "tcp:[fe80::1]:1"},
		{"UDP", dgram, addr(inet.Family, dgram, "192.0.2.1:1"), addr(inet.Family, dgram, "192.0.2.2:2"), "UNKNOWN", "udp:192.0.2.1:1"},
		{"unix", stream, addr(local.Family, stream, "@a"), addr(local.Family, stream, "/run/x"), "UNKNOWN", "unix:@a"},
		{"unix without a name", stream, nil, addr(local.Family, stream, "/run/x"), "UNKNOWN", "unix:"},
		{"unnamed", stream, nil, nil, "UNKNOWN", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			require.Equal(t, "PROXY "+row.v1+"\r\n", string(appendProxy(nil, proxyBetween(1, row.t, row.src, row.dst))))
			h := proxyBetween(2, row.t, row.src, row.dst)
			require.Equal(t, row.text, h.text())
			again, _, err := parseProxy(appendProxy(nil, h))
			require.NoError(t, err)
			require.Equal(t, h, again)
		})
	}
}

// streams are two connected sockets of a stream family.
func streams(t *testing.T, f families.Family, at string) (client, accepted families.Socket) {
	t.Helper()
	l := familytest.MustOpen(t, f, families.Spec{Type: families.Stream})
	require.NoError(t, l.Bind(familytest.MustAddr(t, f, families.Stream, at)))
	listener, err := families.As[families.Listener](l)
	require.NoError(t, err)
	require.NoError(t, listener.Listen(0))
	client = familytest.MustOpen(t, f, families.Spec{Type: families.Stream})
	require.NoError(t, client.Connect(t.Context(), l.Info().Local))
	accepted, err = families.AcceptWait(t.Context(), l)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, accepted.Close()) })
	return client, accepted
}

var proxyStreams = map[string]struct {
	family families.Family
	at     string
}{"tcp": {inet.Family, "127.0.0.1:0"}, "unix": {local.Family, "@sockd-proxy-test"}}

func mustSend(t *testing.T, s families.Socket, b string) {
	t.Helper()
	_, err := families.SendAll(t.Context(), s, &families.Msg{Data: []byte(b)})
	require.NoError(t, err)
}

func withDeadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func TestAcceptProxyTakesTheHeaderAndNotAByteMore(t *testing.T) {
	for name, carrier := range proxyStreams {
		for _, row := range proxyWire {
			t.Run(name+" "+row.name, func(t *testing.T) {
				familytest.NoLeaks(t)
				client, s := streams(t, carrier.family, carrier.at)
				mustSend(t, client, row.wire+"payload")
				h, err := acceptProxy(withDeadline(t), s)
				require.NoError(t, err)
				require.Equal(t, row.h, h)
				m := families.Msg{Data: make([]byte, 100)}
				require.NoError(t, families.RecvWait(withDeadline(t), s, &m))
				require.Equal(t, "payload", string(m.Data))
			})
		}
	}
}

// A reader that has taken what came waits for more; it does not spin.
func TestAcceptProxyTakesAHeaderInPieces(t *testing.T) {
	familytest.NoLeaks(t)
	client, s := streams(t, inet.Family, "127.0.0.1:0")
	wire := appendProxy(nil, unixHeader.withCreds(someCreds))
	var r proxyReader
	for i := range wire {
		_, err := r.try(s)
		require.ErrorIs(t, err, families.ErrAgain)
		n, err := ksock.Inq(s)
		require.NoError(t, err)
		require.Zero(t, n, "what came was taken")
		mustSend(t, client, string(wire[i:i+1]))
		require.NoError(t, s.Wait(withDeadline(t), families.Readable))
	}
	h, err := r.try(s)
	require.NoError(t, err)
	require.Equal(t, unixHeader.withCreds(someCreds), h)
}

func TestAcceptProxyOfWhoSendsNone(t *testing.T) {
	for _, row := range []struct {
		name  string
		send  string
		leave func(*testing.T, families.Socket)
		want  string
	}{
		{"another protocol", "GET / HTTP/1.1\r\n", nil, "no PROXY header"},
		{"no byte", "", closeWrite, "ended before its PROXY header did"},
		{"half a header", "PROXY TCP4 1.2.", closeWrite, "ended before its PROXY header did"},
		{"a reset", "PROXY", reset, "connection reset"},
	} {
		t.Run(row.name, func(t *testing.T) {
			familytest.NoLeaks(t)
			client, s := streams(t, inet.Family, "127.0.0.1:0")
			mustSend(t, client, row.send)
			if row.leave != nil {
				require.NoError(t, waitInq(t, s, len(row.send)))
				row.leave(t, client)
			}
			h, err := acceptProxy(withDeadline(t), s)
			require.ErrorContains(t, err, row.want)
			require.Zero(t, h)
		})
	}
}

func waitInq(t *testing.T, s families.Socket, want int) error {
	t.Helper()
	var err error
	familytest.Eventually(t, "not all came", func() bool {
		var n int
		n, err = ksock.Inq(s)
		return err != nil || n == want
	})
	return err
}

func closeWrite(t *testing.T, s families.Socket) {
	h, err := families.As[families.HalfCloser](s)
	require.NoError(t, err)
	require.NoError(t, h.CloseWrite())
}

func reset(t *testing.T, s families.Socket) {
	r, err := families.As[families.Resetter](s)
	require.NoError(t, err)
	require.NoError(t, r.Reset())
}

func TestAcceptProxyEndsWithItsContext(t *testing.T) {
	familytest.NoLeaks(t)
	client, s := streams(t, inet.Family, "127.0.0.1:0")
	mustSend(t, client, "PROXY TCP4 ")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := acceptProxy(ctx, s)
		done <- err
	}()
	require.NoError(t, waitInq(t, s, 0))
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// Descriptors that come with the header's bytes could not be passed on.
func TestAcceptProxyRefusesDescriptors(t *testing.T) {
	familytest.NoLeaks(t)
	client, s := streams(t, local.Family, "@sockd-proxy-test")
	_, err := client.Send(&families.Msg{Data: []byte("PROXY UNKNOWN\r\n"), Files: []int{0}})
	require.NoError(t, err)
	_, err = acceptProxy(withDeadline(t), s)
	require.ErrorContains(t, err, "descriptors came with it")
}

// proxyStage is a namespace of its own, where a real peer can have any port.
type proxyStage struct {
	t  *testing.T
	ns *familytest.NS
}

func newProxyStage(t *testing.T) *proxyStage {
	t.Helper()
	familytest.NoLeaks(t)
	return &proxyStage{t, familytest.NewNS(t)}
}

// run starts a program in the foreground and ends it with the test.
func (p *proxyStage) run(name string, args ...string) {
	p.t.Helper()
	cmd := p.ns.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(p.t, cmd.Start())
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("%s: %s", name, out.String())
		}
	})
}

// listen is where a peer's backend would be. It takes no more than the test asks for.
func (p *proxyStage) listen(at string) families.Socket {
	p.t.Helper()
	f := p.ns.Family(inet.Family)
	l := familytest.MustOpen(p.t, f, families.Spec{Type: families.Stream})
	require.NoError(p.t, l.Bind(familytest.MustAddr(p.t, f, families.Stream, at)))
	listener, err := families.As[families.Listener](l)
	require.NoError(p.t, err)
	require.NoError(p.t, listener.Listen(0))
	return l
}

// dial connects as soon as somebody listens.
func (p *proxyStage) dial(at string) (c net.Conn) {
	p.t.Helper()
	familytest.Eventually(p.t, "nobody listens on "+at, func() (ok bool) {
		p.ns.Do(func() {
			var err error
			c, err = net.Dial("tcp4", at)
			ok = err == nil
		})
		return ok
	})
	p.t.Cleanup(func() { _ = c.Close() })
	return c
}

// accept is the next connection, and its header.
func (p *proxyStage) accept(l families.Socket) (families.Socket, proxyHeader) {
	p.t.Helper()
	s, err := families.AcceptWait(withDeadline(p.t), l)
	require.NoError(p.t, err)
	p.t.Cleanup(func() { require.NoError(p.t, s.Close()) })
	h, err := acceptProxy(withDeadline(p.t), s)
	require.NoError(p.t, err)
	return s, h
}

func (p *proxyStage) hear(s families.Socket, want string) {
	p.t.Helper()
	got := make([]byte, 0, len(want))
	for len(got) < len(want) {
		m := families.Msg{Data: make([]byte, len(want)-len(got))}
		require.NoError(p.t, families.RecvWait(withDeadline(p.t), s, &m))
		got = append(got, m.Data...)
	}
	require.Equal(p.t, want, string(got))
}

const haproxyConf = `
defaults
	mode tcp
	timeout connect 10s
	timeout client 20s
	timeout server 20s
	retries 0
listen v1
	bind 127.0.0.1:7001
	server s 127.0.0.1:8001 send-proxy
listen v2
	bind 127.0.0.1:7002
	server s 127.0.0.1:8001 send-proxy-v2 proxy-v2-options crc32c,unique-id
	unique-id-format a-unique-id
listen accepts
	bind 127.0.0.1:7003 accept-proxy
	server s 127.0.0.1:8001 send-proxy-v2
`

func TestHaproxySendsAHeader(t *testing.T) {
	p := newProxyStage(t)
	l := p.listen("127.0.0.1:8001")
	p.run("haproxy", "-db", "-f", mustFile(t, "haproxy.cfg", haproxyConf))
	for version, at := range map[uint8]string{1: "127.0.0.1:7001", 2: "127.0.0.1:7002"} {
		c := p.dial(at)
		_, err := io.WriteString(c, "payload")
		require.NoError(t, err)
		s, h := p.accept(l)
		require.Equal(t, proxyHeader{version: version, family: proxyInet4, transport: proxyStream, src: ap(c.LocalAddr().String()), dst: ap(at)}, h)
		p.hear(s, "payload")
	}
}

// HAProxy takes our header for the client's address, and tells its own backend.
func TestHaproxyAcceptsOurHeader(t *testing.T) {
	p := newProxyStage(t)
	l := p.listen("127.0.0.1:8001")
	p.run("haproxy", "-db", "-f", mustFile(t, "haproxy.cfg", haproxyConf))
	for name, sent := range map[string]proxyHeader{
		"v1 IPv4":                inet4Header.as(1, proxyStream),
		"v1 IPv6":                inet6Header.as(1, proxyStream),
		"v2 IPv4":                inet4Header,
		"v2 IPv6":                inet6Header,
		"v2 IPv4 with our value": inet4Header.withCreds(someCreds),
	} {
		c := p.dial("127.0.0.1:7003")
		_, err := c.Write(append(appendProxy(nil, sent), "payload"...))
		require.NoError(t, err)
		s, h := p.accept(l)
		want := sent.as(2, proxyStream)
		want.creds, want.hasCreds = families.Creds{}, false
		require.Equal(t, want, h, name)
		p.hear(s, "payload")
	}
	for name, sent := range map[string]proxyHeader{"v1 UNKNOWN": {version: 1}, "v2 LOCAL": {version: 2, local: true}} {
		c := p.dial("127.0.0.1:7003")
		_, err := c.Write(append(appendProxy(nil, sent), "payload"...))
		require.NoError(t, err)
		s, h := p.accept(l)
		require.Equal(t, ap(c.LocalAddr().String()), h.src, "%s: the connection's own addresses count", name)
		p.hear(s, "payload")
	}
}

// A health check of HAProxy's is its own connection.
func TestHaproxyChecksWithALocalHeader(t *testing.T) {
	p := newProxyStage(t)
	l := p.listen("127.0.0.1:8001")
	p.run("haproxy", "-db", "-f", mustFile(t, "haproxy.cfg", haproxyConf+`
listen checked
	bind 127.0.0.1:7004
	option tcp-check
	tcp-check connect send-proxy
	tcp-check send hello
	server s 127.0.0.1:8001 send-proxy-v2 check check-send-proxy inter 100
`))
	s, h := p.accept(l)
	require.Equal(t, proxyHeader{version: 2, local: true}, h)
	p.hear(s, "hello")
}

const nginxStreamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

const nginxConf = `
load_module %s;
daemon off;
master_process off;
pid %[2]s/pid;
error_log stderr;
events {}
stream {
	server {
		listen 127.0.0.1:7001;
		proxy_protocol on;
		proxy_pass 127.0.0.1:8001;
	}
	server {
		listen 127.0.0.1:7002 proxy_protocol;
		return "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
	}
}
`

func (p *proxyStage) runNginx() {
	dir := p.t.TempDir()
	p.run("nginx", "-e", "stderr", "-p", dir, "-c", mustFile(p.t, "nginx.conf", fmt.Sprintf(nginxConf, nginxStreamModule, dir)))
}

func TestNginxSendsAHeader(t *testing.T) {
	p := newProxyStage(t)
	l := p.listen("127.0.0.1:8001")
	p.runNginx()
	c := p.dial("127.0.0.1:7001")
	_, err := io.WriteString(c, "payload")
	require.NoError(t, err)
	s, h := p.accept(l)
	require.Equal(t, proxyHeader{version: 1, family: proxyInet4, transport: proxyStream, src: ap(c.LocalAddr().String()), dst: ap("127.0.0.1:7001")}, h)
	p.hear(s, "payload")
}

func TestNginxAcceptsOurHeader(t *testing.T) {
	p := newProxyStage(t)
	p.runNginx()
	over6 := inet6Header
	over6.src = ap("[2001:db8::1]:50000") // nginx shows no port 0
	for _, h := range []proxyHeader{inet4Header.as(1, proxyStream), over6.as(1, proxyStream), inet4Header, over6, inet4Header.withCreds(someCreds)} {
		c := p.dial("127.0.0.1:7002")
		_, err := c.Write(appendProxy(nil, h))
		require.NoError(t, err)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%s %d %s %d", h.src.Addr(), h.src.Port(), h.dst.Addr(), h.dst.Port()), string(got))
	}
}

func mustFile(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}
