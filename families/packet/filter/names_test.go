package filter

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mustEtc makes a folder like /etc of some files.
func mustEtc(tb testing.TB, files map[string]string) Names {
	tb.Helper()
	dir := tb.TempDir()
	for name, text := range files {
		require.NoError(tb, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return etc(dir)
}

func TestServicesHavePortsForOneProtocolOrBoth(t *testing.T) {
	n := mustEtc(t, map[string]string{"services": `
# name port
web     81/tcp   spider   # aliases
web     81/udp
split   7001/udp
split   7000/tcp
again   1/tcp
again   2/tcp
only    900/udp  single
queue   5/tcp
queue   5/sctp
zero    0/tcp
zero    0/udp
bad     x/tcp
huge    65536/tcp
lone
`})
	for _, tc := range []struct {
		name, proto string
		port        uint16
	}{
		{"web", "", 81},
		{"spider", "tcp", 81},
		{"split", "tcp", 7000},
		{"again", "tcp", 1},
		{"only", "udp", 900},
		{"single", "udp", 900},
		{"queue", "tcp", 5},
		{"zero", "", 0},
		{"https", "", 443}, // of our own table
		{"ntp", "udp", 123},
		{"syslog", "", 514},
	} {
		port, proto, err := n.Port(tc.name)
		require.NoError(t, err, tc.name)
		require.Equal(t, tc.port, port, tc.name)
		require.Equal(t, tc.proto, proto, tc.name)
	}
	for _, name := range []string{"WEB", "bad", "huge", "lone", "x", ""} {
		_, _, err := n.Port(name)
		require.ErrorIs(t, err, errNoService, name)
	}
}

func TestHostsHaveAllTheirAddresses(t *testing.T) {
	n := mustEtc(t, map[string]string{"hosts": `
10.0.0.1  Alpha alpha.example
10.0.0.2  alpha # a second one
10.0.0.1  alpha
fe80::1%lo alpha
not-an-address beta
`})
	addrs, err := n.Host("ALPHA")
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::1")}, addrs)
	addrs, err = n.Host("10.9.8.7")
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.9.8.7")}, addrs)
	for _, name := range []string{"beta", "example.com", "a", "fe80::1%lo"} {
		addrs, err = n.Host(name)
		require.ErrorIs(t, err, errNoHost, name)
		require.Nil(t, addrs)
	}
}

func TestOtherNamesAreOfTheirFiles(t *testing.T) {
	n := mustEtc(t, map[string]string{
		"networks":  "loopback 127.0.0.0 Lo\nshort 10\nhex 0xa.1\nlong 1.2.3.4.5\nbad 300\n",
		"protocols": "tcp 6 TCP\nours 253\nmptcp 262\n",
		"ethers":    "0:1b:2:cc:d:ee printer\n00:11:22:33:44:55:66:77 long\nff:ff:ff:ff:ff:zz bad\n",
		"passwd":    "root:x:0:0:root:/root:/bin/sh\n#old:x:7:7::/:\nann:x:1000:1000::/:/bin/sh\nneg:x:-1:0::/:\nshort:x\n",
	})
	for name, want := range map[string]uint32{"LOOPBACK": 0x7f000000, "lo": 0x7f000000, "short": 0x0a000000, "hex": 0x0a010000} {
		got, ok := n.Net(name)
		require.True(t, ok, name)
		require.Equal(t, want, got, name)
	}
	for name, want := range map[string]uint8{"tcp": 6, "TCP": 6, "ours": 253, "ospf": 89, "ip": 0} {
		got, ok := n.Protocol(name)
		require.True(t, ok, name)
		require.Equal(t, want, got, name)
	}
	mac, ok := n.Ether("Printer")
	require.True(t, ok)
	require.Equal(t, [6]byte{0x00, 0x1b, 0x02, 0xcc, 0x0d, 0xee}, mac)
	for name, want := range map[string]uint32{"root": 0, "ann": 1000} {
		got, ok := n.User(name)
		require.True(t, ok, name)
		require.Equal(t, want, got, name)
	}
	requireUnknown(t, n)
}

func requireUnknown(t *testing.T, n Names) {
	t.Helper()
	for _, name := range []string{"long", "bad", "mptcp", "neg", "short:", "old", "#old", "Tcp", "Ann"} {
		_, net := n.Net(name)
		_, proto := n.Protocol(name)
		_, ether := n.Ether(name)
		_, user := n.User(name)
		require.False(t, net || proto || ether || user, name)
	}
}

func TestAMachineWithoutFilesKnowsTheUsualNames(t *testing.T) {
	n := etc(filepath.Join(t.TempDir(), "none"))
	port, proto, err := n.Port("www")
	require.NoError(t, err)
	require.Equal(t, uint16(80), port)
	require.Equal(t, "tcp", proto)
	number, ok := n.Protocol("gre")
	require.True(t, ok)
	require.Equal(t, uint8(47), number)
	_, err = n.Host("localhost")
	require.Error(t, err)
	_, ok = n.User("root")
	require.False(t, ok)
}

// Each name of a filter may be one of thousands: a file is read once.
func TestAFileIsReadOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "passwd")
	require.NoError(t, os.WriteFile(path, []byte("ann:x:1:1::/:\n"), 0o600))
	n := etc(dir)
	_, ok := n.User("bob")
	require.False(t, ok)
	require.NoError(t, os.WriteFile(path, []byte("bob:x:2:2::/:\n"), 0o600))
	_, ok = n.User("ann")
	require.True(t, ok)
}

func TestAFileIsReadUpToItsBound(t *testing.T) {
	line := "10.0.0.1 alpha # " + strings.Repeat("x", 1000) + "\n"
	text := strings.Repeat(line, maxDatabase/len(line)+1) + "10.0.0.2 beta\n"
	n := mustEtc(t, map[string]string{"hosts": text})
	_, err := n.Host("alpha")
	require.NoError(t, err)
	_, err = n.Host("beta")
	require.ErrorIs(t, err, errNoHost)
}

func TestOurOwnNamesGoBeforeTheFiles(t *testing.T) {
	n := Names{User: func(name string) (uint32, bool) { return 7, name == "seven" }}.orDefault()
	uid, ok := n.User("seven")
	require.True(t, ok)
	require.Equal(t, uint32(7), uid)
	_, ok = n.User("root")
	require.False(t, ok)
	port, _, err := n.Port("ssh")
	require.NoError(t, err)
	require.Equal(t, uint16(22), port)
}

func TestOurTablesHaveNoLineThatTheParsersLeaveOut(t *testing.T) {
	for _, line := range strings.Split(strings.TrimSpace(serviceTable), "\n") {
		require.NotEmpty(t, parseServices(strings.NewReader(line)), line)
	}
	for _, line := range strings.Split(strings.TrimSpace(protocolTable), "\n") {
		require.NotEmpty(t, parseProtocols(strings.NewReader(line)), line)
	}
	require.Greater(t, len(wellKnownServices()), 100)
}

// Whatever a file holds, its parser neither panics nor makes a name of what is none.
func FuzzNameFiles(f *testing.F) {
	for _, text := range []string{"127.0.0.1 localhost a b\n", "http 80/tcp www # x\n", "tcp 6 TCP\n", "lo 127.0.0.0\n", "0:1:2:3:4:5 x\n", "root:x:0:0::/:\n", "a\x00b 1/udp \xff\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, names := range [][]string{
			keys(parseHosts(bytes.NewReader(text))), keys(parseNetworks(bytes.NewReader(text))),
			keys(parseServices(bytes.NewReader(text))), keys(parseProtocols(bytes.NewReader(text))),
			keys(parseEthers(bytes.NewReader(text))),
		} {
			for _, name := range names {
				require.Len(t, strings.Fields(name), 1)
				require.NotContains(t, name, "#")
			}
		}
		for _, name := range keys(parsePasswd(bytes.NewReader(text))) {
			require.NotEmpty(t, name)
			require.NotContains(t, name, ":")
		}
	})
}

func keys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return out
}
