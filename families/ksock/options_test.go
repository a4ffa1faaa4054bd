package ksock_test

import (
	"sort"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/inet6"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

func TestOptionsAreSetAndRead(t *testing.T) {
	familytest.Need(t, familytest.Root()) // so_mark and so_rcvbufforce take CAP_NET_ADMIN
	familytest.NoLeaks(t)
	for _, row := range []struct {
		f                families.Family
		typ              families.Type
		name, set, reads string // reads "" is not read
	}{
		{inet.Family, families.Stream, "so_keepalive", "", "1"},
		{inet.Family, families.Stream, "so_keepalive", "off", "0"},
		{inet.Family, families.Stream, "so_reuseport", "yes", "1"},
		{inet.Family, families.Stream, "so_linger", "5", "5"},
		{inet.Family, families.Stream, "so_linger", "0", "0"},
		{inet.Family, families.Stream, "so_linger", "off", "off"},
		{inet.Family, families.Stream, "so_rcvbuf", "64k", "131072"}, // doubled by the kernel (socket(7))
		{inet.Family, families.Stream, "so_mark", "0x10", "16"},
		{inet.Family, families.Stream, "so_rcvbufforce", "1M", ""},
		{inet.Family, families.Stream, "tcp_nodelay", "", "1"},
		{inet.Family, families.Stream, "tcp_keepidle", "33", "33"},
		{inet.Family, families.Stream, "tcp_user_timeout", "1500", "1500"},
		{inet.Family, families.Stream, "tcp_congestion", "reno", "reno"},
		{inet.Family, families.Stream, "tcp_notsent_lowat", "16k", "16384"},
		{inet.Family, families.Stream, "so_bindtodevice", "lo", "lo"},
		{inet.Family, families.Stream, "iface", "lo", ""},
		{inet.Family, families.Dgram, "so_broadcast", "true", "1"},
		{inet.Family, families.Dgram, "ip_ttl", "7", "7"},
		{inet.Family, families.Dgram, "ip_tos", "0x10", "16"},
		{inet.Family, families.Dgram, "ip_multicast_if", "lo", ""},
		{inet.Family, families.Dgram, "ip_add_membership", "224.0.0.99%lo", ""},
		{inet6.Family, families.Stream, "ipv6_v6only", "", "1"},
		{inet6.Family, families.Stream, "v6only", "0", ""},
		{inet6.Family, families.Stream, "tcp_nodelay", "on", "1"},
		{inet6.Family, families.Dgram, "ipv6_unicast_hops", "9", "9"},
		{inet6.Family, families.Dgram, "ipv6_tclass", "32", "32"},
		{inet6.Family, families.Dgram, "join", "ff02::99%lo", ""},
		{inet6.Family, families.Dgram, "ipv6_multicast_if", "lo", ""},
		{inet.Family, families.Dgram, "ip_multicast_if", "127.0.0.1", ""},
		{inet6.Family, families.Dgram, "join", "224.0.0.98%lo", ""},
		{local.Family, families.Stream, "so_passcred", "", "1"},
		{local.Family, families.Dgram, "so_sndbuf", "8192", "16384"},
	} {
		t.Run(row.f.Name()+" "+row.name+"="+row.set, func(t *testing.T) {
			o := as[families.Optioner](t, open(t, row.f, row.typ))
			require.NoError(t, o.SetOption(row.name, row.set))
			if row.reads == "" {
				_, err := o.Option(row.name)
				require.ErrorIs(t, err, families.ErrSyntax, "it is not read")
				require.NotContains(t, o.Options(), row.name)
				return
			}
			got, err := o.Option(row.name)
			require.NoError(t, err)
			require.Equal(t, row.reads, got)
		})
	}
}

func TestOptionsThatDoNotParseSayWhere(t *testing.T) {
	for _, row := range []struct {
		name, value string
		column      int
	}{
		{"no_such_option", "1", 1},
		{"SO_RCVBUF", "1", 1},
		{"so_rcvbuf", "", 9},
		{"so_rcvbuf", "big", 11},
		{"so_rcvbuf", "4G", 11},
		{"so_keepalive", "maybe", 14},
		{"so_linger", "forever", 11},
		{"so_type", "stream", 1},
		{"so_mark", "1.5", 9},
		{"ip_add_membership", "10.0.0.1", 19},
		{"join", "ff02::1", 6},
		{"v6only", "", 1},
		{"ipv6_v6only", "1", 1},
		{"so_passcred", "1", 1},
	} {
		o := as[families.Optioner](t, open(t, inet.Family, families.Stream))
		var s *families.SyntaxError
		require.ErrorAs(t, o.SetOption(row.name, row.value), &s, row.name)
		require.Equal(t, row.column, s.Column, row.name)
		require.Equal(t, "option", s.What)
	}
}

func TestEveryListedOptionCanBeAsked(t *testing.T) {
	for _, f := range []families.Family{inet.Family, inet6.Family, local.Family} {
		for _, typ := range []families.Type{families.Stream, families.Dgram} {
			o := as[families.Optioner](t, open(t, f, typ))
			names := o.Options()
			require.True(t, sort.StringsAreSorted(names))
			for i, name := range names {
				require.False(t, i > 0 && names[i-1] == name, "%s is listed twice", name)
				_, err := o.Option(name) // some need a connection, but all are known
				require.NotErrorIs(t, err, families.ErrSyntax, name)
			}
		}
	}
}

func TestAnOptionThatTheKernelRefusesKeepsItsErrno(t *testing.T) {
	o := as[families.Optioner](t, open(t, inet.Family, families.Stream))
	require.EqualError(t, o.SetOption("so_bindtodevice", "no-such-iface"), `set option inet "so_bindtodevice=no-such-iface": no such device`)
}

func TestOptionsAreSetBeforeBind(t *testing.T) {
	s := open(t, inet.Family, families.Stream, families.Option{Name: "so_rcvbuf", Value: "4096"})
	got, err := as[families.Optioner](t, s).Option("so_rcvbuf")
	require.NoError(t, err)
	require.Equal(t, "8192", got)
	_, err = inet.Family.Open(t.Context(), families.Spec{Type: families.Stream, Options: []families.Option{{Name: "so_rcvbuf", Value: "x"}}})
	require.ErrorIs(t, err, families.ErrSyntax)
}

// The daemon's interfaces are not those of a socket that a client opened in
// another network namespace.
func TestInterfacesAreLookedUpWhereTheSocketIs(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "left", "10.9.0.1/24", b, "right", "10.9.0.2/24")
	o := as[families.Optioner](t, open(t, a.Family(inet.Family), families.Dgram))
	require.NoError(t, o.SetOption("ip_multicast_if", "left"))
	require.NoError(t, o.SetOption("join", "239.1.2.3%left"))
	require.ErrorIs(t, o.SetOption("join", "239.1.2.3%right"), syscall.ENODEV)
	require.ErrorIs(t, o.SetOption("join", "239.1.2.3%a-name-that-is-too-long"), families.ErrSyntax)
}
